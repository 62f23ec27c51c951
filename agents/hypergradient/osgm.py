"""OSGM: gradient descent whose step sizes are learned online from normalised hypergradients.

Gao, Chu, Ye and Udell 2024, "Gradient methods with online scaling" (arXiv:2411.01803), and Chu, Gao, Ye and Udell 2025,
"Provable and practical online learning rate adaptation with hypergradient descent" (arXiv:2502.11229), scale the
gradient by step sizes p, w_(t+1) = w_t - p_t g_t, and give an online learner the gradient of the decrease
(f(w_(t+1)) - f(w_t)) / |g_t|^2 with respect to p,

    u_t = -<g_(t+1), g_t> / |g_t|^2   (one p), or   u_t = -g_(t+1) * g_t / |g_t|^2   (one p per parameter).

The learner here is AdaGrad, p = p - eta * u / sqrt(sum of u^2), as in their code.

Left out are null steps: their algorithm tries a step, learns from it, and stays where it was if the loss rose. An
action can't take a step back, so every step is made here, and a step that is too long costs what it costs. Their
momentum is left out, too.

The feedback is that of one function: give the task a batch of the whole training split (`batch_size`). Between
different batches u_t also measures how far they differ.

`tests/reference/osgm.py` has it in NumPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lrenv.agents.hypergradient.recurrence import Parts, Recurrence, Values, control_of, rates_from
from lrenv.agents.hyperparameters import Array, Hyperparameter, tuned
from lrenv.controllers.agent import View

TINY = 1e-20
"""Under AdaGrad's root; as in the authors' code."""


class StepSizes(NamedTuple):
    """What OSGM carries: the step sizes, and AdaGrad's sums of squares of their feedback."""

    rate: Array  # (n, K), p
    squares: Array  # (n, K)


class OSGM(Recurrence[StepSizes]):
    """AdaGrad on the feedback u: p = p - eta u / sqrt(sum of u^2)."""

    def initial(self, rate: Array) -> StepSizes:
        """Returns the carry at the first step sizes, with an empty sum."""
        return StepSizes(rate, np.zeros(rate.shape))

    def update(self, carry: StepSizes, seen: Parts, values: Values) -> StepSizes:
        """Takes AdaGrad's step on the step sizes."""
        norm = seen["direction_square"].sum(1, keepdims=True)
        feedback = np.divide(seen["hypergradient"], norm, out=np.zeros_like(carry.rate), where=norm > 0)
        squares = carry.squares + feedback**2
        return StepSizes(carry.rate - values["adagrad_lr"] * feedback / np.sqrt(squares + TINY), squares)


@tuned(adagrad_lr=(1.0, 0.3, 0.1, 0.03, 0.01))
def osgm(
    initial_lr: Hyperparameter = 0.0,
    adagrad_lr: Hyperparameter = 0.1,
    granularity: str = "",
    low: Hyperparameter | None = 0.0,
    high: Hyperparameter | None = None,
) -> OSGM:
    """OSGM with hypergradient feedback, on SGD.

    Args:
        initial_lr: the first step size; from 0 the first update goes to `adagrad_lr`.
        adagrad_lr: eta, how far a step size moves at once; about the inverse of the largest curvature.
        granularity: "" for one step size; "layer", "tensor" or "parameter" for a diagonal preconditioner that is
            constant on each of these.
        low: step sizes are not below; None for no bound.
        high: step sizes are not above; None for no bound.

    Raises:
        ValueError: a hyperparameter is wrong, or an unknown granularity.
    """
    return OSGM(
        "osgm",
        rates_from(initial_lr, adagrad_lr=adagrad_lr, low=low, high=high),
        View(control_of(granularity), ("hypergradient", "direction_square"), interval=1, optimizer="sgd"),
        options=(("granularity", granularity),),
    )
