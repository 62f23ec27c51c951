"""A universal controller's decision for one trainee and one layer. The module is `agents/universal/policy.py`.

With the middle p of the interval to come, as a part of the budget, and the fan-in f of the layer,

    log r = min(log peak + log min(1, p / w), h) + q log(1 - p) - e log(f / mean f) + c
    c <- c / 2 + log(10) / 2 tanh(output(x, c))

and the ceiling h of the guard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WARMUP = 0.15


def output(x: Array, w: Array, b: float, w1: Array, b1: Array, w2: Array) -> float:
    """A linear function, and a hidden layer of tanh units beside it."""
    return float(w @ x + b + np.tanh(x @ w1 + b1) @ w2)


def corrected(c: float, output: float) -> float:
    return (c + math.log(10) * math.tanh(output)) / 2


def peak_of_adaptive(a: Mapping[str, float], batch_size: int, weight_size: float, layers: int) -> float:
    """The peak of optimizers that scale gradients."""
    peak = math.exp(a["one"]) * (batch_size / 32) ** a["batch_size"] * (weight_size / 0.1) ** a["weight_size"]
    return min(0.1, peak * (layers / 4) ** a["layers"])


def peak_of_sgd(
    b: Mapping[str, float], batch_size: int, budget: int | None, momentum: float, loss: float, relative_gradient: float
) -> float:
    """The peak of the others; they see the loss and the largest relative gradient of a layer on the first batch."""
    peak = math.exp(b["one"]) * (batch_size / 32) ** b["batch_size"] * ((1 - momentum) / 0.1) ** b["kept"]
    peak *= (loss / relative_gradient) ** b["gradient"] / loss
    return peak if budget is None else peak * (budget / 400) ** b["budget"]


class Guard:
    """What the guard keeps of one run: the ceiling of the rate, smoothed losses, and the lowest of them."""

    def __init__(self) -> None:
        self.ceiling, self.loss, self.lowest = math.inf, 0.0, 0.0
        self.causes: list[str] = []

    def see(
        self, loss: float, moved: tuple[float, float], last_rate: float, interval: int, batch_size: int, taken: int,
        progress: float | None, farthest: float = 0.2, rise: float = 1.6, fall: float = 1 / 3, watched: float = 0.3,
        offset: float = 0.3,
    ) -> None:  # fmt: skip
        """Looks at an interval.

        Args:
            loss: the mean training loss, relative to that of the first batch.
            moved: how far the first and the last layer moved, relative to their weights' length afterwards.
            last_rate: of the interval, without decay and correction.
            interval: N.
            batch_size: B.
            taken: the steps so far, with those of the interval.
            progress: the part of the budget that is over; None if it isn't known.
            farthest: to move in one step.
            rise: of the loss that is too much.
            fall: of the rate then.
            watched: the part of the budget in which anything is done.
            offset: of losses.
        """
        kept = math.exp(-interval / max(10, min(320 / batch_size, taken)))
        now = math.log((loss + offset) / (1 + offset))
        self.loss = kept * self.loss + (1 - kept) * now
        self.lowest = min(self.lowest, self.loss)
        if progress is not None and progress > watched:
            return
        far = min(u / math.sqrt(max(0.01, 1 - u * u)) for u in moved)
        if far > farthest * math.sqrt(interval):
            self.ceiling = last_rate * farthest * math.sqrt(interval) / far
            self.causes.append("moved")
        if math.exp(self.loss - self.lowest) > rise:
            self.ceiling = fall * min(self.ceiling, last_rate)
            self.loss = self.lowest = now
            self.causes.append("rose")


def warmed_up(learned: Mapping[str, float], peak: float, step: int, interval: int, budget: int | None) -> float:
    """The rate of the interval that begins after `step` inner steps, without decay and without a ceiling.

    Args:
        learned: the parameters of the shape, as differences from those of an untrained policy.
        peak: of the schedule.
        step: inner steps taken.
        interval: N.
        budget: T; None if the policy doesn't know it.
    """
    middle, longer = step + _left(step, budget, interval) / 2, math.exp(learned["log_warmup"])
    if budget is None:
        return peak * min(1, middle / (10 * longer))
    return peak * min(1, min(middle, budget - 0.5) / budget / (WARMUP * longer))


def _left(step: int, budget: int | None, interval: int) -> int:
    """The inner steps of the interval to come: the last one may be shorter."""
    return interval if budget is None else max(0, min(interval, budget - step))


def rate(
    learned: Mapping[str, float], reached: float, step: int, interval: int, budget: int | None, c: float,
    fan_ins: Sequence[float], layer: int | None = None,
) -> float:  # fmt: skip
    """The rate of a layer.

    Args:
        learned: as above.
        reached: the rate after warm-up and ceiling.
        step: as above.
        interval: as above.
        budget: as above.
        c: the correction.
        fan_ins: of all layers.
        layer: its number; None of a policy with one rate.
    """
    mean = math.prod(fan_ins) ** (1 / len(fan_ins))
    middle, power = step + _left(step, budget, interval) / 2, math.exp(learned["log_power"])
    decay = (1 + middle / 30) ** (-0.5 * power) if budget is None else (1 - min(middle, budget - 0.5) / budget) ** power
    width = 1.0 if layer is None else (fan_ins[layer] / mean) ** -(0.5 + learned["exponent"])
    return reached * decay * width * math.exp(c)
