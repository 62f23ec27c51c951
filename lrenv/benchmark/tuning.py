"""Tuning agents over their grids, on seeds that results are not reported on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.controllers.agent import AgentError, agent_factory
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task, make_task

TUNING_SEEDS = tuple(seeds_for("tuning", 3))
"""Schedules are tuned on these; results are reported on others."""
AT_ONCE = 256
"""Trainees in a batch at most, which bounds memory."""

Once = Callable[[dict[str, Any], Callable[[], Result]], Result]
"""(what tells a cell from all others, what runs it) -> its result, which may have been there before."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a grid search.

    Attributes:
        settings: the best combination; the first of those that are level, in the grid's order.
        combinations: all of them.
        val_loss: (combinations,) mean of the best validation losses over the tuning seeds; infinite if a run diverged.
    """

    settings: dict[str, Any]
    combinations: list[dict[str, Any]]
    val_loss: NDArray[Any]


def afresh(_key: dict[str, Any], run: Callable[[], Result]) -> Result:
    """Runs every cell, and keeps none."""
    return run()


def grid_of(name: str) -> dict[str, tuple[Any, ...]]:
    """Returns hyperparameter -> the values that an agent's factory carries to be tuned over; empty if it has none."""
    return dict(getattr(agent_factory(name), "grid", None) or {})


def tune(
    name: str,
    task: Task | str,
    seeds: Sequence[int] = TUNING_SEEDS,
    at_once: int = AT_ONCE,
    device: str | None = None,
    once: Once = afresh,
) -> Tuned:
    """Searches the grid that an agent's factory carries, by validation loss, all combinations as one batch.

    A combination with a run that diverged is not chosen (`lrenv.benchmark.selection`).

    Args:
        name: the agent's; its factory's `grid` maps hyperparameters to values, whose product is searched.
        task: what to tune on.
        seeds: each combination runs on all of them.
        at_once: trainees in a batch at most.
        device: where the trainees live.
        once: runs a batch, or knows its result.

    Raises:
        ValueError: the agent has no grid.
        AgentError: runs diverge with every combination.
    """
    factory, grid, task = agent_factory(name), grid_of(name), make_task(task)
    if not grid:
        raise ValueError(f"agent {name!r} has no grid to tune over; give its settings, as in {name}:peak=0.01")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    pairs = [(combination, seed) for combination in combinations for seed in seeds]

    def run(part: list[tuple[dict[str, Any], int]]) -> Result:
        settings = {key: np.array([combination[key] for combination, _ in part]) for key in grid}
        result = evaluate(factory(**settings), task, [seed for _, seed in part], name=name, device=device)
        return replace(result, curves={})  # nothing is chosen by them

    parts = [pairs[first : first + at_once] for first in range(0, len(pairs), at_once)]
    found = [once({"tune": name, "part": i}, partial(run, part)) for i, part in enumerate(parts)]
    losses = np.concatenate([selection_losses(result.val_loss, result.diverged) for result in found])
    mean = losses.reshape(len(combinations), len(seeds)).mean(1)
    if not np.isfinite(mean).any():
        raise AgentError(
            f"agent {name!r} on task {task.name!r}: runs diverge with all {len(combinations)} settings of its grid "
            f"({', '.join(grid)}); give it settings of your own, as in {name}:{next(iter(grid))}=..."
        )
    return Tuned(combinations[int(mean.argmin())], combinations, mean)
