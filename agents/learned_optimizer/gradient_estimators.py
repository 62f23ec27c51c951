"""Estimators of outer gradients: which way the parameters theta of an optimizer, or of anything that trains, should go.

The loss of a training explodes and has cliffs as a function of theta. So what is descended is the variational loss

    L_sigma(theta) = E[L(theta + e)],    e ~ N(0, sigma^2 I)

(Metz et al. 2019, section 3), and e comes in antithetic pairs. Its gradient has two unbiased estimators. The
reparameterisation gradient is the mean of the gradients at theta + e and theta - e: precise as long as little chaos has
built up, useless from then on. Evolution strategies (ES) see losses alone: e / (2 sigma^2) times the difference of a
pair. `merged` takes of each weight's two estimates what their variances recommend (equation 1).

Over a truncation, a piece of a training, both are biased: theta has shaped the state in which the piece begins, and
they take that state as given. Persistent evolution strategies (PES; Vicol, Metz & Sohl-Dickstein 2021, algorithm 2)
correct it: each of a pair trains on by itself, and its losses are credited with all the perturbations since its start.

A population is one batch: its perturbed thetas are (n, D), and a rollout takes them along the env axis.
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
"""(thetas (n, D), n trainees) -> (losses (n,), the trainees afterwards). What it gives for one trainee depends on that
trainee alone, and trees have the env axis first."""


class Samples(NamedTuple, Generic[S]):
    """What m pairs say; k of them are left, the others have diverged. Before these are left out, k is m."""

    loss: Tensor  # (k,), the mean of each pair; their mean estimates the variational loss
    es: Tensor  # (k, D), with the accumulated perturbations those of PES
    reparameterisation: Tensor  # (k, D); without gradients (0, D)
    kept: Tensor  # (m,) bool, the pairs that are left
    state: S  # 2m trainees, those at theta + e before those at theta - e


def perturbations(pairs: int, theta: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Draws e (m, D), one perturbation per pair, on a CPU generator whatever theta's device."""
    noise = torch.randn(pairs, theta.shape[-1], generator=generator, dtype=theta.dtype)
    return sigma * noise.to(theta.device)


def paired(state: S) -> S:
    """Each of m trainees twice, as both of a pair begin: (2m, ...)."""
    return join([state, state])


def one_of_each(state: S, first: Tensor) -> S:
    """Of 2m trainees m: of each pair the one at theta + e where `first` (m,) holds, else the other (algorithm 1)."""
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
    """Runs a population of antithetic pairs; those of which one diverges, its loss no number, are left out.

    This waits for the device once, to see which are left. For the arguments see `evaluated`.
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
        rollout: trains; where `differentiate`, differentiable by its thetas.
        theta: (D,).
        noise: (m, D), e.
        sigma: standard deviation of e.
        state: 2m trainees; but for PES both of a pair must begin alike.
        differentiate: also compute reparameterisation gradients.
        accumulated: (m, D), the sum of all perturbations since a pair began its training, `noise` included: makes
            `es` those of PES.

    Raises:
        ValueError: sigma is not positive, or numbers of pairs or parameters disagree.
    """
    m = len(noise)
    credited = noise if accumulated is None else accumulated
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}: estimators need perturbations")
    if noise.shape != (m, len(theta)) or credited.shape != noise.shape:
        raise ValueError(
            f"theta has {len(theta)} parameters, so perturbations must be (pairs, {len(theta)}), not "
            f"{tuple(noise.shape)} and {tuple(credited.shape)}"
        )
    population = (theta + torch.cat([noise, -noise])).detach().requires_grad_(differentiate)
    with torch.set_grad_enabled(differentiate):
        losses, state = rollout(population, state)
    plus, minus = losses.detach().split(m)
    kept = plus.isfinite() & minus.isfinite()
    reparameterised = theta.new_zeros(0, len(theta))
    if differentiate:
        # Not `torch.autograd.grad`, which a rollout that is checkpointed reentrantly can't serve.
        losses.where(kept.repeat(2), 0).sum().backward()
        assert population.grad is not None
        reparameterised = population.grad.unflatten(0, (2, m)).mean(0)
    es = ((plus - minus) / (2 * sigma**2)).unsqueeze(1) * credited
    detached: S = tree_map(Tensor.detach, state)
    return Samples((plus + minus) / 2, es, reparameterised, kept, detached)


def survivors(samples: Samples[S], kept: NDArray[np.bool_]) -> Samples[S]:
    """The samples without those of pairs that have diverged; `kept` (m,) is theirs, on the host."""
    if kept.all():
        return samples
    rows = torch.from_numpy(np.flatnonzero(kept)).to(samples.loss.device)
    loss, es = samples.loss[rows], samples.es[rows]
    reparameterised = samples.reparameterisation
    return samples._replace(
        loss=loss, es=es, reparameterisation=reparameterised[rows] if len(reparameterised) else reparameterised
    )


def merged(one: Tensor, other: Tensor) -> Tensor:
    """The mean of two estimators weighted by their inverse empirical variances, weight by weight (equation 1).

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
    # In float64: variances of exploding gradients are beyond the range of float32.
    variances = [x.double().var(0).nan_to_num(nan=torch.inf) for x in (one, other)]
    share = (1 / (1 + variances[0] / variances[1])).nan_to_num(nan=0.5)
    means = [
        torch.where(variance.isfinite(), x.double().mean(0), 0.0)
        for x, variance in zip((one, other), variances, strict=True)
    ]
    return torch.lerp(means[1], means[0], share).to(one.dtype)


ESTIMATORS: dict[str, Callable[[Samples[S]], Tensor]] = {
    "merged": lambda samples: merged(samples.reparameterisation, samples.es),
    "reparameterisation": lambda samples: samples.reparameterisation.mean(0).nan_to_num(0.0, 0.0, 0.0),
    "es": lambda samples: samples.es.mean(0),
    "pes": lambda samples: samples.es.mean(0),
}
"""Name -> samples -> outer gradient (D,). `es` over whole trainings is full ES; `pes` needs accumulated
perturbations."""
DIFFERENTIATED = ("merged", "reparameterisation")
"""The estimators that need gradients of rollouts."""
