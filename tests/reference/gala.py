"""GALA (Jiang, Kavis and Mokhtari 2025, arXiv:2506.08419). The module is `agents/hypergradient/gala.py`.

After each step from w_t along -d_t, the loss as a function of its rate eta has the surrogate

    l_t(eta) = -eta <g_(t+1), d_t> + eta^2 / 2 * L_t |d_t|^2,    L_t = |g_(t+1) - g'_t| / |w_(t+1) - w_t|,

with g'_t at w_t on the batch of g_(t+1). Follow-the-regularised-leader takes the minimiser of

    delta / 2 * (eta - eta_0)^2 + sum_t l_t(eta).

The pull towards eta_0 and the clipping are lrenv's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Gala:
    """A rule of `reference/hypergradient_descent.py`, for one rate."""

    def __init__(self, initial_lr: float, delta: float, low: float, high: float) -> None:
        self.low, self.high = low, high
        # delta / 2 * (eta - eta_0)^2 is, up to a constant, slope * eta + curvature / 2 * eta^2.
        self.slope, self.curvature = -delta * initial_lr, delta

    def __call__(self, rates: Array, g: Array, before: Array, d: Array, pieces: list[slice]) -> Array:
        displacement = rates[0] * d
        smoothness = np.linalg.norm(g - before) / np.linalg.norm(displacement)
        self.slope += -(g @ d)
        self.curvature += smoothness * (d @ d)
        return np.clip([-self.slope / self.curvature], self.low, self.high)
