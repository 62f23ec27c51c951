"""What hypergradient methods share: their rates follow a recurrence on white-box observations, within bounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.base import BaseAgent, C
from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, checked, per_env, show
from lrenv.controllers.agent import View
from lrenv.lookup import lookup

Parts = Mapping[str, Array]
"""White-box part -> (n, K) float64, of K rates per trainee."""
Values = Mapping[str, Array]
"""Hyperparameter -> (n, 1), or (1, 1) where all environments have the same."""

INITIAL_LRS = (1e-1, 1e-2, 1e-3, 1e-4)
"""The first rates that are worth trying."""
GRANULARITIES = {"": "set-raw"} | {name: f"set-raw/{name}" for name in ("layer", "tensor", "parameter")}
"""What has a rate of its own, the trainee or each piece of it -> the control (`lrenv.envs.actions`)."""


@dataclass(frozen=True, repr=False)
class Recurrence(BaseAgent[C]):
    """An agent whose rates are a function of the last ones and of the training since; `update` is that function.

    At the start of an episode all parts but `gradient_square` are 0, and `update` must leave the rates alone then: the
    first ones are `initial_lr`.

    Rates stay finite whatever the trainees do: those of a trainee that has diverged stay as they are, and where a rate
    overflows it is the largest number there is. Environments whose episode has ended can so stay in the batch.

    Attributes:
        name: the agent's public name, e.g. `sgd-hd`.
        hyperparameters: (name, value) pairs, `initial_lr` among them; a value is a number or a tuple of n. Between
            `low` and `high`, where they are given, all rates are clamped.
        view: it observes `hypergradient` and other parts, and sets the rates.
        options: what else `repr` tells.
    """

    name: str
    hyperparameters: Hyperparameters
    view: View
    options: tuple[tuple[str, object], ...] = ()

    def __repr__(self) -> str:
        return show(self.name, (*self.hyperparameters, *self.options))

    @abstractmethod
    def initial(self, rate: Array) -> C:
        """Returns the carry at the first rates (n, K): a NamedTuple of arrays (n, K) with a field `rate`."""

    @abstractmethod
    def update(self, carry: C, seen: Parts, values: Values) -> C:
        """Returns the carry after the training that was seen, with its new rates.

        Args:
            carry: at the last decision.
            seen: what was measured since.
            values: of the hyperparameters.
        """

    def start(self, observation: Mapping[str, NDArray[Any]]) -> C:
        """Returns the carry at `initial_lr`."""
        shape = read_parts(self.name, observation, self.view.observe)["hypergradient"].shape
        return self.initial(np.broadcast_to(self._values(shape[0])["initial_lr"], shape))

    def act(self, observation: Mapping[str, NDArray[Any]], carry: C) -> tuple[Array, C]:
        """Returns the rates (n, K) of the intervals that now start.

        Raises:
            ValueError: a part is missing, or n is not the length of array hyperparameters.
        """
        seen = read_parts(self.name, observation, self.view.observe)
        values = self._values(len(seen["hypergradient"]))
        # Of a trainee that diverges, gradients overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            after: Any = self.update(carry, seen, values)
        largest = np.finfo(observation["hypergradient"].dtype).max
        low, high = (
            np.clip(values.get(name, end), -largest, largest) for name, end in (("low", -largest), ("high", largest))
        )
        before: Any = carry
        rate = np.where(np.isnan(after.rate), before.rate, np.clip(after.rate, low, high))
        return rate, after._replace(rate=rate)

    def _values(self, n: int) -> Values:
        return {name: np.reshape(x, (-1, 1)) for name, x in per_env(self.hyperparameters, n).items()}


def read_parts(agent: str, observation: Mapping[str, NDArray[Any]], names: str | tuple[str, ...]) -> Parts:
    """Returns the named parts of a white-box observation, in double precision.

    Raises:
        ValueError: one of them is not there.
    """
    names = (names,) if isinstance(names, str) else names
    seen = observation if isinstance(observation, Mapping) else {}
    missing = [name for name in names if name not in seen]
    if missing:
        raise ValueError(
            f"{agent} reads {', '.join(missing)}, which the observation lacks: make the environment with "
            f"observe={names!r}, or with **agent.view.settings()"
        )
    return {name: np.asarray(seen[name], np.float64) for name in names}


def control_of(granularity: str) -> str:
    """Returns the control that sets a rate for each piece of a trainee.

    Raises:
        ValueError: an unknown granularity.
    """
    return lookup(GRANULARITIES, granularity, "granularity")


def rates_from(initial_lr: Hyperparameter, **others: Hyperparameter | None) -> Hyperparameters:
    """Returns the hyperparameters of a recurrence, checked; None leaves one out.

    Raises:
        ValueError: one of them is wrong.
    """
    return checked(initial_lr=initial_lr, **{name: value for name, value in others.items() if value is not None})
