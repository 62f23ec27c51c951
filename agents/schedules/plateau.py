"""The schedule that listens: the rate falls when the validation loss stops improving.

`tests/reference/schedules.py` has it in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.hyperparameters import Hyperparameter, Hyperparameters, checked, per_env, show, tuned
from lrenv.agents.memory import recalled
from lrenv.agents.schedules.agent import PEAKS, VIEW, as_action, read_clock
from lrenv.controllers.agent import State, View

MIN_CHANGE = 1e-8
"""A decay by less is not made: the default `eps` of PyTorch's `ReduceLROnPlateau`."""


@dataclass(frozen=True, repr=False)
class Plateau:
    """An agent that lowers the rate when the validation loss stops improving; see `plateau`.

    Its state holds four arrays of shape (n,): the rate before warm-up, the best validation loss, the bad
    decisions in a row, and the decisions of cool-down left.

    Attributes:
        hyperparameters: (name, value) pairs; a value is a number or a tuple of n.
        view: what the agent sees and turns: the rate itself, by the clock.
    """

    hyperparameters: Hyperparameters
    view: View = VIEW

    def __repr__(self) -> str:
        return show("plateau", self.hyperparameters)

    def predict(
        self,
        observation: NDArray[Any],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The rates (n, 1) of the intervals that now start, after a look at the validation losses; the new memory.

        Raises:
            ValueError: the observation is no clock, or n is not that of the state or array hyperparameters.
        """
        clock, n = read_clock(observation), len(observation)
        values = per_env(self.hyperparameters, n)
        fresh: tuple[NDArray[Any], ...] = (
            np.broadcast_to(values["peak"], n),
            np.full(n, np.inf),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
        )
        rate, best, bad, cooling = recalled(state, fresh, episode_start)
        better = clock["val_loss"] < best * (1 - values["threshold"])
        best = np.where(better, clock["val_loss"], best)
        bad = np.where(better | (cooling > 0), 0, bad + 1)
        reduce = bad > values["patience"]
        lower = np.maximum(rate * values["factor"], values["floor"])
        rate = np.where(reduce & (rate - lower > MIN_CHANGE), lower, rate)
        cooling = np.where(reduce, values["cooldown"].astype(np.int64), np.maximum(cooling - 1, 0))
        bad = np.where(reduce, 0, bad)

        warm = np.minimum((clock["inner_step"] + 1) / np.maximum(values["warmup"], 1), 1)
        return as_action(rate * warm, observation), (rate, best, bad, cooling)


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
