"""Networks as values: factories that are equal where their settings are, and that count the FLOPs of a pass.

FLOPs are counted as `torch.utils.flop_counter.FlopCounterMode` counts them: two per multiplication in a matrix product,
none for elementwise operations.
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
"""Name -> module of an activation."""


class Flops(NamedTuple):
    """The floating-point operations of one example's forward and backward pass."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Perceptron:
    """A perceptron of linear layers with activations between them; without hidden layers it is a linear model.

    Attributes:
        widths: units of the hidden layers.
        activation: a name in `ACTIVATIONS`.
        layer_norm: normalise each hidden layer ahead of its activation (Ba et al. 2016).
    """

    widths: tuple[int, ...] = ()
    activation: str = "relu"
    layer_norm: bool = False

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """Builds a freshly initialised module."""
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
        """Counts the FLOPs of one example."""
        return _of_layers(math.prod(shape), *self.widths, outputs)

    def __str__(self) -> str:
        if not self.widths:
            return "linear model"
        return f"{self.activation} perceptron {'-'.join(map(str, self.widths))}{', layer norm' * self.layer_norm}"


@dataclass(frozen=True)
class ResidualPerceptron:
    """The network `lrenv.networks.residual_mlp`: blocks x + W2 activation(W1 layer_norm(x)) between two linear layers.

    Attributes:
        width: units of each hidden layer.
        blocks: how many blocks.
        activation: a name in `ACTIVATIONS`.
    """

    width: int
    blocks: int
    activation: str = "gelu"

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """Builds a freshly initialised module."""
        make: NetworkFactory = residual_mlp(self.width, self.blocks, ACTIVATIONS[self.activation])
        return make(shape, outputs)

    def flops(self, shape: Shape, outputs: int) -> Flops:
        """Counts the FLOPs of one example."""
        return _of_layers(math.prod(shape), *[self.width] * (2 * self.blocks + 1), outputs)

    def __str__(self) -> str:
        return f"residual {self.activation} perceptron, blocks: {self.blocks} of {self.width}"


@dataclass(frozen=True)
class Transformer:
    """The network `lrenv.networks.transformer`: causal, with learned positions and pre-normalisation.

    Attributes:
        width: numbers per place.
        heads: heads of attention; they divide the width.
        layers: layers, each of attention and a perceptron.
    """

    width: int
    heads: int
    layers: int

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """Builds a freshly initialised module."""
        return transformer(self.width, self.heads, self.layers)(shape, outputs)

    def flops(self, shape: Shape, outputs: int) -> Flops:
        """Counts the FLOPs of one sequence (L,).

        Per layer and place there are 12 w^2 multiplications in linear layers and 2 L w in attention.
        """
        (length,) = shape
        w = self.width
        forward = 2 * length * (self.layers * (12 * w**2 + 2 * length * w) + w * outputs)
        return Flops(forward, 2 * forward)  # the inputs of the first product are learned embeddings

    def __str__(self) -> str:
        return f"transformer, layers: {self.layers} of {self.width}, heads: {self.heads}"


Family = Perceptron | ResidualPerceptron | Transformer


def _of_layers(*sizes: int) -> Flops:
    """Counts the FLOPs of linear layers; their backward pass takes two products, the first layer's only one."""
    products = [2 * one * other for one, other in itertools.pairwise(sizes)]
    return Flops(sum(products), 2 * sum(products) - products[0])
