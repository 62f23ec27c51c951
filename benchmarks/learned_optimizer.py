"""The time of a step with the learned optimizer, beside Adam and SGD: `python benchmarks/learned_optimizer.py`.

The task is that of Metz et al. 2019, whose learned optimizer takes 1.16 times as long as Adam on a CPU (appendix F).
Inner steps alone are timed: draws, passes forward and back, updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import tyro

from harness import STEPS_RATE, Build, Settings, Turn, race, rate, report
from lrenv.agents.learned_optimizer.agent import Architecture, LearnedOptimizer
from lrenv.runtime.process import keep_memory
from lrenv.training.optimizers import OptimizerFactory
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee


@dataclass(frozen=True)
class Steps(Settings):
    """The settings of the race between optimizers."""

    task: str = "fashion-mnist-conv3"
    batch_size: int | None = 64
    envs: int = 1
    """Trainees in parallel."""
    steps: int = 100
    """Inner steps in a turn; whole intervals are taken."""


def stepping(settings: Steps, optimizer: str | OptimizerFactory, lr: float) -> Turn:
    """Builds trainees; a turn is in trainee-steps per second."""
    keep_memory()
    task = make_task(settings.task, optimizer=optimizer, **settings.options)
    trainee = Trainee(task, compile=settings.compile)
    rates, hyper = torch.full((settings.envs, 1), lr), trainee.hyper(settings.envs)
    start = trainee.init(range(settings.envs))
    intervals = -(-settings.steps // task.interval)

    @torch.no_grad()
    def run() -> None:
        state = start
        for _ in range(intervals):
            state, _ = trainee.unroll(state, rates, hyper, task.interval)

    run()
    return partial(rate, run, units=settings.envs * intervals * task.interval)


def main(settings: Steps) -> None:
    """Runs and reports the race."""
    learned = LearnedOptimizer(Architecture().init(0))
    contestants: dict[str, Build] = {
        "Adam": partial(stepping, settings, "adam", 1e-3),
        "SGD": partial(stepping, settings, "sgd", 1e-2),
        "learned optimizer": partial(stepping, settings, learned, 1.0),
    }
    title = f"{settings.variant}: steps of {settings.envs} trainees with the learned optimizer"
    report(race(title, STEPS_RATE, contestants, settings.turns, "Adam"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Steps, description=__doc__))
