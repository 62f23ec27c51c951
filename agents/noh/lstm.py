"""An LSTM that runs on every parameter of a network by itself, with the same weights and a memory for each.

Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", section 2.1 and appendix A
(arXiv:1606.04474). A trainee of any size is a batch of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrenv.controllers import schema
from lrenv.controllers.controller_file import Promise


@dataclass(frozen=True)
class Architecture:
    """What a coordinatewise LSTM is rebuilt from.

    Attributes:
        layers: of the LSTM.
        hidden: units of a layer.
        cut: c, gradients below e^-c are told apart linearly and those above logarithmically.
        scale: of the output.
    """

    layers: int = 3
    hidden: int = 20
    cut: float = 10.0
    scale: float = 1e-2

    def promised(self) -> dict[str, Promise]:
        """The parameters of a `CoordinateLSTM`."""
        hidden = self.hidden
        promises = {"output": Promise((1, hidden)), "offset": Promise((1, 1))}
        for i in range(self.layers):
            promises[f"weights.{i}"] = Promise((4 * hidden, (hidden if i else 2) + hidden))
            promises[f"biases.{i}"] = Promise((4 * hidden, 1))
        return promises


ARCHITECTURE = schema.record(
    {
        "layers": schema.integer(1, 100),
        "hidden": schema.integer(1, schema.LARGEST_SIZE),
        "cut": schema.number(1e-3, 80),
        "scale": schema.number(0, 1e6),
    }
)
"""What `Architecture` is in a file; float32 holds e^80, by which small gradients are multiplied."""


def preprocessed(gradient: Tensor, cut: float) -> Tensor:
    """Gradients (n, P) of any magnitude as two numbers of magnitude 1 each, (n, 2, P).

    (log|g| / c, sgn g) where |g| >= e^-c, else (-1, e^c g): Fu et al. 2017, section 2.2, after Andrychowicz et al.
    2016, appendix A.
    """
    size = gradient.abs().clamp(min=math.exp(-cut)).log() / cut
    sign = (math.exp(cut) * gradient).clamp(-1, 1)
    return torch.stack((size, sign), 1)


class CoordinateLSTM(nn.Module):
    """`torch.nn.LSTM` and a linear output, on features that lie ahead of the coordinates.

    Products with few features and many coordinates then run along memory, which takes half the time of `nn.LSTM`, and
    the env axis stays in front, as agents' memories have it. The output layer starts at zero: what is untrained puts
    out 0.

    Args:
        architecture: of the network.
        gain: multiplies the initial weights of `nn.LSTM`.
        memory: steps, at least 2, that units remember at most before any training; as `nn.LSTM` by default, whose
            units forget within a few.
    """

    def __init__(self, architecture: Architecture, gain: float = 1.0, memory: float | None = None) -> None:
        super().__init__()
        self.cut, self.hidden = architecture.cut, architecture.hidden
        like = nn.LSTM(2, architecture.hidden, architecture.layers)
        layers = range(architecture.layers)
        self.weights = nn.ParameterList(
            gain * torch.cat([getattr(like, f"weight_{part}_l{i}") for part in ("ih", "hh")], 1) for i in layers
        )
        self.biases = nn.ParameterList(
            (getattr(like, f"bias_ih_l{i}") + getattr(like, f"bias_hh_l{i}"))[:, None] for i in layers
        )
        if memory is not None:
            self._remember(memory)
        self.output = nn.Parameter(torch.zeros(1, architecture.hidden))
        self.offset = nn.Parameter(torch.zeros(1, 1))

    @torch.no_grad()
    def _remember(self, longest: float) -> None:
        """Gates that keep what units hold for 2 to `longest` steps, drawn at random.

        The chrono initialisation of Tallec and Ollivier 2018 (arXiv:1804.11188, section 2): a forget gate of 1 - 1/T,
        the sigmoid of log(T - 1), makes a unit forget in T steps, and the input gate 1/T lets in as little.
        """
        for bias in self.biases:
            entry, forget, *_ = bias.chunk(4)
            forget.copy_((1 + (longest - 2) * torch.rand_like(forget)).log())
            entry.copy_(-forget)

    def fresh(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The memory before the first of the gradients (n, P): output and cell of each layer, (n, hidden, P)."""
        nothing = gradient.new_zeros(len(gradient), self.hidden, gradient.shape[1])
        return (nothing,) * (2 * len(self.weights))

    def forward(self, gradient: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (n, P) for gradients (n, P), and the memory after them."""
        x, after = preprocessed(gradient, self.cut), []
        for weight, bias, h, c in zip(self.weights, self.biases, memory[::2], memory[1::2], strict=True):
            each = (len(gradient), -1, -1)
            gates = torch.baddbmm(bias.expand(each), weight.expand(each), torch.cat((x, h), 1))
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            after += [x, c]
        return (self.output @ x + self.offset)[:, 0], tuple(after)
