"""What the guard of `agents/universal` saves where a peak is too high, and what it costs where it is right.

On drawn tasks for choosing designs, which no power law was fitted to, all guards run as one batch, with peaks that are
the power law's times 1, 4 and 16: a rate that is far too high is too rare on drawn tasks to choose a guard by, and not
so on others. A line per task is appended to a file, from which the same command goes on. What is told is the logarithm
of the last validation loss relative to that of the untrained network, less that without a guard and with the power
law's peak, as a mean over tasks with its standard error; and the part of the tasks that lose more than 0.5.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from drawn_rows import by_optimizer, digest_of, falls, rows_of
from lrenv.agents.universal.policy import (
    GUARD,
    SCHEDULE,
    WARMUP,
    Architecture,
    Guard,
    Memory,
    first_memory,
    log_decay,
    log_warmup,
    power_law,
    shown,
    signals,
)
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.envs.episode import TimeStep
from lrenv.randomness.seeds import seeds_for
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

FACTORS = (1.0, 4.0, 16.0)
"""Of the peak."""
FIRST_TASK, FIRST_SEED = 2000, 100
"""The places of the first task and of the first seed, beyond those of `drawn_peaks.py`."""
SEEDS = 2
NEVER = 1e9


class Design(NamedTuple):
    """A guard and a warm-up."""

    guard: Guard
    warmup: float


NONE = replace(GUARD, rise=NEVER, farthest=NEVER)
DESIGNS = {
    "none, warm-up 0.05": Design(NONE, 0.05),
    "none, 0.15": Design(NONE, 0.15),
    "of losses alone": Design(replace(GUARD, farthest=NEVER), 0.15),
    "of movements alone": Design(replace(GUARD, rise=NEVER), 0.15),
    "both, as in universal": Design(GUARD, 0.15),
    "warm-up 0.1": Design(GUARD, 0.1),
    "warm-up 0.2": Design(GUARD, 0.2),
    "over 10 steps": Design(replace(GUARD, examples=0.0), 0.15),
    "over 1000 examples": Design(replace(GUARD, examples=1000.0), 0.15),
    "rise 1.3": Design(replace(GUARD, rise=1.3), 0.15),
    "rise 2": Design(replace(GUARD, rise=2.0), 0.15),
    "fall 0.1": Design(replace(GUARD, fall=0.1), 0.15),
    "farthest 0.3": Design(replace(GUARD, farthest=0.3), 0.15),
    "watched 1": Design(replace(GUARD, watched=1.0), 0.15),
}
"""What is compared, by name, with the part of the budget that the warm-up takes; those from the sixth on differ from
the fifth in one number."""


@dataclass(frozen=True)
class Settings:
    """The settings: how many tasks, and where what was found is kept."""

    tasks: int = 200
    """Tasks to try guards on."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/drawn_guards.jsonl")
    """The file of what was found."""


def as_one(designs: list[Design]) -> tuple[Guard, Tensor]:
    """One guard, and one warm-up (n, 1), whose parts are those of n designs."""
    columns = {
        field.name: torch.tensor([[getattr(design.guard, field.name)] for design in designs]) for field in fields(Guard)
    }
    return Guard(**columns), torch.tensor([[design.warmup] for design in designs])


def losses_of(
    training: UniversalTraining, task: Task, architecture: Architecture, log_factor: Tensor, guard: Guard, shape: Tensor
) -> Tensor:
    """The log losses (designs,) of untrained policies on a task, the means over `SEEDS` runs.

    Args:
        training: gives the episode.
        task: to run on.
        architecture: of the policies.
        log_factor: (designs, 1), the logarithm of what peaks are multiplied by.
        guard: of all designs, or with tensors (designs, 1).
        shape: (designs, 3), in the order of `SCHEDULE`.
    """
    _, episode = training.run(task)
    parts = {name: part.repeat_interleave(SEEDS, 0) for name, part in vars(guard).items() if isinstance(part, Tensor)}
    guard, log_factor, shape = replace(guard, **parts), *(x.repeat_interleave(SEEDS, 0) for x in (log_factor, shape))
    exponents = torch.zeros(len(shape), len(architecture.exponents))
    memory: Memory | None = None

    def log_rates(step: TimeStep) -> Tensor:
        nonlocal memory
        seen = signals(architecture, shown(step))
        memory = guard(first_memory(shown(step)) if memory is None else memory, seen)
        wanted = power_law(architecture, exponents, seen) + log_factor + log_warmup(architecture, shape, seen)
        memory = memory._replace(reached=torch.minimum(wanted, memory.ceiling))
        return memory.reached + log_decay(architecture, shape, seen)

    seeds = seeds_for("selection", SEEDS, FIRST_SEED) * (len(shape) // SEEDS)
    return falls(episode, seeds, log_rates).view(-1, SEEDS).mean(1)


def tried(training: UniversalTraining, task: Task) -> dict[str, Any]:
    """The log loss of each design on a task, by factor."""
    runs = list(itertools.product(FACTORS, DESIGNS.values()))
    guard, warmup = as_one([design for _, design in runs])
    shape = torch.zeros(len(runs), len(SCHEDULE))
    shape[:, SCHEDULE.index("log_warmup")] = (warmup / WARMUP).log()[:, 0]
    log_factor = torch.tensor([[factor] for factor, _ in runs]).log()
    losses = losses_of(training, task, training.architecture, log_factor, guard, shape)
    by_factor = losses.view(len(FACTORS), len(DESIGNS)).tolist()
    return {
        "task": task.name, "version": VERSION, "optimizer": task.optimizer, "designs": own_digest(),
        "log_loss": {name: [round(row[place], 4) for row in by_factor] for place, name in enumerate(DESIGNS)},
    }  # fmt: skip


def told(rows: list[dict[str, Any]]) -> str:
    """The table."""
    losses = {name: np.array([row["log_loss"][name] for row in rows]) for name in DESIGNS}
    right = losses["none, warm-up 0.05"][:, 0]
    heads = [f"{head} at {factor:g}" for factor in FACTORS for head in ("loss", "lost")]
    lines = [f"| guard | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, of_name in losses.items():
        cells = []
        for column in of_name.T:
            less = column - right
            error = less.std(ddof=1) / len(less) ** 0.5
            cells += [f"{less.mean():+.3f} ({error:.3f})", f"{(less > 0.5).mean():.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def own_digest() -> str:
    """That of the designs of this file."""
    return digest_of([FACTORS, {name: asdict(own.guard) | {"warmup": own.warmup} for name, own in DESIGNS.items()}])


def main(settings: Settings) -> None:
    """Runs, and prints differences."""
    training, designs = UniversalTraining(UniversalSettings(limit=settings.limit)), own_digest()
    tasks = training.distribution.tasks("selection", settings.tasks, FIRST_TASK)
    rows = rows_of(settings.out, tasks, lambda row: row["designs"] == designs, lambda task: tried(training, task))
    print(by_optimizer(rows, told))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
