"""The optimizers' directions d_t: every step is w_(t+1) = w_t - lr d_t. The module is `lrenv/training/optimizers.py`.

An optimizer is called with the gradient g_t and the weights w_t, and remembers what it needs. Weight decay is the
gradient of an L2 penalty, added to g_t, but for AdamW, which has it beside the scaled gradient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class SGD:
    """d = g."""

    def __init__(self, weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay

    def __call__(self, g: Array, w: Array) -> Array:
        return self.direction(g + self.weight_decay * w)

    def direction(self, g: Array) -> Array:
        return g


class Momentum(SGD):
    """v <- mu v + g, d = v (Polyak 1964, in the form of Sutskever et al. 2013)."""

    def __init__(self, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(weight_decay)
        self.momentum, self.velocity = momentum, 0.0

    def direction(self, g: Array) -> Array:
        self.velocity = self.momentum * self.velocity + g
        return self.velocity


class Nesterov(Momentum):
    """v <- mu v + g, d = g + mu v (Sutskever et al. 2013)."""

    def direction(self, g: Array) -> Array:
        return g + self.momentum * super().direction(g)


class RMSprop(SGD):
    """v <- alpha v + (1 - alpha) g^2, d = g / (sqrt(v) + eps) (Tieleman and Hinton 2012)."""

    alpha, eps, square = 0.99, 1e-8, 0.0

    def direction(self, g: Array) -> Array:
        self.square = self.alpha * self.square + (1 - self.alpha) * g**2
        return g / (np.sqrt(self.square) + self.eps)


class Adam(SGD):
    """Kingma and Ba 2015, algorithm 1.

    m <- beta_1 m + (1 - beta_1) g        m_hat = m / (1 - beta_1^t)
    v <- beta_2 v + (1 - beta_2) g^2      v_hat = v / (1 - beta_2^t)
    d = m_hat / (sqrt(v_hat) + eps)
    """

    beta2, eps, mean, square, t = 0.999, 1e-8, 0.0, 0.0, 0

    def __init__(self, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(weight_decay)
        self.beta1 = momentum

    def direction(self, g: Array) -> Array:
        self.t += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * g
        self.square = self.beta2 * self.square + (1 - self.beta2) * g**2
        mean_hat = self.mean / (1 - self.beta1**self.t)
        square_hat = self.square / (1 - self.beta2**self.t)
        return mean_hat / (np.sqrt(square_hat) + self.eps)


class AdamW(Adam):
    """d = m_hat / (sqrt(v_hat) + eps) + weight_decay w (Loshchilov and Hutter 2019, algorithm 2)."""

    def __init__(self, momentum: float = 0.9, weight_decay: float = 0.01) -> None:
        super().__init__(momentum, weight_decay)

    def __call__(self, g: Array, w: Array) -> Array:
        return self.direction(g) + self.weight_decay * w
