"""Power-law regression under SGD: a trainee whose expected loss is known exactly, easy or hard by two exponents.

Features x in R^d and targets y = <w*, x> + sigma z, least squares from w = 0, every example drawn afresh:

    loss(w; x, y) = 1/2 (<w, x> - y)^2,     x_k = sqrt(lambda_k) u_k,     lambda_k = k^-beta,
    lambda_k (w*_k)^2 = k^-(1 + s beta),

with all u_k and z independent, symmetric, of mean 0 and variance 1, and all u_k of kurtosis E[u_k^4] = kappa. beta > 1
is the capacity exponent and s > 0 the source exponent: without noise the loss falls as (sum of rates)^-s. This is the
model whose best schedules Li et al. 2026 describe ("Optimal learning-rate schedules under functional scaling laws",
arXiv 2602.06797; their features are general, ours are diagonal). At a fixed budget T, the best schedule is

- *easy*, s >= 1 - 1/beta: a decay over the whole budget, rate(t) = peak (1 - t/T)^(2 beta - 1), with a peak that
  shrinks as T^-((1 + s beta - beta) / (1 + s beta));
- *hard*, s < 1 - 1/beta: the highest stable rate for most of the budget, and a decay over a share that vanishes with T.

**The expected loss** is exact, with no limit of small rates or many dimensions. Let e = w - w*, v the velocity of
heavy-ball momentum, and p_k = E[e_k^2], q_k = E[e_k v_k], r_k = E[v_k^2]. The mean of b examples' gradients is
g = H e - n with E[H] = diag(lambda), and the independence of what is drawn from what was learned gives

    E[g_k e_k] = lambda_k p_k,     E[g_k v_k] = lambda_k q_k,
    E[g_k^2] = (1 + (kappa - 2) / b) lambda_k^2 p_k + (lambda_k / b) (sum_j lambda_j p_j + sigma^2),

the last from E[x_k^2 <x, e>^2] = lambda_k sum_j lambda_j p_j + (kappa - 1) lambda_k^2 p_k, where no correlation between
two coordinates of e enters because the u_k are symmetric. So 3 d numbers describe a run's second moments exactly.
Gaussian features have kappa = 3; random signs have kappa = 1.

**The task's features are signs**, drawn with replacement from the rows of an orthogonal array of strength 4: a finite
table in which any four columns take all sixteen combinations of signs equally often. Nothing above reads more than
four factors at a time, so that for trainees, too, the formulas are exact, and not only up to the table's size. The
validation and test splits are an array of strength 2, on which the mean loss is the expected loss of those weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrenv.data import Data, Split
from lrenv.networks.architectures import Shape

GAUSSIAN, SIGNS = 3.0, 1.0
"""kappa, the kurtosis of a feature."""
FACTORS = 127
"""Columns of the arrays: 2^7 - 1."""


@dataclass(frozen=True)
class PowerLaw:
    """A regression problem.

    Attributes:
        capacity: beta > 1, how fast the spectrum falls.
        source: s > 0, how fast the target is learned.
        noise: sigma, the standard deviation of the targets' noise.
        dimension: d.
        kurtosis: kappa >= 1 of each feature.

    Raises:
        ValueError: a number outside its range.
    """

    capacity: float
    source: float
    noise: float = 1.0
    dimension: int = 100
    kurtosis: float = SIGNS

    def __post_init__(self) -> None:
        if not (1 < self.capacity < np.inf and 0 < self.source < np.inf and 0 <= self.noise < np.inf):
            raise ValueError(f"a power law needs finite capacity > 1, source > 0 and noise >= 0, not {self}")
        if self.dimension < 1 or not 1 <= self.kurtosis < np.inf:
            raise ValueError(f"a power law needs dimension >= 1 and kurtosis >= 1, that of signs, not {self}")

    @property
    def spectrum(self) -> Tensor:
        """The variances lambda (d,) of the features, float64."""
        return torch.arange(1, self.dimension + 1, dtype=torch.float64) ** -self.capacity

    @property
    def target(self) -> Tensor:
        """w* (d,), float64."""
        k = torch.arange(1, self.dimension + 1, dtype=torch.float64)
        return k ** (-(1 + self.source * self.capacity - self.capacity) / 2)

    @property
    def easy(self) -> bool:
        """Whether the best schedule is a power decay."""
        return self.source >= 1 - 1 / self.capacity

    def curvature(self, batch_size: int) -> float:
        """Returns 1 + (kappa - 2) / b, the factor of lambda_k^2 p_k in E[g_k^2]."""
        return 1 + (self.kurtosis - 2) / batch_size

    def largest_stable_rate(self, batch_size: int) -> float:
        """Returns the constant rate of plain SGD from which on the expected loss grows without bound.

        At rate a the moments come to rest at lambda_k p_k = f_k (sum_j lambda_j p_j + sigma^2) with
        f_k = (a lambda_k / b) / (2 - a lambda_k (1 + (kappa - 2) / b)), which needs all f_k > 0 and sum_k f_k < 1.
        """
        h, c = self.spectrum.numpy(), self.curvature(batch_size)
        low, high = 0.0, float(min(2 * batch_size / h.sum(), 2 / c if c > 0 else np.inf))
        for _ in range(100):
            middle = (low + high) / 2
            fits = (middle * h / batch_size / (2 - middle * h * c)).sum() < 1
            low, high = (middle, high) if fits else (low, middle)
        return low


EASY = PowerLaw(capacity=2.0, source=1.0)
HARD = PowerLaw(capacity=2.0, source=0.25)
"""On either side of the transition, which is at a source exponent of 1/2. Of 100 dimensions, a budget of 1,000 steps at
the largest stable rates learns about 60, so that the power laws' end is felt in the hard one's loss alone."""


def expected_loss(problem: PowerLaw, lr: Tensor, batch_size: int, momentum: Tensor | float = 0.0) -> Tensor:
    """Computes the expected loss of the weights after each step of SGD, differentiable by rates and momenta.

    Args:
        problem: what is learned.
        lr: (T, ...) rates, in the order of the steps.
        batch_size: b, examples per step, drawn independently.
        momentum: mu in v <- mu v + g, w <- w - lr v, as `torch.optim.SGD`; a number, or (T, ...).

    Returns:
        (T + 1, ...) losses, the first before any step; float64. They contain the noise's share, sigma^2 / 2.
    """
    lr = lr.double()
    mu = torch.as_tensor(momentum, dtype=torch.float64).expand(lr.shape)
    shape = (problem.dimension, *(1,) * (lr.ndim - 1))
    h, c = problem.spectrum.view(shape), problem.curvature(batch_size)
    p = (problem.target.view(shape) ** 2).expand(problem.dimension, *lr.shape[1:])
    q = r = torch.zeros_like(p)
    twice = [(h * p).sum(0) + problem.noise**2]
    for a, m in zip(lr, mu, strict=True):
        square = c * h**2 * p + h / batch_size * twice[-1]
        drift = m * q + h * p  # E[e v] after v's update
        r = m**2 * r + 2 * m * h * q + square
        p, q = p - 2 * a * drift + a**2 * r, drift - a * r
        twice.append((h * p).sum(0) + problem.noise**2)
    return torch.stack(twice) / 2


class LinearRegression(nn.Module):
    """Gives 1/2 (<w, x> - y)^2 for each example (x, y)."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension))

    def forward(self, examples: Tensor) -> Tensor:
        """Returns the losses (b, 1) for features and targets (b, d + 1)."""
        x, y = examples[..., :-1], examples[..., -1:]
        return 0.5 * ((x * self.weight).sum(-1, keepdim=True) - y) ** 2


def linear_regression(shape: Shape, classes: int) -> nn.Module:
    """Returns least squares as a network: its inputs are features with their target, and its outputs are losses."""
    del classes
    return LinearRegression(shape[0] - 1)


def orthogonal_array(strength: int) -> NDArray[np.int64]:
    """Signs (rows, 127) of which any 2 or 4 columns, by `strength`, take all combinations equally often.

    The rows are the words of the dual of a BCH code of length 127, built in the field of 128 elements: column i is the
    parity of what the row's number has in common with the binary digits of a^i, and for strength 4 of (a^i, a^3i). No
    four such columns add up to zero, because the code that they check corrects two errors (Bose & Ray-Chaudhuri 1960,
    "On a class of error correcting binary group codes").
    """
    powers = [1]
    while len(powers) < FACTORS:  # multiply by a, which is a root of x^7 + x + 1
        powers.append(powers[-1] << 1 ^ (0b10000011 if powers[-1] & 64 else 0))
    checks = {
        2: powers,
        4: [power | powers[3 * i % FACTORS] << 7 for i, power in enumerate(powers)],
    }[strength]
    bits = 7 * strength // 2
    digits = np.arange(bits)
    rows = np.arange(2**bits)[:, None] >> digits & 1
    return 1 - 2 * (rows @ (np.array(checks)[:, None] >> digits & 1).T % 2)


def regression_data(problem: PowerLaw) -> Data:
    """Examples (x, y), whose moments up to the fourth are exact, and held-out ones whose second moments are.

    Raises:
        ValueError: another kurtosis than that of signs, or more features than the arrays have columns for.
    """
    if problem.kurtosis != SIGNS or not 1 <= problem.dimension < FACTORS:
        raise ValueError(f"a task has 1 to {FACTORS - 1} features of kurtosis {SIGNS}, signs, not {problem}")

    def split(strength: int) -> Split:
        signs = torch.from_numpy(orthogonal_array(strength)[:, : problem.dimension + 1]).double()
        x = problem.spectrum.sqrt() * signs[:, 1:]
        y = x @ problem.target + problem.noise * signs[:, 0]
        inputs = torch.cat([x, y[:, None]], 1).float()
        return Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))

    held_out = split(2)
    return Data(split(4), held_out, held_out, torch.tensor(0.0), torch.tensor(1.0), classes=0)


def easy_data() -> Data:
    """Returns the examples of `EASY`."""
    return regression_data(EASY)


def hard_data() -> Data:
    """Returns the examples of `HARD`."""
    return regression_data(HARD)
