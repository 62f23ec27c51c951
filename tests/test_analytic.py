"""The analytic trainees: closed forms against the trainee itself, and the optimal schedule against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrenv.networks.architectures import mlp
from lrenv.training import analytic
from lrenv.training.analytic import CURVATURE, NOISE, START, expected_loss, optimal_schedule
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

F64 = torch.float64


def test_noise_is_exact() -> None:
    data = analytic.quadratic_noise()
    noise = data.train.inputs.double()
    torch.testing.assert_close(noise.mean(0), torch.zeros(len(CURVATURE), dtype=F64), atol=1e-6, rtol=0)
    variance = torch.full((len(CURVATURE),), NOISE**2, dtype=F64)
    torch.testing.assert_close(noise.square().mean(0), variance, rtol=1e-6, atol=0)
    assert (data.mean, data.std, data.classes) == (torch.tensor(0.0), torch.tensor(1.0), 0)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_expected_loss_is_the_mean_of_many_trainees(batch_size: int) -> None:
    """Training and validation losses over 3,000 seeds, within five standard errors of the closed form."""
    n, budget = 3000, 12
    task = make_task("noisy-quadratic", batch_size=batch_size)
    trainee = Trainee(task, dtype=F64)
    schedule = torch.linspace(0.9, 0.1, budget, dtype=F64)
    expected = expected_loss(schedule, batch_size)
    state = trainee.init(range(n))
    with torch.no_grad():
        for step, rate in enumerate(schedule):
            held_out = trainee.evaluate(state.params, state.buffers, trainee.val)
            assert held_out.metric.isnan().all()
            state, losses = trainee.unroll(state, rate.expand(n, 1), trainee.hyper(n), 1)
            for sample in (held_out.loss, losses[:, 0]):
                error = sample.std() / n**0.5
                assert (sample.mean() - expected[step]).abs() <= 5 * error + 1e-6
    final = trainee.evaluate(state.params, state.buffers, trainee.val).loss
    assert (final.mean() - expected[-1]).abs() < 5 * final.std() / n**0.5


def test_derivative_of_the_expected_loss_is_the_mean_hypergradient() -> None:
    n, steps, batch_size = 2000, 6, 4
    trainee = Trainee(make_task("noisy-quadratic", batch_size=batch_size), dtype=F64)
    rates = torch.full((n, 1), 0.4, dtype=F64, requires_grad=True)
    state, _ = trainee.unroll(trainee.init(range(n)), rates, trainee.hyper(n), steps)
    loss = trainee.evaluate(state.params, state.buffers, trainee.val).loss
    (each,) = torch.autograd.grad(loss.sum(), rates)
    rate = torch.tensor(0.4, dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(expected_loss(rate.expand(steps), batch_size)[-1], rate)
    assert (each.mean() - expected).abs() < 5 * each.std() / n**0.5
    assert expected.abs() > 10 * each.std() / n**0.5, "the test must be able to tell the sign"


def test_expected_loss_by_hand() -> None:
    """One curvature h = 2, one step at lr = 0.3, b = 4: m = (1 - 0.6)^2 + 0.6^2 / 4 = 0.25, loss = m + 1."""
    losses = expected_loss(torch.tensor([0.3]), 4, (2.0,))
    torch.testing.assert_close(losses, torch.tensor([2.0, 1.25], dtype=F64), rtol=1e-6, atol=0)


def test_expected_loss_takes_many_schedules() -> None:
    schedules = torch.rand(7, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    together = expected_loss(schedules, 8)
    assert together.shape == (8, 3, 2)
    torch.testing.assert_close(together[:, 1, 0], expected_loss(schedules[:, 1, 0], 8))


@pytest.mark.parametrize(("curvature", "batch_size", "budget"), [(0.5, 1, 10), (1.0, 8, 30), (3.0, 4, 20)])
def test_optimal_schedule_of_one_curvature_is_its_closed_form(curvature: float, batch_size: int, budget: int) -> None:
    found = optimal_schedule(budget, batch_size, curvature=(curvature,))
    t = torch.arange(budget, dtype=F64)
    formula = 1 / (curvature * (1 + NOISE**2 / (batch_size * START**2) + t))
    torch.testing.assert_close(found, formula, rtol=1e-4, atol=0)


def greedy_schedule(budget: int, batch_size: int) -> Tensor:
    """Each rate minimises the expected loss right after its own step: lr = sum h^2 m / sum h^3 (m + sigma^2 / b)."""
    h = torch.tensor(CURVATURE, dtype=F64)
    moment = torch.full_like(h, START**2)
    rates = []
    for _ in range(budget):
        rate = (h**2 * moment).sum() / (h**3 * (moment + NOISE**2 / batch_size)).sum()
        moment = (1 - rate * h) ** 2 * moment + (rate * h * NOISE) ** 2 / batch_size
        rates.append(rate)
    return torch.stack(rates)


def test_optimal_schedule_is_stationary_and_beats_the_others() -> None:
    budget, batch_size = 50, 8
    floor = expected_loss(torch.zeros(1), batch_size)[0] - 0.5 * sum(CURVATURE) * START**2
    best = optimal_schedule(budget, batch_size)
    assert best.shape == (budget,)
    assert (best > 0).all()

    def excess(schedule: Tensor) -> float:
        """What a schedule leaves above the loss of the optimum w = 0."""
        return float(expected_loss(schedule, batch_size)[-1] - floor)

    log_rates = best.log().requires_grad_()
    (slope,) = torch.autograd.grad(expected_loss(log_rates.exp(), batch_size)[-1], log_rates)
    assert slope.abs().max() < 1e-6
    t = torch.arange(budget, dtype=F64)
    assert all(excess(best) < 0.99 * excess(torch.full((budget,), c, dtype=F64)) for c in torch.logspace(-3, 0.2, 60))
    assert all(excess(best) < 0.99 * excess(c / (1 + t)) for c in torch.logspace(-2, 1, 60))
    # Short-horizon bias (Wu et al. 2018): greedy rates are ahead at first and behind at the end.
    greedy = greedy_schedule(budget, batch_size)
    early = expected_loss(torch.stack([greedy, best], 1), batch_size)
    assert early[5, 0] < early[5, 1]
    assert excess(greedy) > 1.2 * excess(best)


def test_optimal_schedule_over_intervals() -> None:
    coarse = optimal_schedule(25, 8, interval=10)
    assert coarse.shape == (25,)
    assert coarse.unique_consecutive().numel() == 3
    assert torch.equal(coarse[:10], coarse[:1].expand(10))
    assert torch.equal(coarse[20:], coarse[20:21].expand(5))
    losses = [float(expected_loss(s, 8)[-1]) for s in (optimal_schedule(25, 8), coarse)]
    assert losses[0] <= losses[1]
    with torch.no_grad():
        factors = 1 + 0.02 * torch.randn(50, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
        nearby = coarse * factors.repeat_interleave(torch.tensor([10, 10, 5]), dim=1)
    assert (expected_loss(nearby.T, 8)[-1] >= losses[1]).all()


@pytest.mark.parametrize("weight", [-1.2, 0.0, 3.0, 3.5, 4.0])
def test_two_minima_values(weight: float) -> None:
    module = analytic.two_minima((1,), 0)
    torch.nn.init.constant_(next(module.parameters()), weight)
    torch.testing.assert_close(module(torch.zeros(5, 1)), torch.full((5, 1), (weight - 4) * (weight - 3) * weight**2))


def test_two_minima_trains_to_a_minimum() -> None:
    """From -1.2 a small rate ends at the minimum 0; a rate of 1 / 15 jumps over it (Metz et al. 2019, figure 3)."""
    task = make_task("two-minima", optimizer="sgd")
    trainee = Trainee(task, dtype=F64)
    start = trainee.init([0, 1])
    assert start.params.tolist() == [[pytest.approx(-1.2)]] * 2
    with torch.no_grad():
        state, losses = trainee.unroll(start, torch.tensor([[0.005], [0.0451]], dtype=F64), trainee.hyper(2), 300)
    w = start.params[0, 0]
    torch.testing.assert_close(losses[:, 0], ((w - 4) * (w - 3) * w**2).expand(2))
    assert abs(state.params[0, 0]) < 1e-6
    slope = 2 * w * (w - 4) * (w - 3) + w**2 * (2 * w - 7)
    torch.testing.assert_close(losses[1, 1], two_minima(w - 0.0451 * slope))
    lowest = torch.tensor((21 + 57**0.5) / 8, dtype=F64)
    assert two_minima(lowest) < 0, "the deep minimum, where w (4 w^2 - 21 w + 24) = 0"


def two_minima(w: Tensor) -> Tensor:
    return (w - 4) * (w - 3) * w**2


def test_batches_of_the_quadratic_are_independent_draws() -> None:
    task = make_task("noisy-quadratic")
    assert task.replacement
    assert task.loss == "given"
    with pytest.raises(ValueError, match="larger than"):
        make_task(task, replacement=False, batch_size=5000, network=mlp(3)).load()


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"batch_size": 0}, {"interval": 0}])
def test_counts_of_a_best_schedule_are_checked(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        optimal_schedule(**{"budget": 4, "batch_size": 8, "interval": 1} | wrong)
