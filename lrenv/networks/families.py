"""Networks as values: factories that are equal where their settings are, and that know what a pass costs.

FLOPs are counted as `torch.utils.flop_counter.FlopCounterMode` counts them: two per multiplication in a matrix product,
nothing for what goes element by element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lrenv.networks.architectures import NetworkFactory, Shape, residual_mlp
from lrenv.networks.sequences import transformer

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU,
}  # fmt: skip
"""Name -> module."""


class Flops(NamedTuple):
    """Of one example."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Perceptron:
    """Linear layers, and activations between them; a linear model if there are no hidden layers.

    Attributes:
        widths: units of the hidden layers.
        activation: a name in `ACTIVATIONS`.
        layer_norm: normalise each hidden layer ahead of its activation (Ba et al. 2016).
    """

    widths: tuple[int, ...] = ()
    activation: str = "relu"
    layer_norm: bool = False

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """A freshly initialised module."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in self.widths:
            layers += [
                nn.Linear(width, units),
                *[nn.LayerNorm(units)] * self.layer_norm,
                ACTIVATIONS[self.activation](),
            ]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, outputs))

    def flops(self, shape: Shape, outputs: int) -> Flops:
        """Of one example."""
        return _of_layers(math.prod(shape), *self.widths, outputs)

    def __str__(self) -> str:
        if not self.widths:
            return "linear model"
        return f"{self.activation} perceptron {'-'.join(map(str, self.widths))}{', layer norm' * self.layer_norm}"


@dataclass(frozen=True)
class ResidualPerceptron:
    """`lrenv.networks.residual_mlp`: blocks x + W2 activation(W1 layer_norm(x)) between two linear layers."""

    width: int
    blocks: int
    activation: str = "gelu"

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """A freshly initialised module."""
        make: NetworkFactory = residual_mlp(self.width, self.blocks, ACTIVATIONS[self.activation])
        return make(shape, outputs)

    def flops(self, shape: Shape, outputs: int) -> Flops:
        """Of one example."""
        return _of_layers(math.prod(shape), *[self.width] * (2 * self.blocks + 1), outputs)

    def __str__(self) -> str:
        return f"residual {self.activation} perceptron, blocks: {self.blocks} of {self.width}"


@dataclass(frozen=True)
class Transformer:
    """`lrenv.networks.transformer`: causal, with learned positions and layer norm ahead of each part."""

    width: int
    heads: int
    layers: int

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """A freshly initialised module."""
        return transformer(self.width, self.heads, self.layers)(shape, outputs)

    def flops(self, shape: Shape, outputs: int) -> Flops:
        """Of one sequence (L,): per layer 12 w^2 multiplications per place in linear layers, 2 L w in attention."""
        (length,) = shape
        w = self.width
        forward = 2 * length * (self.layers * (12 * w**2 + 2 * length * w) + w * outputs)
        return Flops(forward, 2 * forward)  # what enters the first product has weights of its own behind it

    def __str__(self) -> str:
        return f"transformer, layers: {self.layers} of {self.width}, heads: {self.heads}"


Family = Perceptron | ResidualPerceptron | Transformer


def _of_layers(*sizes: int) -> Flops:
    """Of linear layers: the backward pass takes two such products, but nothing asks for the gradient of the inputs."""
    products = [2 * one * other for one, other in itertools.pairwise(sizes)]
    return Flops(sum(products), 2 * sum(products) - products[0])
