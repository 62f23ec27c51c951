"""Optimizers learned by coordinatewise LSTMs: NOH, which puts out learning rates, and DMopt, which puts out updates.

Fu et al. 2017, "Neural optimizers with hypergradients for tuning parameter-wise learning rates", and their baseline,
Andrychowicz et al. 2016. `lrenv.agents.noh.training` trains both:

    python train_controller.py noh --task mnist-mlp20 --out runs/noh
    lrenv compare --task mnist-mlp20 --agents constant,runs/noh/controller.safetensors
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.agents.memory import check_batch
from lrenv.agents.noh.lstm import ARCHITECTURE, Architecture, CoordinateLSTM
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import State, View
from lrenv.runtime.trees import select
from lrenv.training.gradient_observer import MEAN
from lrenv.training.optimizers import OPTIMIZERS

METADATA = schema.record({"view": schema.check_view, "architecture": ARCHITECTURE}, {})
"""What the metadata of a policy's file hold besides how it was trained."""


class LSTMPolicy(ABC):
    """A coordinatewise LSTM that sees mean gradients and sets something for each parameter of the trainee.

    It acts on trainees of any size. A file is read by `load(path)`, or `make_agent(path)`.

    Args:
        architecture: of the LSTM.
        interval: S, inner steps between two actions.
        optimizer: of the trainees.
        network: with trained weights; fresh ones if None.
    """

    NAME: ClassVar[str]
    OPTIMIZERS: ClassVar[tuple[str, ...]]
    """Those of trainees that it can act on."""

    def __init__(
        self, architecture: Architecture, interval: int, optimizer: str, network: CoordinateLSTM | None = None
    ) -> None:
        self.architecture = architecture
        self.network = CoordinateLSTM(architecture) if network is None else network
        self.interval, self.optimizer = interval, optimizer
        self._view = _view(interval, optimizer)

    def __repr__(self) -> str:
        return self.NAME

    @property
    def view(self) -> View:
        """What it was trained to see and turn."""
        return self._view

    @abstractmethod
    def action(self, output: Tensor) -> Tensor:
        """What the outputs (n, P) of the LSTM do."""

    @staticmethod
    @abstractmethod
    def credit(hypergradients: Tensor) -> Tensor:
        """The derivatives of the training loss by the actions of a window, both (decisions, n, P).

        Args:
            hypergradients: of each decision, those of the losses that its own steps led to.
        """

    def predict(
        self,
        observation: Mapping[str, NDArray[Any]],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The actions (n, P) for the intervals that now start, and the LSTM's memory, (n, hidden, P) each.

        The memory stays on the policy's device, as tensors: they are handed back as they are, or as arrays. Observation
        and actions are arrays, as Stable-Baselines3 has them, and cross to the device and back.

        Raises:
            ValueError: the observation is another one, or n or P are not those of the state.
        """
        if not isinstance(observation, Mapping) or MEAN not in observation:
            raise ValueError(
                f"{self} reads {MEAN}, which the observation lacks: make the environment with **agent.view.settings()"
            )
        gradient = torch.as_tensor(observation[MEAN], dtype=torch.float32, device=self.device)
        if gradient.ndim != 2:
            raise ValueError(f"{self} reads {MEAN} of a batch, (n, P), not {tuple(gradient.shape)}")
        with torch.no_grad():
            output, after = self.network(gradient, self._recalled(state, gradient, episode_start))
            action: NDArray[Any] = self.action(output).cpu().numpy()
        return action.astype(observation[MEAN].dtype, copy=False), after

    def _recalled(self, state: State, gradient: Tensor, episode_start: NDArray[np.bool_] | None) -> tuple[Tensor, ...]:
        """The memory with which trainees of gradients (n, P) go into a decision, as `lrenv.agents.memory.recalled`."""
        fresh = self.network.fresh(gradient)
        if state is None:
            return fresh
        check_batch(state, fresh)
        held = tuple(torch.as_tensor(x, device=self.device) for x in state)
        # Most decisions start no episode: memories are then spared a copy.
        if episode_start is None or not episode_start.any():
            return held
        return select(torch.from_numpy(np.asarray(episode_start)).to(self.device), fresh, held)

    @property
    def device(self) -> torch.device:
        """Where the LSTM runs."""
        return self.network.offset.device

    def on_device(self, device: torch.device) -> Self:
        """This policy if it is on that device, else a copy there: evaluations ask for it where the trainees live."""
        if device.type == self.device.type and device.index in (None, self.device.index):
            return self
        weights = {name: x.detach().to(device, copy=True) for name, x in self.network.state_dict().items()}
        with torch.random.fork_rng(devices=[]):  # fresh weights are replaced, as in `load`
            policy = type(self)(self.architecture, self.interval, self.optimizer)
        policy.network.load_state_dict(weights, assign=True)
        return policy

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the policy to one file, with how it was trained."""
        shape = {"view": asdict(self._view), "architecture": asdict(self.architecture)}
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
            schema.one_of(cls.OPTIMIZERS)("view.optimizer", view["optimizer"])
            own = _view(view["interval"], view["optimizer"])
            if View(**schema.view_settings(view)) != own:
                raise ValueError(f"{cls.NAME} has the {own}, not {view}")
            architecture = Architecture(**file.metadata["architecture"])
            tensors = file.tensors(architecture.promised())
            # Fresh weights will be replaced; drawing them must not shift anyone's random numbers.
            with torch.random.fork_rng(devices=[]):
                policy = cls(architecture, view["interval"], view["optimizer"])
            # Assigned: they stay of the type that they are in the file, whatever torch's default is.
            policy.network.load_state_dict(tensors, assign=True)
            # The LSTM puts out numbers between -1 and 1, which the output layer weighs.
            largest = tensors["output"].abs().sum() + tensors["offset"].abs()
            if not policy.action(largest).isfinite().all():
                raise ValueError(f"outputs may be as large as {float(largest):.3g}, whose actions are infinite")
        return policy


def _view(interval: int, optimizer: str) -> View:
    return View("set-raw/parameter", (MEAN,), interval, optimizer)


class NOH(LSTMPolicy):
    """Neural optimizer with hypergradients: a positive learning rate a parameter, scale * e^output.

    An untrained one is the constant rate `scale`. It is trained by the one-step hypergradients of its rates (Fu et al.
    2017, figure 2): no gradient passes through the trainee, so a decision answers for the losses of its interval.
    """

    NAME = "noh"
    OPTIMIZERS = tuple(name for name in OPTIMIZERS if name != "unit")

    def action(self, output: Tensor) -> Tensor:
        """Rates."""
        return self.architecture.scale * output.exp()

    @staticmethod
    def credit(hypergradients: Tensor) -> Tensor:
        """The hypergradients."""
        return hypergradients


class DMopt(LSTMPolicy):
    """An LSTM that puts out the update itself: w - scale * output (Andrychowicz et al. 2016).

    The trainee's optimizer is `unit`, whose direction is 1, so that an update is a rate. It is trained on the sum of
    all losses of a window (equation 3 there, with w_t = 1), and the gradients of the trainee count as constants: an
    update moves the weights of every later step in the window alike. Its derivative is thus the sum of the
    hypergradients, -<g, 1>, from its own step on.
    """

    NAME = "dmopt"
    OPTIMIZERS = ("unit",)

    def action(self, output: Tensor) -> Tensor:
        """Updates."""
        return self.architecture.scale * output

    @staticmethod
    def credit(hypergradients: Tensor) -> Tensor:
        """Each decision's hypergradient and all later ones."""
        return hypergradients.flip(0).cumsum(0).flip(0)
