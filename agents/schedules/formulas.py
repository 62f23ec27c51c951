"""The schedules as formulas: the learning rate at inner step t of a budget T.

Each is a pure NumPy function `(t, budget, *, peak, ...) -> rate` of steps t counted from 0, an array (n,), and gives
what PyTorch's scheduler of that kind gives at step t. Budgets and hyperparameters are arrays of shape (n,) or ().
Warm-up is not among them: `lrenv.agents.schedules.agent.Scheduled` puts it in front. Multipliers by fan-in come after.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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


def wsd(t: Array, budget: Array, *, peak: Array, floor: Array, decay_fraction: Array, shape: Array) -> Array:
    """`peak`, and `peak + (floor - peak) * s(x)` in the last `D = decay_fraction * T` steps, `x = (t - (T - D)) / D`.

    `s(x)` is `x` for the shape "linear", `sqrt(x)` for "1-sqrt", and `(1 - cos(pi * x)) / 2` for "cosine". To the last
    bit, it is `constant` with a fraction of 0, and `linear` and `cosine` with one of 1.
    """
    length = decay_fraction * budget
    x = _fraction(t - (budget - length), length)
    straight = peak + (floor - peak) * np.where(shape == "linear", x, np.sqrt(x))
    return np.where(shape == "cosine", _half_cosine(peak, floor, x), straight)


def power(t: Array, budget: Array, *, peak: Array, floor: Array, power: Array) -> Array:
    """`floor + (peak - floor) * (1 - t / T) ** power`; of power 1, it is `linear` to the last bit."""
    decay = floor + (peak - floor) * (1 - _fraction(t, budget)) ** power
    return np.where(power == 1, linear(t, budget, peak=peak, floor=floor), decay)


def rex(t: Array, budget: Array, *, peak: Array, floor: Array) -> Array:
    """`floor + (peak - floor) * z / (1 / 2 + z / 2)` with `z = 1 - t / T`."""
    left = 1 - _fraction(t, budget)
    return floor + (peak - floor) * left / (0.5 + 0.5 * left)


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


def refined(norms: Array, *, smoothing: float, exponent: float) -> Array:
    """The refined schedule of gradient norms G_1 ... G_T, as fractions of its peak (Defazio et al. 2023, algorithm 1).

    `eta_t` is in proportion to `w_t * sum_{p > t} w_p` with `w_t = median(G)_t ** -exponent`; the last rate is 0. The
    median is over `2 * floor(smoothing * T / 2) + 1` norms around each, with the first one repeated before the start
    and the sequence reflected beyond its end, as the authors do.
    """
    beside = int(smoothing * len(norms)) // 2
    padded = np.pad(np.pad(norms, (0, beside), mode="reflect"), (beside, 0), mode="edge")
    smooth = np.median(sliding_window_view(padded, 2 * beside + 1), -1)
    weights = (smooth / smooth.min()) ** -exponent
    later = np.append(np.cumsum(weights[:0:-1])[::-1], 0)
    rates: Array = weights * later / (weights * later).max()
    return rates


def fan_in_multipliers(fan_in: Array, exponent: Array) -> Array:
    """`f ** -exponent` over its geometric mean, of fan-ins f (n, K) and exponents (n, 1) or ().

    The mean is over the K pieces, so that the peak of a schedule stays the geometric mean of their rates.
    """
    logs = np.log(fan_in)
    multipliers: Array = np.exp(-exponent * (logs - logs.mean(1, keepdims=True)))
    return multipliers


def _fraction(part: Array, whole: Array) -> Array:
    """`part / whole` within [0, 1]; a `whole` of 0 or less counts as 1."""
    fraction: Array = np.clip(part / np.where(whole > 0, whole, 1), 0, 1)
    return fraction


def _half_cosine(start: Array, end: Array, progress: Array) -> Array:
    """Half a cosine from `start` to `end` as `progress` goes from 0 to 1."""
    wave: Array = np.cos(np.pi * progress)
    return end + (start - end) * (1 + wave) / 2
