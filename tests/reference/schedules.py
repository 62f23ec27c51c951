"""Schedules as formulas: the rate of inner step t of T. The modules are `agents/schedules/agent.py` and
`agents/schedules/plateau.py`.
"""

from __future__ import annotations

import math


def constant(t: int, T: int, peak: float) -> float:
    return peak


def step(t: int, T: int, peak: float, discount_step: int, discount_factor: float) -> float:
    """Xu et al. 2019, section 3.2."""
    return peak * discount_factor ** (t // discount_step)


def exponential(t: int, T: int, peak: float, decay: float) -> float:
    return peak * math.exp(math.log(decay) * t / T)


def linear(t: int, T: int, peak: float, floor: float) -> float:
    return (1 - t / T) * peak + t / T * floor


def cosine(t: int, T: int, peak: float, floor: float) -> float:
    """Loshchilov and Hutter 2017, equation 5, without restarts."""
    return floor + (peak - floor) * (1 + math.cos(math.pi * t / T)) / 2


def sgdr(t: int, T: int, peak: float, floor: float, period: int, multiplier: int) -> float:
    """Loshchilov and Hutter 2017: cosines, each `multiplier` times as long as the one before."""
    while t >= period:
        t, period = t - period, period * multiplier
    return cosine(t, period, peak, floor)


def one_cycle(t: int, T: int, peak: float, pct_start: float, div_factor: float, final_div_factor: float) -> float:
    """Smith and Topin 2018, with PyTorch's cosines: up to step pct_start T - 1, down to step T - 1."""
    low, top = peak / div_factor, pct_start * T - 1
    if t <= top:
        return cosine(top - t, top, peak, low)
    return cosine(t - top, T - 1 - top, peak, low / final_div_factor)


def inverse_sqrt(t: int, T: int, peak: float, timescale: float) -> float:
    return peak * math.sqrt(timescale / max(t + 1, timescale))


def warmed_up(t: int, T: int, warmup: int, peak: float, rest: float) -> float:
    """Goyal et al. 2017, section 2.2; `rest` is the schedule after the warm-up, at t - warmup of T - warmup."""
    return peak * (t + 1) / warmup if t < warmup else rest


def plateau(
    losses: list[float], peak: float, factor: float, patience: int, threshold: float, cooldown: int, floor: float
) -> list[float]:
    """The rate after each validation loss: lower after more than `patience` of them in a row without a new best."""
    rate, best, bad, cooling, rates = peak, math.inf, 0, 0, []
    for loss in losses:
        if loss < best * (1 - threshold):
            best, bad = loss, 0
        else:
            bad += 1
        if cooling > 0:
            cooling, bad = cooling - 1, 0
        if bad > patience:
            lower = max(rate * factor, floor)
            rate = lower if rate - lower > 1e-8 else rate
            cooling, bad = cooldown, 0
        rates.append(rate)
    return rates
