"""How far a rate falls that doesn't know how long the run is: what `universal-anytime` was chosen by.

On drawn tasks for choosing designs, schedules of which each is a warm-up of ten steps and a decay (1 + t / 30)^-q, with
the peaks of `universal` for 400 steps times a factor, run as one batch; and `universal`, which knows the budget. A line
per task is appended to a file, from which the same command goes on. What is told is the logarithm of the last
validation loss, less that of `universal`, as a mean over tasks with its standard error; and the part of the tasks that
lose more than 0.5.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from drawn_guards import losses_of
from drawn_rows import by_optimizer, digest_of, rows_of
from lrenv.agents.universal.policy import DECAY_POWER, GUARD, SCHEDULE, Architecture
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

FACTORS, POWERS = (0.25, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the peak, and of the decay."""
DESIGNS = list(itertools.product(POWERS, FACTORS))
FIRST_TASK = 3000
"""The place of the first task, beyond those of `drawn_guards.py`."""


@dataclass(frozen=True)
class Settings:
    """The settings: how many tasks, and where what was found is kept."""

    tasks: int = 200
    """Tasks to try schedules on."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/drawn_anytime.jsonl")
    """The file of what was found."""


def shapes(powers: Tensor) -> Tensor:
    """The parameters (n, 3) of schedules with these powers (n,), as differences from those of an untrained policy."""
    found = torch.zeros(len(powers), len(SCHEDULE))
    found[:, SCHEDULE.index("log_power")] = (powers / DECAY_POWER).log()
    return found


def tried(training: UniversalTraining, task: Task) -> dict[str, Any]:
    """The log loss of each design on a task, relative to that of `universal`."""
    known, unknown = Architecture(), Architecture(horizon=False)
    power, factor = torch.tensor(DESIGNS).unbind(1)
    losses = losses_of(training, task, unknown, factor.log()[:, None], GUARD, shapes(power))
    reference = losses_of(training, task, known, torch.zeros(1, 1), GUARD, torch.zeros(1, len(SCHEDULE)))
    return {
        "task": task.name, "version": VERSION, "optimizer": task.optimizer, "designs": digest_of(DESIGNS),
        "more_than_universal": [round(x, 4) for x in (losses - reference).tolist()],
    }  # fmt: skip


def told(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [f"| q | {' | '.join(f'peak times {factor:g}' for factor in FACTORS)} |", f"|---|{'---:|' * len(FACTORS)}"]
    more = np.array([row["more_than_universal"] for row in rows]).reshape(len(rows), len(POWERS), len(FACTORS))
    error = more.std(0, ddof=1) / math.sqrt(len(rows))
    for i, power in enumerate(POWERS):
        cells = [
            f"{more[:, i, j].mean():+.3f} ({error[i, j]:.3f}), {(more[:, i, j] > 0.5).mean():.2f}"
            for j in range(len(FACTORS))
        ]
        lines.append(f"| {power:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    """Runs, and prints the table."""
    training, designs = UniversalTraining(UniversalSettings(limit=settings.limit)), digest_of(DESIGNS)
    tasks = training.distribution.tasks("selection", settings.tasks, FIRST_TASK)
    rows = rows_of(settings.out, tasks, lambda row: row["designs"] == designs, lambda task: tried(training, task))
    print(by_optimizer(rows, told))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
