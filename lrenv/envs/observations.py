"""What agents see: quantities of training, and the named sets of them that make an observation.

Each set is one table of (low, high, function), from which both the Gymnasium space and the values come, so that
they can't disagree. Values are clamped to their bounds; NaN takes the upper one.

Beside these sets stand the white-box parts: gradients and parameters themselves. They make the observation a `Dict`.

| part | shape | |
|---|---|---|
| `hypergradient` | K | sum over the interval's steps of -<g_(t+1), d_t> (Baydin et al. 2018, equation 5) |
| `gradient_square` | K | sum of |g_(t+1)|^2 |
| `direction_square` | K | sum of |d_t|^2 |
| `gradient_change_square` | K | sum of |g_(t+1) - g'_t|^2; g'_t is at w_t on the same batch: a gradient more per step |
| `mean_gradient` | P | mean of g_(t+1) |
| `parameters` | P | w |
| `fan_in` | K | of each layer, tensor or parameter (`lrenv.networks.stacked.Network.fan_in`); it stays the same |

d_t is the optimizer's direction, w_(t+1) = w_t - lr d_t, and g_(t+1) the gradient on the batch of the next step, which
that step will use (`lrenv.training.lookahead`). K rates per trainee are those of the control's granularity.

`tests/reference/xu2019.py` has the set `paper` in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from lrenv.lookup import lookup
from lrenv.training.dynamics import Dynamics
from lrenv.training.lookahead import MEAN, PRODUCTS


class Signal(NamedTuple):
    """One number of an observation."""

    low: float
    high: float
    value: Callable[[Dynamics], Tensor]


def log10(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Decimal logarithm of what may be zero."""
    return x.clamp(min=floor).log10()


PAPER: dict[str, Signal] = {
    "train_loss": Signal(-1e9, 1e9, lambda d: d.train_loss),
    "val_loss": Signal(-1e9, 1e9, lambda d: d.val_loss),
    "prediction_variance": Signal(0, 1e9, lambda d: d.prediction_variance),
    "prediction_change": Signal(0, 1e9, lambda d: d.prediction_change),
    "weight_mean": Signal(-1e9, 1e9, lambda d: d.weight_mean),
    "weight_variance": Signal(0, 1e9, lambda d: d.weight_variance),
    "lr": Signal(0, 1e9, lambda d: d.lr),
}
"""Xu et al. 2019, section 2.2: the seven quantities in the paper's order, raw."""

DYNAMICS: dict[str, Signal] = {
    "train_loss": Signal(-6, 3, lambda d: log10(d.train_loss)),
    "val_loss": Signal(-6, 3, lambda d: log10(d.val_loss)),
    "prediction_variance": Signal(-12, 3, lambda d: log10(d.prediction_variance)),
    "prediction_change": Signal(-12, 3, lambda d: log10(d.prediction_change)),
    # A mean has a sign: asinh is linear below 1e-3 and logarithmic above.
    "weight_mean": Signal(-15, 15, lambda d: (d.weight_mean / 1e-3).asinh()),
    "weight_variance": Signal(-12, 6, lambda d: log10(d.weight_variance)),
    "lr": Signal(-10, 3, lambda d: log10(d.lr)),
    "progress": Signal(0, 1, lambda d: d.inner_step / d.budget),
}
"""The paper's seven on a log scale, bounded, and the fraction of the budget used."""

SCALE_FREE: dict[str, Signal] = {
    "train_loss": Signal(-6, 3, lambda d: log10(d.train_loss)),
    "val_loss": Signal(-6, 3, lambda d: log10(d.val_loss)),
    "train_change": Signal(-3, 3, lambda d: log10(d.train_loss) - log10(d.previous_train_loss)),
    "val_change": Signal(-3, 3, lambda d: log10(d.val_loss) - log10(d.previous_val_loss)),
    "gap": Signal(-6, 6, lambda d: log10(d.val_loss) - log10(d.train_loss)),
    "loss_spread": Signal(-6, 3, lambda d: log10(d.loss_spread / d.train_loss.abs().clamp(min=1e-12))),
    "first_update": Signal(-8, 3, lambda d: log10(d.first_update)),
    "last_update": Signal(-8, 3, lambda d: log10(d.last_update)),
    "first_cosine": Signal(-1, 1, lambda d: d.first_cosine),
    "last_cosine": Signal(-1, 1, lambda d: d.last_cosine),
    "progress": Signal(0, 1, lambda d: d.inner_step / d.budget),
}
"""What carries over between tasks: nothing depends on the absolute rate or on the size of the network."""

CLOCK_SIGNALS: dict[str, Signal] = {
    "inner_step": Signal(0, 1e9, lambda d: d.inner_step),
    "budget": Signal(1, 1e9, lambda d: d.budget),
    "interval": Signal(1, 1e9, lambda d: d.interval),
    "train_loss": Signal(-1e9, 1e9, lambda d: d.train_loss),
    "val_loss": Signal(-1e9, 1e9, lambda d: d.val_loss),
}
"""What hand-made schedules are functions of, raw."""
CLOCK = tuple(CLOCK_SIGNALS)
"""The columns of the observation `clock`."""

OBSERVATIONS: dict[str, dict[str, Signal]] = {
    "dynamics": DYNAMICS,
    "paper": PAPER,
    "scale-free": SCALE_FREE,
    "clock": CLOCK_SIGNALS,
}


MOTION = {"first_update", "last_update", "first_cosine", "last_cosine"}
"""Signals that are measured only where they are observed; elsewhere they are 0."""
BUDGET = {"progress", "budget"}
"""Signals that tell how long an episode is."""
WHITE_BOX: dict[str, str] = dict.fromkeys((*PRODUCTS, "fan_in"), "rates") | dict.fromkeys(
    (MEAN, "parameters"), "parameters"
)
"""Part -> what it has a number for."""


def tells_budget(observe: str | tuple[str, ...]) -> bool:
    """Whether an observation tells how long an episode is; of one that isn't known here, it is assumed."""
    chosen = (observe,) if isinstance(observe, str) else observe
    known: dict[str, Collection[str]] = {**OBSERVATIONS, **WHITE_BOX}
    return any(name not in known or BUDGET & set(OBSERVATIONS.get(name, ())) for name in chosen)


class Observer:
    """Turns what is known of n trainees into observations.

    Several sets of signals stand side by side in one Box. With white-box parts the observation is a dict instead, of
    each set and each part under its name.

    Args:
        observe: a name in `OBSERVATIONS` or `WHITE_BOX`, or several.
        dtype: of the observations: float32, or float64 for exact comparisons.
        sizes: how many "rates" and "parameters" a trainee has.

    Attributes:
        name: the observation, as it was asked for.
        names: of the signals, in order.
        white_box: the parts.
        space: the single observation space.

    Raises:
        ValueError: an unknown name, or one that is given twice.
    """

    def __init__(self, observe: str | tuple[str, ...], dtype: torch.dtype, sizes: Mapping[str, int]) -> None:
        self.name = observe if isinstance(observe, str) else tuple(observe)
        chosen = (observe,) if isinstance(observe, str) else tuple(observe)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"observe={observe!r} must name what is observed, each once")
        for name in chosen:
            lookup({**OBSERVATIONS, **WHITE_BOX}, name, "observation")
        self._sets = {name: OBSERVATIONS[name] for name in chosen if name in OBSERVATIONS}
        self.white_box = tuple(name for name in chosen if name in WHITE_BOX)
        self.names = tuple(signal for table in self._sets.values() for signal in table)
        self._dtype = dtype
        self._numpy_dtype: Any = np.float64 if dtype == torch.float64 else np.float32
        shown: dict[str, gym.Space[Any]] = {name: self._box(list(table.values())) for name, table in self._sets.items()}
        for name in self.white_box:
            size = sizes[WHITE_BOX[name]]
            shown[name] = gym.spaces.Box(-np.inf, np.inf, (size,), self._numpy_dtype)
        self.space: gym.Space[Any] = gym.spaces.Dict(shown) if self.white_box else self._box(self._signals)

    @property
    def _signals(self) -> list[Signal]:
        return [signal for table in self._sets.values() for signal in table.values()]

    def _box(self, signals: list[Signal]) -> gym.spaces.Box:
        low: Any = np.array([signal.low for signal in signals], self._numpy_dtype)
        high: Any = np.array([signal.high for signal in signals], self._numpy_dtype)
        return gym.spaces.Box(low, high, dtype=self._numpy_dtype)

    def __call__(self, dynamics: Dynamics, white_box: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """(n, number of signals), or a dict, inside the space whatever the dynamics are.

        Args:
            dynamics: how training goes.
            white_box: part -> (n, size), those of `white_box` among them.
        """
        if not self.white_box:
            return self._values(dynamics, self._signals)
        shown = {name: self._values(dynamics, list(table.values())) for name, table in self._sets.items()}
        # A diverged trainee's gradients are no numbers, which no space holds.
        return shown | {name: white_box[name].nan_to_num().to(self._dtype) for name in self.white_box}

    def _values(self, dynamics: Dynamics, signals: list[Signal]) -> Tensor:
        columns = [
            signal.value(dynamics).nan_to_num(nan=signal.high).clamp(signal.low, signal.high) for signal in signals
        ]
        return torch.stack(columns, -1).to(self._dtype)
