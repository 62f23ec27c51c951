"""The learned optimizer: for each weight, a perceptron turns the features of `features.py` into an update.

Metz et al. 2019, "Learned optimizers that outperform SGD on wall-clock and test loss", section 4.1 and appendix C.1.
Two outputs o_1 and o_2 make the step of descent

    w <- w - exp(lambda_exp o_1) lambda_lin o_2.

Its time goes into passes over the weights, of which there are few: features of time are the same for all weights and
enter as a bias, and the normalisation of features is folded into the first layer's weights instead of being applied to
the features. `tests/reference/learned_optimizer.py` has the optimizer in NumPy, without either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.agents.base import BaseAgent
from lrenv.agents.learned_optimizer.features import (
    DECAYS,
    TIMESCALES,
    features_of_time,
    features_of_weights,
    mean_square,
    moving_averages,
)
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import View
from lrenv.controllers.controller_file import TensorSpec
from lrenv.lookup import count
from lrenv.runtime.ambient import without_gradients
from lrenv.training.optimizers import Hyper, Optimizer, OptState

LAMBDA_EXP = LAMBDA_LIN = 1e-3
"""The factors on o_1 and o_2. Without them, an untrained optimizer takes steps of size 1, far above any in use."""
METADATA = schema.record(
    {
        "architecture": schema.record(
            {"hidden": schema.integer(1, schema.LARGEST_SIZE)}
            | dict.fromkeys(("momentum", "rms", "time"), schema.BOOLEAN)
        )
    },
    {},
)
"""The check of the metadata of its file, without those of its training."""


@dataclass(frozen=True)
class Architecture:
    """The shape of the perceptron.

    Its parameters theta are one vector: the weights and the bias of each hidden unit, then those of each output.

    Attributes:
        hidden: number of ReLU units.
        momentum: whether moving averages of gradients are among the features; False is the ablation "No Mom" of
            figure 7.
        rms: whether root mean squares and their reciprocals are among them; False is "No RMS", and "Only Grads" if
            momentum is False, too.
        time: whether the time is among them; False is "No Time".
    """

    hidden: int = 32
    momentum: bool = True
    rms: bool = True
    time: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a layer without units."""
        count("hidden", self.hidden)

    @property
    def features_per_weight(self) -> int:
        """F, the number of features without those of time, which are the same for all weights."""
        return 2 + len(DECAYS) * (self.momentum + 2 * self.rms + (self.momentum and self.rms))

    @property
    def inputs(self) -> int:
        """The number of inputs of the perceptron: 31 in the paper."""
        return self.features_per_weight + len(TIMESCALES) * self.time

    @property
    def size(self) -> int:
        """D, the length of theta."""
        return self.hidden * (self.inputs + 1) + 2 * (self.hidden + 1)

    def init(self, seed: int) -> Tensor:
        """Returns an untrained theta (D,): normal weights of variance 1 / inputs, biases of 0."""
        generator = torch.Generator().manual_seed(seed)
        layers = []
        for outputs, inputs in ((self.hidden, self.inputs), (2, self.hidden)):
            weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
            layers.append(torch.cat([weight, torch.zeros(outputs, 1)], 1).flatten())
        return torch.cat(layers)

    def layers(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the hidden layer (n, hidden, inputs + 1) and the output layer (n, 2, hidden + 1) of thetas (n, D).

        Raises:
            ValueError: D is another length than this architecture's.
        """
        if theta.shape[-1] != self.size:
            raise ValueError(f"theta has {theta.shape[-1]} parameters, but {self} has {self.size}")
        first, second = theta.split([self.size - 2 * (self.hidden + 1), 2 * (self.hidden + 1)], 1)
        return first.unflatten(1, (self.hidden, -1)), second.unflatten(1, (2, -1))


class Constants(NamedTuple):
    """The constants of every step, on one device and of one dtype."""

    decays: Tensor  # (5, 1)
    timescales: Tensor  # (9,)
    theta: Tensor  # (D,)


@dataclass(frozen=True, eq=False)
class LearnedOptimizer(BaseAgent[tuple[()]]):
    """An optimizer with parameters theta, and the agent that trains with it.

    It is an `lrenv.training.optimizers.OptimizerFactory`, which a task's `optimizer` may be. Its directions are
    updates, which a rate of 1 leaves as they are; as an agent it names itself as the optimizer of its view, and keeps
    the rate at 1. Where the hyperparameters hold a `theta`, one row per trainee, that is used instead: so a population
    of perturbed optimizers is one batch, and `lrenv.training.trainee.Trainee.unroll` can be differentiated by it.

    Args:
        theta: (D,), a constant: derivatives are by a `theta` among the hyperparameters.
        architecture: of the perceptron.

    Raises:
        ValueError: theta doesn't fit the architecture.
    """

    theta: Tensor
    architecture: Architecture = Architecture()
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a theta that doesn't fit the architecture."""
        if self.theta.shape != (self.architecture.size,):
            raise ValueError(
                f"theta has shape {tuple(self.theta.shape)}, but {self.architecture} has {self.architecture.size} "
                "parameters; give theta the shape of its settings"
            )

    def __repr__(self) -> str:
        return "learned-optimizer"

    def __call__(self, sizes: Sequence[int]) -> Optimizer:
        """Returns the optimizer of networks whose tensors have that many columns."""
        shape = self.architecture
        held: dict[tuple[torch.device, torch.dtype], Constants] = {}

        def constants(like: Tensor) -> Constants:
            """Copies them to the trainees' device once: a copy in each step would wait, and fits in no CUDA graph."""
            key = (like.device, like.dtype)
            if key not in held:
                held[key] = self._constants(*key)
            return held[key]

        def init(params: Tensor) -> OptState:
            constants(params)
            averages = params.new_zeros(len(params), len(DECAYS), params.shape[1])
            return {"mean": averages, "square": averages.clone(), "step": torch.zeros_like(params[:, :1])}

        def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
            decays, timescales, own = constants(grads)
            mean, square = moving_averages(grads, state["mean"], state["square"], decays)
            hidden_layer, output_layer = shape.layers(hyper.get("theta", own).to(grads).expand(len(grads), -1))
            # The hidden layer's weights of features of time and its bias make one bias per trainee and unit.
            time = features_of_time(state["step"], timescales)[:, : len(TIMESCALES) * shape.time]
            same = torch.cat([time, torch.ones_like(state["step"])], 1).unsqueeze(2)
            bias = hidden_layer[..., shape.features_per_weight :] @ same
            weight = torch.cat([hidden_layer[..., : shape.features_per_weight], bias], 2)
            features = features_of_weights(grads, params, mean, square, shape.momentum, shape.rms)
            updates = []
            for x in features.split(list(sizes), 2):
                # W (x / rms(x)) as (W / rms(x)) x: there are fewer weights W than features of a tensor's weights.
                normalising = weight * mean_square(x).rsqrt().unsqueeze(1)
                hidden = torch.bmm(normalising, x).relu_()
                o1, o2 = torch.baddbmm(output_layer[..., -1:], output_layer[..., :-1], hidden).unbind(1)
                updates.append((LAMBDA_EXP * o1).exp() * (LAMBDA_LIN * o2))
            return torch.cat(updates, 1), {"mean": mean, "square": square, "step": state["step"] + 1}

        return Optimizer(init, direction)

    @without_gradients
    def _constants(self, device: torch.device, dtype: torch.dtype) -> Constants:
        decays, timescales = (torch.tensor(x, dtype=dtype).to(device) for x in (DECAYS, TIMESCALES))
        return Constants(decays.unsqueeze(1), timescales, self.theta.detach().to(device, dtype))

    @property
    def view(self) -> View:  # type: ignore[override]
        """It is the trainee's optimizer itself, and controls nothing that changes."""
        return View(control="set-raw", observe="clock", optimizer=self, horizon=False)

    def act(self, observation: NDArray[Any], carry: tuple[()]) -> tuple[NDArray[Any], tuple[()]]:
        """Returns a rate of 1 for each of n environments, (n, 1)."""
        return np.ones((len(observation), 1), observation.dtype), ()

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Writes the optimizer to one file, with the metadata of its training."""
        own = {"agent": "learned-optimizer", "architecture": asdict(self.architecture)}
        controller_file.write(path, {"theta": self.theta}, own | metadata)

    @classmethod
    def load(cls, path: Path) -> LearnedOptimizer:
        """Reads an optimizer.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no learned optimizer, damaged, or of another version.
        """
        with controller_file.opened_agent(path, "learned-optimizer") as file:
            METADATA("metadata", file.metadata)
            architecture = Architecture(**file.metadata["architecture"])
            tensors = file.tensors({"theta": TensorSpec((architecture.size,), ("F32", "F64"))})
        return cls(tensors["theta"], architecture)


def metz2019_cpu() -> LearnedOptimizer:
    """The optimizer that `reproductions/metz2019.py --scale cpu` trained for validation loss, on perceptrons."""
    return LearnedOptimizer.load(metz2019_cpu.file)  # type: ignore[attr-defined]


metz2019_cpu.file = Path(__file__).with_name("metz2019-cpu.safetensors")  # type: ignore[attr-defined]
