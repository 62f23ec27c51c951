"""What the learned optimizer sees of a weight: the 31 features of Metz et al. 2019, section 4.1 and appendix C.1.

With the gradients g of a weight w, at each decay beta,

    m <- beta m + (1 - beta) g       v <- beta v + (1 - beta) g^2       rms = sqrt(v)       r = 1 / rms

and with t inner steps taken, the features are, in the order of the perceptron's inputs,

    g                      1    the gradient
    w                      1    the weight
    m                      5    momentum terms, one for each decay
    rms                    5    root mean squares of gradients
    r                      5    their reciprocals
    r m                    5    the momentum terms in Adam's normalisation
    tanh(t / eta - 1)      9    the time, at each timescale eta

All but those of time are then divided by their root mean square over the weights of the tensor, so that an update
doesn't depend on the scale of gradients, nor would it on Adam's bias corrections, which are left out.
`tests/reference/learned_optimizer.py` has the features in NumPy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
"""beta of the moving averages."""
TIMESCALES = tuple(float(eta) for eta in np.geomspace(3, 3e5, 9))
"""eta of the features of time."""
EPS = 1e-8
"""Added in quadrature to root mean squares of gradients. The paper has r = 1 / (rms + eps), which is the same where rms
is far from eps, but has no derivative where a gradient was always 0, as behind dead ReLUs."""
LEAST = 1e-24
"""Added to the mean squares of features over a tensor: tensors of zeros stay zeros, and the power -3/2 of the mean
square, which derivatives hold, is within the range of float32. It doesn't change gradients of a root mean square above
1e-12."""


def moving_averages(gradient: Tensor, m: Tensor, v: Tensor, decays: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the next m and v, (n, 5, P) each, for gradients (n, P) and decays beta (5, 1)."""
    g = gradient.unsqueeze(1)
    return torch.lerp(g, m, decays), torch.lerp(g.square(), v, decays)  # lerp(g, m, beta) = beta m + (1 - beta) g


def features_of_weights(
    gradient: Tensor, weight: Tensor, m: Tensor, v: Tensor, momentum: bool = True, rms: bool = True
) -> Tensor:
    """Returns the features of each weight before their normalisation, and 1 for the bias, (n, F + 1, P).

    Args:
        gradient: (n, P).
        weight: (n, P).
        m: (n, 5, P), moving averages of gradients.
        v: (n, 5, P), moving averages of their squares.
        momentum: whether features that hold m are among them.
        rms: whether features that hold v are among them.
    """
    features = [
        gradient.unsqueeze(1),
        weight.unsqueeze(1),
    ]
    if momentum:
        features.append(m)
    if rms:
        root = (v + EPS**2).sqrt()
        r = root.reciprocal()
        features += [root, r]
        if momentum:
            features.append(r * m)
    features.append(torch.ones_like(features[0]))  # its mean square is 1, so the normalisation leaves it as it is
    return torch.cat(features, 1)


def features_of_time(step: Tensor, timescales: Tensor) -> Tensor:
    """Returns tanh(t / eta - 1), (n, 9), for numbers t of inner steps taken (n, 1)."""
    return torch.tanh(step / timescales - 1)


def mean_square(features: Tensor) -> Tensor:
    """Returns the square (n, F) by whose root features (n, F, P) of one tensor are divided."""
    square: Tensor = torch.linalg.vector_norm(features, dim=2).square() / features.shape[2]
    return square + LEAST
