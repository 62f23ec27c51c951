"""Networks in training as batched Gymnasium environments, for agents that control the learning rate.

Importing the package registers `lrenv/<task>-v0` for every task:

    import gymnasium as gym, lrenv
    env = gym.make("lrenv/digits-mlp-v0")
    envs = gym.make_vec("lrenv/digits-mlp-v0", num_envs=64)
    result = lrenv.evaluate(lrenv.make_agent("linear", peak=1e-2), "digits-mlp", seeds=range(10))

    controller = lrenv.LRController(optimizer, "cosine:peak=0.01", horizon=5000)

The last line drives one's own PyTorch loop. `LRController`, `make_agent`, `evaluate` and `compare` are imported when
they are first used, for what they need takes time.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if (Path(__file__).parent / "agents").is_file():  # what git makes of a link where the system, or its user, has none
    raise ImportError(
        f"{Path(__file__).parent / 'agents'} must be a symbolic link to the folder agents/ of the checkout, but it is "
        "a file: allow links (on Windows, switch the developer mode on), run `git config core.symlinks true`, delete "
        "the file, and run `git checkout lrenv/agents`"
    )

from lrenv.envs.observations import register_observation
from lrenv.envs.rewards import register_reward
from lrenv.training.built_in_tasks import BUILT_IN
from lrenv.training.tasks import LogUniform, Task, make_task, register_built_in, register_task, tasks

if TYPE_CHECKING:
    from lrenv.benchmark.comparison import compare
    from lrenv.benchmark.evaluation import evaluate
    from lrenv.controllers.agent import make_agent
    from lrenv.home.controller import LRController

__all__ = [
    "LRController",
    "LogUniform",
    "Task",
    "compare",
    "evaluate",
    "make_agent",
    "make_task",
    "register_observation",
    "register_reward",
    "register_task",
    "tasks",
]

register_built_in(BUILT_IN)

_LATER = {
    "LRController": "lrenv.home.controller",
    "compare": "lrenv.benchmark.comparison",
    "evaluate": "lrenv.benchmark.evaluation",
    "make_agent": "lrenv.controllers.agent",
}
"""Name -> the module that holds it."""


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'lrenv' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
