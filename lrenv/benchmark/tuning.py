"""Tuning agents over their grids, on seeds that results are not reported on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from operator import itemgetter
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

RATES = ("peak", "initial_lr")
"""Hyperparameters whose grids are extended if the best value is at an end."""
LIMITS = (1e-8, 1e4)
"""Grids are extended within these."""
EXTENSION = 2
"""Values by which a grid grows at a time."""

Once = Callable[[dict[str, Any], Callable[[], Result]], Result]
"""(what tells a cell from all others, what runs it) -> its result, which may have been there before."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a grid search.

    Attributes:
        settings: the best combination; the first of those that are level, in the grid's order.
        combinations: all of them, those of extensions last.
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


def extended(values: Sequence[Any], factor: float, best: Any, takes: Callable[[Any], bool]) -> list[Any]:
    """Returns ascending values of a geometric axis, with more where the best one is at an end.

    Args:
        values: of the axis.
        factor: between two of them.
        best: one of them; None where every run diverged: then lower values are added.
        takes: whether the agent can be made with a value.
    """
    steps = range(1, EXTENSION + 1)
    low = [values[0] / factor**i for i in reversed(steps) if values[0] / factor**i >= LIMITS[0]]
    high = [values[-1] * factor**i for i in steps if values[-1] * factor**i <= LIMITS[1]]
    if best is None or best == values[0]:
        return [value for value in low if takes(value)] + list(values)
    return list(values) + [value for value in high if best == values[-1] and takes(value)]


def tune(
    name: str,
    task: Task | str,
    seeds: Sequence[int] = TUNING_SEEDS,
    at_once: int = AT_ONCE,
    device: str | None = None,
    once: Once = afresh,
) -> Tuned:
    """Searches the grid that an agent's factory carries, by validation loss, all combinations as one batch.

    A combination with a run that diverged is not chosen (`lrenv.benchmark.selection`). Where the best rate is the
    lowest or the highest of three or more with equal ratios, two more are tried on that side, until it is inside, the
    agent fails with them, or they leave `LIMITS`: no agent is to win by a better grid. A factory whose `extends` is
    False is searched over its grid as it stands.

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
    rates = [key for key in RATES if key in grid and getattr(factory, "extends", True)]
    factors = {key: factor for key in rates if (factor := ratio_of(grid[key]))}
    axes = {key: list(values) for key, values in grid.items()}
    tried: dict[str, tuple[dict[str, Any], float]] = {}  # by their repr, for values may not be hashable

    def run(part: list[tuple[dict[str, Any], int]]) -> Result:
        settings = {key: np.array([combination[key] for combination, _ in part]) for key in grid}
        result = evaluate(factory(**settings), task, [seed for _, seed in part], name=name, device=device)
        return replace(result, curves={})  # nothing is chosen by them

    def takes(key: str, value: Any) -> bool:
        try:
            factory(**{other: values[0] for other, values in grid.items()} | {key: value})
        except Exception:  # whatever it says of a rate that is too high
            return False
        return True

    for number in itertools.count():
        combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        new = [combination for combination in combinations if repr(combination) not in tried]
        pairs = [(combination, seed) for combination in new for seed in seeds]
        parts = [pairs[first : first + at_once] for first in range(0, len(pairs), at_once)]
        cell = {"tune": name} | ({"extension": number} if number else {})
        try:
            found = [once(cell | {"part": i}, partial(run, part)) for i, part in enumerate(parts)]
        except Exception as error:
            if not number or isinstance(error, OSError):
                raise
            break  # an agent that fails beyond its grid has the best of it
        each = np.concatenate([selection_losses(result.val_loss, result.diverged) for result in found])
        means = each.reshape(len(new), len(seeds)).mean(1).tolist()
        tried |= {repr(combination): (combination, loss) for combination, loss in zip(new, means, strict=True)}
        chosen, lowest = min(tried.values(), key=itemgetter(1))
        longer = {
            rate: extended(
                sorted(axes[rate]), factor, chosen[rate] if np.isfinite(lowest) else None, partial(takes, rate)
            )
            for rate, factor in factors.items()
        }
        if all(len(longer[rate]) == len(axes[rate]) for rate in longer):
            break
        axes |= longer
    if not np.isfinite(lowest):
        raise AgentError(
            f"agent {name!r} on task {task.name!r}: runs diverge with all {len(tried)} settings of its grid "
            f"({', '.join(grid)}); give it settings of your own, as in {name}:{next(iter(grid))}=..."
        )
    return Tuned(chosen, [combination for combination, _ in tried.values()], np.array([x for _, x in tried.values()]))


def ratio_of(values: Sequence[Any]) -> float | None:
    """Returns the ratio of neighbours, above 1, of three or more rates with equal ratios; None of anything else."""
    ascending = sorted(values) if all(isinstance(x, Real) for x in values) else []
    if len(ascending) < 3 or ascending[0] <= 0:
        return None
    ratios = [high / low for low, high in itertools.pairwise(ascending)]
    return ratios[0] if ratios[0] > 1 and np.allclose(ratios, ratios[0], rtol=1e-6) else None
