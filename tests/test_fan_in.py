"""Rates per layer by fan-in: what a fan-in is, the multipliers, and what schedules make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrenv.agents import make_agent
from lrenv.agents.schedules.formulas import fan_in_multipliers
from lrenv.benchmark import evaluate
from lrenv.controllers.agent import agent_factory
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.stacked import Network
from lrenv.training.tasks import Task, make_task

BY_FAN_IN = ("constant", "cosine", "exponential", "greedy", "greedy-bounded", "inverse-sqrt", "linear", "one-cycle",
             "plateau", "power", "rex", "sgdr", "step", "wsd")  # fmt: skip


class Mixed(nn.Module):
    """A norm before any weights, a bias before its weight, convolutions in groups, and a tensor of no layer's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.first = nn.Module()
        self.first.bias = nn.Parameter(torch.zeros(4))
        self.first.weight = nn.Parameter(torch.ones(4, 6))
        self.conv = nn.Conv1d(4, 8, 5, groups=2)
        self.after = nn.BatchNorm1d(8)
        self.gain = nn.Parameter(torch.ones(()))
        self.out = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :6] @ self.first.weight.T + self.first.bias
        x = self.after(self.conv(x[..., None].expand(*x.shape, 5)).squeeze(-1))
        out: Tensor = self.out(self.gain * x)
        return out


def test_fan_ins_are_those_of_the_weights_that_a_piece_belongs_to() -> None:
    network = Network(Mixed)
    by_layer = dict(zip(network.layers, network.fan_in("layer").tolist(), strict=True))
    assert by_layer == {"": 6, "norm": 6, "first": 6, "conv": 2 * 5, "after": 2 * 5, "out": 8}
    by_tensor = dict(zip(network.shapes, network.fan_in("tensor").tolist(), strict=True))
    assert {by_tensor[name] for name in ("first.bias", "first.weight", "norm.bias")} == {6}
    assert {by_tensor[name] for name in ("conv.bias", "conv.weight", "after.weight", "after.bias")} == {10}
    assert by_tensor["out.weight"] == 8
    each = network.fan_in("parameter")
    assert each.shape == (network.size,)
    np.testing.assert_array_equal(each[-16:], np.full(16, 8.0))
    np.testing.assert_allclose(network.fan_in("trainee"), [np.prod(list(by_layer.values())) ** (1 / 6)])


def test_a_network_without_weights_has_fan_ins_of_1() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

    for granularity in ("trainee", "layer", "tensor", "parameter"):
        assert set(Network(Vector).fan_in(granularity).tolist()) == {1.0}


@pytest.mark.parametrize("granularity", ["trainee", "layer", "tensor", "parameter"])
def test_environments_show_them(granularity: str) -> None:
    control = "scale" if granularity == "trainee" else f"scale/{granularity}"
    envs = LearningRateVectorEnv(3, "digits-mlp", control=control, observe=("clock", "fan_in"), device="cpu")
    seen: Any = envs.reset(seed=0)[0]
    expected = np.tile(envs.episode.trainee.network.fan_in(granularity).numpy(), (3, 1)).astype(np.float32)
    np.testing.assert_array_equal(seen["fan_in"], expected)
    after: Any = envs.step(np.zeros(envs.action_space.shape or (), np.float32))[0]
    np.testing.assert_array_equal(after["fan_in"], expected)
    assert envs.observation_space.contains(after)
    if granularity == "layer":
        assert seen["fan_in"][0].tolist() == [64, 32, 32]
        assert envs.snapshot().state.observed == (), "no gradient is looked at"


def test_multipliers_are_the_closed_form_with_a_geometric_mean_of_1() -> None:
    fan_in = np.array([[784.0, 20, 20], [64, 32, 1]])
    found = fan_in_multipliers(fan_in, np.array([[0.5], [1.0]]))
    np.testing.assert_allclose(found.prod(1), 1, rtol=1e-12)
    np.testing.assert_allclose(found[0] / found[0, 1], np.sqrt(20 / fan_in[0]), rtol=1e-12)
    np.testing.assert_allclose(found[1] / found[1, 2], 1 / fan_in[1], rtol=1e-12)
    assert (fan_in_multipliers(fan_in, np.zeros((2, 1))) == 1).all()
    assert (fan_in_multipliers(np.full((2, 3), 7.0), np.ones((2, 1))) == 1).all()


def by_grid(name: str, **settings: Any) -> Any:
    grid: Any = agent_factory(name).grid  # type: ignore[attr-defined]
    return make_agent(name, **{key: values[0] for key, values in grid.items()} | settings)


@pytest.fixture
def task() -> Task:
    return make_task("digits-mlp", budget=24, interval=4)


@pytest.mark.parametrize("name", BY_FAN_IN)
def test_an_exponent_of_0_is_the_plain_schedule_to_the_last_bit(name: str, task: Task) -> None:
    plain, layered = (evaluate(by_grid(name, peak=0.01, **s), task, [3], device="cpu") for s in ({}, {"fan_in": 0.0}))
    np.testing.assert_array_equal(layered.curves["val_loss"], plain.curves["val_loss"])
    np.testing.assert_array_equal(layered.test_loss, plain.test_loss)
    assert layered.view["control"] == "set-raw/layer"


@pytest.mark.parametrize("name", BY_FAN_IN)
def test_rates_are_the_schedules_times_the_multipliers(name: str, task: Task) -> None:
    """In every env by its own exponent, on top of warm-up and of what losses do."""
    exponents = np.array([0.0, 0.5, 1.0])
    agent = by_grid(name, peak=0.01, warmup=0.25, fan_in=exponents)
    envs = LearningRateVectorEnv(3, task, **agent.view.settings(), device="cpu")
    seen: Any = envs.reset(seed=0)[0]
    plain, state, expected_state = by_grid(name, peak=0.01, warmup=0.25), None, None
    for _ in range(3):
        action, state = agent.predict(seen, state)
        rate, expected_state = plain.predict(seen["clock"], expected_state)
        multipliers = np.array([64.0, 32, 32]) ** -exponents[:, None]
        multipliers /= multipliers.prod(1, keepdims=True) ** (1 / 3)
        np.testing.assert_allclose(action, rate * multipliers, rtol=1e-5)
        seen, _, _, _, info = envs.step(action)
        np.testing.assert_array_equal(info["lr"], action)


def test_an_observation_without_fan_ins_is_refused(task: Task) -> None:
    agent = make_agent("linear", peak=0.1, fan_in=1)
    envs = LearningRateVectorEnv(2, task, observe="clock", device="cpu")
    with pytest.raises(ValueError, match=r"linear with fan_in reads a dict of clock and fan_in, .*view\.settings"):
        agent.predict(envs.reset(seed=0)[0])


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.1])
def test_weight_decay_is_set_beside_the_rate(decay: float) -> None:
    task = make_task("digits-mlp", budget=8, interval=4, optimizer="adamw", weight_decay=0.05)
    agent = make_agent("constant", peak=0.01, weight_decay=decay)
    found = evaluate(agent, task, [0], device="cpu")
    own = make_task("digits-mlp", budget=8, interval=4, optimizer="adamw", weight_decay=decay)
    expected = evaluate(make_agent("constant", peak=0.01), own, [0], device="cpu")
    np.testing.assert_allclose(found.test_loss, expected.test_loss, rtol=1e-5)
    other = evaluate(make_agent("constant", peak=0.01), task, [0], device="cpu")
    assert abs(found.test_loss - other.test_loss) > 1e-5
