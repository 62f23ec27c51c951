"""A learning-rate controller trained by reinforcement learning.

Xu et al. 2019, "Learning an adaptive learning rate schedule", sections 2.3 and 3.3.

`PPOController` is the trained agent: an actor of Stable-Baselines3 (one hidden layer of 32, or an LSTM of 32) and
the statistics that its observations are normalised with. `lrenv.agents.ppo.training` trains it.

`tests/reference/ppo.py` has the forward pass in NumPy.
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

from lrenv.agents.base import BaseAgent
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import View
from lrenv.controllers.controller_file import TensorSpec

Array = NDArray[Any]
LSTMState = tuple[Array, ...]
"""The hidden state and the cell state of an LSTM, (n, hidden) each; nothing where there is none."""

_SIZE = schema.integer(1, schema.LARGEST_SIZE)
METADATA = schema.record(
    {
        "view": schema.check_view,
        "architecture": schema.record(
            {
                "observation": _SIZE,
                "action": schema.integer(0, schema.LARGEST_SIZE),
                "choices": schema.several(_SIZE),
                "hidden": _SIZE,
                "lstm": schema.BOOLEAN,
            }
        ),
    },
    {},
)
"""The fields that the metadata of a controller's file have besides those about its training."""
LOG_STD = 80.0
"""Logarithms of an actor's standard deviations are at most this in magnitude: float32 then holds their powers of e."""
LEAST_STD = 1e-6
"""The least that observations may be divided by; training divides by the root of 1e-8 or more."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a policy, from which it is rebuilt.

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
        """Gives the architecture that fits an environment's spaces."""
        assert observation_space.shape is not None
        choices: tuple[int, ...] = ()
        if isinstance(action_space, gym.spaces.Discrete):
            choices = (int(action_space.n),)
        elif isinstance(action_space, gym.spaces.MultiDiscrete):
            choices = tuple(int(n) for n in action_space.nvec)
        action = 0 if choices else int(np.prod(action_space.shape or (1,)))
        return cls(observation_space.shape[0], action, choices, hidden, lstm)

    def policy_kwargs(self) -> dict[str, Any]:
        """Gives the keyword arguments of Stable-Baselines3's policies."""
        if self.lstm:
            arch = {"pi": [], "vf": [self.hidden]}
            return {"net_arch": arch, "lstm_hidden_size": self.hidden, "enable_critic_lstm": False}
        return {"net_arch": {"pi": [self.hidden], "vf": [self.hidden]}}

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Gives the specs of a controller's tensors: those of `build`'s policy, and the statistics of observations."""
        hidden, outputs = self.hidden, sum(self.choices) or self.action
        layers = {"action_net": (outputs, hidden), "value_net": (1, hidden)}
        if self.lstm:
            layers |= {"mlp_extractor.value_net.0": (hidden, hidden), "critic": (hidden, self.observation)}
        else:
            layers |= {f"mlp_extractor.{part}_net.0": (hidden, self.observation) for part in ("policy", "value")}
        specs: dict[str, TensorSpec] = {}
        for name, shape in layers.items():
            specs |= {f"policy.{name}.weight": TensorSpec(shape), f"policy.{name}.bias": TensorSpec(shape[:1])}
        if self.lstm:
            for part, columns in (("ih", self.observation), ("hh", hidden)):
                specs[f"policy.lstm_actor.weight_{part}_l0"] = TensorSpec((4 * hidden, columns))
                specs[f"policy.lstm_actor.bias_{part}_l0"] = TensorSpec((4 * hidden,))
        if not self.choices:
            specs["policy.log_std"] = TensorSpec((outputs,), low=-LOG_STD, high=LOG_STD)
        return specs | {
            "mean": TensorSpec((self.observation,), ("F64",)),
            "std": TensorSpec((self.observation,), ("F64",), LEAST_STD),
        }

    def build(self) -> ActorCriticPolicy:
        """Makes a policy whose weights are to be loaded."""
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


class PPOController(BaseAgent[LSTMState]):
    """A trained controller: `PPOController.load(path)`, or `make_agent(path)`.

    Args:
        policy: the actor and the critic, of which the actor alone is used.
        mean: (observation,) what is subtracted from observations.
        std: (observation,) what they are then divided by.
        view: what it was trained to observe and control.
        architecture: of the policy.
    """

    CLIP = 10.0
    """Normalised observations are clipped here, as in training."""
    SEEN = 4.0
    """Of the observations that it was trained on, at most a sixteenth lay further from the mean than so many standard
    deviations (Chebyshev's inequality), and of anything like a normal distribution one in ten thousand."""

    def __init__(
        self, policy: ActorCriticPolicy, mean: Array, std: Array, view: View, architecture: Architecture
    ) -> None:
        self.policy = policy
        self.mean, self.std = mean, std
        self.view = view
        self.architecture = architecture

    def __repr__(self) -> str:
        return "ppo-lstm" if self.architecture.lstm else "ppo"

    @property
    def observation_range(self) -> tuple[Array, Array]:
        """Between which numbers (observation,) nearly all observations lay when it was trained."""
        return self.mean - self.SEEN * self.std, self.mean + self.SEEN * self.std

    def start(self, observation: Array) -> LSTMState:
        """Gives the state of the LSTM at the start of an episode; none where the actor is a perceptron.

        Raises:
            ValueError: observations of another length than it was trained on.
        """
        length = self.architecture.observation
        if np.ndim(observation) != 2 or observation.shape[1] != length:
            raise ValueError(
                f"this controller was trained on observations of length {length} (observe={self.view.observe!r}): it "
                f"reads arrays (n, {length}), not {np.shape(observation)}"
            )
        if not self.architecture.lstm:
            return ()
        zeros = np.zeros((len(observation), self.architecture.hidden), np.float32)
        return zeros, zeros

    def act(self, observation: Array, carry: LSTMState) -> tuple[Array, LSTMState]:
        """Gives the mode of the policy for each of n environments, and the LSTM's next state."""
        return self._decide(observation, carry, deterministic=True)

    def sample(self, observation: Array, carry: LSTMState) -> tuple[Array, LSTMState]:
        """Draws actions from the policy, with torch's global generator."""
        return self._decide(observation, carry, deterministic=False)

    def _decide(self, observation: Array, carry: LSTMState, deterministic: bool) -> tuple[Array, LSTMState]:
        normalised = np.clip((observation - self.mean) / self.std, -self.CLIP, self.CLIP).astype(np.float32)
        # Stable-Baselines3 has an axis of LSTM layers, here one, before that of the environments.
        state = tuple(x[None] for x in carry) or None
        action, after = self.policy.predict(normalised, state, deterministic=deterministic)
        return action, tuple(x[0] for x in after or ())

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Writes the controller to one file; `metadata` says how it was trained."""
        tensors = {f"policy.{name}": weight for name, weight in self.policy.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self.mean), "std": torch.from_numpy(self.std)}
        shape = {"view": self.view.names, "architecture": asdict(self.architecture)}
        controller_file.write(path, tensors, {"agent": "ppo", **shape, **metadata})

    @classmethod
    def load(cls, path: Path) -> PPOController:
        """Reads a controller.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no controller, damaged, or of another version.
        """
        with controller_file.opened_agent(path, "ppo") as file:
            METADATA("metadata", file.metadata)
            view, fields = schema.view_settings(file.metadata["view"]), file.metadata["architecture"]
            architecture = Architecture(**fields | {"choices": tuple(fields["choices"])})
            _check_spaces(view, architecture)
            tensors = file.tensors(architecture.tensor_specs())
        mean, std = tensors.pop("mean").numpy(), tensors.pop("std").numpy()
        policy = architecture.build()
        # Assigned: they stay of the type that they are in the file, whatever torch's default is.
        policy.load_state_dict({name.removeprefix("policy."): weight for name, weight in tensors.items()}, assign=True)
        policy.set_training_mode(False)
        return cls(policy, mean, std, View(**view), architecture)


def _check_spaces(view: dict[str, Any], architecture: Architecture) -> None:
    """Refuses a policy that doesn't fit the environments that it asks for."""
    controls = [view["control"]] if isinstance(view["control"], str) else view["control"]
    rates = len(architecture.choices) or architecture.action - (len(controls) - 1)
    observations, actions = schema.spaces(view, max(rates, 1))
    if not isinstance(observations, gym.spaces.Box):
        raise ValueError(f"a policy of a few numbers can't observe {view['observe']!r}")
    fitting = Architecture.of(observations, actions, architecture.hidden, architecture.lstm)
    if "set-raw" in str(view["control"]) or fitting != architecture:
        raise ValueError(f"{architecture} doesn't fit what it observes and controls, {view}")
