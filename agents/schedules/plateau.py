"""Reduction on a plateau: the rate is lowered when the validation loss stops improving.

With the best loss so far l* and the decisions in a row that brought none, b,

    l < l* (1 - threshold):  l* = l,  b = 0;     else:  b = b + 1;     b > patience:  rate = factor * rate,  b = 0.

`tests/reference/schedules.py` has it in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.hyperparameters import Array, Hyperparameter, per_env, tuned
from lrenv.agents.schedules.agent import PEAKS
from lrenv.agents.schedules.base import RateAgent, number_of, settings, view_of_schedule, warmed_up

MIN_CHANGE = 1e-8
"""A decay by less is not made: the default `eps` of PyTorch's `ReduceLROnPlateau`."""


class Progress(NamedTuple):
    """What `Plateau` carries from decision to decision."""

    rate: Array  # (n,) before warm-up
    best: Array  # (n,) lowest validation loss so far
    bad: NDArray[np.int64]  # (n,) decisions in a row without a new best loss
    cooling: NDArray[np.int64]  # (n,) decisions of cool-down that are left


@dataclass(frozen=True, repr=False)
class Plateau(RateAgent[Progress]):
    """An agent that lowers the rate when the validation loss stops improving; see `plateau`."""

    reads: ClassVar[tuple[str, ...]] = ("inner_step", "budget", "val_loss")
    counts_measurements: ClassVar[bool] = True

    def start(self, observation: Any) -> Progress:
        """Gives the peak as rate, and no losses seen."""
        n = number_of(observation)
        rate = np.broadcast_to(per_env(self.hyperparameters, n)["peak"], n)
        return Progress(rate, np.full(n, np.inf), np.zeros(n, np.int64), np.zeros(n, np.int64))

    def rate(self, clock: Mapping[str, Array], values: dict[str, Array], carry: Progress) -> tuple[Array, Progress]:
        """The rates of the intervals that now start, lowered where the validation losses call for it."""
        better = clock["val_loss"] < carry.best * (1 - values["threshold"])
        best = np.where(better, clock["val_loss"], carry.best)
        bad = np.where(better | (carry.cooling > 0), 0, carry.bad + 1)
        reduce = bad > values["patience"]
        lower = np.maximum(carry.rate * values["factor"], values["floor"])
        rate = np.where(reduce & (carry.rate - lower > MIN_CHANGE), lower, carry.rate)
        cooling = np.where(reduce, values["cooldown"].astype(np.int64), np.maximum(carry.cooling - 1, 0))

        return warmed_up(rate, clock, values), Progress(rate, best, np.where(reduce, 0, bad), cooling)


@tuned(peak=PEAKS, factor=(0.1, 0.5), patience=(2, 5, 10))
def plateau(
    peak: Hyperparameter,
    factor: Hyperparameter = 0.1,
    patience: Hyperparameter = 10,
    threshold: Hyperparameter = 1e-4,
    cooldown: Hyperparameter = 0,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Plateau:
    """Decay when the validation loss stalls (PyTorch's `ReduceLROnPlateau`, with its defaults and its `eps`).

    The validation loss of every decision counts, that of the untrained network included.

    Args:
        peak: the initial rate.
        factor: what each decay multiplies the rate by.
        patience: decisions without a new best loss that are let pass; the next one lowers the rate.
        threshold: a loss is a new best if it is below `best * (1 - threshold)`.
        cooldown: decisions after a decay in which none is counted as bad.
        floor: the rate goes no lower.
        warmup: inner steps in which the rate is scaled by `(t + 1) / warmup`; losses count from the start.
        fan_in: rates per layer (`lrenv.agents.schedules.base`).
        weight_decay: instead of the task's.
    """
    values = settings(
        peak=peak,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        floor=floor,
        warmup=warmup,
        fan_in=fan_in,
        weight_decay=weight_decay,
    )
    return Plateau("plateau", values, view_of_schedule(values, horizon=False))
