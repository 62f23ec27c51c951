"""Power-law regression: its closed form against trainees, against plain simulation, and against full covariances."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.training.power_law import (
    EASY,
    GAUSSIAN,
    HARD,
    SIGNS,
    PowerLaw,
    expected_loss,
    linear_regression,
    orthogonal_array,
    regression_data,
)
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

F64 = torch.float64


@pytest.mark.parametrize("strength", [2, 4])
def test_orthogonal_array_has_its_strength(strength: int) -> None:
    """It is a group under products, so that columns are independent unless some product of them is always 1."""
    signs = orthogonal_array(strength)
    bits = 7 * strength // 2
    assert signs.shape == (2**bits, 127)
    i, j = np.random.default_rng(0).integers(0, 2**bits, (2, 200))
    assert np.array_equal(signs[i ^ j], signs[i] * signs[j])
    checks = (2 ** np.arange(bits)) @ (signs[2 ** np.arange(bits)] < 0)
    assert len(set(checks.tolist()) - {0}) == 127
    if strength == 4:
        pairs = [a ^ b for a, b in itertools.combinations(checks.tolist(), 2)]
        assert len(set(pairs)) == len(pairs), "no four columns multiply to 1"
        assert not set(pairs) & set(checks.tolist()), "nor do three"


@pytest.mark.parametrize("problem", [EASY, HARD])
def test_held_out_loss_is_the_expected_loss_of_weights(problem: PowerLaw) -> None:
    data = regression_data(problem)
    module = linear_regression((problem.dimension + 1,), 0).double()
    weights = torch.randn(problem.dimension, dtype=F64, generator=torch.Generator().manual_seed(0))
    (weight,) = module.parameters()
    weight.data.copy_(weights)
    excess = (problem.spectrum * (weights - problem.target) ** 2).sum() / 2
    for split in data[:3]:
        loss = module(split.inputs.double()).mean()
        torch.testing.assert_close(loss, excess + problem.noise**2 / 2, rtol=1e-6, atol=0)
        assert split.inputs.double().mean(0).abs().max() < 1e-6, "features and targets have mean 0"
    assert (data.mean, data.std, data.classes) == (torch.tensor(0.0), torch.tensor(1.0), 0)


def test_two_exponents_set_spectrum_and_target() -> None:
    problem = PowerLaw(capacity=3.0, source=0.5, dimension=7)
    k = torch.arange(1, 8, dtype=F64)
    torch.testing.assert_close(problem.spectrum, k**-3)
    torch.testing.assert_close(problem.spectrum * problem.target**2, k**-2.5)
    assert (EASY.easy, HARD.easy) == (True, False)
    assert PowerLaw(2.0, 0.5).easy
    assert not PowerLaw(2.0, 0.49).easy


@pytest.mark.parametrize(("batch_size", "momentum"), [(1, 0.0), (8, 0.0), (2, 0.6)])
@pytest.mark.parametrize("name", ["power-law-easy", "power-law-hard"])
def test_expected_loss_is_the_mean_of_many_trainees(name: str, batch_size: int, momentum: float) -> None:
    """Training and validation losses over 500 seeds, within five standard errors of the closed form."""
    n, budget = 500, 10
    optimizer: dict[str, Any] = {"optimizer": "momentum", "momentum": momentum} if momentum else {}
    trainee = Trainee(make_task(name, batch_size=batch_size, **optimizer), dtype=F64)
    schedule = torch.linspace(0.8, 0.2, budget, dtype=F64) * (1 - momentum)
    problem = EASY if name == "power-law-easy" else HARD
    expected = expected_loss(problem, schedule, batch_size, momentum)
    state = trainee.init(range(n))
    with torch.no_grad():
        for step, rate in enumerate(schedule):
            held_out = trainee.evaluate(state.params, state.buffers, trainee.val).loss
            state, losses = trainee.unroll(state, rate.expand(n, 1), trainee.hyper(n), 1)
            for sample in (held_out, losses[:, 0]):
                error = sample.std() / n**0.5
                assert (sample.mean() - expected[step]).abs() <= 5 * error + 1e-6
    final = trainee.evaluate(state.params, state.buffers, trainee.val).loss
    assert (final.mean() - expected[-1]).abs() < 5 * final.std() / n**0.5
    assert final.std() / n**0.5 < 0.05 * (expected[-1] - 0.5 * problem.noise**2)


def test_expected_loss_is_the_mean_of_gaussian_regressions() -> None:
    """Features and noise drawn from normal distributions, in plain NumPy."""
    problem = PowerLaw(1.5, 0.5, noise=0.7, dimension=6, kurtosis=GAUSSIAN)
    n, b, mu = 100_000, 2, 0.3
    rates = np.array([0.5, 0.3, 0.4, 0.1, 0.2])
    rng = np.random.default_rng(0)
    h, target = problem.spectrum.numpy(), problem.target.numpy()
    w = np.zeros((n, 6))
    velocity = np.zeros_like(w)
    expected = expected_loss(problem, torch.from_numpy(rates), b, mu) - problem.noise**2 / 2
    for rate, before in zip(rates, expected[1:].tolist(), strict=True):
        x = rng.standard_normal((n, b, 6)) * np.sqrt(h)
        y = x @ target + problem.noise * rng.standard_normal((n, b))
        error = np.einsum("nbd,nd->nb", x, w) - y
        velocity = mu * velocity + np.einsum("nb,nbd->nd", error, x) / b
        w -= rate * velocity
        excess = ((w - target) ** 2 @ h) / 2
        assert abs(excess.mean() - before) < 5 * excess.std() / n**0.5
    signs = expected_loss(PowerLaw(1.5, 0.5, 0.7, 6, SIGNS), torch.from_numpy(rates), b, mu) - problem.noise**2 / 2
    assert abs(signs[-1] - expected[-1]) > 10 * excess.std() / n**0.5, "the test must be able to tell the kurtosis"


@pytest.mark.parametrize("kurtosis", [SIGNS, GAUSSIAN])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_expected_loss_equals_the_recursion_of_full_covariances(kurtosis: float, batch_size: int) -> None:
    """E[z z^T] of z = (e, v, 1), averaged over all outcomes of a batch.

    Signs are the two-point rule; the three-point rule of Gauss and Hermite has a normal's moments up to the fifth.
    """
    d, noise = 2, 0.8
    problem = PowerLaw(1.5, 0.4, noise, d, kurtosis)
    lr = torch.tensor([0.9, 0.4, 1.1, 0.2], dtype=F64)
    momentum = torch.tensor([0.5, 0.2, 0.7, 0.9], dtype=F64)
    nodes = {-1.0: 0.5, 1.0: 0.5} if kurtosis == SIGNS else {-(3.0**0.5): 1 / 6, 0.0: 2 / 3, 3.0**0.5: 1 / 6}
    outcomes = []  # (probability, u, z) of an example
    for values in itertools.product(nodes, repeat=d + 1):
        outcomes.append((np.prod([nodes[v] for v in values]), np.array(values[:d]), values[d]))
    h, target = problem.spectrum.numpy(), problem.target.numpy()
    z = np.concatenate([-target, np.zeros(d), [1.0]])
    moment = np.outer(z, z)
    losses = [float(np.diag(moment)[:d] @ h + noise**2) / 2]
    for a, m in zip(lr.tolist(), momentum.tolist(), strict=True):
        after = np.zeros_like(moment)
        for batch in itertools.product(outcomes, repeat=batch_size):
            hessian, kick = np.zeros((d, d)), np.zeros(d)
            for _, u, noisy in batch:
                x = np.sqrt(h) * u
                hessian += np.outer(x, x) / batch_size
                kick += noise * noisy * x / batch_size
            step = np.eye(2 * d + 1)
            step[d : 2 * d] = np.hstack([hessian, m * np.eye(d), -kick[:, None]])
            step[:d] -= a * step[d : 2 * d]
            after += np.prod([p for p, _, _ in batch]) * step @ moment @ step.T
        moment = after
        losses.append(float(np.diag(moment)[:d] @ h + noise**2) / 2)
    torch.testing.assert_close(expected_loss(problem, lr, batch_size, momentum), torch.tensor(losses, dtype=F64))


@pytest.mark.parametrize("kurtosis", [SIGNS, GAUSSIAN])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_constant_rates_come_to_rest_below_the_largest_stable_one(kurtosis: float, batch_size: int) -> None:
    """At the excess sigma^2 / 2 F / (1 - F), F = sum_k f_k; above it they never do."""
    problem = PowerLaw(1.5, 0.5, 1.0, 3, kurtosis)
    h, c = problem.spectrum, 1 + (kurtosis - 2) / batch_size
    top = problem.largest_stable_rate(batch_size)
    share = float((0.8 * top * h / batch_size / (2 - 0.8 * top * h * c)).sum())
    assert 0 < share < 1
    rates = torch.tensor([0.8, 1.01], dtype=F64).expand(2000, 2) * top
    losses = expected_loss(problem, rates, batch_size)
    torch.testing.assert_close(losses[-1, 0] - 0.5, torch.tensor(0.5 * share / (1 - share), dtype=F64))
    assert losses[-1, 1] > 1.01 * losses[-200, 1] > losses[-400, 1]


def test_expected_loss_by_hand() -> None:
    """One direction h = 1, w* = 1, rate 0.5, b = 2, Gaussian: p = 1 - 2 (0.5) + 0.25 (1.5 + (1 + 4) / 2 ...)."""
    losses = expected_loss(PowerLaw(2.0, 1.0, 2.0, 1, GAUSSIAN), torch.tensor([0.5]), 2)
    square = 1.5 * 1 + (1 + 4) / 2
    p = 1 - 2 * 0.5 + 0.25 * square
    torch.testing.assert_close(losses, torch.tensor([(1 + 4) / 2, (p + 4) / 2], dtype=F64))


def test_expected_loss_is_differentiable_and_takes_many_schedules() -> None:
    problem = PowerLaw(2.0, 0.7, 0.5, 4)
    rates = torch.rand(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    momenta = torch.rand(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    together = expected_loss(problem, rates, 2, momenta)
    assert together.shape == (6, 3)
    torch.testing.assert_close(together[:, 1], expected_loss(problem, rates[:, 1], 2, momenta[:, 1]))

    def final(lr: Tensor, mu: Tensor) -> Tensor:
        return expected_loss(problem, lr, 2, mu)[-1]

    assert torch.autograd.gradcheck(final, (rates.requires_grad_(), momenta.requires_grad_()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 1.0}, "capacity > 1"),
        ({"source": 0.0}, "source > 0"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"noise": float("nan")}, "noise >= 0"),
        ({"dimension": 0}, "dimension >= 1"),
        ({"kurtosis": 0.5}, "kurtosis >= 1"),
    ],
)
def test_impossible_problems_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerLaw(**{"capacity": 2.0, "source": 1.0} | settings)


@pytest.mark.parametrize("problem", [PowerLaw(2.0, 1.0, dimension=127), PowerLaw(2.0, 1.0, kurtosis=GAUSSIAN)])
def test_tasks_have_signs_in_at_most_126_dimensions(problem: PowerLaw) -> None:
    with pytest.raises(ValueError, match="1 to 126 features of kurtosis 1"):
        regression_data(problem)
