"""Perceptrons with other parts than linear layers and common activations: maxout, sines, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lrenv.networks.architectures import NetworkFactory, Shape


class Maxout(nn.Module):
    """The layer that returns the largest of each `pieces` consecutive numbers (Goodfellow et al. 2013, equation 2)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maxima (..., units) of x (..., units * pieces)."""
        largest: Tensor = x.unflatten(-1, (-1, self.pieces)).amax(-1)
        return largest


def maxout(*hidden: int, pieces: int = 5, dropout: float = 0.5) -> NetworkFactory:
    """Returns a factory of perceptrons of maxout layers with dropout.

    Source: Goodfellow et al. 2013, "Maxout networks", section 5.1 (the network for permutation-invariant MNIST).

    Args:
        hidden: maxout units per layer.
        pieces: linear pieces of each unit.
        dropout: the probability that a hidden unit is dropped.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in hidden:
            layers += [nn.Linear(width, units * pieces), Maxout(pieces), nn.Dropout(dropout)]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, classes))

    return make


class Sine(nn.Module):
    """The activation sin(frequency x)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sines, elementwise."""
        return torch.sin(self.frequency * x)


def siren(*hidden: int, frequency: float = 30.0) -> NetworkFactory:
    """Returns a factory of networks of sines (Sitzmann et al. 2020, section 3.2).

    The initial weights give all layers the same distribution of activations: those of the first layer, which has d
    inputs, are uniform within 1 / d, those of later ones within sqrt(6 / d) / frequency.

    Args:
        hidden: units per layer.
        frequency: omega_0, the factor in each sine.
    """

    def make(shape: Shape, outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in hidden:
            layers += [nn.Linear(width, units), Sine(frequency)]
            width = units
        net = nn.Sequential(*layers, nn.Linear(width, outputs))
        for place, layer in enumerate(part for part in net if isinstance(part, nn.Linear)):
            d = layer.in_features
            bound = math.sqrt(6 / d) / frequency if place else 1 / d
            nn.init.uniform_(layer.weight, -bound, bound)
        return net

    return make


def dropout_mlp(*hidden: int, dropout: float = 0.2, activation: Callable[[], nn.Module] = nn.ELU) -> NetworkFactory:
    """Returns a factory of perceptrons with dropout after each activation (Srivastava et al. 2014).

    Args:
        hidden: units per layer.
        dropout: the probability that a hidden unit is dropped.
        activation: builds the module after each hidden layer.
    """

    def make(shape: Shape, outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in hidden:
            layers += [nn.Linear(width, units), activation(), nn.Dropout(dropout)]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, outputs))

    return make
