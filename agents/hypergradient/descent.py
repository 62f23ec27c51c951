"""Hypergradient descent: a gradient step on the learning rate before every step on the weights.

Baydin, Cornish, Martinez Rubio, Schmidt and Wood 2018, "Online learning rate adaptation with hypergradient descent"
(arXiv:1703.04782). SGD-HD is

    alpha_t = alpha_(t-1) + beta <g_t, g_(t-1)>,    w_(t+1) = w_t - alpha_t g_t,

for -<g_t, g_(t-1)> is the derivative of the loss at w_t by alpha_(t-1). With the direction d of another optimizer the
derivative is h_t = -<g_t, d_(t-1)> (equations 5 to 7). Optimizers differ in d alone, so SGD-HD, Nesterov-HD and Adam-HD
are one agent, `HypergradientDescent`, on three kinds of trainees:

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

from typing import NamedTuple

import numpy as np

from lrenv.agents.hypergradient.recurrence import INITIAL_LRS, Parts, Recurrence, Values, control_of, rates_from
from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, tuned
from lrenv.controllers.agent import View
from lrenv.lookup import lookup


class Rate(NamedTuple):
    """What hypergradient descent carries from decision to decision."""

    rate: Array  # (n, K), alpha of each of K pieces of n trainees


class HypergradientDescent(Recurrence[Rate]):
    """SGD-HD, Nesterov-HD and Adam-HD: alpha_t = alpha_(t-1) - beta h_t, gradient descent on the rate (equation 7)."""

    def initial(self, rate: Array) -> Rate:
        """Returns the carry at the first rates."""
        return Rate(rate)

    def update(self, carry: Rate, seen: Parts, values: Values) -> Rate:
        """Returns alpha_t = alpha_(t-1) - beta h_t."""
        alpha, h = carry.rate, seen["hypergradient"]  # h_t = -<g_t, d_(t-1)>
        return Rate(alpha - values["beta"] * h)


class MultiplicativeDescent(HypergradientDescent):
    """The normalised rule of section 3: relative changes of at most beta, whatever the scale of gradients."""

    def update(self, carry: Rate, seen: Parts, values: Values) -> Rate:
        """Returns alpha_t = alpha_(t-1) (1 + beta cos(g_t, d_(t-1)))."""
        norms = np.sqrt(seen["gradient_square"]) * np.sqrt(seen["direction_square"])
        cosine: Array = -np.divide(seen["hypergradient"], norms, out=np.zeros_like(norms), where=norms > 0)
        return Rate(carry.rate * (1 + values["beta"] * cosine))


class InLoopDescent(HypergradientDescent):
    """The paper's published code for Adam-HD: one rate, which is moved within the loop over the trainee's tensors."""

    def update(self, carry: Rate, seen: Parts, values: Values) -> Rate:
        """Gives each tensor the last tensor's alpha less beta times the sum of h up to its own."""
        return Rate(carry.rate[:, -1:] - values["beta"] * np.cumsum(seen["hypergradient"], axis=1))


class Rule(NamedTuple):
    """How a hypergradient moves a rate, and what that is computed from."""

    kind: type[HypergradientDescent]
    observe: tuple[str, ...]


RULES = {
    "additive": Rule(HypergradientDescent, ("hypergradient",)),
    "multiplicative": Rule(MultiplicativeDescent, ("hypergradient", "gradient_square", "direction_square")),
}


@tuned(initial_lr=INITIAL_LRS, beta=(1e-2, 1e-3, 1e-4, 1e-5))
def sgd_hd(
    initial_lr: Hyperparameter = 1e-3,
    beta: Hyperparameter = 1e-3,
    rule: str = "additive",
    granularity: str = "",
    low: Hyperparameter | None = None,
    high: Hyperparameter | None = None,
) -> HypergradientDescent:
    """SGD-HD, alpha_t = alpha_(t-1) + beta <g_t, g_(t-1)>: `HypergradientDescent` of trainees that descend by SGD.

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
) -> HypergradientDescent:
    """SGDN-HD, with the direction of SGD with the task's Nesterov momentum; arguments and errors as in `sgd_hd`."""
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
) -> HypergradientDescent:
    """Adam-HD, alpha_t = alpha_(t-1) + beta <g_t, d_(t-1)> with Adam's direction d.

    Args:
        initial_lr: as in `sgd_hd`.
        beta: as in `sgd_hd`; None is 1e-7 for the additive rule, as in the paper's experiments with Adam, and 1e-3 for
            the multiplicative one.
        rule: as in `sgd_hd`.
        granularity: as in `sgd_hd`.
        low: as in `sgd_hd`.
        high: as in `sgd_hd`.
        in_loop: whether to do as the paper's published code does, which moves the rate inside its loop over tensors, so
            that each tensor steps with a rate of its own; to compare numbers with that code's. The paper has one rate.

    Raises:
        ValueError: as in `sgd_hd`, or `in_loop` with another rule or granularity than the default.
    """
    if in_loop and (rule != "additive" or granularity):
        raise ValueError("in_loop=True is a quirk of the additive rule with one rate: leave rule and granularity out")
    if beta is None:
        beta = 1e-7 if rule == "additive" else 1e-3
    hyperparameters = rates_from(initial_lr, beta=beta, low=low, high=high)
    if in_loop:
        view = View(control_of("tensor"), RULES[rule].observe, interval=1, optimizer="adam")
        return InLoopDescent("adam-hd", hyperparameters, view, (("in_loop", True),))
    return _descent("adam", rule, granularity, hyperparameters)


def _descent(optimizer: str, rule: str, granularity: str, hyperparameters: Hyperparameters) -> HypergradientDescent:
    kind, observe = lookup(RULES, rule, "rule")
    view = View(control_of(granularity), observe, interval=1, optimizer=optimizer)
    return kind(f"{optimizer}-hd", hyperparameters, view, (("rule", rule), ("granularity", granularity)))
