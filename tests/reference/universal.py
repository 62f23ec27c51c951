"""A universal controller's decision for one trainee and one layer. The module is `agents/universal/policy.py`.

With the middle p of the interval to come, as a part of the budget, and the fan-in f of the layer,

    log r = log peak - e log(f / 64) + log s(p) + c,    s(p) = min(1, p / w) (1 - p)^q
    c <- c / 2 + log(100) / 2 tanh(perceptron(x, c))
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def perceptron(x: Array, w1: Array, b1: Array, w2: Array, b2: float) -> float:
    """One hidden layer of tanh units."""
    return float(np.tanh(x @ w1 + b1) @ w2 + b2)


def corrected(c: float, output: float) -> float:
    return (c + math.log(100) * math.tanh(output)) / 2


def rate(
    learned: Mapping[str, float], adaptive: bool, step: int, interval: int, budget: int | None, c: float,
    fan_in: float | None = None,
) -> float:  # fmt: skip
    """The rate of the interval that begins after `step` inner steps.

    Args:
        learned: the parameters of the schedule, as differences from those of an untrained policy.
        adaptive: whether the optimizer scales gradients.
        step: inner steps taken.
        interval: N.
        budget: T; None if the policy doesn't know it.
        c: the correction.
        fan_in: of the layer; None of a policy with one rate.
    """
    peak = 0.005 * math.exp(learned["log_peak_adaptive"]) if adaptive else 0.05 * math.exp(learned["log_peak_sgd"])
    middle = step + interval / 2
    if budget is None:
        schedule = min(1, middle / (10 * math.exp(learned["log_warmup"])))
    else:
        p = min(middle, budget - 0.5) / budget
        schedule = min(1, p / (0.05 * math.exp(learned["log_warmup"]))) * (1 - p) ** math.exp(learned["log_power"])
    width = 1.0 if fan_in is None else (fan_in / 64) ** -(0.5 + learned["fan_in"])
    return peak * width * schedule * math.exp(c)
