"""The base of agents: `start` and `act` become `predict`, with the carry cleared where episodes start."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.agents import Agent, BaseAgent, View


class Count(NamedTuple):
    """What the agents here carry: arrays or tensors."""

    decisions: Any  # (n,)
    total: Any  # (n, columns) of the observations


class Counting(BaseAgent[Count]):
    """Acts by the number of decisions in the episode and the sum of observations."""

    view = View(control="set-raw", observe="clock")

    def start(self, observation: Any) -> Count:
        return Count(np.zeros(len(observation)), np.full(observation.shape, 10.0))

    def act(self, observation: Any, carry: Count) -> tuple[Any, Count]:
        after = Count(carry.decisions + 1, carry.total + observation)
        return (after.decisions + after.total.sum(1))[:, None], after


class CountingTensors(Counting):
    """The same with tensors, which a device could hold."""

    def start(self, observation: Any) -> Count:
        return Count(*map(torch.from_numpy, super().start(observation)))

    def act(self, observation: Any, carry: Count) -> tuple[Any, Count]:
        assert not torch.is_grad_enabled()
        assert isinstance(carry.total, Tensor)
        return super().act(torch.as_tensor(observation), carry)


class Constant(BaseAgent[tuple[()]]):
    """No memory, and a stochastic policy."""

    view = View(control="set-raw", observe="clock")

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return np.zeros((len(observation), 1)), carry

    def sample(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return np.ones((len(observation), 1)), carry


def seen(*rows: float) -> Any:
    return np.array(rows)[:, None] * np.ones(2)


@pytest.mark.parametrize("agent", [Counting(), CountingTensors()], ids=["arrays", "tensors"])
def test_a_carry_is_passed_on_and_cleared_where_episodes_start(agent: BaseAgent[Count]) -> None:
    assert isinstance(agent, Agent)
    action, state = agent.predict(seen(1, 2, 3))
    assert isinstance(action, np.ndarray)
    np.testing.assert_array_equal(action[:, 0], [1 + 20 + 2, 1 + 20 + 4, 1 + 20 + 6])
    assert isinstance(state, Count)
    held = [x.copy() if isinstance(x, np.ndarray) else x.numpy().copy() for x in state]
    action, _ = agent.predict(seen(1, 1, 1), state, np.array([False, True, False]))
    np.testing.assert_array_equal(action[:, 0], [2 + 20 + 4, 1 + 20 + 2, 2 + 20 + 8])
    for before, after in zip(held, state, strict=True):
        np.testing.assert_array_equal(before, after)
    unstarted, _ = agent.predict(seen(1, 1, 1), state, np.zeros(3, dtype=bool))
    np.testing.assert_array_equal(unstarted, agent.predict(seen(1, 1, 1), state)[0])
    arrays = tuple(np.asarray(x) for x in state)
    np.testing.assert_array_equal(
        unstarted, agent.predict(seen(1, 1, 1), arrays)[0], err_msg="as arrays, without names"
    )


def test_nothing_of_an_ended_episode_is_left() -> None:
    """A select, not a product with 0: what a diverged trainee left behind may be NaN."""
    _, state = Counting().predict(seen(np.nan, np.inf))
    action, _ = Counting().predict(seen(1, 1), state, np.array([True, True]))
    np.testing.assert_array_equal(action, Counting().predict(seen(1, 1))[0])


def test_deterministic_agents_act_and_others_sample() -> None:
    agent = Constant()
    for state in (None, ()):
        assert agent.predict(seen(1, 2), state, np.array([True, False]), deterministic=True)[0].tolist() == [[0], [0]]
    action, state = agent.predict(seen(1, 2))
    assert action.tolist() == [[1], [1]]
    assert state is None
    assert Counting().predict(seen(3), deterministic=True)[0] == Counting().predict(seen(3))[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_actions_have_the_observations_dtype(dtype: Any) -> None:
    assert Constant().predict(seen(1).astype(dtype))[0].dtype == dtype

    class Discrete(Constant):
        def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
            return [2] * len(observation["a"]), carry

    action, _ = Discrete().predict({"a": seen(1, 2).astype(dtype)}, deterministic=True)
    assert action.dtype.kind == "i"


def test_states_of_another_batch_are_refused() -> None:
    _, state = Counting().predict(seen(1, 2, 3))
    assert state is not None
    with pytest.raises(
        ValueError, match=r"that of another batch or agent: .* \[\(3,\), \(3, 2\)\], not .*; pass None to"
    ):
        Counting().predict(seen(1, 2), state)
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\], not \[\(3,\), \(3, 2\)\]"):
        Counting().predict(seen(1, 2, 3), state[:1])
    with pytest.raises(ValueError, match=r"\], not \[\]; pass None"):
        Constant().predict(seen(1, 2, 3), state)
    for start in (np.array([True]), np.ones((3, 1), dtype=bool), True):
        with pytest.raises(
            ValueError, match="episode_start must hold one flag for each of 3 environments, not have shape"
        ):
            Counting().predict(seen(1, 2, 3), state, start)  # type: ignore[arg-type]


def test_what_authors_give_is_checked() -> None:
    class Wrong(Constant):
        begun: Any = ()
        given: Any = (np.zeros(1), ())

        def start(self, observation: Any) -> Any:
            return self.begun

        def act(self, observation: Any, carry: Any) -> Any:
            return self.given

    agent = Wrong()
    agent.begun = np.zeros(2)
    with pytest.raises(TypeError, match=r"start must give a tuple of arrays, such as \(rate,\); it gave an? ndarray"):
        agent.predict(seen(1, 2), deterministic=True)
    for agent.begun in ((np.zeros(2), np.zeros(3)), (np.float64(0),), (np.zeros(2), 0.1), (np.zeros(1),)):
        with pytest.raises(TypeError, match=r"first axis is that of the 2 environments of the observation, not shapes"):
            agent.predict(seen(1, 2), deterministic=True)
    agent.begun = (np.zeros(2),)
    for agent.given in (np.zeros((2, 1)), (np.zeros((2, 1)), np.zeros(2)), (np.zeros((2, 1)),), None):
        with pytest.raises(
            TypeError, match=r"act must give a pair of actions and carry, which is a tuple: `return act"
        ):
            agent.predict(seen(1, 2), deterministic=True)
    for carry in ((np.zeros(3),), (), (np.zeros((2, 1)),)):
        agent.given = np.zeros((2, 1)), carry
        with pytest.raises(TypeError, match=r"act gives a carry of shapes .*, but start one of \[\(2,\)\]"):
            agent.predict(seen(1, 2), deterministic=True)


def test_an_agent_without_act_is_none() -> None:
    with pytest.raises(TypeError, match="act"):
        BaseAgent()  # type: ignore[abstract]
