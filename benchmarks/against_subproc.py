"""One batch of trainees against single environments side by side: `python benchmarks/against_subproc.py`.

All are stepped through Stable-Baselines3's interface. Each worker of `SubprocVecEnv` computes with one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import lrenv  # noqa: F401 - registers the environments
from environments import WARM_UP
from harness import Build, Sized, Turn, race, rate, report
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.runtime.process import keep_memory


@dataclass(frozen=True)
class AgainstSubproc(Sized):
    """The settings of the race between a batch and processes."""

    envs: int = 8
    """Environments; as many processes."""


def single(task: str, threads: int | None = None, **options: Any) -> gym.Env[Any, Any]:
    """Builds one environment, in its process."""
    keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return gym.make(f"lrenv/{task}-v0", **options)


def batched(task: str, envs: int, **options: Any) -> VecEnv:
    """Builds all environments as one batch."""
    keep_memory()
    return LearningRateVecEnv(envs, task, **options)


def dummy(task: str, envs: int, **options: Any) -> VecEnv:
    """Builds environments that are stepped one after the other in one process."""
    return DummyVecEnv([partial(single, task, **options)] * envs)


def subproc(task: str, envs: int, **options: Any) -> VecEnv:
    """Builds environments in a process each."""
    return SubprocVecEnv([partial(single, task, threads=1, **options)] * envs)


def stepped(make: Callable[[], VecEnv], number: int) -> Turn:
    """Builds environments; a turn is in decisions per second, all environments together."""
    envs = make()
    envs.reset()
    step = partial(envs.step, np.zeros((envs.num_envs, *(envs.action_space.shape or ())), np.float32))
    for _ in range(WARM_UP):
        step()
    return partial(rate, step, number, envs.num_envs)


def main(settings: AgainstSubproc) -> None:
    """Runs and reports the race."""
    makers = {"SubprocVecEnv": subproc, "DummyVecEnv": dummy, "LearningRateVecEnv": batched}
    contestants: dict[str, Build] = {
        name: partial(
            stepped,
            partial(make, settings.task, settings.envs, device="cpu", compile=settings.compile, **settings.options),
            settings.decisions,
        )
        for name, make in makers.items()
    }
    title = f"{settings.variant}: a batch of {settings.envs} environments against processes"
    result = race(title, "decisions/s", contestants, settings.turns, "SubprocVecEnv")
    report(replace(result, notes=("The peak of SubprocVecEnv is that of its main process alone.",)), settings.record)


if __name__ == "__main__":
    main(tyro.cli(AgainstSubproc, description=__doc__))
