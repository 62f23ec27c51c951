"""Agents that control learning rates; `make_agent(name)` makes one, of this package or of another.

| folder | what its agents do | source |
|---|---|---|
| `schedules` | follow a function of time | PyTorch's schedulers |
| `hypergradient` | follow the gradient of the loss by the rate | Baydin et al. 2018 and two later methods |
| `ppo` | act by a policy trained with reinforcement learning | Xu et al. 2019 |
| `noh` | set a rate per parameter by an LSTM | Fu et al. 2017 |
| `universal` | set a peak for any task by power laws in what its untrained network shows | the design of this project |
| `fds` | follow a schedule that was differentiated through training | Micaelli and Storkey 2021 |
| `tuning_free` | are optimizers that find their rates, from their authors' packages | six papers of 2023 and 2024 |
| `learned_optimizer` | are the trainee's optimizer, a trained perceptron | Metz et al. 2019 |

Each folder's `__init__` gives the paper, its equation and the order to read in. The files have the same names in all
but `hypergradient`: `agent.py` acts; where there is something to train, `settings.py` has the settings of that, and
`training.py` trains, in the loop of `outer`. `base.py` is how an agent is written, and the place to start.
"""

from __future__ import annotations

if __name__ == "agents":
    raise ImportError("this folder is the package lrenv.agents: write `from lrenv.agents import ...`")

from lrenv.agents.base import BaseAgent
from lrenv.controllers.agent import Agent, AgentError, View, agents, make_agent
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.controllers.sb3_agent import SB3Agent

__all__ = ["Agent", "AgentError", "BaseAgent", "OptimizerAgent", "SB3Agent", "View", "agents", "make_agent"]
