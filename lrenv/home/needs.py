"""What an agent needs of a loop: which quantities of training its observation depends on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrenv.controllers.agent import Agent, View, called, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.envs.observations import FAN_IN, Observer, quantities_of
from lrenv.envs.quantities import LAST, MOTION, PREDICTIONS, TRAINING, UNTRAINED, VALIDATION
from lrenv.lookup import count
from lrenv.training.dynamics import Dynamics, Setup

WORKS = (
    "agents that work are controller files with a rate per network or layer, schedules, plateau, hypergradient "
    "descent, and any BaseAgent like them"
)
SIZES = {"rates": 1, "parameters": 1}
"""Of the spaces of observers, which nobody looks at here."""
PIECES = ("", "layer", "tensor")
"""What can have a rate of its own in an optimizer: parameter groups are made of whole tensors."""


class Needs(NamedTuple):
    """What an agent looks at."""

    training: bool  # losses of training steps
    validation: bool  # the loss on validation data
    predictions: bool  # outputs on validation data
    motion: bool  # the first and the last layer now and at the decision before
    weights: bool  # the first or the last layer
    untrained: bool  # the weights and the gradient before the first step
    layers: bool  # which parameters are a layer
    batch_size: bool  # the number of examples per batch
    parts: tuple[str, ...]  # gradients, their products with directions, and all weights

    @property
    def measured(self) -> bool:
        """Whether it looks at losses, predictions, weights, or the first gradient."""
        return self.training or self.validation or self.weights or self.untrained

    @property
    def clock_alone(self) -> bool:
        """Whether it looks at the time alone, and at what stays the same."""
        return not (self.measured or self.parts)


def needs_of(agent: Agent, observer: Observer) -> Needs:
    """What the agent looks at, by the signals that it reads and what they depend on.

    Raises:
        ValueError: its `reads` names a signal that it doesn't observe.
    """
    given = getattr(agent, "reads", observer.names)
    if not isinstance(given, tuple | list) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"agent {called(agent)!r}: `reads` must be a tuple of names of signals, not {given!r}")
    reads, known = tuple(given), (*observer.names, *observer.white_box)
    if unknown := [name for name in reads if name not in known]:
        raise ValueError(
            f"agent {called(agent)!r}: `reads` names {', '.join(unknown)}, but it observes {', '.join(known)}"
        )
    fields = quantities_of(view_of(agent).observe, reads)
    return Needs(
        bool(fields & TRAINING),
        bool(fields & VALIDATION),
        bool(fields & PREDICTIONS),
        bool(fields & MOTION),
        bool(fields & (MOTION | LAST)),
        bool(fields & UNTRAINED),
        FAN_IN in observer.white_box or bool(fields & {"relative_gradient", "layers"}),
        "batch_size" in fields,
        tuple(part for part in observer.white_box if part != FAN_IN),
    )


def clock(step: Tensor, horizon: float, interval: int, setup: Setup | None = None) -> Dynamics:
    """What is known at steps (n,) without a look at a loop; the rest is NaN. No interval is longer than the run."""
    known = {"budget": horizon, "interval": min(interval, horizon)} | ({} if setup is None else setup._asdict())
    others = {name: torch.full_like(step, known.get(name, torch.nan)) for name in Dynamics._fields}
    return Dynamics(**others | {"inner_step": step})


def checked_view(agent: Agent) -> View:
    """The agent's view, if a loop can serve it.

    Raises:
        ValueError: it is an optimizer itself, averages weights, or sets a rate per parameter; the message says which
            agents work.
    """
    view, name = view_of(agent), called(agent)
    own = view.optimizer is not None and not isinstance(view.optimizer, str)
    if own or isinstance(agent, OptimizerAgent):
        raise ValueError(f"agent {name!r} is an optimizer itself, so it can't drive another one: {WORKS}")
    controls = (view.control,) if isinstance(view.control, str) else view.control
    if "ema" in controls:
        raise ValueError(f"agent {name!r} averages weights, which is the loop's own business: {WORKS}")
    if granularity_of(view) not in PIECES:
        raise ValueError(
            f"agent {name!r} sets a rate per {granularity_of(view)}, and an optimizer of torch takes one per group of "
            f"parameters: {WORKS}"
        )
    return view


def granularity_of(view: View) -> str:
    """What has a rate of its own, as the view's control says; "" for the whole network."""
    controls = (view.control,) if isinstance(view.control, str) else view.control
    return next((each.partition("/")[2] for each in controls if "/" in each), "")


def check_horizon(agent: Agent, view: View, horizon: int | None) -> None:
    """Refuses an endless run for an agent that looks at its end.

    Raises:
        ValueError: it does, and there is none.
    """
    if view.horizon and horizon is None:
        raise ValueError(
            f"agent {called(agent)!r} observes progress, so it must know how long training takes: pass horizon=, the "
            "number of optimizer steps, or take an agent that doesn't, such as plateau or constant"
        )


def check_batch_size(agent: Agent, needs: Needs, batch_size: int | None) -> None:
    """Refuses a run without a batch size for an agent that looks at it.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 1, or the agent needs it.
    """
    if batch_size is not None:
        count("batch_size", batch_size)
    if needs.batch_size and batch_size is None:
        raise ValueError(
            f"agent {called(agent)!r} observes the batch size: pass batch_size=, the number of examples that a step of "
            "the optimizer sees, on all processes and in all accumulated batches"
        )


def check_evaluate(agent: Agent, needs: Needs, evaluate: Any) -> None:
    """Refuses a run without validation for an agent that looks at it.

    Raises:
        TypeError: `evaluate` is no function.
        ValueError: the agent needs one.
    """
    if evaluate is not None and not callable(evaluate):
        raise TypeError("evaluate must be a function without arguments that gives a loss, or (logits, targets)")
    if needs.validation and evaluate is None:
        what = "predictions on validation data" if needs.predictions else "the validation loss"
        gives = "(logits, targets)" if needs.predictions else "that loss, or (logits, targets)"
        raise ValueError(
            f"agent {called(agent)!r} observes {what}: pass evaluate=, a function without arguments that gives {gives}"
        )
