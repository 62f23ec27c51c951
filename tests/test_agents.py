"""Agents: found by entry point, all of one protocol, and exchangeable with Stable-Baselines3's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy

from lrenv.agents import Agent, View, agents, make_agent
from lrenv.benchmark import evaluate
from lrenv.controllers.agent import State, agent_factory
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import make_task

NAMES = (
    "constant", "cosine", "exponential", "inverse-sqrt", "linear", "one-cycle", "plateau", "ppo", "sgdr", "step",
)  # fmt: skip
TASK = make_task("noisy-quadratic", budget=20, interval=5)


def first_settings(name: str) -> dict[str, float]:
    grid: dict[str, tuple[float, ...]] = agent_factory(name).grid  # type: ignore[attr-defined]
    return {key: values[0] for key, values in grid.items()}


def test_our_agents_are_installed() -> None:
    assert set(NAMES) <= set(agents())
    assert list(agents()) == sorted(agents())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ppo"])
def test_every_agent_keeps_the_protocol(name: str) -> None:
    agent = make_agent(name, **first_settings(name))
    assert isinstance(agent, Agent)
    envs = LearningRateVectorEnv(3, TASK, **agent.view.settings(), device="cpu")
    together, _ = envs.reset(seed=0)
    memory: State = None
    alone: list[State] = [None] * 3
    start = np.ones(3, dtype=bool)
    for decision in range(7):
        before = [np.copy(x) for x in memory or ()]
        action, after = agent.predict(together, memory, start, deterministic=True)
        assert envs.action_space.contains(action.astype(np.float32))
        again, _ = agent.predict(together, memory, start, deterministic=True)
        np.testing.assert_array_equal(again, action)
        assert all(np.array_equal(x, y) for x, y in zip(before, memory or (), strict=True)), "memory is a value"
        for i in range(3):
            single, alone[i] = agent.predict(together[i : i + 1], alone[i], start[i : i + 1], deterministic=True)
            np.testing.assert_array_equal(single[0], action[i], err_msg=f"decision {decision}")
        together, _, terminated, *_ = envs.step(action)
        memory, start = after, terminated
    assert repr(agent).startswith(name)


def test_a_new_episode_clears_memory() -> None:
    agent = make_agent("plateau", peak=0.1, patience=0)
    clock = np.array([[50, 100, 5, 1.0, 9.0], [50, 100, 5, 1.0, 9.0]])
    _, memory = agent.predict(clock, None, np.array([True, True]))
    for _ in range(3):
        lowered, memory = agent.predict(clock, memory, np.array([False, False]))
    fresh, _ = agent.predict(clock, memory, np.array([True, False]))
    assert fresh[0, 0] == 0.1
    assert fresh[1, 0] < lowered[1, 0] < 0.1


@pytest.mark.parametrize(("name", "near"), [("cosin", "cosine"), ("one_cycle", "one-cycle"), ("constants", "constant")])
def test_unknown_agents_list_near_names(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown agent '{name}': did you mean .*'{near}'.*Known: .*sgdr"):
        make_agent(name)


@pytest.mark.parametrize(("settings", "message"), [({"peek": 0.1}, "peek"), ({}, "peak"), ({"peak": -1}, "peak=-1")])
def test_unfit_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent("cosine", **settings)


class Foreign:
    """An agent of another package: it halves the rate with every decision."""

    view = View(control="discrete", observe="paper", interval=4)

    def predict(
        self,
        observation: NDArray[Any],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        return np.zeros(len(observation), np.int64), state


def test_agents_of_other_packages_are_found(advertise: Callable[[str, str], None]) -> None:
    advertise("halving", f"{__name__}:Foreign")
    assert "halving" in agents()
    assert "constant" in agents()
    agent = make_agent("halving")
    assert type(agent).__name__ == "Foreign"
    result = evaluate("halving", TASK, [0, 1], initial_lr=0.8, device="cpu")
    np.testing.assert_allclose(result.curves["lr"][:, 0], 0.8 * 0.5 ** np.arange(6), rtol=1e-6)
    assert result.curves["inner_step"][:, 0].tolist() == [0, 4, 8, 12, 16, 20]


def test_a_view_names_settings() -> None:
    assert View().settings() == {"control": "scale", "observe": "dynamics"}
    view = View(("scale", "momentum"), "paper", 7, "sgd")
    expected = {"control": ("scale", "momentum"), "observe": "paper", "interval": 7, "optimizer": "sgd"}
    assert view.settings() == expected


def test_sb3_evaluates_our_agents() -> None:
    agent: Any = make_agent("cosine", peak=0.3)
    envs = LearningRateVecEnv(2, TASK, **agent.view.settings(), device="cpu")
    envs.seed(5)
    returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert lengths == [4, 4]
    result = evaluate(agent, TASK, [5, 6], device="cpu")
    np.testing.assert_allclose(returns, -result.curves["val_loss"][1:].sum(0), rtol=1e-5)


@pytest.mark.parametrize("factory", ["nowhere:Agent", f"{__name__}:Missing"])
def test_a_broken_package_is_told(advertise: Callable[[str, str], None], factory: str) -> None:
    advertise("broken", factory)
    with pytest.raises(ValueError, match=f"agent 'broken' is advertised as {factory}, which can't be loaded"):
        make_agent("broken")
