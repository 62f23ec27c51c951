"""A learning-rate controller trained by reinforcement learning.

Xu et al. 2019, "Learning an adaptive learning rate schedule", sections 2.3 and 3.3.

`PPOController` is the trained agent: an actor of Stable-Baselines3 (one hidden layer of 32, or an LSTM of 32) and
the statistics that its observations are normalised with. `agents.ppo_learner` trains it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from lrenv.benchmark import controller_file
from lrenv.benchmark.agent import State, View

Array = NDArray[Any]


@dataclass(frozen=True)
class Architecture:
    """What a policy is rebuilt from.

    Attributes:
        observation: length of an observation.
        action: length of a Box action; 0 where actions are discrete.
        choices: choices of each discrete action.
        hidden: units of the hidden layer, or of the LSTM.
        lstm: whether the actor is an LSTM.
    """

    observation: int
    action: int
    choices: tuple[int, ...] = ()
    hidden: int = 32
    lstm: bool = False

    @classmethod
    def of(
        cls, observation_space: gym.Space[Any], action_space: gym.Space[Any], hidden: int, lstm: bool
    ) -> Architecture:
        """The architecture that fits an environment's spaces."""
        assert observation_space.shape is not None
        choices: tuple[int, ...] = ()
        if isinstance(action_space, gym.spaces.Discrete):
            choices = (int(action_space.n),)
        elif isinstance(action_space, gym.spaces.MultiDiscrete):
            choices = tuple(int(n) for n in action_space.nvec)
        action = 0 if choices else int(np.prod(action_space.shape or (1,)))
        return cls(observation_space.shape[0], action, choices, hidden, lstm)

    def policy_kwargs(self) -> dict[str, Any]:
        """What Stable-Baselines3's policies take."""
        if self.lstm:
            arch = {"pi": [], "vf": [self.hidden]}
            return {"net_arch": arch, "lstm_hidden_size": self.hidden, "enable_critic_lstm": False}
        return {"net_arch": {"pi": [self.hidden], "vf": [self.hidden]}}

    def build(self) -> ActorCriticPolicy:
        """A policy with weights to be loaded."""
        observations = gym.spaces.Box(-np.inf, np.inf, (self.observation,), np.float32)
        actions: gym.Space[Any] = gym.spaces.Box(-1, 1, (self.action,), np.float32)
        if self.choices:
            actions = gym.spaces.MultiDiscrete(list(self.choices))
            if len(self.choices) == 1:
                actions = gym.spaces.Discrete(self.choices[0])
        kind: type[ActorCriticPolicy] = RecurrentActorCriticPolicy if self.lstm else ActorCriticPolicy
        # Its weights will be replaced; the draws of the initial ones must not shift a training's random numbers.
        with torch.random.fork_rng(devices=[]):
            return kind(observations, actions, lambda _: 0.0, **self.policy_kwargs())


class PPOController:
    """A trained controller: `PPOController.load(path)`, or `make_agent(path)`.

    Args:
        policy: the actor; its critic is carried along, unused.
        mean: (observation,) subtracted from observations.
        std: (observation,) they are divided by.
        view: what it was trained to see and turn.
        architecture: of the policy.
    """

    CLIP = 10.0
    """Normalised observations are clipped here, as in training."""

    def __init__(
        self, policy: ActorCriticPolicy, mean: Array, std: Array, view: View, architecture: Architecture
    ) -> None:
        self.policy = policy
        self.mean, self.std = mean, std
        self._view = view
        self.architecture = architecture

    def __repr__(self) -> str:
        return "ppo-lstm" if self.architecture.lstm else "ppo"

    @property
    def view(self) -> View:
        """What it was trained to see and turn."""
        return self._view

    def predict(
        self,
        observation: Array,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State]:
        """One decision for each of n environments; see `lrenv.benchmark.agent.Agent`.

        Raises:
            ValueError: observations of another length than it was trained on.
        """
        if observation.shape[-1] != self.architecture.observation:
            raise ValueError(
                f"this controller was trained on observations of length {self.architecture.observation} "
                f"(observe={self._view.observe!r}), not {observation.shape[-1]}"
            )
        normalised = np.clip((observation - self.mean) / self.std, -self.CLIP, self.CLIP).astype(np.float32)
        return self.policy.predict(normalised, state, episode_start, deterministic)

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Writes the controller to one file; `metadata` says how it was trained."""
        tensors = {f"policy.{name}": weight for name, weight in self.policy.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self.mean), "std": torch.from_numpy(self.std)}
        shape = {"view": asdict(self._view), "architecture": asdict(self.architecture)}
        controller_file.write(path, tensors, {"agent": "ppo", **shape, **metadata})

    @classmethod
    def load(cls, path: Path) -> PPOController:
        """Reads a controller.

        Raises:
            FileNotFoundError: no such file.
            lrenv.benchmark.controller_file.ControllerFileError: no controller, damaged, or of another version.
        """
        tensors, metadata = controller_file.read_agent(path, "ppo")
        try:
            view: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["view"].items()}
            fields = metadata["architecture"]
            architecture = Architecture(**fields | {"choices": tuple(fields["choices"])})
            mean, std = tensors.pop("mean").numpy(), tensors.pop("std").numpy()
        except (KeyError, TypeError) as error:
            raise controller_file.ControllerFileError(f"{path} is no PPO controller: {error!r} is missing") from error
        policy = architecture.build()
        weights = {name.removeprefix("policy."): weight for name, weight in tensors.items()}
        controller_file.checked_state(policy, weights, path)
        policy.set_training_mode(False)
        return cls(policy, mean, std, View(**view), architecture)
