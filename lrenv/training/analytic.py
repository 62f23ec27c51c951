"""Two trainees that are formulas: their losses are known in closed form, so methods can be held against the truth.

The noisy quadratic (Schaul, Zhang & LeCun 2013; Wu et al. 2018, "Understanding short-horizon bias in stochastic
meta-optimization", section 2) has weights w, curvatures h and gradients blurred by noise c of variance sigma^2:

    loss(w; c) = 1/2 sum_i h_i (w_i - c_i)^2,     expected loss = 1/2 sum_i h_i (w_i^2 + sigma^2).

Its curvatures span two decades, which is what makes a greedy schedule worse than the best one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn

from lrenv.data import Data, Split
from lrenv.lookup import count
from lrenv.networks.architectures import Shape

CURVATURE = tuple(float(h) for h in np.logspace(-2, 0, 10))
"""h, the eigenvalues of the quadratic."""
NOISE = 1.0
"""sigma, the standard deviation of every coordinate's noise in a single example."""
START = 1.0
"""Every weight starts here."""


class NoisyQuadratic(nn.Module):
    """Gives 1/2 sum_i h_i (w_i - c_i)^2 for each example c."""

    curvature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((len(CURVATURE),), START))
        self.register_buffer("curvature", torch.tensor(CURVATURE))

    def forward(self, noise: Tensor) -> Tensor:
        """Returns the losses (b, 1) for noise (b, d)."""
        return 0.5 * (self.curvature * (self.weight - noise) ** 2).sum(-1, keepdim=True)


def noisy_quadratic(shape: Shape, classes: int) -> nn.Module:
    """Returns the noisy quadratic as a network: its inputs are noise and its outputs are losses."""
    del shape, classes
    return NoisyQuadratic()


def quadratic_noise() -> Data:
    """Draws noise whose mean is exactly 0 and whose variance is exactly sigma^2, so that the closed form is exact.

    The two examples +sigma and -sigma of the validation and test splits average to the expected loss.
    """
    sample = np.random.default_rng(0).standard_normal((4096, len(CURVATURE)))
    sample = NOISE * (sample - sample.mean(0)) / sample.std(0)
    exact = torch.tensor([[NOISE], [-NOISE]]).expand(-1, len(CURVATURE)).contiguous()
    return _unlabelled(torch.tensor(sample, dtype=torch.float32), exact)


def expected_loss(lr: Tensor, batch_size: int, curvature: tuple[float, ...] = CURVATURE) -> Tensor:
    """Computes the expected loss of the noisy quadratic after each step of SGD (Wu et al. 2018, equation 5).

    The second moment of each weight, m_i = E[w_i^2], follows
    m_i <- (1 - lr h_i)^2 m_i + (lr h_i sigma)^2 / b.

    Args:
        lr: (T, ...) rates, in the order of the steps.
        batch_size: b, examples per step, drawn independently.
        curvature: h.

    Returns:
        (T + 1, ...) losses, the first before any step; float64.
    """
    lr = lr.double()
    h = torch.tensor(curvature, dtype=torch.float64).view(-1, *(1,) * (lr.ndim - 1))
    moment = torch.full_like(lr[0], START).expand(len(curvature), *lr.shape[1:]) ** 2
    losses = [0.5 * (h * (moment + NOISE**2)).sum(0)]
    for rate in lr:
        moment = (1 - rate * h) ** 2 * moment + (rate * h * NOISE) ** 2 / batch_size
        losses.append(0.5 * (h * (moment + NOISE**2)).sum(0))
    return torch.stack(losses)


def optimal_schedule(
    budget: int, batch_size: int, interval: int = 1, curvature: tuple[float, ...] = CURVATURE
) -> Tensor:
    """Computes the rates (T,) of SGD, constant per interval, that minimise the expected loss at the end of the budget.

    Found by BFGS on log rates, in float64. Rates of successive steps can trade places at little cost, so there are
    many local minima a few percent of the excess loss apart where intervals are short: the best of several starts
    is taken, one of them the schedule refined from coarse intervals to fine ones. For a single curvature it is
    lr_t = 1 / (h (1 + sigma^2 / (b m_0) + t)), which tests hold it against; m_0 is the square of the start.
    """
    for name, number in (("budget", budget), ("batch_size", batch_size), ("interval", interval)):
        count(name, number)
    # A tensor of one's own: what is kept must not be changed.
    return torch.tensor(_optimal(budget, batch_size, interval, curvature))


@cache
def _optimal(budget: int, batch_size: int, interval: int, curvature: tuple[float, ...]) -> NDArray[np.float64]:
    """The best rates (T,)."""

    def solve(start: NDArray[np.float64], interval: int) -> OptimizeResult:
        arguments = (budget, batch_size, interval, np.array(curvature))
        options = {"gtol": 1e-9, "maxiter": 3000}
        return minimize(_final_loss, start, arguments, method="BFGS", jac=True, options=options)

    def decisions(interval: int) -> int:
        return -(-budget // interval)

    coarse = interval
    while coarse < budget:
        coarse *= 2
    refined = solve(np.full(1, -1.0), coarse)
    while coarse > interval:
        coarse //= 2
        refined = solve(refined.x.repeat(2)[: decisions(coarse)], coarse)
    lines = (np.linspace(first, last, decisions(interval)) for first, last in ((0.0, -2.0), (0.5, -3.0)))
    best = min((refined, *(solve(line, interval) for line in lines)), key=lambda result: float(result.fun))
    rates: NDArray[np.float64] = np.exp(best.x).repeat(interval)[:budget]
    return rates


def _final_loss(
    log_lr: NDArray[np.float64], budget: int, batch_size: int, interval: int, h: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The excess of the last `expected_loss` over that of w = 0, and its derivative by each decision's log rate."""
    # Line searches look far afield; rates beyond e^10 would overflow.
    lr = np.exp(log_lr.clip(-40, 10)).repeat(interval)[:budget, None]
    shrink, noise = 1 - lr * h, h**2 * NOISE**2 / batch_size
    moment = np.empty((budget + 1, len(h)))
    moment[0] = START**2
    for t in range(budget):
        moment[t + 1] = shrink[t] ** 2 * moment[t] + lr[t] ** 2 * noise
    weight = np.empty((budget, len(h)))  # twice the derivative of the loss by the moment after each step
    weight[-1] = h
    for t in range(budget - 1, 0, -1):
        weight[t - 1] = weight[t] * shrink[t] ** 2
    slope = (lr * weight * (lr * noise - h * shrink * moment[:-1])).sum(1)
    return 0.5 * float(h @ moment[-1]), np.add.reduceat(slope, np.arange(0, budget, interval))


class TwoMinima(nn.Module):
    """Gives (w - 4)(w - 3) w^2 from w = -1.2, for each example (Metz et al. 2019, section 2.3 and figure 3a)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.2]))

    def forward(self, nothing: Tensor) -> Tensor:
        """Returns the losses (b, 1), whatever the inputs (b, 1) are."""
        w = self.weight
        return ((w - 4) * (w - 3) * w**2).expand(nothing.shape[0], 1)


def two_minima(shape: Shape, classes: int) -> nn.Module:
    """Returns the loss surface with two minima as a network whose outputs are losses."""
    del shape, classes
    return TwoMinima()


def nothing() -> Data:
    """Returns one empty example, as the loss depends on no data."""
    return _unlabelled(torch.zeros(1, 1), torch.zeros(1, 1))


def _unlabelled(train: Tensor, held_out: Tensor) -> Data:
    def split(inputs: Tensor) -> Split:
        return Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))

    return Data(split(train), split(held_out), split(held_out), torch.tensor(0.0), torch.tensor(1.0), classes=0)
