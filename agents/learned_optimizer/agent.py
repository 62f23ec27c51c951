"""A learned optimizer: a perceptron that turns what is known of a weight into its update.

Metz et al. 2019, "Learned optimizers that outperform SGD on wall-clock and test loss", section 4.1 and appendix C.1.

The perceptron runs for each of the trainee's weights by itself. It sees 31 features: at each of five decays a moving
average of gradients m, their root mean square, its reciprocal r and r m (20 features), the gradient, the weight, and
nine features of time. All but those of time are divided by their root mean square over the tensor, so an update does
not depend on the scale of gradients, nor would it on Adam's bias corrections, which are left out. Two outputs o_1 and
o_2 make the step of descent

    w <- w - exp(lambda_exp o_1) lambda_lin o_2.

What this costs is passes over the weights, and there are few: features of time are the same for all weights and act as
a bias, and the normalisation is folded into the first layer's weights instead of being applied to the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import State, View
from lrenv.controllers.controller_file import Promise
from lrenv.lookup import count
from lrenv.runtime.ambient import without_gradients
from lrenv.training.optimizers import Hyper, Optimizer, OptState

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
"""Of the moving averages."""
TIMESCALES = tuple(float(eta) for eta in np.geomspace(3, 3e5, 9))
"""eta: the features of time are tanh(t / eta - 1), t counting inner steps from 0."""
LAMBDA_EXP = LAMBDA_LIN = 1e-3
"""What the outputs are scaled by: without, the steps of a fresh optimizer are of size 1, far above any that is used."""
EPS = 1e-8
"""Added in quadrature to root mean squares of gradients. The paper has r = 1 / (rms + eps), which is the same where rms
is far from eps, but has no derivative where a gradient was always 0, as behind dead ReLUs."""
LEAST = 1e-24
"""Added to second moments over a tensor: tensors of zeros stay zeros, and its power -3/2, which derivatives hold, is
within the range of float32. Gradients of a root mean square above 1e-12 don't notice."""
METADATA = schema.record(
    {
        "architecture": schema.record(
            {"hidden": schema.integer(1, schema.LARGEST_SIZE)}
            | dict.fromkeys(("momentum", "rms", "time"), schema.BOOLEAN)
        )
    },
    {},
)
"""What the metadata of its file hold besides how it was trained."""


@dataclass(frozen=True)
class Architecture:
    """The perceptron's shape.

    Its parameters theta are one vector: the weights and the bias of each hidden unit, then those of each output.

    Attributes:
        hidden: ReLU units.
        momentum: whether it sees moving averages of gradients; False is the ablation "No Mom" of figure 7.
        rms: whether it sees root mean squares and their reciprocals; False is "No RMS", and "Only Grads" with the one
            above.
        time: whether it sees the time; False is "No Time".
    """

    hidden: int = 32
    momentum: bool = True
    rms: bool = True
    time: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a layer without units."""
        count("hidden", self.hidden)

    @property
    def features(self) -> int:
        """F, how many features each weight has of its own."""
        return 2 + len(DECAYS) * (self.momentum + 2 * self.rms + (self.momentum and self.rms))

    @property
    def inputs(self) -> int:
        """Of the perceptron: 31 in the paper."""
        return self.features + len(TIMESCALES) * self.time

    @property
    def size(self) -> int:
        """D, the length of theta."""
        return self.hidden * (self.inputs + 1) + 2 * (self.hidden + 1)

    def init(self, seed: int) -> Tensor:
        """A fresh theta (D,): normal weights of variance 1 / inputs, biases of 0."""
        generator = torch.Generator().manual_seed(seed)
        layers = []
        for outputs, inputs in ((self.hidden, self.inputs), (2, self.hidden)):
            weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
            layers.append(torch.cat([weight, torch.zeros(outputs, 1)], 1).flatten())
        return torch.cat(layers)

    def layers(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The layers (n, hidden, inputs + 1) and (n, 2, hidden + 1) of thetas (n, D).

        Raises:
            ValueError: D is another length than this architecture's.
        """
        if theta.shape[-1] != self.size:
            raise ValueError(f"theta has {theta.shape[-1]} parameters, but {self} has {self.size}")
        first, second = theta.split([self.size - 2 * (self.hidden + 1), 2 * (self.hidden + 1)], 1)
        return first.unflatten(1, (self.hidden, -1)), second.unflatten(1, (2, -1))

    def stacked(self, grads: Tensor, params: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        """The features, not normalised, and a row of ones for the bias.

        Args:
            grads: (n, P).
            params: (n, P).
            mean: (n, 5, P), moving averages of gradients.
            square: (n, 5, P), moving averages of their squares.

        Returns:
            (n, F + 1, P). The second moment of ones is 1, so normalisation leaves them as they are.
        """
        parts = [grads.unsqueeze(1), params.unsqueeze(1)]
        if self.momentum:
            parts.append(mean)
        if self.rms:
            rms = (square + EPS**2).sqrt()
            reciprocal = rms.reciprocal()
            parts += [rms, reciprocal]
            if self.momentum:
                parts.append(reciprocal * mean)
        return torch.cat([*parts, torch.ones_like(parts[0])], 1)


class Constants(NamedTuple):
    """What every step reads, on one device and of one dtype."""

    decays: Tensor  # (5, 1)
    timescales: Tensor  # (9,)
    theta: Tensor  # (D,)


@dataclass(frozen=True, eq=False)
class LearnedOptimizer:
    """An optimizer that theta defines, `opt_fn(theta)`, and the agent that stands for it.

    As an `lrenv.training.optimizers.OptimizerFactory` it is what a task's `optimizer` may be. Its directions are
    updates, which a rate of 1 leaves as they are; as an agent it asks for them in its view, and keeps the rate at 1.
    Where the hyperparameters hold a `theta`, one row a trainee, that is used instead: so a population of perturbed
    optimizers is one batch, and `lrenv.training.trainee.Trainee.unroll` can be differentiated by it.

    Args:
        theta: (D,), given: derivatives are by a `theta` among the hyperparameters.
        architecture: of the perceptron.

    Raises:
        ValueError: theta doesn't fit the architecture.
    """

    theta: Tensor
    architecture: Architecture = Architecture()

    def __post_init__(self) -> None:
        """Refuses what doesn't fit."""
        if self.theta.shape != (self.architecture.size,):
            raise ValueError(
                f"theta has shape {tuple(self.theta.shape)}, but {self.architecture} has {self.architecture.size} "
                "parameters; give theta the shape of its settings"
            )

    def __repr__(self) -> str:
        return "learned-optimizer"

    def __call__(self, sizes: Sequence[int]) -> Optimizer:
        """The optimizer for a network whose tensors have that many columns."""
        shape = self.architecture
        held: dict[tuple[torch.device, torch.dtype], Constants] = {}

        def constants(like: Tensor) -> Constants:
            """Brought to the trainees' device once: a copy in each step would wait, and fit in no CUDA graph."""
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
            latest = grads.unsqueeze(1)
            mean = torch.lerp(latest, state["mean"], decays)
            square = torch.lerp(latest.square(), state["square"], decays)
            first, second = shape.layers(hyper.get("theta", own).to(grads).expand(len(grads), -1))
            time = torch.tanh(state["step"] / timescales - 1)[:, : len(TIMESCALES) * shape.time]
            same = torch.cat([time, torch.ones_like(state["step"])], 1).unsqueeze(2)
            bias = first[..., shape.features :] @ same
            weight = torch.cat([first[..., : shape.features], bias], 2)
            updates = []
            for x in shape.stacked(grads, params, mean, square).split(list(sizes), 2):
                moment = torch.linalg.vector_norm(x, dim=2).square() / x.shape[2]
                hidden = torch.bmm(weight * (moment + LEAST).rsqrt().unsqueeze(1), x).relu_()
                out = torch.baddbmm(second[..., -1:], second[..., :-1], hidden)
                updates.append((LAMBDA_EXP * out[:, 0]).exp() * (LAMBDA_LIN * out[:, 1]))
            return torch.cat(updates, 1), {"mean": mean, "square": square, "step": state["step"] + 1}

        return Optimizer(init, direction)

    @without_gradients
    def _constants(self, device: torch.device, dtype: torch.dtype) -> Constants:
        decays, timescales = (torch.tensor(x, dtype=dtype).to(device) for x in (DECAYS, TIMESCALES))
        return Constants(decays.unsqueeze(1), timescales, self.theta.detach().to(device, dtype))

    @property
    def view(self) -> View:
        """It turns nothing that changes, and is the trainee's optimizer."""
        return View(control="set-raw", observe="clock", optimizer=self)

    def predict(
        self,
        observation: NDArray[Any],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """A rate of 1 for each of n environments."""
        return np.ones((len(observation), 1), observation.dtype), None

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Writes the optimizer to one file; `metadata` says how it was trained."""
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
            tensors = file.tensors({"theta": Promise((architecture.size,), ("F32", "F64"))})
        return cls(tensors["theta"], architecture)


def metz2019_cpu() -> LearnedOptimizer:
    """The optimizer that `reproductions/metz2019.py --scale cpu` trained for validation loss, on perceptrons."""
    return LearnedOptimizer.load(metz2019_cpu.file)  # type: ignore[attr-defined]


metz2019_cpu.file = Path(__file__).with_name("metz2019-cpu.safetensors")  # type: ignore[attr-defined]
