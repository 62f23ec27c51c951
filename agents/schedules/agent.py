"""The agents that follow a schedule: `cosine(peak=1e-2)` makes one, as does `make_agent("cosine", peak=1e-2)`.

A factory checks the hyperparameters (a ValueError says which one is wrong) and makes an agent. Any hyperparameter may
be an array of one value per environment, so a whole tuning grid runs as one batch:

    >>> import numpy as np
    >>> agent = cosine(peak=[0.1, 0.2], warmup=5)
    >>> agent
    cosine(peak=(0.1, 0.2), floor=0.0, warmup=5)
    >>> clock = np.array([[4, 105, 1, 2.3, 2.3], [55, 105, 1, 0.9, 0.8]])
    >>> agent.predict(clock)[0].round(6).tolist()
    [[0.1], [0.1]]

Hyperparameters of several schedules mean the same in all of them:

- `peak`: the highest rate, where the schedule starts unless it says otherwise.
- `floor`: the lowest rate, at most `peak`.
- `warmup`: inner steps of linear warm-up. The rate is `peak * (t + 1) / warmup` for `t < warmup` (Goyal et al.
  2017, section 2.2, arXiv:1706.02677), then the schedule runs on `t - warmup` over `T - warmup`; only
  `inverse_sqrt` counts on.

An interval of several inner steps is trained at the rate of its first one.

`tests/reference/schedules.py` has the schedules in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.base import BaseAgent
from lrenv.agents.hyperparameters import Array, Hyperparameter, Hyperparameters, checked, per_env, show, tuned
from lrenv.agents.schedules import formulas
from lrenv.controllers.agent import View
from lrenv.envs.observations import CLOCK
from lrenv.lookup import what_is

VIEW = View(control="set-raw", observe="clock")
ENDLESS = (formulas.constant, formulas.step, formulas.sgdr, formulas.inverse_sqrt)
"""Formulas that don't depend on the budget."""


def read_clock(observation: NDArray[Any]) -> dict[str, Array]:
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


@dataclass(frozen=True, repr=False)
class Scheduled(BaseAgent[tuple[()]]):
    """An agent that follows a schedule; it has no memory.

    Attributes:
        name: the agent's public name, e.g. `one-cycle`.
        schedule: one of `lrenv.agents.schedules.formulas`, or another `(t, budget, **hyperparameters) -> rate`.
        hyperparameters: (name, value) pairs with `peak` and `warmup`; a value is a number or a tuple of n.
        after_warmup: whether the schedule's `t` and `budget` count from the end of the warm-up, or from its start.
        view: it observes the clock and sets the rate.
    """

    name: str
    schedule: Callable[..., Array]
    hyperparameters: Hyperparameters
    after_warmup: bool = True
    view: View = VIEW

    def __repr__(self) -> str:
        return show(self.name, self.hyperparameters)

    @property
    def reads(self) -> tuple[str, ...]:
        """The signals that its rates depend on."""
        return ("inner_step",) if self.schedule in ENDLESS else ("inner_step", "budget")

    def act(self, observation: NDArray[Any], carry: tuple[()]) -> tuple[Array, tuple[()]]:
        """Gives the rates (n, 1) of the intervals that now start.

        Raises:
            ValueError: the observation is no clock, or n is not the length of the array hyperparameters.
        """
        clock = read_clock(observation)
        values = per_env(self.hyperparameters, len(observation))
        t, warmup = clock["inner_step"], values.pop("warmup")
        start = warmup if self.after_warmup else 0
        after = self.schedule(np.maximum(t - start, 0), np.maximum(clock["budget"] - start, 1), **values)
        rate: Array = np.where(t < warmup, values["peak"] * (t + 1) / np.maximum(warmup, 1), after)
        return rate[:, None], carry


PEAKS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
WARMUPS = (0, 30)


@tuned(peak=PEAKS)
def constant(peak: Hyperparameter, warmup: Hyperparameter = 0) -> Scheduled:
    """The same rate throughout (PyTorch's `ConstantLR` with `factor=1`)."""
    return Scheduled("constant", formulas.constant, checked(peak=peak, warmup=warmup))


@tuned(peak=(0.1, 0.01, 0.001, 0.0001), discount_step=(10, 20, 50, 100), discount_factor=(0.99, 0.9, 0.88))
def step(
    peak: Hyperparameter,
    discount_step: Hyperparameter,
    discount_factor: Hyperparameter,
    warmup: Hyperparameter = 0,
) -> Scheduled:
    """Times `discount_factor` every `discount_step` inner steps (PyTorch's `StepLR`).

    Its grid is the 48 settings of Xu et al. 2019, section 3.2.
    """
    values = checked(peak=peak, discount_step=discount_step, discount_factor=discount_factor, warmup=warmup)
    return Scheduled("step", formulas.step, values)


@tuned(peak=PEAKS, decay=(0.1, 0.01, 0.001))
def exponential(peak: Hyperparameter, decay: Hyperparameter, warmup: Hyperparameter = 0) -> Scheduled:
    """Exponential decay to `decay * peak` (PyTorch's `ExponentialLR` with `gamma = decay ** (1 / budget)`).

    `decay` belongs to the whole budget, so that a value suits budgets of any length.
    """
    return Scheduled("exponential", formulas.exponential, checked(peak=peak, decay=decay, warmup=warmup))


@tuned(peak=PEAKS, warmup=WARMUPS)
def linear(peak: Hyperparameter, floor: Hyperparameter = 0.0, warmup: Hyperparameter = 0) -> Scheduled:
    """Linear decay over the budget (PyTorch's `LinearLR`, and its `PolynomialLR` of power 1)."""
    return Scheduled("linear", formulas.linear, checked(peak=peak, floor=floor, warmup=warmup))


@tuned(peak=PEAKS, warmup=WARMUPS)
def cosine(peak: Hyperparameter, floor: Hyperparameter = 0.0, warmup: Hyperparameter = 0) -> Scheduled:
    """Cosine decay over the budget (PyTorch's `CosineAnnealingLR` with `T_max` the budget)."""
    return Scheduled("cosine", formulas.cosine, checked(peak=peak, floor=floor, warmup=warmup))


@tuned(peak=PEAKS, pct_start=(0.1, 0.3))
def one_cycle(
    peak: Hyperparameter,
    pct_start: Hyperparameter = 0.3,
    div_factor: Hyperparameter = 25.0,
    final_div_factor: Hyperparameter = 1e4,
    warmup: Hyperparameter = 0,
) -> Scheduled:
    """The 1cycle policy (PyTorch's `OneCycleLR` and its defaults; Smith and Topin, arXiv:1708.07120).

    The rate starts at `peak / div_factor`, rises over the fraction `pct_start` of the budget, and falls to
    `peak / div_factor / final_div_factor`. A `warmup` comes before this cycle, which has a rise of its own.
    """
    values = checked(
        peak=peak, pct_start=pct_start, div_factor=div_factor, final_div_factor=final_div_factor, warmup=warmup
    )
    return Scheduled("one-cycle", formulas.one_cycle, values)


@tuned(peak=PEAKS, period=(50, 200), multiplier=(1, 2))
def sgdr(
    peak: Hyperparameter,
    period: Hyperparameter,
    floor: Hyperparameter = 0.0,
    multiplier: Hyperparameter = 1,
    warmup: Hyperparameter = 0,
) -> Scheduled:
    """Cosines with restarts (PyTorch's `CosineAnnealingWarmRestarts`; Loshchilov, Hutter, arXiv:1608.03983).

    The first takes `period` inner steps, and each is `multiplier` times as long as the one before.
    """
    values = checked(peak=peak, period=period, floor=floor, multiplier=multiplier, warmup=warmup)
    return Scheduled("sgdr", formulas.sgdr, values)


@tuned(peak=PEAKS, timescale=(10, 30, 100))
def inverse_sqrt(peak: Hyperparameter, timescale: Hyperparameter, warmup: Hyperparameter = 0) -> Scheduled:
    """Inverse square root decay: `peak` until `timescale` inner steps were made, half of it at four times as many.

    `timescale` counts from the start of training and holds the warm-up. All of it as warm-up gives the
    Transformer's schedule, with `peak = 1 / sqrt(d_model * warmup)` (Vaswani et al. 2017, section 5.3,
    arXiv:1706.03762); none gives T5's `1 / sqrt(max(step, timescale))`, with `peak = 1 / sqrt(timescale)`
    (Raffel et al. 2020, section 3.1.2, arXiv:1910.10683). Both count steps from 1.
    """
    values = checked(peak=peak, timescale=timescale, warmup=warmup)
    return Scheduled("inverse-sqrt", formulas.inverse_sqrt, values, after_warmup=False)
