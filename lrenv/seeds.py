"""Which seeds are for what: one ledger, so that nothing is reported on a seed that it was chosen by or learned on.

Every purpose has a range of its own, and every training a million seeds of its own. A purpose takes the first of its
seeds, so that the same question is always asked of the same trainees:

    >>> seeds_for("tuning", 3)
    [10000, 10001, 10002]
    >>> seeds_for("training", 2, first=4, training=1)
    [2000004, 2000005]

An environment that goes on to further episodes hashes its seed into new ones (`lrenv.draws.episode_seeds`).
"""

from __future__ import annotations

from lrenv.lookup import lookup

RANGES = {
    "report": range(10_000),
    "tuning": range(10_000, 20_000),
    "validation": range(20_000, 30_000),
    "schedules": range(30_000, 40_000),
}
"""Purpose -> its seeds: results are reported on the first; grids are searched, the best controller of a training is
chosen, and the schedules on the way of a search are measured on the others."""
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
