"""OSGM (Gao et al. 2024, arXiv:2411.01803; Chu et al. 2025, arXiv:2502.11229). It is `agents/hypergradient/osgm.py`.

The step sizes p of w_(t+1) = w_t - p_t g_t are learned from the hypergradient feedback

    u_t = -<g_(t+1), g_t> / |g_t|^2   (over the piece that a step size belongs to; the norm is that of all of g_t)

by AdaGrad, p <- p - eta u_t / sqrt(sum of u^2). Their null steps and momentum are left out, as in lrenv.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class OSGM:
    """A rule of `reference/hypergradient_descent.py`, on SGD, whose direction d_t is g_t."""

    def __init__(self, adagrad_lr: float) -> None:
        self.adagrad_lr, self.squares = adagrad_lr, 0.0

    def __call__(self, rates: Array, g: Array, before: Array, d: Array, pieces: list[slice]) -> Array:
        feedback = -np.array([g[piece] @ d[piece] for piece in pieces]) / (d @ d)
        self.squares = self.squares + feedback**2
        return rates - self.adagrad_lr * feedback / np.sqrt(self.squares + 1e-20)
