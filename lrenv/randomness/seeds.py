"""Which seeds are for what: one ledger, so that nothing is reported on a seed that it was chosen by or learned on.

Every purpose has a range of its own, and every training a million seeds of its own. A purpose takes the first of its
seeds, so that the same question is always asked of the same trainees:

    >>> seeds_for("tuning", 3)
    [10000, 10001, 10002]
    >>> seeds_for("training", 2, first=4, training=1)
    [2000004, 2000005]

Drawn tasks are numbered by the same ledger (`lrenv.training.drawn`): a task's number is the seed of its settings.

An environment that goes on to further episodes hashes its seed into new ones (`lrenv.randomness.draws.episode_seeds`).
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
"""Training s has the seeds from s + 1 times this on, and as many."""
OVERFLOW = 2**40
"""A training that needs more than its million goes on this far above them, again and again: far above the first
million of every other training."""


def seeds_for(purpose: str, number: int, first: int = 0, training: int = 0) -> list[int]:
    """The seeds of some trainees.

    Args:
        purpose: one of `RANGES`, or "training".
        number: how many.
        first: the place of the first of them among the seeds of the purpose.
        training: s, the seed of the training that the trainees belong to; of the purpose "training" alone.

    Raises:
        ValueError: an unknown purpose, a negative place or training, or more seeds than the purpose has.
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
    """What a `reset(seed=...)` asks of n environments.

    Args:
        seed: s, for seeds s, s + 1, ...; a list, one per environment, whose None leaves one alone; None draws an s.
        n: environments.

    Returns:
        A seed for each environment, and s if there is one.

    Raises:
        ValueError: too few or too many, no integers, or such as int64 doesn't hold.
    """
    first = int(gym.utils.seeding.np_random()[0].integers(2**31)) if seed is None else _integer(seed)
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


def _integer(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None
