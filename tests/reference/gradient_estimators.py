"""Outer gradients of Metz et al. 2019, section 3 and algorithm 1. The module is
`agents/outer/gradient_estimators.py`.

L is the loss of a training under theta, and e ~ N(0, sigma^2 I) a perturbation, taken with both signs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def reparameterisation(gradient: Callable[[Array], Array], theta: Array, e: Array) -> Array:
    """A sample of g_rp: the gradient of (L(theta + e) + L(theta - e)) / 2."""
    return (gradient(theta + e) + gradient(theta - e)) / 2


def evolution_strategies(loss: Callable[[Array], float], theta: Array, e: Array, sigma: float) -> Array:
    """A sample of g_es: (L(theta + e) - L(theta - e)) / 2 times d/dtheta log N(theta + e; theta, sigma^2 I)."""
    return (loss(theta + e) - loss(theta - e)) / 2 * e / sigma**2


def merged(g1: Array, g2: Array) -> Array:
    """Equation 1, of samples (k, D) each: (g1 / v1 + g2 / v2) / (1 / v1 + 1 / v2), weight by weight."""
    v1, v2 = g1.var(0, ddof=1), g2.var(0, ddof=1)
    return (g1.mean(0) / v1 + g2.mean(0) / v2) / (1 / v1 + 1 / v2)
