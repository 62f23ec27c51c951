"""The time of episodes that end at different times: `python benchmarks/staggered.py --compile`.

Three environments take turns: in one all episodes begin together, in one they are spread evenly over an episode, in one
a third of the trainees diverges in every decision and begins anew. A turn is a whole number of episodes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tyro
from gymnasium.vector import AutoresetMode

from harness import STEPS_RATE, Sized, Turn, race, rate, report
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.runtime.process import keep_memory
from lrenv.training.tasks import make_task

FATAL = 1e30
"""A rate that no training survives."""


def episodes(kind: str, task: str, envs: int, number: int, compile: bool, **options: Any) -> Turn:
    """Builds an environment whose episodes are "aligned", "staggered" or "dying"; a turn is in trainee-steps/s."""
    keep_memory()
    chosen = make_task(task, **options)
    env = LearningRateVectorEnv(
        envs, chosen, control="set-raw", device="cpu", compile=compile, autoreset_mode=AutoresetMode.SAME_STEP
    )
    env.reset(seed=0)
    rates = np.full((envs, 1), 1e-3, np.float32)
    length = env.episode.decisions
    for decision in range(length):
        env.step(rates)
        if kind == "staggered":
            env.reset(options={"reset_mask": np.arange(envs) % length == decision % length})
    if kind == "dying":
        rates[::3] = FATAL
    step = partial(env.step, rates)
    step()
    whole = max(1, number // length) * length
    return partial(rate, step, whole, envs * chosen.interval)


def main(settings: Sized) -> None:
    """Runs and reports the race."""
    contestants = {
        name: partial(
            episodes, kind, settings.task, settings.envs, settings.decisions, settings.compile, **settings.options
        )
        for name, kind in (
            ("aligned episodes", "aligned"), ("staggered episodes", "staggered"), ("a third dies at once", "dying"),
        )
    }  # fmt: skip
    title = f"{settings.variant}: {settings.envs} environments, aligned and staggered"
    report(race(title, STEPS_RATE, contestants, settings.turns, "aligned episodes"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Sized, description=__doc__))
