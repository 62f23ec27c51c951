"""The ledger of seeds, by which no result is reported on a seed that served for learning or for choosing.

Every purpose has a range of its own, and every training a million seeds of its own. A purpose takes the first of its
seeds, so that agents are compared on the same trainees:

    >>> seeds_for("tuning", 3)
    [10000, 10001, 10002]
    >>> seeds_for("training", 2, first=4, training=1)
    [2000004, 2000005]

Drawn tasks are numbered by the same ledger (`lrenv.training.drawn`): a task's number is the seed of its settings.

The seeds of an environment's further episodes are hashed from its own (`lrenv.randomness.draws.episode_seeds`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from lrenv.lookup import lookup

RANGES = {
    "report": range(10_000),
    "tuning": range(10_000, 20_000),
    "validation": range(20_000, 30_000),
    "schedules": range(30_000, 40_000),
    "selection": range(40_000, 50_000),
}
"""Purpose -> its seeds: results are reported on the first; grids are searched, the best controller of a training is
chosen, the schedules on the way of a search are measured, and the settings of trainings are chosen on the others."""
TRAINING = 1_000_000
"""The number of seeds of a training; those of training s begin at s + 1 times this."""
OVERFLOW = 2**40
"""The distance at which a training that needs more than a million seeds gets the next million, and so on.

It lies far above the first million of every other training."""


def seeds_for(purpose: str, number: int, first: int = 0, training: int = 0) -> list[int]:
    """Returns the seeds of some trainees.

    Args:
        purpose: one of `RANGES`, or "training".
        number: how many.
        first: the place of the first of them among the seeds of the purpose.
        training: s, the seed of the training that the trainees belong to; only for the purpose "training".

    Raises:
        ValueError: the purpose is unknown, a place or the training is negative, or the purpose has fewer seeds.
    """
    places = range(first, first + number)
    if min(first, number, training) < 0:
        raise ValueError(f"seeds are counted from 0: first={first}, number={number}, training={training}")
    if purpose == "training":
        if training >= OVERFLOW // TRAINING - 1:
            raise ValueError(f"the seed of a training must be below {OVERFLOW // TRAINING - 1}, not {training}")
        start = TRAINING * (training + 1)
        return [place // TRAINING * OVERFLOW + start + place % TRAINING for place in places]
    own: range = lookup(RANGES, purpose, "purpose of seeds")
    if places.stop > len(own):
        raise ValueError(f"there are {len(own)} seeds for {purpose}, not {places.stop}; ask for fewer")
    return list(own[places.start : places.stop])


def seeds_given(seed: int | Sequence[int | None] | None, n: int) -> tuple[list[int | None], int | None]:
    """Returns the seeds that `reset(seed=...)` means for n environments.

    Args:
        seed: an integer s for the seeds s, s + 1, ...; a list with one seed per environment, or None for environments
            that are not reset; None for a random s.
        n: how many environments there are.

    Returns:
        A seed per environment, and s if there is one.

    Raises:
        ValueError: there are too few or too many, or they are no integers from 0 to 2**63 - 1.
    """
    first = random_seed() if seed is None else _integer(seed)
    seeds: list[int | None] = []
    if first is not None:
        seeds = [first + i for i in range(n)]
    elif isinstance(seed, Sequence | np.ndarray):
        seeds = [None if s is None else -1 if (number := _integer(s)) is None else number for s in seed]
    if len(seeds) != n or any(s is not None and not 0 <= s < 2**63 for s in seeds):
        raise ValueError(
            f"seeds must be {n} integers of at least 0 and below 2**63, one per environment, or the first of them, not "
            f"{seed!r}"
        )
    return seeds, first


def random_seed() -> int:
    """Draws a seed, another one at each call."""
    return int(gym.utils.seeding.np_random()[0].integers(2**31))


def _integer(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None
