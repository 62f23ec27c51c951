"""GreedyLR: the rate rises while the validation loss improves, and falls while it does not (arXiv:2512.14527).

With the best loss so far l*, and the decisions in a row that brought a better one, g, or none, b,

    l < l* - margin:  l* = l,  g = g + 1,  b = 0;     else:  b = b + 1,  g = 0;
    g > patience:  rate = min(rate / factor, high),  g = 0;
    b > patience:  rate = max(rate * factor, low),   b = 0.

A loss may be the mean of the last few. Where a rate stays at `low` through `reset` reductions, all starts anew.
Hugging Face's `GreedyLR` (transformers 5.24) does the same with other names: `margin` is `threshold` in mode "abs",
`pause` is `warmup`, a `window` above 1 is `smooth` with that `window_size`, `reset` is `reset_start`, and `low` and
`high` are `min_lr` and `max_lr`. `tests/reference/schedules.py` has it in plain Python.
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
"""A change by less is not made: `eps` of the authors' code."""


class Progress(NamedTuple):
    """What `Greedy` carries from decision to decision."""

    rate: Array  # (n,) before warm-up
    best: Array  # (n,) lowest loss since the last restart
    good: NDArray[np.int64]  # (n,) decisions in a row with a new best loss
    bad: NDArray[np.int64]  # (n,) decisions in a row without one
    waiting: NDArray[np.int64]  # (n,) decisions whose losses don't count that are left, after a reduction or a rise
    left: NDArray[np.int64]  # (n,) reductions at the lowest rate until all starts anew
    losses: Array  # (n, W) the last losses, the newest at the end
    number: NDArray[np.int64]  # (n,) how many of them there have been, at most the window


@dataclass(frozen=True, repr=False)
class Greedy(RateAgent[Progress]):
    """An agent that raises the rate while the validation loss improves, and lowers it otherwise; see `greedy`."""

    reads: ClassVar[tuple[str, ...]] = ("inner_step", "budget", "val_loss")
    counts_measurements: ClassVar[bool] = True

    def start(self, observation: Any) -> Progress:
        """Gives the peak as rate, and no losses seen."""
        n = number_of(observation)
        values = per_env(self.hyperparameters, n)
        nothing = np.zeros(n, np.int64)
        return Progress(
            np.broadcast_to(values["peak"], n),
            np.full(n, np.inf),
            nothing,
            nothing,
            nothing,
            np.broadcast_to(values["reset"].astype(np.int64), n),
            np.zeros((n, int(values["window"].max()))),
            nothing,
        )

    def rate(self, clock: Mapping[str, Array], values: dict[str, Array], carry: Progress) -> tuple[Array, Progress]:
        """The rates of the intervals that now start, changed where the validation losses call for it."""
        losses = np.concatenate([carry.losses[:, 1:], clock["val_loss"][:, None]], 1)
        number = np.minimum(carry.number + 1, values["window"].astype(np.int64))
        inside = np.arange(losses.shape[1], 0, -1) <= number[:, None]
        loss = np.where(inside, losses, 0).sum(1) / number

        counts = carry.waiting == 0
        better = counts & (loss < carry.best - values["margin"])
        best = np.where(better, loss, carry.best)
        good = np.where(better, carry.good + 1, 0)
        bad = np.where(counts & ~better, carry.bad + 1, 0)
        rises = good > values["patience"]
        falls = bad > values["patience"]

        higher = np.minimum(carry.rate / values["factor"], values["high"])
        lower = np.maximum(carry.rate * values["factor"], values["low"])
        rate = np.where(rises & (higher - carry.rate > MIN_CHANGE), higher, carry.rate)
        rate = np.where(falls & (carry.rate - lower > MIN_CHANGE), lower, rate)

        reset = values["reset"].astype(np.int64)
        left = np.where(rises, reset, carry.left - (falls & (rate <= values["low"])))
        anew = left <= 0
        waiting = np.where(rises, values["pause"], (carry.waiting - 1).clip(0))
        waiting = np.where(falls, values["cooldown"], waiting).astype(np.int64)
        after = Progress(
            np.where(anew, values["peak"], rate),
            np.where(anew, np.inf, best),
            np.where(rises, 0, good),
            np.where(falls, 0, bad),
            waiting,
            np.where(anew, reset, left),
            losses,
            np.where(anew, 0, number),
        )
        return warmed_up(after.rate, clock, values), after


@tuned(peak=PEAKS)
def greedy(
    peak: Hyperparameter,
    factor: Hyperparameter = 0.95,
    patience: Hyperparameter = 10,
    margin: Hyperparameter = 1e-6,
    cooldown: Hyperparameter = 0,
    pause: Hyperparameter = 0,
    low: Hyperparameter = 1e-3,
    high: Hyperparameter = 1.0,
    window: Hyperparameter = 1,
    reset: Hyperparameter = 500,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Greedy:
    """GreedyLR with its authors' settings (arXiv:2512.14527), with which a rate below 1e-3 can only rise.

    The validation loss of every decision counts, that of the untrained network included.

    Args:
        peak: the initial rate; the rate may rise above it.
        factor: what each reduction multiplies the rate by, and each rise divides it by.
        patience: decisions in a row of one kind that are let pass; the next one changes the rate.
        margin: a loss is better if it is below `best - margin`.
        cooldown: decisions after a reduction whose losses don't count.
        pause: decisions after a rise whose losses don't count.
        low: the rate is not lowered below it.
        high: the rate is not raised above it.
        window: decisions whose mean loss is compared.
        reset: reductions at the lowest rate after which the initial rate holds again, and all losses are forgotten.
        warmup: inner steps, or a fraction of the budget, in which the rate is scaled by `(t + 1) / warmup`.
        fan_in: rates per layer (`lrenv.agents.schedules.base`).
        weight_decay: instead of the task's.
    """
    values = settings(
        peak=peak, factor=factor, patience=patience, margin=margin, cooldown=cooldown, pause=pause, low=low, high=high,
        window=window, reset=reset, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip
    return Greedy("greedy", values, view_of_schedule(values, horizon=False))


@tuned(peak=PEAKS, factor=(0.5, 0.8), patience=(0, 2))
def greedy_bounded(
    peak: Hyperparameter,
    factor: Hyperparameter = 0.8,
    patience: Hyperparameter = 2,
    margin: Hyperparameter = 1e-6,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Greedy:
    """GreedyLR with bounds that follow the initial rate: between a hundredth and ten times of it.

    Its patience and its factor suit episodes of tens of decisions, in which the authors' would change the rate a few
    times by 5 %.

    Args:
        peak: the initial rate.
        factor: as in `greedy`, and so are the others.
        patience: decisions.
        margin: of losses.
        warmup: inner steps, or a fraction of the budget.
        fan_in: rates per layer (`lrenv.agents.schedules.base`).
        weight_decay: instead of the task's.
    """
    start = np.asarray(peak)
    bounds = {"low": start / 100, "high": start * 10} if start.dtype.kind in "iuf" else {}  # else `settings` tells
    values = settings(
        peak=peak, factor=factor, patience=patience, margin=margin, cooldown=0, pause=0, **bounds, window=1, reset=500,
        warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip
    return Greedy("greedy-bounded", values, view_of_schedule(values, horizon=False))
