"""Outer gradients against closed forms, reverse mode and one another; what truncation does, and what PES mends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import gradient_estimators as reference
from torch import Tensor

from lrenv.agents.learned_optimizer.agent import Architecture, LearnedOptimizer
from lrenv.agents.learned_optimizer.training import unrolled
from lrenv.agents.outer.gradient_estimators import (
    Rollout,
    Samples,
    merged,
    one_of_each,
    orthogonal_perturbations,
    paired,
    perturbations,
    sampled,
)
from lrenv.training.analytic import expected_loss
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee, TraineeState

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(trainee: Trainee, steps: int) -> Rollout[TraineeState]:
    """Theta is the log rate of each of D equal stretches; the loss is that of the next batch."""

    def rollout(theta: Tensor, state: TraineeState) -> tuple[Tensor, TraineeState]:
        for lr in theta.exp().split(1, 1):
            state, _ = trainee.unroll(state, lr, trainee.hyper(len(theta)), steps // theta.shape[1])
        return trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])[0], state

    return rollout


def assert_within_standard_errors(samples: Tensor, expected: Tensor | float, deviations: float = 4) -> None:
    """The mean of samples (k, D) is the expected one, and the samples are many enough to tell it from 0."""
    error = samples.std(0) / len(samples) ** 0.5
    gap = samples.mean(0) - expected
    assert (gap.abs() < deviations * error).all(), f"{gap} with standard errors {error}"
    assert ((samples.mean(0) / error).norm() > 2 * deviations).all(), "so large an error would agree with anything"


@pytest.mark.parametrize("estimator", ["es", "reparameterisation"])
def test_both_agree_with_the_closed_form(estimator: str) -> None:
    """Noisy quadratic: d/dtheta E[loss(theta + e)] by Gauss-Hermite quadrature of the expected loss's derivative."""
    steps, sigma, theta = 8, 0.2, torch.tensor([-1.0], dtype=F64)
    trainee = Trainee(make_task("noisy-quadratic"), dtype=F64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    leaf = (theta + sigma * torch.from_numpy(nodes)).requires_grad_()
    smoothed = expected_loss(leaf.exp().expand(steps, -1), trainee.task.batch_size)[-1]
    (slopes,) = torch.autograd.grad(smoothed.sum(), leaf)
    expected = float(slopes @ torch.from_numpy(weights)) / (2 * np.pi) ** 0.5
    noise = perturbations(4096, theta, sigma, generator())
    samples = sampled(trained(trainee, steps), theta, noise, sigma, paired(trainee.init(range(4096))))
    assert samples.kept.all()
    assert_within_standard_errors(getattr(samples, estimator), expected)
    variational = float(smoothed.detach() @ torch.from_numpy(weights)) / (2 * np.pi) ** 0.5
    assert abs(samples.loss.mean() - variational) < 4 * samples.loss.std() / 64


def test_es_agrees_with_reverse_mode_on_a_perceptron(toy: Callable[..., Task]) -> None:
    """Of one trainee, so that perturbations alone are random; the reverse mode is held against differences."""
    sigma, theta, pairs = 0.1, torch.tensor([-1.5, -2.5], dtype=F64), 4096
    trainee = Trainee(toy(optimizer="momentum"), dtype=F64)
    rollout, start = trained(trainee, 4), trainee.init([3] * (2 * pairs))
    noise = perturbations(pairs, theta, sigma, generator())
    samples = sampled(rollout, theta, noise, sigma, start)
    few, ends = noise[:256], trainee.init([3] * 512)
    slopes = sampled(rollout, theta, few, sigma, ends).reparameterisation.mean(0)
    for d, step in enumerate(1e-5 * torch.eye(2, dtype=F64)):
        ahead, behind = (sampled(rollout, theta + s, few, sigma, ends, False).loss.mean() for s in (step, -step))
        torch.testing.assert_close(slopes[d], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)
    other = sampled(rollout, theta, perturbations(pairs, theta, sigma, generator(1)), sigma, start, differentiate=False)
    assert_within_standard_errors(other.es, samples.reparameterisation.mean(0))


@pytest.mark.parametrize(("steps", "better"), [(2, "reparameterisation"), (20, "es")])
def test_the_merged_estimator_varies_as_little_as_the_better_one(steps: int, better: str) -> None:
    """On the paper's two minima gradients are precise over short unrolls, and over long ones explode at the cliffs.

    Each repetition is an independent batch of 64 pairs, so this is the variance of the estimate itself.
    """
    sigma, theta, repeats, pairs = 0.1, torch.tensor([-4.0], dtype=F64), 100, 64
    trainee = Trainee(make_task("two-minima"), dtype=F64)
    noise = perturbations(pairs * repeats, theta, sigma, generator())
    samples = sampled(trained(trainee, steps), theta, noise, sigma, trainee.init([0] * (2 * pairs * repeats)))
    assert samples.kept.all()
    own = {name: getattr(samples, name).split(pairs) for name in ("reparameterisation", "es")}
    variances = {name: torch.stack([x.mean(0) for x in parts]).var() for name, parts in own.items()}
    both = torch.stack([merged(*parts) for parts in zip(*own.values(), strict=True)]).var()
    assert 10 * variances.pop(better) < min(variances.values())
    assert both <= 1.1 * torch.stack([x.mean(0) for x in own[better]]).var()


def test_samples_and_their_merge_are_the_papers() -> None:
    """A loss with a closed form, sum(theta^4) + theta_0 theta_1."""
    theta, sigma = torch.tensor([0.3, -0.7, 1.1], dtype=F64), 0.2
    noise = perturbations(5, theta, sigma, generator())

    def rollout(thetas: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return (thetas**4).sum(1) + thetas[:, 0] * thetas[:, 1], state

    def loss(t: NDArray[np.float64]) -> float:
        return float((t**4).sum() + t[0] * t[1])

    def gradient(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return 4 * t**3 + np.array([t[1], t[0], 0])

    found = sampled(rollout, theta, noise, sigma, torch.zeros(10, dtype=F64))
    es = np.stack([reference.evolution_strategies(loss, theta.numpy(), e, sigma) for e in noise.numpy()])
    rp = np.stack([reference.reparameterisation(gradient, theta.numpy(), e) for e in noise.numpy()])
    np.testing.assert_allclose(found.es.numpy(), es, rtol=1e-10)
    np.testing.assert_allclose(found.reparameterisation.numpy(), rp, rtol=1e-10)
    both = merged(found.reparameterisation, found.es).numpy()
    np.testing.assert_allclose(both, reference.merged(rp, es), rtol=1e-12)
    assert (np.abs(both - rp.mean(0)) > 1e-6).all(), "both estimators count"


def test_merging_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0, 5.0, torch.nan, torch.inf], [3.0, 0.0, 5.0, 1.0, 1.0]])
    other = torch.tensor([[0.0, 2.0, 7.0, 4.0, torch.nan], [4.0, 8.0, 7.0, 6.0, 0.0]])
    # Variances 2 and 8; 0 and 18; none; infinite and 2; both infinite.
    torch.testing.assert_close(merged(one, other), torch.tensor([2.0, 0.0, 6.0, 5.0, 0.0]))
    huge = merged(torch.tensor([[-1e30, 1.0], [1e30, 3.0]]), torch.tensor([[1.0, -1e30], [2.0, 1e30]]))
    torch.testing.assert_close(huge, torch.tensor([1.5, 2.0]))
    with pytest.raises(ValueError, match="at least two pairs, not 1; add pairs"):
        merged(one[:1], other[:1])


SIZE, POSITIVE, HORIZON = 23, 10, 20


def influence_balancing(steps: int) -> Rollout[Tensor]:
    """Tallec & Ollivier 2017, section 5.1: s <- A s + theta (1 ... 1, -1 ... -1), loss 1/2 (s_1 - 1)^2.

    Soon a larger theta raises s_1, as more signs are positive nearby; in the long run it lowers it.
    """
    signs = torch.ones(SIZE, dtype=F64)
    signs[POSITIVE:] = -1
    matrix = 0.5 * torch.eye(SIZE, dtype=F64) + 0.5 * torch.diag(torch.ones(SIZE - 1, dtype=F64), 1)

    def rollout(theta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(state[:, 0])
        for _ in range(steps):
            state = state @ matrix.T + theta * signs
            total = total + 0.5 * (state[:, 0] - 1) ** 2
        return total, state

    return rollout


def summed(truncation: int, persistent: bool, pairs: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Theta's gradient by each pair (m, 1), added over the truncations of a training, and by reverse mode."""
    theta = torch.tensor([0.5], dtype=F64)
    leaf = theta[None].clone().requires_grad_()
    start = torch.zeros(1, SIZE, dtype=F64)
    loss, _ = influence_balancing(5 * HORIZON)(leaf, start)
    (true,) = torch.autograd.grad(loss.sum(), leaf)
    state, total = start.repeat(2 * pairs, 1), torch.zeros(pairs, 1, dtype=F64)
    accumulated, draws = torch.zeros(pairs, 1, dtype=F64), generator()
    for _ in range(5 * HORIZON // truncation):
        noise = perturbations(pairs, theta, sigma, draws)
        accumulated = accumulated + noise
        samples = sampled(
            influence_balancing(truncation), theta, noise, sigma, state, False, accumulated if persistent else None
        )
        total += samples.es
        state = samples.state
        if not persistent:
            state = paired(one_of_each(state, torch.ones(pairs, dtype=torch.bool)))
    return total, true[0]


def test_pes_is_unbiased_where_truncated_es_misleads() -> None:
    """The losses are quadratic in all perturbations, so smoothing leaves their gradients as they are."""
    total, true = summed(HORIZON // 4, persistent=True, pairs=20_000, sigma=0.02)
    assert_within_standard_errors(total, true)
    misled, _ = summed(HORIZON // 4, persistent=False, pairs=20_000, sigma=0.02)
    assert (misled.mean(0) * true < 0).all(), "truncated ES points the wrong way"
    assert (misled.mean(0).abs() > 4 * misled.std(0) / 20_000**0.5).all(), "and not by chance"
    full, _ = summed(5 * HORIZON, persistent=False, pairs=20_000, sigma=0.02)
    assert_within_standard_errors(full, true)


def test_diverged_pairs_are_left_out_before_the_backward_pass() -> None:
    """The others' gradients are what they would be alone."""

    def rollout(theta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return (theta * state).sqrt().sum(1), state + theta

    theta = torch.tensor([1.0, 2.0], dtype=F64)
    noise = perturbations(3, theta, 0.1, generator())
    state = torch.ones(6, 2, dtype=F64)
    alone = sampled(rollout, theta, noise[[0, 2]], 0.1, state[:4])
    state[4] = torch.tensor([torch.nan, torch.inf])  # the second pair's minus
    samples = sampled(rollout, theta, noise, 0.1, state)
    assert samples.kept.tolist() == [True, False, True]
    for name in ("loss", "es", "reparameterisation"):
        torch.testing.assert_close(getattr(samples, name), getattr(alone, name))
        assert getattr(samples, name).isfinite().all()
    assert not samples.state.requires_grad


def test_one_of_each_pair() -> None:
    state = {"w": torch.arange(6.0).view(6, 1)}
    chosen = one_of_each(state, torch.tensor([True, False, False]))
    assert chosen["w"].flatten().tolist() == [0, 4, 5]
    assert paired(chosen)["w"].flatten().tolist() == [0, 4, 5, 0, 4, 5]


def test_bad_input() -> None:
    def rollout(theta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return theta.sum(1), state

    theta, noise, state = torch.zeros(3), torch.zeros(2, 3), torch.zeros(4, 1)
    with pytest.raises(ValueError, match="sigma must be positive, not 0"):
        sampled(rollout, theta, noise, 0.0, state)
    with pytest.raises(ValueError, match=r"must be \(pairs, 3\), not \(2, 4\)"):
        sampled(rollout, theta, torch.zeros(2, 4), 0.1, state)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
        sampled(rollout, theta, noise, 0.1, state, accumulated=torch.zeros(1, 3))


def test_no_samples_of_what_was_not_differentiated() -> None:
    samples: Samples[Tensor] = sampled(
        lambda theta, state: (theta.sum(1), state), torch.zeros(3), torch.ones(2, 3), 0.1, torch.zeros(4, 1), False
    )
    assert samples.reparameterisation.shape == (0, 3)
    torch.testing.assert_close(samples.es, torch.full((2, 3), 3 / 0.1**2))


def test_they_serve_a_learned_optimizers_parameters(toy: Callable[..., Task]) -> None:
    """Many thetas, each with its noise: ES differs from the reparameterisation gradient by chance alone."""
    pairs, architecture = 4096, Architecture(hidden=2)
    theta = 10 * architecture.init(0)  # so that updates are large enough to tell by the loss
    trainee = Trainee(toy(optimizer=LearnedOptimizer(theta, architecture)))
    noise, start = perturbations(pairs, theta, 0.5, generator()), trainee.init([3] * (2 * pairs))
    samples = sampled(unrolled(trainee, 2, "train"), theta, noise, 0.5, start)
    gap = samples.es.double() - samples.reparameterisation.double().mean(0)
    scores = gap.mean(0) / gap.std(0) * pairs**0.5
    assert scores.abs().max() < 4.5
    assert 0.5 < scores.square().mean() < 1.5, "the scatter is that of standard errors"
    along = samples.es.double() @ samples.reparameterisation.double().mean(0)
    assert along.mean() > 8 * along.std() / pairs**0.5, "and not so large that anything would agree"


def test_perturbations_at_right_angles_give_the_gradient_of_a_linear_function_exactly() -> None:
    slope = torch.arange(1.0, 8.0, dtype=F64)
    theta, sigma = torch.ones(7, dtype=F64), 0.1

    def rollout(thetas: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return thetas @ slope, state

    noise = orthogonal_perturbations(14, theta, sigma, generator())
    torch.testing.assert_close(noise[7:] @ noise[7:].T, 7 * sigma**2 * torch.eye(7, dtype=F64))
    found = sampled(rollout, theta, noise, sigma, torch.zeros(28, 1), differentiate=False)
    torch.testing.assert_close(found.es.mean(0), slope)


def test_perturbations_at_right_angles_are_uniform_in_direction() -> None:
    noise = torch.cat([orthogonal_perturbations(3, torch.zeros(3, dtype=F64), 1.0, generator(i)) for i in range(2000)])
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(3, dtype=F64), rtol=0, atol=0.05)
    assert (noise.mean(0).abs() < 0.05).all(), "the decomposition's own signs would show here"
