"""Memory of a hypergradient by horizon, in reverse and forward mode: `python benchmarks/hypergradient_memory.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import tyro

from harness import Build, Sized, Turn, peak_mib, race, report
from lrenv.training.hypergradients import Hypergradient, forward, reverse
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

METHODS: dict[str, Callable[..., Hypergradient]] = {
    "reverse, plain": partial(reverse, checkpoint=False),
    "reverse, checkpointed": partial(reverse, checkpoint=True),
    "forward": forward,
}
RATE = 1e-3


@dataclass(frozen=True)
class Horizons(Sized):
    """The settings of the race: each method and horizon in a fresh process."""

    envs: int = 4
    """Trainees in parallel."""
    steps: tuple[int, ...] = (100, 400, 1600)
    """Horizons: inner steps to differentiate through."""
    stretches: int = 4
    """Learning rates in the schedule: tangents that forward mode carries in the end."""


def grown(method: str, steps: int, settings: Horizons) -> Turn:
    """Builds a method; a turn is in MiB by which it raises the process's peak above that of a single interval."""
    trainee = Trainee(make_task(settings.task, **settings.options))
    start = trainee.init(range(settings.envs))
    schedule = {"lr": torch.full((settings.envs, settings.stretches), RATE)}
    differentiate = partial(METHODS[method], trainee, start, schedule)
    differentiate(max(trainee.task.interval, settings.stretches))

    def turn() -> float:
        before = peak_mib()
        differentiate(steps)
        return peak_mib() - before

    return turn


def main(settings: Horizons) -> None:
    """Runs and reports the race. One turn each: a peak does not come down for a second one."""
    contestants: dict[str, Build] = {
        f"{method}, {steps} steps": partial(grown, method, steps, settings)
        for method in METHODS
        for steps in settings.steps
    }
    title = f"{settings.label}: peak memory of the hypergradient of {settings.envs} trainees, above that of an interval"
    report(race(title, "MiB", contestants, 1, next(iter(contestants))), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Horizons, description=__doc__))
