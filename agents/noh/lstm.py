"""A coordinatewise LSTM: each parameter of a network has an LSTM of its own, and all of them share their weights.

Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", section 2.1 and appendix A
(arXiv:1606.04474), as Fu et al. 2017 use it (section 2.2). A trainee of any size is a batch of coordinates.
`tests/reference/noh.py` has it in NumPy, one parameter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrenv.controllers import schema
from lrenv.controllers.controller_file import TensorSpec


@dataclass(frozen=True)
class Architecture:
    """The shape of a coordinatewise LSTM, and the constants of its input and output.

    Attributes:
        layers: number of layers of the LSTM.
        hidden: number of units of each layer.
        cut: c of the preprocessing: gradients above e^-c enter by their logarithm, those below as they are.
        scale: multiplies the output.
    """

    layers: int = 3
    hidden: int = 20
    cut: float = 10.0
    scale: float = 1e-2

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Returns the tensors that the file of a `CoordinateLSTM` must hold, by name."""
        hidden = self.hidden
        specs = {"output": TensorSpec((1, hidden)), "offset": TensorSpec((1, 1))}
        for i in range(self.layers):
            specs[f"weights.{i}"] = TensorSpec((4 * hidden, (hidden if i else 2) + hidden))
            specs[f"biases.{i}"] = TensorSpec((4 * hidden, 1))
        return specs


ARCHITECTURE = schema.record(
    {
        "layers": schema.integer(1, 100),
        "hidden": schema.integer(1, schema.LARGEST_SIZE),
        "cut": schema.number(1e-3, 80),
        "scale": schema.number(0, 1e6),
    }
)
"""The check of an `Architecture` in a file; float32 holds e^80, by which small gradients are multiplied."""


def preprocessed(gradient: Tensor, cut: float) -> Tensor:
    """Returns the LSTM's two inputs (n, 2, P) for gradients (n, P), of magnitude 1 whatever theirs is.

    h = (log|g| / c, sgn g) where |g| >= e^-c, else (-1, e^c g): Fu et al. 2017, section 2.2, after Andrychowicz et al.
    2016, appendix A.
    """
    magnitude = gradient.abs().clamp(min=math.exp(-cut)).log() / cut  # -1 where |g| <= e^-c
    sign = (math.exp(cut) * gradient).clamp(-1, 1)  # sgn g where |g| >= e^-c
    return torch.stack((magnitude, sign), 1)


def preprocessed_pieces(
    gradient_square: Tensor, direction_square: Tensor, hypergradient: Tensor, interval: int, cut: float
) -> Tensor:
    """Returns the LSTM's two inputs (n, 2, K) for K pieces of a network, such as its layers, instead of its parameters.

    A piece has a magnitude of its gradient as a parameter has, its norm G, the root of the mean square over the
    interval. The mean of its parameters' signs is about 0 whatever happens. What a sign tells a parameter's LSTM is
    whether the gradient still points to where it pointed before, and for a piece that is the cosine of the gradients
    and the directions of the steps before them: h = (log max(G, e^-c) / c, cosine).

    Args:
        gradient_square: (n, K), sums over the interval's steps of norm(g_(t+1))^2; before any step that of g_1.
        direction_square: (n, K), of norm(d_t)^2; before any step 0.
        hypergradient: (n, K), of -<g_(t+1), d_t>.
        interval: the number of steps.
        cut: c.
    """
    steps = torch.where(direction_square > 0, float(interval), 1.0)
    norm = (gradient_square / steps).clamp(min=1e-30).sqrt()  # whose root has a derivative
    magnitude = norm.clamp(min=math.exp(-cut)).log() / cut
    norms = gradient_square.clamp(min=1e-30).sqrt() * direction_square.clamp(min=1e-30).sqrt()
    return torch.stack((magnitude, (-hypergradient / norms).clamp(-1, 1)), 1)


class CoordinateLSTM(nn.Module):
    """`torch.nn.LSTM` and a linear output, for tensors whose coordinates are the last axis.

    Products with few features and many coordinates then run along contiguous memory, which takes half the time of
    `nn.LSTM`, and the env axis stays in front, as agents' carries have it. The output layer starts at zero, so that an
    untrained network gives 0.

    Args:
        architecture: of the network.
        gain: multiplies the initial weights of `nn.LSTM`.
        memory: number of steps, at least 2, over which units keep their cells before any training; None for the
            initial biases of `nn.LSTM`, whose units forget within a few steps.
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
            self._initialise_chrono(memory)
        self.output = nn.Parameter(torch.zeros(1, architecture.hidden))
        self.offset = nn.Parameter(torch.zeros(1, 1))

    @torch.no_grad()
    def _initialise_chrono(self, longest: float) -> None:
        """Draws biases with which units keep their cells for 2 to `longest` steps.

        The chrono initialisation of Tallec and Ollivier 2018 (arXiv:1804.11188, section 2): a forget gate of 1 - 1/T,
        the sigmoid of log(T - 1), makes a unit forget within T steps, and the input gate is 1/T.
        """
        for bias in self.biases:
            input_gate, forget_gate, *_ = bias.chunk(4)
            forget_gate.copy_((1 + (longest - 2) * torch.rand_like(forget_gate)).log())
            input_gate.copy_(-forget_gate)

    def start(self, trainees: int, coordinates: int) -> tuple[Tensor, ...]:
        """Returns the carry before the first gradient: hidden state h and cell c of each layer, (n, hidden, P), all 0.

        Args:
            trainees: n.
            coordinates: P, the parameters of each trainee, or the pieces that it is taken in.
        """
        zeros = self.offset.new_zeros(trainees, self.hidden, coordinates)
        return (zeros,) * (2 * len(self.weights))

    def forward(self, inputs: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the outputs (n, P) for preprocessed gradients (n, 2, P), and the next carry."""
        x, after = inputs, []
        for weight, bias, h, c in zip(self.weights, self.biases, carry[::2], carry[1::2], strict=True):
            each = (len(inputs), -1, -1)
            gates = torch.baddbmm(bias.expand(each), weight.expand(each), torch.cat((x, h), 1))
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = h = o.sigmoid() * c.tanh()
            after += [h, c]
        return (self.output @ x + self.offset)[:, 0], tuple(after)

    def perturbed(self, theta: Tensor, inputs: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Does what `forward` does where each trainee has weights of its own.

        Args:
            theta: (n, D), all weights of each, in the order of `parameters()`.
            inputs: (n, 2, P).
            carry: of n trainees.
        """
        named = dict(self.named_parameters())
        pieces = theta.split([x.numel() for x in named.values()], 1)
        own = {name: piece.unflatten(1, x.shape) for (name, x), piece in zip(named.items(), pieces, strict=True)}
        output: tuple[Tensor, tuple[Tensor, ...]] = functional_call(self, own, (inputs, carry))
        return output
