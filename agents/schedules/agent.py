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
- `warmup`: inner steps of linear warm-up, or a fraction of the budget. The rate is `peak * (t + 1) / warmup` for
  `t < warmup` (Goyal et al. 2017, section 2.2, arXiv:1706.02677), then the schedule runs on `t - warmup` over
  `T - warmup`; only `inverse_sqrt` counts on.
- `fan_in`, `weight_decay`: rates per layer, and a weight decay; see `lrenv.agents.schedules.base`.

An interval of several inner steps is trained at the rate of its first one.

`tests/reference/schedules.py` has the schedules in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lrenv.agents.hyperparameters import Array, Choice, Hyperparameter, tuned
from lrenv.agents.schedules import formulas
from lrenv.agents.schedules.base import RateAgent, settings, view_of_schedule, warmed_up


@dataclass(frozen=True, repr=False)
class Scheduled(RateAgent[tuple[()]]):
    """An agent that follows a schedule; it has no memory.

    Attributes:
        schedule: one of `lrenv.agents.schedules.formulas`, or another `(t, budget, **hyperparameters) -> rate`.
        after_warmup: whether the schedule's `t` and `budget` count from the end of the warm-up, or from its start.
    """

    schedule: Callable[..., Array]
    after_warmup: bool = True

    def rate(self, clock: Mapping[str, Array], values: dict[str, Array], carry: tuple[()]) -> tuple[Array, tuple[()]]:
        """The schedule, with the warm-up in front."""
        start = values["warmup"] if self.after_warmup else 0
        own = {name: value for name, value in values.items() if name != "warmup"}
        t, budget = np.maximum(clock["inner_step"] - start, 0), np.maximum(clock["budget"] - start, 1)
        return warmed_up(values["peak"], clock, values, self.schedule(t, budget, **own)), carry


def scheduled(
    name: str,
    schedule: Callable[..., Array],
    horizon: bool = True,
    after_warmup: bool = True,
    **given: Hyperparameter | Choice | None,
) -> Scheduled:
    """An agent that follows a schedule, which depends on the budget unless `horizon` says otherwise.

    Raises:
        ValueError: a hyperparameter that is given is wrong.
    """
    values = settings(**given)
    return Scheduled(name, values, view_of_schedule(values, horizon), schedule, after_warmup)


PEAKS = tuple(0.1 / 2**k for k in range(11))
"""From 0.1 down to 1e-4 by factors of 2: a shape that is compared by a peak that is off is not compared at all."""
WARMUPS = (0, 0.05)
"""None, and a twentieth of the budget."""


@tuned(peak=PEAKS)
def constant(
    peak: Hyperparameter,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """The same rate throughout (PyTorch's `ConstantLR` with `factor=1`)."""
    return scheduled(
        "constant", formulas.constant, horizon=False, peak=peak, warmup=warmup, fan_in=fan_in,
        weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, ema=(0.9, 0.99, 0.999))
def constant_ema(
    peak: Hyperparameter,
    ema: Hyperparameter = 0.99,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """The same rate throughout, and an average of the weights in the place of a decay, for runs without a horizon.

    Args:
        peak: the rate.
        ema: decay per inner step of the average that is measured and tested (`lrenv.training.optimizers.ema`).
        warmup: linear warm-up.
        fan_in: rates per layer.
        weight_decay: instead of the task's.
    """
    return scheduled(
        "constant-ema", formulas.constant, horizon=False, peak=peak, ema=ema, warmup=warmup, fan_in=fan_in,
        weight_decay=weight_decay,
    )  # fmt: skip


@tuned(
    extends=False, peak=(0.1, 0.01, 0.001, 0.0001), discount_step=(10, 20, 50, 100), discount_factor=(0.99, 0.9, 0.88)
)
def step(
    peak: Hyperparameter,
    discount_step: Hyperparameter,
    discount_factor: Hyperparameter,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Times `discount_factor` every `discount_step` inner steps (PyTorch's `StepLR`).

    Its grid is the 48 settings of Xu et al. 2019, section 3.2.
    """
    return scheduled(
        "step", formulas.step, horizon=False, peak=peak, discount_step=discount_step, discount_factor=discount_factor,
        warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, decay=(0.1, 0.01, 0.001))
def exponential(
    peak: Hyperparameter,
    decay: Hyperparameter,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Exponential decay to `decay * peak` (PyTorch's `ExponentialLR` with `gamma = decay ** (1 / budget)`).

    `decay` belongs to the whole budget, so that a value suits budgets of any length.
    """
    return scheduled(
        "exponential", formulas.exponential, peak=peak, decay=decay, warmup=warmup, fan_in=fan_in,
        weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, warmup=WARMUPS)
def linear(
    peak: Hyperparameter,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Linear decay over the budget (PyTorch's `LinearLR`, and its `PolynomialLR` of power 1)."""
    return scheduled(
        "linear", formulas.linear, peak=peak, floor=floor, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, warmup=WARMUPS)
def cosine(
    peak: Hyperparameter,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Cosine decay over the budget (PyTorch's `CosineAnnealingLR` with `T_max` the budget)."""
    return scheduled(
        "cosine", formulas.cosine, peak=peak, floor=floor, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, warmup=WARMUPS, decay_fraction=(0.2, 0.5))
def wsd(
    peak: Hyperparameter,
    decay_fraction: Hyperparameter = 0.2,
    shape: Choice = "1-sqrt",
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Warm-up, a stable rate, and a decay at the end (WSD; Hu et al. 2024, arXiv:2404.06395).

    Args:
        peak: the stable rate.
        decay_fraction: of the inner steps after the warm-up, how many the decay takes; a fifth is what Hägele et al.
            2024 (arXiv:2405.18392) recommend for long runs.
        shape: of the decay: "linear", "1-sqrt" (theirs, and the best of theirs), or "cosine".
        floor: the rate at the end.
        warmup: linear warm-up.
        fan_in: rates per layer.
        weight_decay: instead of the task's.
    """
    return scheduled(
        "wsd", formulas.wsd, peak=peak, decay_fraction=decay_fraction, shape=shape, floor=floor, warmup=warmup,
        fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, power=(0.5, 1.0, 2.0, 3.0))
def power(
    peak: Hyperparameter,
    power: Hyperparameter,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Power decay over the budget (PyTorch's `PolynomialLR`).

    The best schedule of easy power-law regression is of this kind (arXiv:2602.06797).
    """
    return scheduled(
        "power", formulas.power, peak=peak, power=power, floor=floor, warmup=warmup, fan_in=fan_in,
        weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, warmup=WARMUPS)
def rex(
    peak: Hyperparameter,
    floor: Hyperparameter = 0.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """The reflected exponential decay, for small budgets (REX; Chen, Wolfe and Kyrillidis 2022, arXiv:2107.04197)."""
    return scheduled(
        "rex", formulas.rex, peak=peak, floor=floor, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, pct_start=(0.1, 0.3))
def one_cycle(
    peak: Hyperparameter,
    pct_start: Hyperparameter = 0.3,
    div_factor: Hyperparameter = 25.0,
    final_div_factor: Hyperparameter = 1e4,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """The 1cycle policy (PyTorch's `OneCycleLR` and its defaults; Smith and Topin, arXiv:1708.07120).

    The rate starts at `peak / div_factor`, rises over the fraction `pct_start` of the budget, and falls to
    `peak / div_factor / final_div_factor`. A `warmup` comes before this cycle, which has a rise of its own.
    """
    return scheduled(
        "one-cycle", formulas.one_cycle, peak=peak, pct_start=pct_start, div_factor=div_factor,
        final_div_factor=final_div_factor, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, period=(50, 200), multiplier=(1, 2))
def sgdr(
    peak: Hyperparameter,
    period: Hyperparameter,
    floor: Hyperparameter = 0.0,
    multiplier: Hyperparameter = 1,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Cosines with restarts (PyTorch's `CosineAnnealingWarmRestarts`; Loshchilov, Hutter, arXiv:1608.03983).

    The first takes `period` inner steps, and each is `multiplier` times as long as the one before.
    """
    return scheduled(
        "sgdr", formulas.sgdr, horizon=False, peak=peak, period=period, floor=floor, multiplier=multiplier,
        warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip


@tuned(peak=PEAKS, timescale=(10, 30, 100))
def inverse_sqrt(
    peak: Hyperparameter,
    timescale: Hyperparameter,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Scheduled:
    """Inverse square root decay: `peak` until `timescale` inner steps were made, half of it at four times as many.

    `timescale` counts from the start of training and holds the warm-up. All of it as warm-up gives the
    Transformer's schedule, with `peak = 1 / sqrt(d_model * warmup)` (Vaswani et al. 2017, section 5.3,
    arXiv:1706.03762); none gives T5's `1 / sqrt(max(step, timescale))`, with `peak = 1 / sqrt(timescale)`
    (Raffel et al. 2020, section 3.1.2, arXiv:1910.10683). Both count steps from 1.
    """
    return scheduled(
        "inverse-sqrt", formulas.inverse_sqrt, horizon=False, after_warmup=False, peak=peak, timescale=timescale,
        warmup=warmup, fan_in=fan_in, weight_decay=weight_decay,
    )  # fmt: skip
