"""What agents of gradients share: rates that follow a recurrence on white-box observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, checked, per_env, show
from lrenv.agents.memory import Memory, recalled
from lrenv.controllers.agent import State, View
from lrenv.lookup import lookup

Parts = Mapping[str, Array]
"""White-box part -> (n, K) float64, of K rates per trainee."""
Values = Mapping[str, Array]
"""Hyperparameter -> (n, 1), or (1,) where all envs have the same."""

INITIAL_LRS = (1e-1, 1e-2, 1e-3, 1e-4)
"""The first rates that are worth trying."""
GRANULARITIES = {"": "set-raw"} | {name: f"set-raw/{name}" for name in ("layer", "tensor", "parameter")}
"""What has a rate of its own, the trainee or each piece of it -> the control (`lrenv.envs.actions`)."""


@dataclass(frozen=True, repr=False)
class Recurrence:
    """An agent whose rates are a function of the last ones and of the training since.

    At the start of an episode all parts but `gradient_square` are 0, and an update must leave the rates alone then: the
    first ones are `initial_lr`. An agent's state is what its update remembers, the rates first.

    Rates stay finite whatever the trainees do: those of one that has diverged stand still, and one that is about to
    gets the largest number there is. Ended envs can so stand beside others.

    Attributes:
        name: the agent's public name, e.g. `sgd-hd`.
        update: (parts, memory, values) -> memory, a tuple of arrays (n, K).
        hyperparameters: (name, value) pairs, `initial_lr` among them; a value is a number or a tuple of n. Between
            `low` and `high`, where they are given, all rates are clamped.
        view: what the agent sees, `hypergradient` among it, and turns.
        slots: how many arrays are remembered beside the rates, all 0 at the start of an episode.
        options: what else `repr` tells.
    """

    name: str
    update: Callable[[Parts, Memory, Values], Memory]
    hyperparameters: Hyperparameters
    view: View
    slots: int = 0
    options: tuple[tuple[str, object], ...] = ()

    def __repr__(self) -> str:
        return show(self.name, (*self.hyperparameters, *self.options))

    def predict(
        self,
        observation: Mapping[str, NDArray[Any]],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The rates (n, K) of the intervals that now start, in the observation's dtype, and the new memory.

        Raises:
            ValueError: a part is missing, or n is not that of the state or of array hyperparameters.
        """
        parts = read_parts(self.name, observation, self.view.observe)
        rates = parts["hypergradient"]
        values = {name: np.reshape(x, (-1, 1)) for name, x in per_env(self.hyperparameters, len(rates)).items()}
        fresh = (np.broadcast_to(values["initial_lr"], rates.shape), *(np.zeros((self.slots, *rates.shape))))
        memory = recalled(state, fresh, episode_start)
        # Of a trainee that diverges, gradients overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            after, *slots = self.update(parts, memory, values)
        dtype = observation["hypergradient"].dtype
        largest = np.finfo(dtype).max
        low, high = (
            np.clip(values.get(name, end), -largest, largest) for name, end in (("low", -largest), ("high", largest))
        )
        after = np.where(np.isnan(after), memory[0], np.clip(after, low, high))
        return after.astype(dtype), (after, *slots)


def read_parts(agent: str, observation: Mapping[str, NDArray[Any]], names: str | tuple[str, ...]) -> Parts:
    """The named parts of a white-box observation, in double precision.

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
    """The control that turns a rate for each piece.

    Raises:
        ValueError: an unknown granularity.
    """
    return lookup(GRANULARITIES, granularity, "granularity")


def rates_from(initial_lr: Hyperparameter, **others: Hyperparameter | None) -> Hyperparameters:
    """The hyperparameters of a recurrence, checked; None leaves one out.

    Raises:
        ValueError: one of them is wrong.
    """
    return checked(initial_lr=initial_lr, **{name: value for name, value in others.items() if value is not None})
