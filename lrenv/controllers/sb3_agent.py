"""Stable-Baselines3 models as agents, with the view and the normalisation with which they were trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.controllers.agent import Agent, AgentError, State, View
from lrenv.envs.env import LearningRateEnv

TRANSPARENT = (
    "VecMonitor", "VecCheckNan", "VecVideoRecorder", "Monitor",
    "OrderEnforcing", "PassiveEnvChecker", "TimeLimit", "Autoreset", "RecordEpisodeStatistics", "RecordVideo",
    "TransformReward", "ClipReward", "NormalizeReward",
)  # fmt: skip
"""The wrappers of Stable-Baselines3 and of Gymnasium that change neither observations nor actions."""


class SB3Agent:
    """A Stable-Baselines3 or sb3-contrib model, recurrent ones included, as an agent.

    `lrenv.benchmark.evaluate` makes one of a model that still holds its environment. A model that was loaded from a
    file doesn't know its environment, so its view must be given:

        model = PPO.load("model.zip")
        normalise = VecNormalize.load("statistics.pkl", LearningRateVecEnv(1, "digits-mlp"))  # if it was trained so
        result = evaluate(SB3Agent(model, View(control="scale", observe="dynamics"), normalise), "digits-mlp")

    Args:
        model: the model.
        view: what it was trained to observe and control.
        normalise: the `VecNormalize` that normalised its observations in training; None if there was none.
    """

    def __init__(self, model: Any, view: View, normalise: Any = None) -> None:
        self.model, self.view, self.normalise = model, view, normalise

    def __repr__(self) -> str:
        return type(self.model).__name__

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """Makes one decision for each of n environments; the statistics of the normalisation stay as they are."""
        seen = observation if self.normalise is None else self.normalise.normalize_obs(observation)
        action: NDArray[Any]
        action, after = self.model.predict(seen, state, episode_start, deterministic)
        return action, after


def as_agent(agent: Any) -> Agent:
    """Returns a Stable-Baselines3 model as an agent, and an object that has a view or is no model as it is.

    Raises:
        AgentError: the model holds no environment of lrenv's, a wrapper of it changes observations or actions, or two
            normalise.
    """
    if hasattr(agent, "view") or not (hasattr(agent, "get_env") and hasattr(agent, "get_vec_normalize_env")):
        own: Agent = agent
        return own
    return SB3Agent(agent, _view(agent), agent.get_vec_normalize_env())


def _view(model: Any) -> View:
    """Returns the view of the model's environment."""
    from lrenv.envs.sb3_vec_env import LearningRateVecEnv  # Stable-Baselines3 takes a second, and a model has it

    env = model.get_env()
    wrappers: list[str] = []
    while env is not None and not isinstance(env, LearningRateVecEnv | LearningRateEnv):
        inner = getattr(env, "venv", None) or (getattr(env, "envs", None) or [getattr(env, "env", None)])[0]
        if inner is not None:
            wrappers.append(type(env).__name__)
        env = inner
    name = type(model).__name__
    changed = [wrapper for wrapper in wrappers if wrapper not in ("VecNormalize", "DummyVecEnv", *TRANSPARENT)]
    if env is None or changed:
        why = "it holds no environment of lrenv's" if env is None else f"its environment is wrapped in {changed[0]}"
        raise AgentError(
            f"what the {name} model observes and controls can't be known: {why}. Say it: "
            'evaluate(lrenv.agents.SB3Agent(model, View(control="scale", observe="dynamics"), '
            "normalise=its VecNormalize or None), task)"
        )
    if wrappers.count("VecNormalize") > 1:
        raise AgentError(
            f"the environment of the {name} model is wrapped in VecNormalize more than once, and an agent has one "
            "normalisation: train the model with one VecNormalize"
        )
    envs = env.envs if isinstance(env, LearningRateVecEnv) else env._envs
    observe = envs.asked["observe"]
    seen = tuple(observe) if isinstance(observe, list) else observe
    return View(envs.episode.control.name, seen, env.task.interval, envs.asked["optimizer"])
