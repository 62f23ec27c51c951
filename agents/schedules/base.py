"""What all schedules share: the clock that they read, the warm-up, and what becomes of a rate.

A schedule gives one rate per trainee, and these settings mean the same in all of them:

- `warmup`: inner steps of linear warm-up, or below 1 the fraction of the budget, to the nearest whole step.
- `fan_in`: e. Layers have rates of their own, `rate * m`, with multipliers m in proportion to fan-in^-e whose geometric
  mean over the layers is 1 (`lrenv.agents.schedules.formulas.fan_in_multipliers`). So the schedule's rate is the
  geometric mean of the layers' rates, which is also what tables show, and one grid of peaks suits every e. With e = 0
  all multipliers are exactly 1; without `fan_in` there is one rate per trainee.
- `weight_decay`: instead of the task's own. Actions hold it in the environment's precision (`lrenv.envs.actions`).
- `ema`: evaluation weights. The task's optimizer keeps an exponential moving average of the weights with this decay
  per inner step, which is measured and tested in their place (`lrenv.training.optimizers.ema`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from lrenv.agents.base import BaseAgent, first_part
from lrenv.agents.hyperparameters import (
    Array,
    Choice,
    Hyperparameter,
    Hyperparameters,
    checked,
    in_order,
    per_env,
    show,
)
from lrenv.agents.schedules.formulas import fan_in_multipliers
from lrenv.controllers.agent import View
from lrenv.envs.actions import action_of
from lrenv.envs.observations import CLOCK
from lrenv.lookup import what_is

BESIDE = ("weight_decay", "ema")
"""What a schedule may set beside the rate."""
OPTIONAL = ("fan_in", *BESIDE)
"""Settings that change what an agent sees and turns; None leaves it as it is."""

C = TypeVar("C", bound=tuple[Any, ...])


def read_clock(observation: Any) -> dict[str, Array]:
    """Column name -> (n,) float64, of an observation (n, len(CLOCK)).

    Raises:
        ValueError: the observation is something else.
    """
    dtype, shape = getattr(observation, "dtype", None), np.shape(observation)
    if dtype is None or dtype.kind != "f" or len(shape) != 2 or shape[1] != len(CLOCK):
        held = what_is(observation) if dtype is None else f"{dtype} {shape}"
        raise ValueError(
            f"a schedule reads a floating-point array (n, {len(CLOCK)}) of {', '.join(CLOCK)}, not {held}: make the "
            "environment with observe='clock', and batched"
        )
    return {name: observation[:, i].astype(np.float64) for i, name in enumerate(CLOCK)}


def settings(**given: Hyperparameter | Choice | None) -> Hyperparameters:
    """The hyperparameters of a schedule, checked; those of `OPTIONAL` that are None are left out."""
    return checked(**{name: value for name, value in given.items() if value is not None or name not in OPTIONAL})


def view_of_schedule(hyperparameters: Hyperparameters, horizon: bool) -> View:
    """What a schedule sees and turns.

    Args:
        hyperparameters: what it was made with.
        horizon: whether its rate depends on the budget; a warm-up that is a fraction does.
    """
    given = dict(hyperparameters)
    warmup = np.asarray(given["warmup"])
    beside = [name for name in BESIDE if name in given]
    main = "set-raw/layer" if "fan_in" in given else "set-raw"
    return View(
        (main, *beside) if beside else main,
        ("clock", "fan_in") if "fan_in" in given else "clock",
        optimizer="+ema" if "ema" in given else None,
        horizon=horizon or bool(((warmup > 0) & (warmup < 1)).any()),
    )


@dataclass(frozen=True, repr=False)
class RateAgent(BaseAgent[C]):
    """An agent that gives each trainee a rate, from the clock.

    Attributes:
        name: the agent's public name, e.g. `one-cycle`.
        hyperparameters: (name, value) pairs, among them `peak` and `warmup`; a value is a number or a tuple of n.
        view: it observes the clock and sets the rate.
        reads: the columns of the clock that the rate depends on (`lrenv.controllers.agent.Agent`).
    """

    reads: ClassVar[tuple[str, ...]] = ("inner_step", "budget")

    name: str
    hyperparameters: Hyperparameters
    view: View

    def __repr__(self) -> str:
        return show(self.name, self.hyperparameters)

    @abstractmethod
    def rate(self, clock: Mapping[str, Array], values: dict[str, Array], carry: C) -> tuple[Array, C]:
        """The rates (n,) of the intervals that now start, and the next carry.

        Args:
            clock: column -> (n,).
            values: hyperparameter -> (n,) or (); `warmup` in inner steps.
            carry: what `start` or the last decision gave.
        """

    def act(self, observation: Any, carry: C) -> tuple[Array, C]:
        """Gives actions (n, K), and a column for each hyperparameter that is set beside the rate.

        Raises:
            ValueError: the observation is not that of the view, or n is not the length of the array hyperparameters.
        """
        clock = self.clock(observation)
        n = len(clock["budget"])
        values = per_env(self.hyperparameters, n)
        exponent = values.pop("fan_in", None)
        beside = {name: values.pop(name) for name in BESIDE if name in values}
        warmup = values["warmup"]
        values["warmup"] = np.where(warmup < 1, np.rint(warmup * clock["budget"]), warmup)
        in_order(values)
        rate, carry = self.rate(clock, values, carry)
        actions = rate[:, None]
        if exponent is not None:
            actions = actions * fan_in_multipliers(observation["fan_in"].astype(np.float64), exponent.reshape(-1, 1))
        for name, value in beside.items():
            column = action_of(name, torch.from_numpy(np.broadcast_to(value, n).copy())).numpy()
            actions = np.concatenate([actions, column[:, None]], 1)
        return actions, carry

    def clock(self, observation: Any) -> dict[str, Array]:
        """Column name -> (n,) of what the agent observes.

        Raises:
            ValueError: the observation is not that of the view.
        """
        if "fan_in" not in dict(self.hyperparameters):
            return read_clock(observation)
        if not isinstance(observation, Mapping) or not {"clock", "fan_in"} <= set(observation):
            held = f"a dict of {', '.join(observation)}" if isinstance(observation, Mapping) else what_is(observation)
            raise ValueError(
                f"{self.name} with fan_in reads a dict of clock and fan_in, not {held}: make the environment with "
                "**agent.view.settings()"
            )
        return read_clock(observation["clock"])


def warmed_up(
    rate: Array, clock: Mapping[str, Array], values: Mapping[str, Array], after: Array | None = None
) -> Array:
    """`rate * (t + 1) / warmup` in the warm-up, and afterwards `rate`, or what `after` says."""
    t, warmup = clock["inner_step"], values["warmup"]
    warm: Array = np.where(t < warmup, rate * (t + 1) / np.maximum(warmup, 1), rate if after is None else after)
    return warm


def number_of(observation: Any) -> int:
    """How many environments an observation, or a dict of observations, is of."""
    return len(first_part(observation))
