"""Compiled inner steps: the numbers of eager ones, from the same graph whatever rates, seeds and resets are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lrenv import Task
from lrenv.data import Data
from lrenv.envs.episode import Episode
from lrenv.envs.observations import WHITE_BOX
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.trainee import Trainee

# Each compiles for tens of seconds with a C++ compiler, and torch warns of its own internals while it does.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def conv_net(shape: Any, classes: int) -> nn.Module:
    features = 3 * (shape[1] - 2) * (shape[2] - 2)
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(features, classes)
    )  # fmt: skip


def perceptron_with_dropout(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 8), nn.Dropout(0.3), nn.Linear(8, classes)
    )


@pytest.mark.parametrize(("network", "optimizer"), [(conv_net, "adam"), (perceptron_with_dropout, "nesterov")])
def test_compiled_steps_give_the_numbers_of_eager_ones(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], network: Any, optimizer: str
) -> None:
    task = toy(make_blobs((2, 5, 5)), network=network, optimizer=optimizer)
    states = []
    for compile in (False, True):
        trainee = Trainee(task, dtype=torch.float64, compile=compile)
        with torch.no_grad():
            rates = torch.tensor([[0.1], [0.01]], dtype=torch.float64)
            states.append(trainee.unroll(trainee.init([3, 4]), rates, trainee.hyper(2), 12))
    (eager, losses), (compiled, compiled_losses) = states
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(compiled.params, eager.params, rtol=1e-10, atol=1e-12)
    for name, buffer in eager.buffers.items():
        torch.testing.assert_close(compiled.buffers[name], buffer, rtol=1e-10, atol=1e-12)


def test_compiled_decisions_give_what_eager_ones_give(toy: Callable[..., Task]) -> None:
    """Whole episodes with a shortened last interval, restarts and a death, from NumPy to NumPy."""
    task = toy(optimizer="adam", budget=10, interval=4)
    settings: dict[str, Any] = {"control": "set-raw", "autoreset_mode": "SameStep", "device": "cpu", "dtype": "float64"}
    eager, compiled = (LearningRateVectorEnv(3, task, compile=compile, **settings) for compile in (False, True))
    for ours, theirs in zip(eager.reset(seed=3), compiled.reset(seed=3), strict=True):
        assert_close(theirs, ours)
    for decision in range(7):
        rates = np.array([[0.1], [1e308 if decision == 1 else 0.05], [0.01 * decision]])
        for ours, theirs in zip(eager.step(rates), compiled.step(rates), strict=True):
            assert_close(theirs, ours)


def test_compiled_white_box_decisions_give_what_eager_ones_give(toy: Callable[..., Task]) -> None:
    """Gradients ahead, measured at every second decision, with rates of their own for layers."""
    task = toy(optimizer="adam", budget=10, interval=2, measure_interval=4, weight_decay=0.01)
    settings: dict[str, Any] = {
        "control": "set-raw/layer", "observe": ("clock", *WHITE_BOX), "autoreset_mode": "SameStep", "device": "cpu",
        "dtype": "float64",
    }  # fmt: skip
    eager, compiled = (LearningRateVectorEnv(3, task, compile=compile, **settings) for compile in (False, True))
    for ours, theirs in zip(eager.reset(seed=3), compiled.reset(seed=3), strict=True):
        assert_close(theirs, ours)
    for decision in range(7):
        rates = np.array([[0.1, 0.2], [0.05, 0.0], [0.01 * decision, 0.1]])
        for ours, theirs in zip(eager.step(rates), compiled.step(rates), strict=True):
            assert_close(theirs, ours)


def assert_close(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(actual[name], value)
    elif expected.dtype == object:
        for x, y in zip(actual, expected, strict=True):
            assert (x is None) == (y is None)
            if y is not None:
                assert_close(x, y)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_nothing_is_compiled_again_for_other_rates_seeds_resets_and_ended_envs() -> None:
    envs = LearningRateVectorEnv(4, "digits-logreg", budget=30, compile=True, autoreset_mode="SameStep", device="cpu")
    rng = np.random.default_rng(0)

    def act() -> None:
        envs.step(rng.uniform(-1, 1, (4, 1)).astype(np.float32))

    envs.reset(seed=0)
    act()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for _ in range(4):  # over the end of the episodes
        act()
    envs.reset(options={"reset_mask": np.array([True, False, False, True])})
    for _ in range(4):  # some end, some don't
        act()
    envs.reset(seed=7, options={"initial_lr": 0.5})
    act()
    assert counters["stats"]["unique_graphs"] == graphs


def test_many_compiled_environments_can_live_in_one_process(toy: Callable[..., Task]) -> None:
    for rate in range(10):  # more than the graphs that the compiler allows one function
        episode = Episode(toy(initial_lr=float(rate + 1), optimizer="sgd"), compile=True)
        with torch.no_grad():
            state, _ = episode.step(episode.reset([0, 1])[0], torch.zeros(2, 1))
            assert torch.equal(state.lr, torch.full((2, 1), rate + 1.0))


def test_a_compiled_trainee_can_still_be_differentiated(toy: Callable[..., Task]) -> None:
    slopes = []
    for compile in (False, True):
        trainee = Trainee(toy(), dtype=torch.float64, compile=compile)
        lr = torch.full((2, 1), 0.1, dtype=torch.float64, requires_grad=True)
        _, losses = trainee.unroll(trainee.init([0, 1]), lr, trainee.hyper(2), 3)
        slopes += torch.autograd.grad(losses.sum(), lr)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=0)
