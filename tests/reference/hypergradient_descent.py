"""Hypergradient descent (Baydin et al. 2018, arXiv:1703.04782). The module is `agents/hypergradient/descent.py`.

SGD-HD, algorithm 4:     h_t = -<g_t, d_(t-1)>,   alpha_t = alpha_(t-1) - beta h_t,   w_t = w_(t-1) - alpha_t d_t

Nesterov-HD and Adam-HD have another direction d (`reference/optimizers.py`). Where pieces of the weights have rates of
their own, the inner products run over each piece. A rule is called with the rates, g_t, the gradient g'_t at w_(t-1) on
the same batch, d_(t-1) and the pieces, and gives the next rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rule = Callable[[Array, Array, Array, Array, list[slice]], Array]


class Run(NamedTuple):
    """What one trainee did."""

    rates: Array  # (T, K)
    losses: Array  # (T,), each before its step


def train(
    loss_and_gradient: Callable[[Array, int], tuple[float, Array]],
    w: Array,
    direct: Callable[[Array, Array], Array],
    rule: Rule,
    initial_lr: float,
    steps: int,
    pieces: list[slice],
) -> Run:
    """In every step: the gradient, then the rate, then the weights. `loss_and_gradient(w, t)` is on batch t."""
    rates, w = np.full(len(pieces), initial_lr), w.copy()
    before, d, history, losses = w, np.zeros_like(w), [], []
    for t in range(steps):
        loss, g = loss_and_gradient(w, t)
        if t:
            rates = rule(rates, g, loss_and_gradient(before, t)[1], d, pieces)
        d, before, w = direct(g, w), w, w.copy()
        for piece, rate in zip(pieces, rates, strict=True):
            w[piece] -= rate * d[piece]
        history.append(rates)
        losses.append(loss)
    return Run(np.stack(history), np.array(losses))


def hypergradients(g: Array, d: Array, pieces: list[slice]) -> Array:
    """h = -<g_t, d_(t-1)> over each piece (equation 5)."""
    return -np.array([g[piece] @ d[piece] for piece in pieces])


def additive(beta: float) -> Rule:
    """alpha <- alpha - beta h (equation 7)."""
    return lambda rates, g, _, d, pieces: rates - beta * hypergradients(g, d, pieces)


def multiplicative(beta: float) -> Rule:
    """alpha <- alpha (1 - beta h / (|g_t| |d_(t-1)|)) (equation 8, section 3)."""

    def rule(rates: Array, g: Array, _: Array, d: Array, pieces: list[slice]) -> Array:
        lengths = np.array([np.linalg.norm(g[piece]) * np.linalg.norm(d[piece]) for piece in pieces])
        return rates * (1 - beta * hypergradients(g, d, pieces) / lengths)

    return rule


def in_loop(beta: float) -> Rule:
    """As the authors' code has it: one rate, moved by each tensor in turn, and each tensor steps with what it left."""

    def rule(rates: Array, g: Array, _: Array, d: Array, pieces: list[slice]) -> Array:
        alpha, moved = rates[-1], []
        for h in hypergradients(g, d, pieces):
            alpha = alpha - beta * h
            moved.append(alpha)
        return np.array(moved)

    return rule
