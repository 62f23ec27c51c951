"""Optimizers: the whole training step agrees with `torch.optim`, and Adam can be differentiated at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import optimizers as reference

from lrenv.training.optimizers import OPTIMIZERS, Optimizer, adam, descend, make_optimizer, rmsprop
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64
STEPS = 100
RATES = (1e-3, 1e-2, 3e-2)

TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda params, momentum=0.9, **kw: torch.optim.SGD(params, momentum=momentum, **kw),
    "nesterov": lambda params, momentum=0.9, **kw: torch.optim.SGD(params, momentum=momentum, nesterov=True, **kw),
    "rmsprop": torch.optim.RMSprop,
    "adam": lambda params, momentum=0.9, **kw: torch.optim.Adam(params, betas=(momentum, 0.999), **kw),
    "adamw": lambda params, momentum=0.9, **kw: torch.optim.AdamW(params, betas=(momentum, 0.999), **kw),
}

CASES: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in TORCH),
    *((name, {"weight_decay": 0.05}) for name in TORCH),
    *((name, {"momentum": 0.6, "weight_decay": 0.01}) for name in ("momentum", "nesterov", "adam", "adamw")),
]


def test_every_optimizer_has_its_counterpart() -> None:
    assert set(TORCH) == set(OPTIMIZERS) - {"unit"}


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else str(len(v)))
def test_training_equals_torch_optim(toy: Callable[..., Task], name: str, settings: dict[str, float]) -> None:
    """One stacked run with a rate an env against one plain PyTorch run for each rate."""
    trainee = Trainee(toy(optimizer=name, **settings), dtype=F64)
    seeds = [2, 7, 30]
    start = trainee.init(seeds)
    indices = trainee.batch_indices(start, STEPS)
    rates = torch.tensor(RATES, dtype=F64)[:, None]
    with torch.no_grad():
        state, losses = trainee.unroll(start, rates, trainee.hyper(3), STEPS)
    assert state.step.tolist() == [STEPS] * 3
    for i, (seed, rate) in enumerate(zip(seeds, RATES, strict=True)):
        torch.manual_seed(seed)
        module = trainee.task.module().double()
        optimizer = TORCH[name](module.parameters(), lr=rate, **settings)
        for step in range(STEPS):
            x, y = (rows[indices[i, step]] for rows in trainee.train)
            loss = F.cross_entropy(module(x), y)
            torch.testing.assert_close(losses[i, step], loss.detach(), rtol=1e-10, atol=1e-10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        alone = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(state.params[i], alone, rtol=1e-10, atol=1e-10)


WRITTEN: dict[str, Callable[..., Any]] = {
    "sgd": reference.SGD, "momentum": reference.Momentum, "nesterov": reference.Nesterov, "rmsprop": reference.RMSprop,
    "adam": reference.Adam, "adamw": reference.AdamW,
}  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else str(len(v)))
def test_directions_are_those_of_the_papers(name: str, settings: dict[str, float]) -> None:
    ours, theirs, rng = make_optimizer(name), WRITTEN[name](**settings), np.random.default_rng(0)
    hyper = {key: torch.full((1, 1), value, dtype=F64) for key, value in (ours.hyper | settings).items()}
    w = rng.normal(size=7)
    state = ours.init(torch.from_numpy(w)[None])
    for g in rng.normal(size=(30, 7)):
        direction, state = ours.direction(torch.from_numpy(g)[None], state, torch.from_numpy(w)[None], hyper)
        expected = theirs(g, w)
        np.testing.assert_allclose(direction[0].numpy(), expected, rtol=1e-9, atol=1e-12)
        w = w - 0.01 * expected


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_settings_of_the_factories_equal_torch_optim(name: str) -> None:
    """Settings that no task has: decay and eps."""
    ours, theirs = {
        "rmsprop": (rmsprop(alpha=0.8, eps=1e-3), lambda p: torch.optim.RMSprop([p], 0.1, alpha=0.8, eps=1e-3)),
        "adam": (adam(beta2=0.9, eps=1e-3), lambda p: torch.optim.Adam([p], 0.1, betas=(0.9, 0.9), eps=1e-3)),
    }[name]
    grads = torch.randn(30, 1, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    hyper = {name: torch.full((1, 1), value, dtype=F64) for name, value in ours.hyper.items()}
    params, alone = torch.ones(1, 4, dtype=F64), torch.ones(1, 4, dtype=F64)
    state, optimizer = ours.init(params), theirs(alone)
    for g in grads:
        direction, state = ours.direction(g, state, params, hyper)
        params = descend(params, direction, torch.full((1, 1), 0.1, dtype=F64))
        alone.grad = g
        optimizer.step()
    torch.testing.assert_close(params, alone, rtol=1e-12, atol=1e-12)


def test_descend_takes_rates_per_trainee_and_per_parameter() -> None:
    params, direction = torch.ones(2, 3, dtype=F64), torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=F64)
    one = descend(params, direction, torch.tensor([[0.5], [2.0]], dtype=F64))
    assert one.tolist() == [[0.5, 0.0, -0.5], [-1.0, -3.0, -5.0]]
    each = descend(params, direction, torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=F64))
    assert each.tolist() == [[0.0, 0.0, 1.0], [1.0, 1.0, -2.0]]


def step_at(gradient: torch.Tensor, optimizer: Optimizer) -> torch.Tensor:
    params = torch.ones(1, 3, dtype=F64)
    hyper = {name: torch.full((1, 1), value, dtype=F64) for name, value in optimizer.hyper.items()}
    _direction, state = optimizer.direction(gradient, optimizer.init(params), params, hyper)
    return optimizer.direction(gradient, state, params, hyper)[0]


@pytest.mark.parametrize("factory", [adam, rmsprop])
def test_the_step_is_differentiable_at_a_zero_gradient(factory: Callable[..., Optimizer]) -> None:
    zero = torch.zeros(1, 3, dtype=F64, requires_grad=True)
    (plain,) = torch.autograd.grad(step_at(zero, factory(eps=0.1)).sum(), zero)
    torch.testing.assert_close(plain, torch.full_like(zero, 1 / 0.1), msg="as if the root were constant")
    optimizer = factory(eps_root=1e-4)
    (slope,) = torch.autograd.grad(step_at(zero, optimizer).sum(), zero)
    h = 1e-7
    with torch.no_grad():
        difference = (step_at(zero + h, optimizer) - step_at(zero - h, optimizer)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0.0)


def test_eps_root_stands_under_the_root() -> None:
    """optax's formula: m / (sqrt(v + eps_root) + eps), with both moments corrected; constant gradients give g, g^2."""
    gradient = torch.tensor([[0.5, -2.0, 0.0]], dtype=F64)
    got = step_at(gradient, adam(eps=1e-2, eps_root=0.3))
    torch.testing.assert_close(got, gradient / ((gradient**2 + 0.3).sqrt() + 1e-2))


def test_adam_stays_unbiased_when_beta1_changes() -> None:
    """The mean is a weighted sum of gradients; the correction divides by the sum of the weights, whatever they were."""
    optimizer = adam(eps=0.0)
    params = torch.ones(1, 1, dtype=F64)
    state = optimizer.init(params)
    gradient = torch.full((1, 1), 0.7, dtype=F64)
    for beta1 in (0.9, 0.5, 0.99, 0.0, 0.8):
        hyper = {"momentum": torch.tensor([[beta1]], dtype=F64), "weight_decay": torch.zeros(1, 1, dtype=F64)}
        direction, state = optimizer.direction(gradient, state, params, hyper)
        torch.testing.assert_close(direction, torch.ones(1, 1, dtype=F64))


@pytest.mark.parametrize(("name", "near"), [("adan", "'adam'"), ("momentun", "'momentum'"), ("SGDx", "Known: ")])
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown optimizer {name!r}.*{near}"):
        make_optimizer(name)


def test_an_optimizer_of_ones_own(toy: Callable[..., Task]) -> None:
    """Sign descent, given as a value, trains as its formula says."""

    def direction(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        return grads.sign(), {"count": state["count"] + 1}

    own = Optimizer(lambda params: {"count": torch.zeros_like(params[:, :1])}, direction)
    assert make_optimizer(own) is own
    trainee = Trainee(toy(optimizer=own), dtype=F64)
    start = trainee.init([0, 1])
    state, _ = trainee.unroll(start, torch.full((2, 1), 0.25, dtype=F64), trainee.hyper(2), 3)
    assert state.opt["count"].tolist() == [[3.0], [3.0]]
    quarters = (state.params - start.params) / 0.25
    torch.testing.assert_close(quarters, quarters.round())
