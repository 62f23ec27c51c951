"""Hypergradient descent: a gradient step on the learning rate before every step on the weights.

A rate's one-step hypergradient is h_t = -<g_t, d_(t-1)>: the gradient of the loss that the next step descends, against
the direction of the step before (Baydin et al. 2018, "Online learning rate adaptation with hypergradient descent",
equations 5 to 7, arXiv:1703.04782). Optimizers differ in d alone, so SGD-HD, Nesterov-HD and Adam-HD are one agent on
three trainees:

    >>> import numpy as np
    >>> agent = sgd_hd(initial_lr=[0.1, 0.0], beta=0.01)
    >>> agent
    sgd-hd(initial_lr=(0.1, 0.0), beta=0.01, rule='additive', granularity='')
    >>> rates, state = agent.predict({"hypergradient": np.array([[0.0], [0.0]])})
    >>> rates, state = agent.predict({"hypergradient": np.array([[-2.0], [3.0]])}, state)
    >>> rates.tolist()
    [[0.12000000000000001], [-0.03]]

The paper's rule lets rates become negative, as one does in its authors' published runs; `low` and `high` clamp them.
Over an interval of several inner steps, h is the sum.

`tests/reference/hypergradient_descent.py` has it in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lrenv.agents.hypergradient.recurrence import INITIAL_LRS, Parts, Recurrence, Values, control_of, rates_from
from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, tuned
from lrenv.agents.memory import Memory
from lrenv.controllers.agent import View
from lrenv.lookup import lookup


class Rule(NamedTuple):
    """How a hypergradient moves a rate."""

    observe: tuple[str, ...]
    update: Callable[[Parts, Memory, Values], Memory]


def additive(parts: Parts, memory: Memory, values: Values) -> Memory:
    """`rate - beta * h`: gradient descent on the rate (equation 7)."""
    return (memory[0] - values["beta"] * parts["hypergradient"],)


def multiplicative(parts: Parts, memory: Memory, values: Values) -> Memory:
    """`rate * (1 + beta * cos(g_t, d_(t-1)))`: a relative change of at most `beta`, whatever the scale of gradients."""
    norms = np.sqrt(parts["gradient_square"]) * np.sqrt(parts["direction_square"])
    cosine: Array = -np.divide(parts["hypergradient"], norms, out=np.zeros_like(norms), where=norms > 0)
    return (memory[0] * (1 + values["beta"] * cosine),)


def moved_in_turn(parts: Parts, memory: Memory, values: Values) -> Memory:
    """One additive rate for all, moved by each tensor in turn: tensor j has the sum up to its own, the last all."""
    return (memory[0][:, -1:] - values["beta"] * np.cumsum(parts["hypergradient"], axis=1),)


RULES = {
    "additive": Rule(("hypergradient",), additive),
    "multiplicative": Rule(("hypergradient", "gradient_square", "direction_square"), multiplicative),
}


@tuned(initial_lr=INITIAL_LRS, beta=(1e-2, 1e-3, 1e-4, 1e-5))
def sgd_hd(
    initial_lr: Hyperparameter = 1e-3,
    beta: Hyperparameter = 1e-3,
    rule: str = "additive",
    granularity: str = "",
    low: Hyperparameter | None = None,
    high: Hyperparameter | None = None,
) -> Recurrence:
    """SGD-HD.

    Args:
        initial_lr: the first rate; the additive rule may start at 0.
        beta: the rate of the rate. The default is that of the paper's experiments with SGD; the multiplicative rule
            takes it as the largest relative change of a step.
        rule: "additive", or "multiplicative" (the normalised rule of the paper's section 3).
        granularity: "" for one rate per trainee; "layer", "tensor" or "parameter" for a rate each, which has a
            hypergradient of its own.
        low: rates are not below; None for no bound, as in the paper.
        high: rates are not above; None for no bound.

    Raises:
        ValueError: a hyperparameter is wrong, or an unknown rule or granularity.
    """
    hyperparameters = rates_from(initial_lr, beta=beta, low=low, high=high)
    return _descent("sgd", rule, granularity, hyperparameters)


@tuned(initial_lr=INITIAL_LRS, beta=(1e-2, 1e-3, 1e-4, 1e-5))
def nesterov_hd(
    initial_lr: Hyperparameter = 1e-3,
    beta: Hyperparameter = 1e-3,
    rule: str = "additive",
    granularity: str = "",
    low: Hyperparameter | None = None,
    high: Hyperparameter | None = None,
) -> Recurrence:
    """SGDN-HD: SGD with Nesterov momentum, the task's; arguments and errors are those of `sgd_hd`."""
    hyperparameters = rates_from(initial_lr, beta=beta, low=low, high=high)
    return _descent("nesterov", rule, granularity, hyperparameters)


@tuned(initial_lr=INITIAL_LRS, beta=(1e-5, 1e-6, 1e-7, 1e-8))
def adam_hd(
    initial_lr: Hyperparameter = 1e-3,
    beta: Hyperparameter | None = None,
    rule: str = "additive",
    granularity: str = "",
    low: Hyperparameter | None = None,
    high: Hyperparameter | None = None,
    in_loop: bool = False,
) -> Recurrence:
    """Adam-HD.

    Args:
        initial_lr: as in `sgd_hd`.
        beta: as in `sgd_hd`; None is 1e-7 for the additive rule, as in the paper's experiments with Adam, and 1e-3 for
            the multiplicative one.
        rule: as in `sgd_hd`.
        granularity: as in `sgd_hd`.
        low: as in `sgd_hd`.
        high: as in `sgd_hd`.
        in_loop: do as the paper's published code does, which moves the rate inside its loop over tensors, so that each
            tensor steps with a rate of its own; to compare numbers with that code's. The paper has one rate.

    Raises:
        ValueError: as in `sgd_hd`, or `in_loop` with another rule or granularity than the default.
    """
    if in_loop and (rule != "additive" or granularity):
        raise ValueError("in_loop=True is a quirk of the additive rule with one rate: leave rule and granularity out")
    if beta is None:
        beta = 1e-7 if rule == "additive" else 1e-3
    hyperparameters = rates_from(initial_lr, beta=beta, low=low, high=high)
    if in_loop:
        return replace(
            _descent("adam", "additive", "tensor", hyperparameters), update=moved_in_turn, options=(("in_loop", True),)
        )
    return _descent("adam", rule, granularity, hyperparameters)


def _descent(optimizer: str, rule: str, granularity: str, hyperparameters: Hyperparameters) -> Recurrence:
    observe, update = lookup(RULES, rule, "rule")
    return Recurrence(
        f"{optimizer}-hd",
        update,
        hyperparameters,
        View(control_of(granularity), observe, interval=1, optimizer=optimizer),
        options=(("rule", rule), ("granularity", granularity)),
    )
