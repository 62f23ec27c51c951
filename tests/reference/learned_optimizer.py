"""The learned optimizer of Metz et al. 2019, section 4.1 and appendix C.1. The modules are
`agents/learned_optimizer/features.py` and `agents/learned_optimizer/agent.py`.

Moving averages start at 0 and are not corrected for it. eps is 1e-8, which the paper doesn't give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
TIMESCALES = np.logspace(np.log10(3), np.log10(300_000), 9)
LAMBDA_EXP = LAMBDA_LIN = 1e-3
EPS = 1e-8


def features(gradients: Array, weights: Array, sizes: tuple[int, ...]) -> Array:
    """The 31 features (P, 31) at the last of the steps, from all gradients so far (T, P) and the weights now (P,)."""
    momenta, roots = [], []
    for decay in DECAYS:
        m, v = np.zeros_like(weights), np.zeros_like(weights)
        for g in gradients:
            m = decay * m + (1 - decay) * g
            v = decay * v + (1 - decay) * g**2
        momenta.append(m)
        roots.append(np.sqrt(v))
    columns = [gradients[-1], weights]  # 2: the gradient and the weight
    columns += momenta  # 5: momentum terms
    columns += roots  # 5: rms terms
    columns += [1 / (rms + EPS) for rms in roots]  # 5: r = 1 / (rms + eps)
    columns += [m / (rms + EPS) for m, rms in zip(momenta, roots, strict=True)]  # 5: r m
    own = np.stack(columns, 1)
    for tensor in np.split(np.arange(len(weights)), np.cumsum(sizes)[:-1]):  # normalised over each tensor's weights
        own[tensor] /= np.sqrt((own[tensor] ** 2).mean(0))
    t = len(gradients) - 1
    times = [np.tanh(t / eta - 1) for eta in TIMESCALES]  # 9: the training iteration
    return np.concatenate([own, np.tile(times, (len(weights), 1))], 1)


def update(x: Array, theta: Array, hidden: int = 32) -> Array:
    """exp(lambda_exp o_1) lambda_lin o_2, (P,), of a perceptron with one hidden layer of ReLU units.

    theta holds the weights and the bias of each hidden unit, then those of both outputs.
    """
    inputs = x.shape[1]
    first = theta[: hidden * (inputs + 1)].reshape(hidden, inputs + 1)
    second = theta[hidden * (inputs + 1) :].reshape(2, hidden + 1)
    units = np.maximum(x @ first[:, :-1].T + first[:, -1], 0)
    o1, o2 = (units @ second[:, :-1].T + second[:, -1]).T
    return np.exp(LAMBDA_EXP * o1) * LAMBDA_LIN * o2


def train(gradients: Array, w: Array, theta: Array, sizes: tuple[int, ...]) -> Array:
    """The weights after the steps w <- w - update, with the gradients (T, P) given."""
    for t in range(len(gradients)):
        w = w - update(features(gradients[: t + 1], w, sizes), theta)
    return w
