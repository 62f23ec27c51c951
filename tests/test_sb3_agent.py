"""Stable-Baselines3 models as agents: evaluated with what they were trained with, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from lrenv.agents import AgentError, SB3Agent, View
from lrenv.benchmark import evaluate
from lrenv.controllers.sb3_agent import as_agent
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import make_task

TASK = make_task("noisy-quadratic", budget=20, interval=5)
SMALL: dict[str, Any] = {"n_steps": 4, "batch_size": 4, "seed": 0, "device": "cpu"}


def trained(kind: Any = PPO, policy: str = "MlpPolicy", normalise: bool = False, **settings: Any) -> Any:
    envs: Any = LearningRateVecEnv(2, TASK, device="cpu", **settings)
    envs.seed(0)
    return kind(policy, VecMonitor(VecNormalize(envs)) if normalise else envs, **SMALL).learn(16)


def by_hand(model: Any, normalise: Any = None, **settings: Any) -> list[np.ndarray[Any, Any]]:
    """The rates of a loop over the environment."""
    envs = LearningRateVectorEnv(2, TASK, initial_lr=0.1, device="cpu", **settings)
    observation, info = envs.reset(seed=3)
    rates, ended, memory = [info["lr"]], np.zeros(2, dtype=bool), None
    start = np.ones(2, dtype=bool)
    while not ended.all():
        seen = normalise.normalize_obs(observation) if normalise else observation
        action, memory = model.predict(seen, memory, start, deterministic=True)
        observation, _, ended, _, info = envs.step(action)
        rates.append(info["lr"])
        start = np.zeros(2, dtype=bool)
    return rates


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"control": "set"},
        {"control": ("scale", "momentum"), "observe": "scale-free", "interval": 2, "optimizer": "momentum"},
        {"control": "discrete", "observe": ("paper", "clock")},
    ],
)
def test_a_model_acts_as_it_was_trained(settings: dict[str, Any]) -> None:
    model = trained(**settings)
    result = evaluate(model, TASK, [3, 4], initial_lr=0.1, device="cpu")
    # Whoever acts at every other step is measured no more often than at every fifth.
    measured = {"measure_interval": 6} if "interval" in settings else {}
    np.testing.assert_array_equal(result.curves["lr"], by_hand(model, **settings, **measured))
    defaults = {"control": "scale", "observe": "dynamics", "interval": 5}
    assert result.view == defaults | settings
    assert result.agent == "PPO"


def test_a_model_observes_ones_own_function_and_leaves_the_task_its_optimizer() -> None:
    """Also a function that is called as one of lrenv's observations."""

    def dynamics(seen: Any) -> Any:
        return torch.stack([seen.val_loss.log(), seen.lr.log10()], 1)

    model = trained(observe=dynamics)
    result = evaluate(model, TASK, [3, 4], initial_lr=0.1, device="cpu")
    np.testing.assert_array_equal(result.curves["lr"], by_hand(model, observe=dynamics))
    assert result.view == {"control": "scale", "observe": "dynamics", "interval": 5}
    assert as_agent(trained(optimizer="adam")).view.optimizer == "adam"


@pytest.mark.parametrize("kind", [PPO, RecurrentPPO])
def test_a_models_normalisation_comes_along(kind: Any) -> None:
    model = trained(kind, "MlpPolicy" if kind is PPO else "MlpLstmPolicy", normalise=True, observe="clock")
    statistics = model.get_vec_normalize_env()
    before = statistics.obs_rms.mean.copy()
    result = evaluate(model, TASK, [3, 4], initial_lr=0.1, device="cpu")
    assert statistics.training
    np.testing.assert_array_equal(statistics.obs_rms.mean, before)
    np.testing.assert_array_equal(result.curves["lr"], by_hand(model, statistics, observe="clock"))
    raw = by_hand(model, observe="clock")
    assert (result.curves["lr"] != raw).any(), "raw observations of hundreds make another agent of it"


def test_a_model_of_single_environments() -> None:
    model = PPO(
        "MlpPolicy", gym.make("lrenv/noisy-quadratic-v0", control="set", observe="paper", device="cpu"), **SMALL
    )
    assert evaluate(model, TASK, [3, 4], device="cpu").view["control"] == "set"
    envs: Any = make_vec_env("lrenv/noisy-quadratic-v0", 2, env_kwargs={"control": "discrete", "device": "cpu"})
    result = evaluate(DQN("MlpPolicy", VecNormalize(envs), device="cpu"), TASK, [3, 4], device="cpu")
    assert result.view["control"] == "discrete"


def test_a_loaded_model_says_nothing_of_its_view(tmp_path: Path) -> None:
    model = trained(normalise=True, control="set", observe="clock")
    model.save(tmp_path / "model")
    model.get_vec_normalize_env().save(tmp_path / "statistics.pkl")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    with pytest.raises(
        AgentError, match=r"what the PPO model observes and controls can't be known.*SB3Agent\(model, View"
    ):
        evaluate(loaded, TASK, [3, 4], device="cpu")
    envs = LearningRateVecEnv(1, TASK, control="set", observe="clock", device="cpu")
    agent = SB3Agent(
        loaded, View(control="set", observe="clock"), VecNormalize.load(str(tmp_path / "statistics.pkl"), envs)
    )
    ours, theirs = (evaluate(x, TASK, [3, 4], device="cpu") for x in (agent, model))
    np.testing.assert_array_equal(ours.test_loss, theirs.test_loss)


@pytest.mark.parametrize("wrap", [lambda e: VecFrameStack(e, 2), lambda e: VecNormalize(VecFrameStack(e, 2))])
def test_wrappers_that_change_what_is_seen_are_refused(wrap: Any) -> None:
    model = PPO("MlpPolicy", wrap(LearningRateVecEnv(2, TASK, device="cpu")), **SMALL)
    with pytest.raises(AgentError, match="its environment is wrapped in VecFrameStack"):
        evaluate(model, TASK, [0], device="cpu")


def test_wrappers_of_single_environments_are_seen_through_or_refused() -> None:
    env = gym.make("lrenv/noisy-quadratic-v0", device="cpu")
    model = PPO("MlpPolicy", gym.wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)), **SMALL)
    with pytest.raises(AgentError, match="wrapped in RescaleObservation"):
        evaluate(model, TASK, [0], device="cpu")
    env = gym.make("lrenv/noisy-quadratic-v0", control="set", max_episode_steps=3, device="cpu")
    for wrap in (gym.wrappers.RecordEpisodeStatistics, gym.wrappers.Autoreset, gym.wrappers.NormalizeReward):
        env = wrap(env)
    assert as_agent(PPO("MlpPolicy", env, **SMALL)).view.control == "set"


def test_two_normalisations_are_refused() -> None:
    """Of which an agent would apply the outer one alone."""
    envs = VecNormalize(VecMonitor(VecNormalize(LearningRateVecEnv(2, TASK, device="cpu"))))
    with pytest.raises(AgentError, match="wrapped in VecNormalize more than once.*train the model with one"):
        evaluate(PPO("MlpPolicy", envs, **SMALL), TASK, [0], device="cpu")


def test_models_of_other_environments_are_refused() -> None:
    with pytest.raises(AgentError, match="it holds no environment of lrenv's"):
        evaluate(PPO("MlpPolicy", gym.make("CartPole-v1"), **SMALL), TASK, [0], device="cpu")
