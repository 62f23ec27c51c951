"""What a controller is made of, from what its user gives: everything is checked before anything is changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrenv.controllers.agent import Agent
from lrenv.home.deciding import Decider
from lrenv.home.driver import Driver
from lrenv.home.fallback import Fallback
from lrenv.home.gradients import FirstGradient, Gradients, check_gradients
from lrenv.home.groups import Groups
from lrenv.home.layers import Layer, Layers, watched_weights
from lrenv.home.needs import check_batch_size, check_evaluate, check_horizon
from lrenv.home.observing import Observing
from lrenv.home.rates import Rates, checked_bounds
from lrenv.home.sharding import check_split, check_steps
from lrenv.home.validation import Evaluate, Validation
from lrenv.lookup import count, lookup, what_is
from lrenv.training.dynamics import Setup
from lrenv.training.losses import LOSSES

DECISIONS = 100
"""Per run, of agents without an interval of their own: as many as in the episodes that controllers are trained on."""


class Settings(NamedTuple):
    """The arguments of `LRController` after the optimizer and the agent."""

    horizon: int | None
    every: int | None
    evaluate: Evaluate | None
    bounds: tuple[float, float] | None
    shadow: bool
    module: nn.Module | None
    first: Layer
    last: Layer
    layers: str
    loss: str
    batch_size: int | None
    target_std: float | Tensor | None
    fallback: str | None
    patience: int


class Assembled(NamedTuple):
    """The parts of a controller."""

    decider: Decider
    gradients: Gradients | None  # None for agents that observe none
    untrained: FirstGradient | None  # None for agents that don't look at it
    every: int
    can_begin: bool  # whether the agent can decide before there is a training loss


def assemble(optimizer: Any, agent: str | Path | Agent, settings: Settings) -> Assembled:
    """Makes the parts of a controller; arguments and errors are those of `lrenv.home.controller.LRController`."""
    _check_kinds(settings)
    driver = Driver(agent)
    needs = driver.needs
    check_horizon(driver.agent, driver.view, settings.horizon)
    check_evaluate(driver.agent, needs, settings.evaluate)
    check_batch_size(driver.agent, needs, settings.batch_size)
    every = _interval(driver, settings.every, settings.horizon)
    bounds = checked_bounds(settings.bounds)
    fall = Fallback(settings.fallback, settings.patience)
    check_steps(optimizer)
    groups = Groups(optimizer)
    number = len(groups.all)
    driver.check_whole(groups.parameters())
    first, last = watched_weights(groups.all, settings.module, settings.first, settings.last)
    layers = Layers(groups.all, settings.module, driver.granularity, needs.layers, settings.layers)
    if (needs.parts or needs.weights or needs.untrained) and any(
        p.is_complex() for p in (first, last, *layers.parameters)
    ):
        raise ValueError(
            f"agent {driver.name!r} observes weights or gradients, whose sums and products are those of real numbers, "
            "and the optimizer trains complex ones: take an agent that observes losses alone"
        )
    like = torch.zeros((), dtype=torch.float64, device="cpu")  # clocks need no more
    if not needs.clock_alone:
        dtype = torch.float64 if last.dtype == torch.float64 else torch.float32
        like = torch.zeros((), dtype=dtype, device=last.device)
    if not settings.shadow and layers.splits(groups.all):
        check_split(driver.name, driver.granularity, optimizer)
    number_of_layers = len(layers.pieces.sizes["layer"])
    setup = Setup(groups.adaptive(), groups.momentum(), settings.batch_size or math.nan, number_of_layers)
    driver.attach(groups.names(), like.dtype, layers, setup)
    if needs.parts:
        check_gradients(optimizer, groups, driver.name, needs.parts, driver.control.hyperparameters)
    validation = None
    if settings.evaluate is not None and needs.measured:
        held = settings.evaluate, settings.loss, settings.module, settings.target_std
        validation = Validation(*held, predictions=needs.predictions)

    split = groups.use(layers if driver.granularity != "trainee" else None, write=not settings.shadow)
    rates = Rates(groups, driver.control.hyperparameters, bounds, settings.shadow, like.dtype)
    gradients = Gradients(optimizer, groups, layers, needs.parts, like) if needs.parts else None
    watched = (first, last) if needs.weights else None
    untrained = FirstGradient(optimizer, layers, like) if needs.untrained else None
    observing = Observing(
        driver.observer(like.dtype), needs, validation, watched, untrained, gradients, layers.constant(like), like,
        every, setup,
    )  # fmt: skip
    if needs.clock_alone:
        fall = Fallback(None, 0)
    decider = Decider(driver, observing, fall, rates, every, last.device)
    if unlike := groups.unlike(driver.view.optimizer, getattr(driver.agent, "fitted_to", ())):
        decider.tell("family", f"agent {driver.name!r} {unlike}")
    if split:
        decider.tell(
            "split",
            f"the optimizer's {number} parameter groups were split into {len(groups.all)}, for agent {driver.name!r} "
            f"sets a rate per {driver.granularity}: options and state are as they were, and a checkpoint of the "
            "optimizer loads after a controller is made for it",
        )
    return Assembled(decider, gradients, untrained, every, validation is not None or not needs.training)


def _interval(driver: Driver, every: int | None, horizon: int | None) -> int:
    """N, steps between two decisions."""
    own = driver.view.interval or (1 if driver.needs.clock_alone else None)
    given = own if every is None else every
    if given is None and horizon is None:
        raise ValueError(
            f"agent {driver.name!r} has no interval of its own, and there is no horizon to divide: pass every=, the "
            "steps between two decisions"
        )
    return max(1, (horizon or 0) // DECISIONS) if given is None else count("every", given)


def _check_kinds(settings: Settings) -> None:
    """Checks those arguments that nothing else would look at.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a loss of no such name, or deviations that aren't above 0.
    """
    if not isinstance(settings.shadow, bool):
        raise TypeError(f"shadow must be True or False, not {what_is(settings.shadow)}")
    if settings.module is not None and not isinstance(settings.module, nn.Module):
        raise TypeError(
            f"module must be the network that is trained, a torch.nn.Module, not {what_is(settings.module)}"
        )
    for name, layer in (("first", settings.first), ("last", settings.last)):
        if layer is not None and not isinstance(layer, str | Tensor):
            raise TypeError(f"{name} must be a weight of module, or its name there, not {what_is(layer)}")
    if settings.fallback is not None and not isinstance(settings.fallback, str):
        raise TypeError(f"fallback must be the spec of a schedule, such as 'linear', or None, not "
                        f"{what_is(settings.fallback)}")  # fmt: skip
    lookup(LOSSES, settings.loss, "loss")
    if settings.target_std is not None:
        _check_deviations(settings.target_std)


def _check_deviations(target_std: Any) -> None:
    sentence = "target_std must be the standard deviation of the targets, a number above 0 or a tensor of such, not "
    if isinstance(target_std, bool) or not isinstance(target_std, float | int | Tensor):
        raise TypeError(sentence + what_is(target_std))
    deviations = torch.as_tensor(target_std)
    if deviations.dtype == torch.bool or deviations.is_complex() or not deviations.numel():
        raise TypeError(f"{sentence}one of dtype {deviations.dtype} and shape {tuple(deviations.shape)}")
    if not bool(((deviations > 0) & deviations.isfinite()).all()):
        raise ValueError(f"{sentence}{target_std!r}")
