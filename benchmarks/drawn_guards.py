"""What the guard of `agents/universal` saves where a peak is too high, and what it costs where it is right.

On drawn tasks for choosing designs, which no power law was fitted to, all guards run as one batch, with peaks that are
the power law's times 1, 4 and 16: a rate that is far too high is too rare on drawn tasks to choose a guard by, and not
so on others. A line per task is appended to a file, from which the same command goes on. What is told is the logarithm
of the last validation loss relative to that of the untrained network, less that without a guard and with the power
law's peak, as a mean over tasks with its standard error; and the part of the tasks that lose more than 0.5.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from lrenv.agents.outer.validation import fall_of
from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.agents.universal.agent import action_of_rates
from lrenv.agents.universal.policy import (
    GUARD,
    SCHEDULE,
    WARMUP,
    Architecture,
    Guard,
    first_memory,
    log_decay,
    log_warmup,
    power_law,
    shown,
    signals,
)
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import append_line, json_lines
from lrenv.runtime.progress import progress
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
    with torch.no_grad():
        state, step = episode.reset(seeds_for("selection", SEEDS, FIRST_SEED) * (len(shape) // SEEDS))
        first, memory = state.dynamics.val_loss, first_memory(shown(step))
        for number in range(episode.decisions):
            seen = signals(architecture, shown(step))
            memory = guard(memory, seen)
            wanted = power_law(architecture, exponents, seen) + log_factor + log_warmup(architecture, shape, seen)
            memory = memory._replace(reached=torch.minimum(wanted, memory.ceiling))
            rates = (memory.reached + log_decay(architecture, shape, seen)).exp()
            last = np.full(len(shape), number == episode.decisions - 1)
            state, step = episode.step(state, action_of_rates(rates), last)
        losses = fall_of(first, state.dynamics.val_loss, state.diverged)
    return losses.view(-1, SEEDS).mean(1)


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


def digest_of(designs: Any) -> str:
    """Tells what is compared from other designs, and from the same with another version of the policy."""
    return hashlib.sha256(json.dumps([POLICY, designs]).encode()).hexdigest()[:16]


def own_digest() -> str:
    """That of the designs of this file."""
    return digest_of([FACTORS, {name: asdict(own.guard) | {"warmup": own.warmup} for name, own in DESIGNS.items()}])


def by_optimizer(rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]) -> str:
    """A table of all tasks, and of those of each kind of optimizer."""
    kinds = {"all": (False, True), "optimizers that scale gradients": (False,), "SGD with momentum": (True,)}
    of_kind = {kind: [row for row in rows if (row["optimizer"] == "momentum") in sgd] for kind, sgd in kinds.items()}
    return "\n\n".join(f"{kind}, {len(own)} tasks\n\n{table(own)}" for kind, own in of_kind.items() if len(own) > 1)


def rows_of(
    out: Path, tasks: Sequence[Task], current: Callable[[dict[str, Any]], bool], tried: Callable[[Task], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What was found of tasks, before and now; this is appended to the file.

    Args:
        out: the file.
        tasks: to look at.
        current: whether a row is of what is compared now.
        tried: gives the row of a task.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {row["task"]: row for row in json_lines(out) if row["version"] == VERSION and current(row)}
    with progress(len(tasks), "tasks") as report:
        for place, task in enumerate(tasks):
            report(place)
            if task.name not in known:
                known[task.name] = tried(task)
                append_line(out, json.dumps(known[task.name]))
    return [known[task.name] for task in tasks]


def main(settings: Settings) -> None:
    """Runs, and prints differences."""
    training, designs = UniversalTraining(UniversalSettings(limit=settings.limit)), own_digest()
    tasks = training.distribution.tasks("selection", settings.tasks, FIRST_TASK)
    rows = rows_of(settings.out, tasks, lambda row: row["designs"] == designs, lambda task: tried(training, task))
    print(by_optimizer(rows, told))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
