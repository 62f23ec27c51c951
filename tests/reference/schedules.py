"""Schedules as formulas: the rate of inner step t of T. The modules are `agents/schedules/agent.py`,
`plateau.py`, `greedy.py` and `refined.py` there.
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


def wsd(t: int, T: int, peak: float, floor: float, decay_fraction: float, shape: str) -> float:
    """Hu et al. 2024, equation 1, with the decays of Hägele et al. 2024, section 3."""
    start = T - decay_fraction * T
    if t < start:
        return peak
    x = (t - start) / (T - start)
    fall = {"linear": 1 - x, "1-sqrt": 1 - math.sqrt(x), "cosine": (1 + math.cos(math.pi * x)) / 2}[shape]
    return floor + (peak - floor) * fall


def power(t: int, T: int, peak: float, floor: float, power: float) -> float:
    """arXiv:2602.06797: peak (1 - t / T)^p."""
    return floor + (peak - floor) * math.exp(power * math.log1p(-t / T))


def rex(t: int, T: int, peak: float, floor: float) -> float:
    """Chen et al. 2022, section 4: with z the fraction of the budget that is left, z / (1 / 2 + z / 2)."""
    z = (T - t) / T
    return floor + (peak - floor) * 2 * z / (1 + z)


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


def greedy(
    losses: list[float],
    peak: float,
    factor: float,
    patience: int,
    margin: float,
    cooldown: int,
    pause: int,
    low: float,
    high: float,
    window: int,
    reset: int,
) -> list[float]:
    """The rate after each validation loss (arXiv:2512.14527): up after more than `patience` better ones in a row, down
    after more than `patience` others, and back to the start after `reset` reductions that end at the lowest rate.
    """
    rate, best, good, bad, left, waiting, paused = peak, math.inf, 0, 0, reset, 0, 0
    seen: list[float] = []
    rates = []
    for value in losses:
        seen = [*seen, value][-window:]
        loss = sum(seen) / len(seen)
        if waiting or paused:
            waiting, paused = (waiting - 1, paused) if waiting else (0, paused - 1)
            good = bad = 0
        elif loss < best - margin:
            best, good, bad = loss, good + 1, 0
        else:
            good, bad = 0, bad + 1
        if good > patience:
            higher = min(rate / factor, high)
            rate = higher if higher - rate > 1e-8 else rate
            good, paused, left = 0, pause, reset
        elif bad > patience:
            lower = max(rate * factor, low)
            rate = lower if rate - lower > 1e-8 else rate
            left -= rate <= low
            if left <= 0:
                rate, best, left, paused, seen = peak, math.inf, reset, 0, []
            bad, waiting = 0, cooldown
        rates.append(rate)
    return rates


def refined(norms: list[float], smoothing: float, exponent: float) -> list[float]:
    """Defazio et al. 2023, algorithm 1: w_t times the sum of later weights, of medians of gradient norms."""
    n, half = len(norms), int(smoothing * len(norms)) // 2
    around = [[norms[max(0, i) if i < n else 2 * (n - 1) - i] for i in range(t - half, t + half + 1)] for t in range(n)]
    weights = [sorted(values)[half] ** -exponent for values in around]
    rates = [weights[t] * sum(weights[t + 1 :]) for t in range(n)]
    return [rate / max(rates) for rate in rates]
