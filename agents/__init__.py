"""Agents that control learning rates. `make_agent(name)` finds one, ours or another package's.

There is a wing per method with the same rooms: `agent.py` is what acts, `settings.py` what a training can be told,
`training.py` how it is trained. `schedules` and `hypergradient` have nothing to train. `outer` is the training loop of
all others.
"""

from __future__ import annotations

if __name__ == "agents":
    raise ImportError("this folder is the package lrenv.agents: write `from lrenv.agents import ...`")

from lrenv.agents.base import BaseAgent
from lrenv.controllers.agent import Agent, View, agents, make_agent
from lrenv.controllers.sb3_agent import SB3Agent

__all__ = ["Agent", "BaseAgent", "SB3Agent", "View", "agents", "make_agent"]
