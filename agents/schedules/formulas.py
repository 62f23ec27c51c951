"""The schedules as formulas: the learning rate at inner step t of a budget T.

Each is a pure NumPy function `(t, budget, *, peak, ...) -> rate` of steps t counted from 0, an array (n,), and gives
what PyTorch's scheduler of that kind gives at step t. Budgets and hyperparameters are arrays of shape (n,) or ().
Warm-up is not among them: `lrenv.agents.schedules.agent.Scheduled` puts it in front.
"""

from __future__ import annotations

import numpy as np

from lrenv.agents.hyperparameters import Array


def constant(t: Array, budget: Array, *, peak: Array) -> Array:
    """`peak`."""
    return peak + np.zeros_like(t)


def step(t: Array, budget: Array, *, peak: Array, discount_step: Array, discount_factor: Array) -> Array:
    """`peak * discount_factor ** floor(t / discount_step)`."""
    return peak * discount_factor ** np.floor(t / discount_step)


def exponential(t: Array, budget: Array, *, peak: Array, decay: Array) -> Array:
    """`peak * decay ** (t / T)`."""
    return peak * decay ** (t / budget)


def linear(t: Array, budget: Array, *, peak: Array, floor: Array) -> Array:
    """`peak + (floor - peak) * t / T`."""
    return peak + (floor - peak) * _fraction(t, budget)


def cosine(t: Array, budget: Array, *, peak: Array, floor: Array) -> Array:
    """`floor + (peak - floor) * (1 + cos(pi * t / T)) / 2`."""
    return _half_cosine(peak, floor, _fraction(t, budget))


def one_cycle(
    t: Array, budget: Array, *, peak: Array, pct_start: Array, div_factor: Array, final_div_factor: Array
) -> Array:
    """Half a cosine from `peak / div_factor` up to `peak`, then one down to `peak / div_factor / final_div_factor`.

    The peak is at step `pct_start * T - 1`, the end at step T - 1.
    """
    start, top = peak / div_factor, pct_start * budget - 1
    up = _half_cosine(start, peak, _fraction(t, top))
    down = _half_cosine(peak, start / final_div_factor, _fraction(t - top, budget - 1 - top))
    return np.where(t <= top, up, down)


def sgdr(t: Array, budget: Array, *, peak: Array, floor: Array, period: Array, multiplier: Array) -> Array:
    """`cosine(t - t_k, T_k)` within period k, counted from 0, of `T_k = period * multiplier ** k` inner steps.

    Period k begins at `t_k = period * (multiplier ** k - 1) / (multiplier - 1)`, the sum of those before it.
    """
    equal = multiplier == 1
    ratio = np.where(equal, 2.0, multiplier)

    # The floor of this logarithm could miss a restart by rounding. The nearest k is right or one too high, and t tells.
    k = np.rint(np.log1p(t / period * (ratio - 1)) / np.log(ratio))
    k = np.where(period * (ratio**k - 1) / (ratio - 1) > t, k - 1, k)
    within = np.where(equal, t % period, t - period * (ratio**k - 1) / (ratio - 1))
    return _half_cosine(peak, floor, within / (period * multiplier**k))


def inverse_sqrt(t: Array, budget: Array, *, peak: Array, timescale: Array) -> Array:
    """`peak * sqrt(timescale / max(t + 1, timescale))`."""
    return peak * np.sqrt(timescale / np.maximum(t + 1, timescale))


def _fraction(part: Array, whole: Array) -> Array:
    """`part / whole` within [0, 1]; a `whole` of 0 or less counts as 1."""
    fraction: Array = np.clip(part / np.where(whole > 0, whole, 1), 0, 1)
    return fraction


def _half_cosine(start: Array, end: Array, progress: Array) -> Array:
    """Half a cosine from `start` to `end` as `progress` goes from 0 to 1."""
    wave: Array = np.cos(np.pi * progress)
    return end + (start - end) * (1 + wave) / 2
