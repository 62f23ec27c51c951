"""A universal controller as an agent: `UniversalController.load(path)`, or `make_agent(path)`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrenv.agents.base import BaseAgent
from lrenv.agents.universal.policy import Architecture, Memory, Observation, decide, first_memory
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import View
from lrenv.controllers.controller_file import ControllerFileError, TensorSpec
from lrenv.envs.actions import BOUNDS
from lrenv.training.drawn import OPTIMIZERS

NAME = "universal-policy"
VERSION = 3
"""Of the policy, whose numbers theta are differences from those of an untrained one: other numbers there, another
guard, or another meaning of what is seen, are another version."""
METADATA = schema.record(
    {
        "architecture": schema.record(
            {"hidden": schema.integer(0, schema.LARGEST_SIZE)}
            | dict.fromkeys(("layers", "horizon", "gradients"), schema.BOOLEAN)
        ),
        "numbers": schema.several(schema.NAME),
        "policy": schema.integer(0, schema.LARGEST_SIZE),
    },
    {},
)
"""The check of the metadata of its file, without those of its training."""


def view_of_policy(architecture: Architecture) -> View:
    """What an environment has to show to such a policy, and what it sets."""
    return View("set/layer" if architecture.layers else "set", architecture.observe, horizon=architecture.horizon)


def action_of_rates(rates: Tensor) -> Tensor:
    """The actions of the control `set` that set these rates, or the nearest within its bounds."""
    low, high = BOUNDS
    return (2 * (rates / low).log() / math.log(high / low) - 1).clamp(-1, 1)


class UniversalController(BaseAgent[Memory]):
    """A controller for any task, with the parameters `theta`.

    Args:
        theta: (D,).
        architecture: what it sees and sets.

    Attributes:
        fitted_to: the optimizers of the tasks that its exponents are for; a loop with another is told.
        version: of the policy.

    Raises:
        ValueError: theta is of another architecture.
    """

    fitted_to = tuple(OPTIMIZERS)
    version = VERSION

    def __init__(self, theta: Tensor, architecture: Architecture) -> None:
        if theta.shape != (architecture.size,):
            raise ValueError(f"{architecture} has {architecture.size} parameters, not {tuple(theta.shape)}")
        self.theta, self.architecture = theta, architecture
        self.view = view_of_policy(architecture)

    def __repr__(self) -> str:
        a = self.architecture
        return "universal" + "-layers" * a.layers + "-anytime" * (not a.horizon)

    def start(self, observation: Any) -> Memory:
        """Returns what is remembered at the start of an episode."""
        return first_memory(self._tensors(observation))

    def act(self, observation: Any, carry: Memory) -> tuple[Tensor, Memory]:
        """Returns actions (n, K) that set the rates, and what is remembered."""
        seen = self._tensors(observation)
        theta = self.theta.to(carry.correction.dtype).expand(len(carry.correction), -1)
        decision = decide(self.architecture, theta, seen, carry)
        return action_of_rates(decision.rates), decision.memory

    def remarks(self, state: Memory) -> list[str]:
        """Says whether the guard holds the rate of the first trainee down, after a decision."""
        return ["the guard holds the rate down"] if bool(state.reached[0, 0] >= state.ceiling[0, 0]) else []

    def _tensors(self, observation: Any) -> Observation:
        if not isinstance(observation, Mapping) or set(observation) != set(self.architecture.observe):
            raise ValueError(
                f"{self!r} observes {', '.join(self.architecture.observe)}: make the environment with "
                "**agent.view.settings()"
            )
        return {name: torch.as_tensor(np.asarray(part)) for name, part in observation.items()}

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the controller to one file, with how it was trained."""
        architecture = {"architecture": asdict(self.architecture), "numbers": list(self.architecture.numbers)}
        own = {"agent": NAME, "policy": VERSION, **architecture}
        controller_file.write(path, {"theta": self.theta}, own | trained)

    @classmethod
    def load(cls, path: Path) -> UniversalController:
        """Reads a controller.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no such controller, damaged, or of another version.
        """
        with controller_file.opened_agent(path, NAME) as file:
            METADATA("metadata", file.metadata)
            architecture = Architecture(**file.metadata["architecture"])
            if (file.metadata["policy"], tuple(file.metadata["numbers"])) != (VERSION, architecture.numbers):
                raise ControllerFileError(
                    f"{path} holds the numbers of another policy than this version of lrenv has; train it again"
                )
            tensors = file.tensors({"theta": TensorSpec((architecture.size,), ("F32", "F64"))})
        return cls(tensors["theta"], architecture)


def universal() -> UniversalController:
    """Returns a controller for any task with one rate for the network, which knows the budget.

    It is an untrained policy: three trainings have added nothing to its power laws that could be measured on tasks that
    they had not seen (docs/universal.md).
    """
    architecture = Architecture()
    return UniversalController(architecture.init(0), architecture)


def universal_anytime() -> UniversalController:
    """Returns a controller for any task with one rate for the network, for runs whose length isn't known.

    It is an untrained policy, too: the power laws of `universal`, and a rate that falls with the square root of time.
    """
    architecture = Architecture(horizon=False)
    return UniversalController(architecture.init(0), architecture)


OF_UNIVERSAL = {"training": 25_200, "selection": 37_800 + 16_800 + 16_480 + 176_300}
"""Of `benchmarks/drawn_peaks.py`, by which its exponents were fitted and its design was chosen: 14 peaks and 3 seeds on
600 tasks, and the same with 3 exponents of fan-in on 300; of `benchmarks/drawn_guards.py`, 84 runs on 200 tasks; of
`benchmarks/drawn_layers.py`, 160 runs on 103 tasks; and of earlier forms of these, and of sketches."""
universal.learning_runs = OF_UNIVERSAL  # type: ignore[attr-defined]
universal_anytime.learning_runs = OF_UNIVERSAL | {  # type: ignore[attr-defined]
    "selection": OF_UNIVERSAL["selection"] + 8_400 + 31_800
}
"""Those of `universal`; of `benchmarks/drawn_anytime.py`, 42 runs on 200 tasks; of earlier forms, and of sketches."""
