"""Reduction on a plateau: the rate is lowered when the validation loss stops improving.

With the best loss so far l* and the decisions in a row that brought none, b,

    l < l* (1 - threshold):  l* = l,  b = 0;     else:  b = b + 1;     b > patience:  rate = factor * rate,  b = 0.

`tests/reference/schedules.py` has it in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.base import BaseAgent
from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, checked, per_env, show, tuned
from lrenv.agents.schedules.agent import PEAKS, VIEW, read_clock
from lrenv.controllers.agent import View

MIN_CHANGE = 1e-8
"""A decay by less is not made: the default `eps` of PyTorch's `ReduceLROnPlateau`."""


class Progress(NamedTuple):
    """What `Plateau` carries from decision to decision."""

    rate: Array  # (n,) before warm-up
    best: Array  # (n,) lowest validation loss so far
    bad: NDArray[np.int64]  # (n,) decisions in a row without a new best loss
    cooling: NDArray[np.int64]  # (n,) decisions of cool-down that are left


@dataclass(frozen=True, repr=False)
class Plateau(BaseAgent[Progress]):
    """An agent that lowers the rate when the validation loss stops improving; see `plateau`.

    Attributes:
        hyperparameters: (name, value) pairs; a value is a number or a tuple of n.
        view: it observes the clock and sets the rate.
    """

    hyperparameters: Hyperparameters
    view: View = VIEW

    reads = ("inner_step", "val_loss")

    def __repr__(self) -> str:
        return show("plateau", self.hyperparameters)

    def start(self, observation: NDArray[Any]) -> Progress:
        """Gives the peak as rate, and no losses seen."""
        n = len(observation)
        rate = np.broadcast_to(per_env(self.hyperparameters, n)["peak"], n)
        return Progress(rate, np.full(n, np.inf), np.zeros(n, np.int64), np.zeros(n, np.int64))

    def act(self, observation: NDArray[Any], carry: Progress) -> tuple[Array, Progress]:
        """Gives the rates (n, 1) of the intervals that now start, lowered where the validation losses call for it.

        Raises:
            ValueError: the observation is no clock, or n is not the length of array hyperparameters.
        """
        clock, values = read_clock(observation), per_env(self.hyperparameters, len(observation))
        better = clock["val_loss"] < carry.best * (1 - values["threshold"])
        best = np.where(better, clock["val_loss"], carry.best)
        bad = np.where(better | (carry.cooling > 0), 0, carry.bad + 1)
        reduce = bad > values["patience"]
        lower = np.maximum(carry.rate * values["factor"], values["floor"])
        rate = np.where(reduce & (carry.rate - lower > MIN_CHANGE), lower, carry.rate)
        cooling = np.where(reduce, values["cooldown"].astype(np.int64), np.maximum(carry.cooling - 1, 0))

        warm = np.minimum((clock["inner_step"] + 1) / np.maximum(values["warmup"], 1), 1)
        return (rate * warm)[:, None], Progress(rate, best, np.where(reduce, 0, bad), cooling)


@tuned(peak=PEAKS, factor=(0.1, 0.5), patience=(2, 5, 10))
def plateau(
    peak: Hyperparameter,
    factor: Hyperparameter = 0.1,
    patience: Hyperparameter = 10,
    threshold: Hyperparameter = 1e-4,
    cooldown: Hyperparameter = 0,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
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
    """
    values = checked(
        peak=peak,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        floor=floor,
        warmup=warmup,
    )
    return Plateau(values)
