"""The gain of `lrenv.runtime.process.keep_memory`: `python benchmarks/allocator.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import tyro

from environments import parts, stepped
from harness import Build, Sized, Turn, race, rate, report
from lrenv.runtime.process import keep_memory


@dataclass(frozen=True)
class Allocator(Sized):
    """The settings of the race between the default allocator and kept memory."""

    task: str = "mnist1d-mlp"
    """Trainees' task; a name from `lrenv tasks`."""


def part(name: str, keep: bool, task: str, envs: int, repeats: int, **options: Any) -> Turn:
    """Builds one part of a decision; a turn is in calls per second.

    Raises:
        RuntimeError: the C library is not glibc.
    """
    if keep and not keep_memory():
        raise RuntimeError("the C library is not glibc: nothing to set")
    return partial(rate, parts(*stepped(task, envs, False, options), False)[name], repeats)


def main(settings: Allocator) -> None:
    """Runs and reports a race for each part of a decision that computes."""
    for name in ("training", "measuring"):
        contestants: dict[str, Build] = {
            contestant: partial(part, name, keep, settings.task, settings.envs, settings.decisions, **settings.options)
            for contestant, keep in (("default allocator", False), ("kept memory", True))
        }
        title = f"{settings.variant}: {name} {settings.envs} environments, by allocator"
        report(race(title, "intervals/s", contestants, settings.turns, "default allocator"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Allocator, description=__doc__))
