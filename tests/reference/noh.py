"""NOH's policy (Fu et al. 2017, sections 2.2 and 2.3), one parameter at a time.

The modules are `agents/noh/lstm.py` and `agents/noh/agent.py`. Each parameter k of the trainee has an LSTM of its own:
all share their weights, and each has its own hidden state. Every S inner steps it sees the mean gradient of these steps
and gives the rate of the next S. The exponential, which keeps rates positive, and the scale are lrenv's; the paper
doesn't say how an output becomes a rate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Carry = list[tuple[Array, Array]]
"""(h, c) of each layer, (hidden,) each."""


class Policy(NamedTuple):
    """Weights of the LSTM's layers, (4 hidden, inputs + hidden) with gates i, f, g, o, and of its output."""

    weights: list[Array]
    biases: list[Array]  # (4 hidden,)
    output: Array  # (hidden,)
    offset: float
    scale: float
    cut: float  # c of the preprocessing


def preprocessed(gradient: float, c: float) -> Array:
    """h(g) = (log|g| / c, sgn g) if |g| >= e^-c, else (-1, e^c g)."""
    if abs(gradient) >= math.exp(-c):
        return np.array([math.log(abs(gradient)) / c, math.copysign(1, gradient)])
    return np.array([-1.0, math.exp(c) * gradient])


def preprocessed_piece(gradients: list[Array], directions: list[Array], c: float) -> Array:
    """(log max(G, e^-c) / c, cosine) of a piece: G^2 the mean of norm(g)^2, and the cosine of all g and all d.

    Args:
        gradients: (size,) of each step of an interval, the one that follows it; before any step g_1 alone.
        directions: (size,) of each step.
        c: of the preprocessing.
    """
    norm = np.sqrt(np.mean([g @ g for g in gradients]))
    g, d = np.concatenate(gradients), np.concatenate(directions)
    cosine = g @ d / (np.linalg.norm(g) * np.linalg.norm(d)) if d.any() else 0.0
    return np.array([math.log(max(norm, math.exp(-c))) / c, cosine])


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm_cell(x: Array, h: Array, c: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Hochreiter and Schmidhuber 1997, with forget gates."""
    i, f, g, o = np.split(weight @ np.concatenate([x, h]) + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def output(policy: Policy, gradient: float, carry: Carry) -> tuple[float, Carry]:
    """What one parameter's LSTM gives, and its state afterwards."""
    x, after = preprocessed(gradient, policy.cut), []
    for weight, bias, (h, c) in zip(policy.weights, policy.biases, carry, strict=True):
        h, c = lstm_cell(x, h, c, weight, bias)
        after.append((h, c))
        x = h
    return float(policy.output @ x + policy.offset), after


def rates(policy: Policy, gradients: Array, carries: list[Carry]) -> tuple[Array, list[Carry]]:
    """alpha^k = scale * exp(output^k) of each parameter k, for the mean gradients (P,)."""
    each = [output(policy, g, carry) for g, carry in zip(gradients, carries, strict=True)]
    return policy.scale * np.exp([out for out, _ in each]), [carry for _, carry in each]


def updates(policy: Policy, gradients: Array, carries: list[Carry]) -> tuple[Array, list[Carry]]:
    """DMopt (Andrychowicz et al. 2016): the output, scaled, is the update itself, w <- w - scale * output."""
    each = [output(policy, g, carry) for g, carry in zip(gradients, carries, strict=True)]
    return policy.scale * np.array([out for out, _ in each]), [carry for _, carry in each]
