"""What the benchmarks on drawn tasks share: a run under given rates, and a file with a line per task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrenv.agents.outer.validation import fall_of
from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.agents.universal.agent import action_of_rates
from lrenv.envs.episode import Episode, TimeStep
from lrenv.runtime.files import append_line, json_lines
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

Row = dict[str, Any]


def falls(episode: Episode, seeds: Sequence[int], log_rates: Callable[[TimeStep], Tensor]) -> Tensor:
    """The logarithms (n,) of the last validation losses, relative to those of the untrained networks.

    Args:
        episode: of a task, measured at both ends alone, whose control sets rates.
        seeds: of the runs.
        log_rates: what is shown at a decision -> (n, K), the logarithms of the rates.
    """
    with torch.no_grad():
        state, step = episode.reset(list(seeds))
        first = state.dynamics.val_loss
        for number in range(episode.decisions):
            last = np.full(len(seeds), number == episode.decisions - 1)
            state, step = episode.step(state, action_of_rates(log_rates(step).exp()), last)
        return fall_of(first, state.dynamics.val_loss, state.diverged)


def digest_of(designs: Any) -> str:
    """Tells what is compared from other designs, and from the same with another version of the policy."""
    return hashlib.sha256(json.dumps([POLICY, designs]).encode()).hexdigest()[:16]


def rows_of(
    out: Path, tasks: Sequence[Task], current: Callable[[Row], bool], tried: Callable[[Task], Row]
) -> list[Row]:
    """What was found of tasks, before and now; this is appended to the file.

    Args:
        out: the file.
        tasks: to look at.
        current: whether a row is of what is compared now.
        tried: gives the row of a task.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {row["task"]: row for row in json_lines(out) if row.get("version") == VERSION and current(row)}
    with progress(len(tasks), "tasks") as report:
        for place, task in enumerate(tasks):
            report(place)
            if task.name not in known:
                known[task.name] = tried(task)
                append_line(out, json.dumps(known[task.name]))
    return [known[task.name] for task in tasks]


def by_optimizer(rows: list[Row], table: Callable[[list[Row]], str]) -> str:
    """A table of all tasks, and of those of each kind of optimizer."""
    kinds = {"all": (False, True), "optimizers that scale gradients": (False,), "SGD with momentum": (True,)}
    of_kind = {kind: [row for row in rows if (row["optimizer"] == "momentum") in sgd] for kind, sgd in kinds.items()}
    return "\n\n".join(f"{kind}, {len(own)} tasks\n\n{table(own)}" for kind, own in of_kind.items() if len(own) > 1)
