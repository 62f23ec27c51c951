"""The policies: a coordinatewise LSTM whose outputs are learning rates (NOH) or updates (DMopt).

Fu et al. 2017, "Neural optimizers with hypergradients for tuning parameter-wise learning rates", section 2.2, and their
baseline, Andrychowicz et al. 2016. `lrenv.agents.noh.training` trains both:

    lrenv train noh --task mnist-mlp20 --out runs/noh
    lrenv compare --task mnist-mlp20 --agents constant,runs/noh/controller.safetensors

`tests/reference/noh.py` has both in NumPy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from lrenv.agents.base import BaseAgent
from lrenv.agents.noh.lstm import ARCHITECTURE, Architecture, CoordinateLSTM, preprocessed, preprocessed_pieces
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import View
from lrenv.training.gradient_observer import MEAN
from lrenv.training.optimizers import OPTIMIZERS, WRAPPERS

METADATA = schema.record({"view": schema.check_view, "architecture": ARCHITECTURE}, {})
"""The check of the metadata of a policy's file, without those of its training."""
CONTROLS = {
    "parameter": "set-raw/parameter", "tensor": "set-raw/tensor", "layer": "set-raw/layer", "trainee": "set-raw"
}  # fmt: skip
"""What an action is set for -> the control."""
PIECES = ("gradient_square", "direction_square", "hypergradient")
"""What is observed of pieces of a network, in the order of `preprocessed_pieces`."""


class LSTMPolicy(BaseAgent[tuple[Tensor, ...]]):
    """A coordinatewise LSTM that sees the mean gradient of each parameter of the trainee, and acts on it.

    Instead of parameters it may take the trainee in larger pieces, such as layers: an LSTM per piece, whose action is
    that of all of the piece. It acts on trainees of any size, and computes on the device of its weights. A file is read
    by `load(path)`, or `make_agent(path)`.

    Args:
        architecture: of the LSTM.
        interval: S, inner steps between two actions.
        optimizer: the trainees' optimizer.
        network: the LSTM with trained weights; None for untrained ones.
        per: what has an LSTM and an action of its own, one of `PER`.
    """

    NAME: ClassVar[str]
    OPTIMIZERS: ClassVar[tuple[str, ...]]
    """The optimizers of trainees that it can act on."""
    PER: ClassVar[tuple[str, ...]]
    """What can have an action of its own."""

    def __init__(
        self,
        architecture: Architecture,
        interval: int,
        optimizer: str,
        network: CoordinateLSTM | None = None,
        per: str = "parameter",
    ) -> None:
        base, *wrappers = optimizer.split("+")
        if base not in self.OPTIMIZERS or not WRAPPERS.keys() >= set(wrappers):
            raise ValueError(f"{self.NAME} is for the optimizers {', '.join(self.OPTIMIZERS)}, not {optimizer!r}")
        self.architecture = architecture
        self.network = CoordinateLSTM(architecture) if network is None else network
        self.interval, self.optimizer, self.per = interval, optimizer, per
        self.view = _view(interval, optimizer, per)

    def __repr__(self) -> str:
        return self.NAME

    @abstractmethod
    def action(self, output: Tensor) -> Tensor:
        """Returns the actions (n, P) of the LSTM's outputs (n, P)."""

    @staticmethod
    @abstractmethod
    def action_gradients(hypergradients: Tensor) -> Tensor:
        """Returns the derivatives of a window's training loss by its actions, both (decisions, n, P).

        Args:
            hypergradients: for each decision, the derivatives of the losses that its own steps led to.
        """

    def start(self, observation: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Returns the LSTM's carry, (n, hidden, P) for each layer's hidden state and cell, all 0.

        Raises:
            ValueError: the observation has no gradients of a batch of trainees.
        """
        shapes = []
        for part in self.view.observe:
            if not isinstance(observation, Mapping) or part not in observation:
                raise ValueError(
                    f"{self} reads {part}, which the observation lacks: make the environment with "
                    "**agent.view.settings()"
                )
            shapes.append(tuple(np.shape(observation[part])))
            if len(shapes[-1]) != 2:
                raise ValueError(f"{self} reads {part} of a batch, (n, P), not {shapes[-1]}")
        return self.network.start(*shapes[0])

    def inputs(self, observation: Mapping[str, Any]) -> Tensor:
        """Returns the inputs (n, 2, P) of the LSTM, on its device."""
        parts = [torch.as_tensor(observation[x], dtype=torch.float32, device=self.device) for x in self.view.observe]
        if self.per == "parameter":
            (mean,) = parts
            return preprocessed(mean, self.architecture.cut)
        gradient_square, direction_square, hypergradient = parts
        cut = self.architecture.cut
        return preprocessed_pieces(gradient_square, direction_square, hypergradient, self.interval, cut)

    def act(self, observation: Mapping[str, Any], carry: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns actions (n, P), on the device of the LSTM and differentiable by its weights, and its next carry."""
        output, carry = self.network(self.inputs(observation), carry)
        return self.action(output), carry

    @property
    def device(self) -> torch.device:
        """The device that the LSTM runs on."""
        return self.network.offset.device

    def on_device(self, device: torch.device) -> Self:
        """Returns this policy if it is on that device, else a copy there; evaluations pass the trainees' device."""
        if device.type == self.device.type and device.index in (None, self.device.index):
            return self
        weights = {name: x.detach().to(device, copy=True) for name, x in self.network.state_dict().items()}
        with torch.random.fork_rng(devices=[]):  # initial weights are replaced, as in `load`
            policy = type(self)(self.architecture, self.interval, self.optimizer, per=self.per)
        policy.network.load_state_dict(weights, assign=True)
        return policy

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the policy to one file, with how it was trained."""
        shape = {"view": self.view.names, "architecture": asdict(self.architecture)}
        controller_file.write(path, self.network.state_dict(), {"agent": self.NAME, **shape, **trained})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a policy.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no policy of this kind, damaged, or of another
                version.
        """
        with controller_file.opened_agent(path, cls.NAME) as file:
            METADATA("metadata", file.metadata)
            view = file.metadata["view"]
            schema.integer(1)("view.interval", view["interval"])
            schema.NAME("view.optimizer", view["optimizer"])
            views = {per: _view(view["interval"], view["optimizer"], per) for per in cls.PER}
            held = View(**schema.view_settings(view))
            per = next((per for per, own in views.items() if own == held), None)
            if per is None:
                controls = ", ".join(str(own.control) for own in views.values())
                raise ValueError(f"{cls.NAME} has the control {controls}, and observes what goes with it, not {view}")
            architecture = Architecture(**file.metadata["architecture"])
            tensors = file.tensors(architecture.tensor_specs())
            # The initial weights are replaced; drawing them must not shift anyone's random numbers.
            with torch.random.fork_rng(devices=[]):
                policy = cls(architecture, view["interval"], view["optimizer"], per=per)
            # Assigned: they stay of the type that they are in the file, whatever torch's default is.
            policy.network.load_state_dict(tensors, assign=True)
            # The LSTM puts out numbers between -1 and 1, which the output layer weighs.
            largest = tensors["output"].abs().sum() + tensors["offset"].abs()
            if not policy.action(largest).isfinite().all():
                raise ValueError(f"outputs may be as large as {float(largest):.3g}, whose actions are infinite")
        return policy


def _view(interval: int, optimizer: str, per: str) -> View:
    return View(CONTROLS[per], (MEAN,) if per == "parameter" else PIECES, interval, optimizer)


class NOH(LSTMPolicy):
    """The neural optimizer with hypergradients: a positive learning rate per parameter, alpha = scale * e^output.

    An untrained policy is the constant rate `scale`. It is trained by the one-step hypergradients of its rates (Fu et
    al. 2017, figure 2): no gradient passes through the trainee, so a decision is trained on the losses of its interval
    alone. Not in the paper are rates per layer instead of per parameter, and training by evolution strategies over
    whole runs.
    """

    NAME = "noh"
    OPTIMIZERS = tuple(name for name in OPTIMIZERS if name != "unit")
    PER = tuple(CONTROLS)

    def action(self, output: Tensor) -> Tensor:
        """Returns the rates (n, P)."""
        return self.architecture.scale * output.exp()

    @staticmethod
    def action_gradients(hypergradients: Tensor) -> Tensor:
        """Returns the hypergradients themselves."""
        return hypergradients


class DMopt(LSTMPolicy):
    """An LSTM whose output is the update itself: w - scale * output (Andrychowicz et al. 2016).

    The trainee's optimizer is `unit`, whose direction is 1, so that an update is a rate. It is trained on the sum of
    all losses of a window (equation 3 there, with w_t = 1), and the gradients of the trainee count as constants: an
    update moves the weights of every later step in the window alike. Its derivative is thus the sum of the
    hypergradients, -<g, 1>, from its own step on. This is so where it acts at every step.
    """

    NAME = "dmopt"
    OPTIMIZERS = ("unit",)
    PER = ("parameter",)  # one update for a whole layer would move all its weights alike

    def action(self, output: Tensor) -> Tensor:
        """Returns the updates (n, P)."""
        return self.architecture.scale * output

    @staticmethod
    def action_gradients(hypergradients: Tensor) -> Tensor:
        """Returns for each decision the sum of its hypergradient and all later ones."""
        return hypergradients.flip(0).cumsum(0).flip(0)
