"""A universal controller's decision for one trainee and one layer. The module is `agents/universal/policy.py`.

With the middle p of the interval to come, as a part of the budget, and the fan-in f of the layer,

    log r = log peak - e log(f / mean f) + log s(p) + c,    s(p) = min(1, p / w) (1 - p)^q
    c <- c / 2 + log(10) / 2 tanh(output(x, c))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def output(x: Array, w: Array, b: float, w1: Array, b1: Array, w2: Array) -> float:
    """A linear function, and a hidden layer of tanh units beside it."""
    return float(w @ x + b + np.tanh(x @ w1 + b1) @ w2)


def corrected(c: float, output: float) -> float:
    return (c + math.log(10) * math.tanh(output)) / 2


def peak_of_adaptive(
    a: Mapping[str, float], batch_size: int, budget: int | None, weight_size: float, layers: int
) -> float:
    """The peak of optimizers that scale gradients."""
    peak = math.exp(a["one"]) * (batch_size / 32) ** a["batch_size"] * (weight_size / 0.1) ** a["weight_size"]
    peak *= (layers / 4) ** a["layers"]
    return min(0.1, peak if budget is None else peak * (budget / 400) ** a["budget"])


def peak_of_sgd(
    b: Mapping[str, float], batch_size: int, budget: int | None, momentum: float, loss: float, relative_gradient: float
) -> float:
    """The peak of the others; they see the loss and the largest relative gradient of a layer on the first batch."""
    peak = math.exp(b["one"]) * (batch_size / 32) ** b["batch_size"] * ((1 - momentum) / 0.1) ** b["kept"]
    peak *= (loss / relative_gradient) ** b["gradient"] / loss
    return peak if budget is None else peak * (budget / 400) ** b["budget"]


def rate(
    learned: Mapping[str, float], peak: float, step: int, interval: int, budget: int | None, c: float,
    fan_ins: Sequence[float], layer: int | None = None,
) -> float:  # fmt: skip
    """The rate of the interval that begins after `step` inner steps.

    Args:
        learned: the parameters of the shape, as differences from those of an untrained policy.
        peak: of the schedule.
        step: inner steps taken.
        interval: N.
        budget: T; None if the policy doesn't know it.
        c: the correction.
        fan_ins: of all layers.
        layer: its number; None of a policy with one rate.
    """
    mean = math.prod(fan_ins) ** (1 / len(fan_ins))
    middle = step + interval / 2
    if budget is None:
        schedule = min(1, middle / (10 * math.exp(learned["log_warmup"])))
    else:
        p = min(middle, budget - 0.5) / budget
        schedule = min(1, p / (0.05 * math.exp(learned["log_warmup"]))) * (1 - p) ** math.exp(learned["log_power"])
    width = 1.0 if layer is None else (fan_ins[layer] / mean) ** -(0.5 + learned["exponent"])
    return peak * width * schedule * math.exp(c)
