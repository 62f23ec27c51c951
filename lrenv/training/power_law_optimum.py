"""The best schedules of `lrenv.training.power_law`, by optimal control: of the rate alone, or with momentum.

The second moments z_t of a run are a linear system that the rate a and the momentum m steer,

    z_(t+1) = M(a_t, m_t) z_t + (h . p_t + sigma^2) c(a_t),     cost = h . p_T,     p the first block of z,

with h the spectrum. The costates y_t, the derivatives of the cost by z_t, follow the transposed system from y_T = h
backwards, and the derivative of the cost by a_t is <y_(t+1), dz_(t+1) / da_t>, Pontryagin's condition being that it
is 0 wherever the rate is free to move. Schedules are constant over each interval, as those of agents are.

What the abstract of arXiv 2602.06797 says, `tests/test_power_law_optimum.py` checks by computation on this model: the
two phases; the exponents of the easy phase's decay, peak and loss, which `continuous_schedule` approaches at budgets of
10^4 to 10^6 steps (at 1,000 the decay's exponent is about 1.9, not 3); the hard phase's plateau near the largest stable
rate, and its decay over a share of the budget that vanishes, as T^((1 + s) / (2 - 1/beta) - 1) by a derivation of our
own. Two things differ. No warm-up is best here: the hard optimum starts at its highest rate, as nothing in this model
makes first steps dangerous. And its plateau falls a little all the time, because noise feeds on itself near the largest
stable rate, which the limit of small rates leaves out. Not checked: theorems for general features, constants, and what
is said of optimal rates in kernel regression. Momentum helps much in the hard phase, as Bordelon & Mori 2026 say (arXiv
2602.04774), and next to nothing in the easy one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize, minimize_scalar
from scipy.special import expit
from torch import Tensor

from lrenv.lookup import count
from lrenv.training.power_law import PowerLaw

Array = NDArray[np.float64]


class Optimum(NamedTuple):
    """What is best for one problem, budget and batch size."""

    lr: Tensor  # (T,) float64
    momentum: Tensor  # (T,) float64, zeros where momentum was not free
    excess: float  # of the expected loss at the end above that of the target, 1/2 h . p_T


def continuous_schedule(problem: PowerLaw, budget: int, batch_size: int, points: int = 2000) -> tuple[Array, float]:
    """Returns the best stable rates in the limit of small ones, by a formula, and the excess that this limit foresees.

    In the limit, the excess is 1/2 sum_k h_k (w*_k)^2 exp(-2 h_k S) + (sigma^2 / 2 b) int a(t)^2 K(u(t)) dt, where
    u(t) is the sum of the rates from t on, S = u(0), and K(u) = sum_k h_k^2 exp(-2 h_k u) tells how much of the noise
    of then is left (the functional scaling law of Li et al. 2025, arXiv 2509.19189, with this spectrum's own K). For
    given S the integral is smallest where a sqrt(K(u)) is constant (Cauchy-Schwarz, as a = -du/dt and int sqrt(K) du is
    given), and where that would be more than the largest stable rate, at that rate: a = min(top, C / sqrt(K(u))).
    One number is left, C, which is found by a search. For K = u^-(2 - 1/beta) and no bound this is
    u ~ (T - t)^(2 beta), the power decay of arXiv 2602.06797; its hard phase is where the bound is met.

    Args:
        problem: what is learned.
        budget: T.
        batch_size: b.
        points: of the grid of u.

    Returns:
        Rates (T,), each the mean over its inner step, and the excess.
    """
    h, w, top = problem.spectrum.numpy(), problem.target.numpy(), problem.largest_stable_rate(batch_size)
    u = np.concatenate([[0.0], np.geomspace(1e-3, top * budget, points)])
    width, middle = np.diff(u), (u[1:] + u[:-1]) / 2
    left = np.exp(-2 * np.outer(middle, h)) @ h**2
    bias = np.exp(-2 * np.outer(u, h)) @ (h * w**2)

    def path(log_scale: float) -> tuple[float, Array]:
        """The excess for a C, and the time to the end (points + 1,) at each u."""
        rate = np.minimum(top, np.exp(log_scale) / np.sqrt(left))
        time, noise = (np.concatenate([[0.0], np.cumsum(x)]) for x in (width / rate, width * rate * left))
        end = [float(np.interp(budget, time, x)) for x in (bias, noise)]
        return (end[0] + problem.noise**2 / batch_size * end[1]) / 2, time

    highest = np.log(top * np.sqrt(left[0]))
    bounds, options = (highest - 2 - np.log(10 * budget), highest), {"xatol": 1e-6}
    found = minimize_scalar(lambda x: path(x)[0], bounds=bounds, method="bounded", options=options)
    excess, time = path(found.x)
    return -np.diff(np.interp(np.arange(budget, -1, -1), time, u)), excess


def optimal_schedule(
    problem: PowerLaw, budget: int, batch_size: int, interval: int = 1, momentum: bool = False
) -> Optimum:
    """Returns the schedule of smallest expected loss at the end of the budget, constant over each interval.

    Found by BFGS in float64 on the logarithm of the excess, from a schedule refined from coarse intervals to fine ones.
    Rates are the largest stable one, `PowerLaw.largest_stable_rate`, times a logistic function, and with momentum m
    times 1 + m, the gain of the heavy ball in what is stable without noise. Momenta are y^2 / (1 + y^2), because their
    bound, 0, is often best. At intervals of a step or two, single rates beyond the stable ones can pay, as in
    Chebyshev's method, and are not considered; and there can be many minima that are nearly as good, for rates of
    successive steps can trade places.

    Args:
        problem: what is learned.
        budget: T, inner steps.
        batch_size: b.
        interval: N, inner steps between two changes.
        momentum: whether the heavy-ball momentum is free, too; it is 0 otherwise.

    Raises:
        TypeError: a count that is no integer.
        ValueError: a count below 1.
    """
    for name, value in (("budget", budget), ("batch_size", batch_size), ("interval", interval)):
        count(name, value)
    lr, mu, excess = _optimal(problem, budget, batch_size, interval, momentum)
    return Optimum(torch.tensor(lr), torch.tensor(mu), excess)  # of one's own: those that are kept must not be changed


@cache
def _optimal(
    problem: PowerLaw, budget: int, batch_size: int, interval: int, momentum: bool
) -> tuple[Array, Array, float]:
    """Rates (T,), momenta (T,) and the excess of the best schedule."""
    coarse = interval
    while coarse < budget:
        coarse *= 2
    found = _solve(problem, budget, batch_size, coarse, np.full((1 + momentum, 1), -1.0))
    while coarse > interval:
        coarse //= 2
        start = found.x.reshape(1 + momentum, -1).repeat(2, 1)[:, : -(-budget // coarse)]
        start[1:] = np.maximum(np.abs(start[1:]), 0.1)  # momenta of 0, where the loss is flat, may be best no longer
        found = _solve(problem, budget, batch_size, coarse, start)
    top = problem.largest_stable_rate(batch_size)
    lr, mu = (row.repeat(interval)[:budget] for row in _controls(found.x.reshape(1 + momentum, -1), top)[:2])
    return lr, mu, float(np.exp(found.fun))


def _controls(x: Array, top: float) -> tuple[Array, Array, Array]:
    """Rates and momenta (n,) of free variables (1 or 2, n), and what `_solve` needs of their derivatives.

    These are (3, n): of the rates by x_0, of the momenta by x_1, and of the rates by the momenta.
    """
    share = expit(x[0])
    y = x[1] if len(x) > 1 else np.zeros_like(share)
    m = y**2 / (1 + y**2)
    a = top * (1 + m) * share
    return a, m, np.stack([a * (1 - share), 2 * y / (1 + y**2) ** 2, top * share])


def _solve(problem: PowerLaw, budget: int, batch_size: int, interval: int, start: Array) -> OptimizeResult:
    top, free = problem.largest_stable_rate(batch_size), len(start)
    borders = np.arange(0, budget, interval)

    def log_excess(x: Array) -> tuple[float, Array]:
        a, m, slopes = _controls(x.reshape(free, -1), top)
        lr, momentum = (row.repeat(interval)[:budget] for row in (a, m))
        excess, by_step = final_excess(problem, lr, momentum, batch_size, free > 1)
        by_lr, *by_momentum = np.add.reduceat(by_step, borders, axis=1) / excess
        gradient = [by_lr * slopes[0]] + [(own + by_lr * slopes[2]) * slopes[1] for own in by_momentum]
        return float(np.log(excess)), np.concatenate(gradient)

    return minimize(log_excess, start.ravel(), jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 3000})


def final_excess(
    problem: PowerLaw, lr: Array, momentum: Array, batch_size: int, free_momentum: bool = True
) -> tuple[float, Array]:
    """Computes the excess of the expected loss at the end, and its derivatives by rates and momenta, by costates.

    Args:
        problem: what is learned.
        lr: (T,).
        momentum: (T,); not read unless it is free.
        batch_size: b.
        free_momentum: whether there is momentum; without, the system has a third of the numbers.

    Returns:
        The excess, and its derivatives (2, T), or (1, T) without momentum.
    """
    h, c = problem.spectrum.numpy(), problem.curvature(batch_size)
    blocks = 3 if free_momentum else 1
    a, m = lr[:, None, None], momentum[:, None]
    zero, one = np.zeros((len(lr), len(h))), np.ones((len(lr), len(h)))

    def of_moments(*parts: Array) -> Array:
        """(T, blocks, d), what p, q and r contribute to a moment."""
        return np.stack(parts[:blocks], 1)

    # E[v'^2] before the noise, E[e v'], and their derivatives by m; the moments after a step are combinations of them.
    r, r_by_m = of_moments(c * h**2 * one, 2 * m * h, m**2 * one), of_moments(zero, 2 * h * one, 2 * m * one)
    drift, drift_by_m = of_moments(h * one, m * one, zero), of_moments(zero, one, zero)
    p = of_moments(one, zero, zero)
    system = np.stack([p - 2 * a * drift + a**2 * r, drift - a * r, r][:blocks], 1)  # (T, to, from, d)
    by_lr = np.stack([2 * a * r - 2 * drift, -r, 0 * r][:blocks], 1)
    kick = np.concatenate([a**2, -a, 0 * a + 1][:blocks], 1) * h / batch_size  # (T, to, d)
    kick_by_lr = np.concatenate([2 * a, 0 * a - 1, 0 * a][:blocks], 1) * h / batch_size

    state = np.zeros((len(lr) + 1, blocks, len(h)))
    state[0, 0] = problem.target.numpy() ** 2
    risk = np.empty(len(lr))
    for t in range(len(lr)):
        risk[t] = h @ state[t, 0] + problem.noise**2
        state[t + 1] = (system[t] * state[t]).sum(1) + risk[t] * kick[t]
    costate = np.zeros_like(state)
    costate[-1, 0] = h
    for t in range(len(lr) - 1, -1, -1):
        later = costate[t + 1]
        costate[t] = (system[t] * later[:, None]).sum(0)
        costate[t, 0] += (kick[t] * later).sum() * h
    moved = np.einsum("tijk,tjk->tik", by_lr, state[:-1]) + risk[:, None, None] * kick_by_lr
    slopes = [(costate[1:] * moved).sum((1, 2))]
    if free_momentum:
        by_m = np.stack([a**2 * r_by_m - 2 * a * drift_by_m, drift_by_m - a * r_by_m, r_by_m], 1)
        slopes.append((costate[1:] * np.einsum("tijk,tjk->tik", by_m, state[:-1])).sum((1, 2)))
    return float(h @ state[-1, 0]) / 2, np.stack(slopes) / 2
