"""Estimators of outer gradients: derivatives of the loss of trainings by theta, the parameters of an optimizer.

The loss L of a training explodes and has cliffs as a function of theta. So what is descended is the variational loss

    L_sigma(theta) = E[L(theta + e)],    e ~ N(0, sigma^2 I)

(Metz et al. 2019, section 3), and e comes in antithetic pairs. Its gradient has two unbiased estimators:

    g_rp = (dL/dtheta(theta + e) + dL/dtheta(theta - e)) / 2      reparameterisation
    g_es = (L(theta + e) - L(theta - e)) e / (2 sigma^2)          evolution strategies (ES)

The first is precise in short trainings and explodes in long ones, the second needs losses alone. `merged` weighs both
by their inverse variances (equation 1).

Over a truncation, some steps of a longer training, both are biased: theta has shaped the state in which the truncation
begins, and they take that state as given. Persistent evolution strategies (PES; Vicol, Metz & Sohl-Dickstein 2021,
arXiv:2112.13835, algorithm 2) correct it: each of a pair trains on by itself, and the e that multiplies the difference
of its losses is the sum of all its perturbations since its start.

A population is one batch: its perturbed thetas are (n, D), and a rollout takes them along the env axis.
`tests/reference/gradient_estimators.py` has the estimators in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from lrenv.runtime.trees import join, select

S = TypeVar("S")
Rollout = Callable[[Tensor, S], tuple[Tensor, S]]
"""(thetas (n, D), n trainees) -> (losses (n,), the trainees afterwards). The result for one trainee depends on that
trainee alone, and trees have the env axis first."""


class Samples(NamedTuple, Generic[S]):
    """Samples of m pairs, of which k are left and the others have diverged. Before these are left out, k is m."""

    loss: Tensor  # (k,), the mean of each pair; their mean estimates the variational loss
    es: Tensor  # (k, D), g_es; with accumulated perturbations those of PES
    reparameterisation: Tensor  # (k, D), g_rp; without gradients (0, D)
    kept: Tensor  # (m,) bool, the pairs that are left
    state: S  # 2m trainees, those at theta + e before those at theta - e


def perturbations(pairs: int, theta: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Draws e (m, D), one perturbation per pair, on a CPU generator whatever theta's device."""
    noise = torch.randn(pairs, theta.shape[-1], generator=generator, dtype=theta.dtype)
    return sigma * noise.to(theta.device)


def orthogonal_perturbations(
    pairs: int, theta: Tensor, sigma: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draws e (m, D) of length sigma sqrt(D), of which each D in a row stand at right angles to one another.

    Their mean product e e^T is sigma^2 I, as above, but what a coordinate of theta does is no noise in the estimates of
    the others: D of them give the gradient of a linear function exactly (Choromanski et al. 2018, arXiv:1804.02395).
    """
    size = theta.shape[-1]
    blocks = torch.randn(-(-pairs // size), size, size, generator=generator, dtype=theta.dtype)
    directions, triangular = torch.linalg.qr(blocks)
    signs = triangular.diagonal(dim1=-2, dim2=-1).sign()  # without them the directions would not be uniform
    rows = (directions * signs[:, None]).mT.flatten(0, 1)[:pairs]
    noise: Tensor = sigma * size**0.5 * rows
    return noise.to(theta.device)


def paired(state: S) -> S:
    """Returns each of m trainees twice, (2m, ...): the common start of both trainees of each pair."""
    return join([state, state])


def one_of_each(state: S, first: Tensor) -> S:
    """Returns one trainee of each pair: that at theta + e where `first` (m,) holds, else the other (algorithm 1)."""
    m = len(first)
    plus, minus = (tree_map(lambda x: x[part], state) for part in (slice(m), slice(m, None)))  # noqa: B023
    chosen: S = select(first, plus, minus)
    return chosen


def sampled(
    rollout: Rollout[S],
    theta: Tensor,
    noise: Tensor,
    sigma: float,
    state: S,
    differentiate: bool = True,
    accumulated: Tensor | None = None,
) -> Samples[S]:
    """Runs a population of antithetic pairs, and gives the samples of those of which no trainee diverges.

    This waits for the device once, to find which are left. For the arguments see `evaluated`.
    """
    samples = evaluated(rollout, theta, noise, sigma, state, differentiate, accumulated)
    return survivors(samples, samples.kept.cpu().numpy())


def evaluated(
    rollout: Rollout[S],
    theta: Tensor,
    noise: Tensor,
    sigma: float,
    state: S,
    differentiate: bool = True,
    accumulated: Tensor | None = None,
) -> Samples[S]:
    """Runs a population of antithetic pairs, and gives the samples of all m, without waiting for the device.

    Pairs of which one diverges take no part in the backward pass.

    Args:
        rollout: of a truncation; differentiable by its thetas if `differentiate`.
        theta: (D,).
        noise: (m, D), e.
        sigma: standard deviation of e.
        state: 2m trainees; but for PES both of a pair must begin alike.
        differentiate: also compute reparameterisation gradients.
        accumulated: (m, D), the sum of all perturbations since a pair began its training, `noise` included; gives the
            samples of PES as `es`.

    Raises:
        ValueError: sigma is not positive, or numbers of pairs or parameters disagree.
    """
    m = len(noise)
    e = noise if accumulated is None else accumulated
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}: estimators need perturbations")
    if noise.shape != (m, len(theta)) or e.shape != noise.shape:
        raise ValueError(
            f"theta has {len(theta)} parameters, so perturbations must be (pairs, {len(theta)}), not "
            f"{tuple(noise.shape)} and {tuple(e.shape)}"
        )
    population = (theta + torch.cat([noise, -noise])).detach().requires_grad_(differentiate)
    with torch.set_grad_enabled(differentiate):
        losses, state = rollout(population, state)
    plus, minus = losses.detach().split(m)
    kept = plus.isfinite() & minus.isfinite()
    g_rp = theta.new_zeros(0, len(theta))
    if differentiate:
        # Not `torch.autograd.grad`, which a rollout that is checkpointed reentrantly can't serve.
        losses.where(kept.repeat(2), 0).sum().backward()
        assert population.grad is not None
        g_rp = population.grad.unflatten(0, (2, m)).mean(0)
    g_es = ((plus - minus) / (2 * sigma**2)).unsqueeze(1) * e
    detached: S = tree_map(Tensor.detach, state)
    return Samples((plus + minus) / 2, g_es, g_rp, kept, detached)


def survivors(samples: Samples[S], kept: NDArray[np.bool_]) -> Samples[S]:
    """Returns the samples without those of pairs that have diverged; `kept` (m,) is theirs, on the host."""
    if kept.all():
        return samples
    rows = torch.from_numpy(np.flatnonzero(kept)).to(samples.loss.device)
    loss, es = samples.loss[rows], samples.es[rows]
    reparameterised = samples.reparameterisation
    return samples._replace(
        loss=loss, es=es, reparameterisation=reparameterised[rows] if len(reparameterised) else reparameterised
    )


PRECISIONS = (1e-200, 1e200)
"""Bounds of inverse variances 1 / v, which an infinite variance and one of 0 are given."""


def merged(one: Tensor, other: Tensor) -> Tensor:
    """Returns the mean of two estimators, weighted by their inverse empirical variances, weight by weight.

    g = (g_1 / v_1 + g_2 / v_2) / (1 / v_1 + 1 / v_2)    (equation 1)

    The same samples give means and variances, which the paper found to work well. An estimator with a sample that is
    not finite has infinite variance; where that holds for both, the result is 0.

    Args:
        one: (k, D), samples of one estimator.
        other: (k, D), of the other.

    Returns:
        (D,).

    Raises:
        ValueError: fewer than two samples, which have no variance.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"variances need at least two pairs, not {min(len(one), len(other))}; add pairs")
    (g1, precision1), (g2, precision2) = _mean_and_precision(one), _mean_and_precision(other)
    return ((g1 * precision1 + g2 * precision2) / (precision1 + precision2)).to(one.dtype)


def _mean_and_precision(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean g and inverse variance 1 / v of samples (k, D), (D,) each; g is 0 where a sample is not finite."""
    samples = samples.double()  # variances of exploding gradients are beyond the range of float32
    variance = samples.var(0).nan_to_num(nan=torch.inf)
    mean = torch.where(variance.isfinite(), samples.mean(0), 0.0)
    return mean, (1 / variance).clamp(*PRECISIONS)


ESTIMATORS: dict[str, Callable[[Samples[S]], Tensor]] = {
    "merged": lambda samples: merged(samples.reparameterisation, samples.es),
    "reparameterisation": lambda samples: samples.reparameterisation.mean(0).nan_to_num(0.0, 0.0, 0.0),
    "es": lambda samples: samples.es.mean(0),
    "pes": lambda samples: samples.es.mean(0),
}
"""Name -> samples -> outer gradient (D,). The estimator `es` over whole trainings is full ES; `pes` needs accumulated
perturbations."""
DIFFERENTIATED = ("merged", "reparameterisation")
"""The estimators that need gradients of rollouts."""
