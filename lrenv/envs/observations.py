"""What agents see: quantities of training, and the named sets of them that make an observation.

Each set is one table of (low, high, function), from which both the Gymnasium space and the values come, so that
they can't disagree. Values are clamped to their bounds; NaN takes the upper one. Where a bound is infinite, the largest
number of the dtype stands in its place, 3.4e38 in float32: what a diverged trainee shows is finite and the worst there
is.

`register_observation` gives one's own a name; environments also take a table, or a function from `Dynamics` to numbers
(n, k), in the place of a name. Such numbers have infinite bounds.

Logarithms are of losses above 0, and anything else counts as 1e-12: of a loss of one's own that is 0 or less, falls and
changes show nothing. Such a loss is observed by `paper`, `clock`, or an observation of one's own; or add a constant.

White-box parts are gradients and parameters themselves. They make the observation a `Dict`. NaN in them becomes 0, and
infinities the largest numbers of the dtype.

| part | shape | |
|---|---|---|
| `hypergradient` | K | sum over the interval's steps of -<g_(t+1), d_t> (Baydin et al. 2018, equation 5) |
| `gradient_square` | K | sum of norm(g_(t+1))^2 |
| `gradient_absolute` | K | sum of the absolute values of g_(t+1), its l1 norm |
| `direction_square` | K | sum of norm(d_t)^2 |
| `gradient_change_square` | K | sum of norm(g_(t+1) - g'_t)^2; g'_t is at w_t on that batch: a gradient more per step |
| `mean_gradient` | P | mean of g_(t+1) |
| `parameters` | P | w |
| `fan_in` | K | of each layer, tensor or parameter (`lrenv.networks.pieces.Pieces.fan_in`); it stays the same |

d_t is the optimizer's direction, w_(t+1) = w_t - lr d_t, and g_(t+1) the gradient on the batch of the next step, which
that step will use (`lrenv.training.gradient_observer`). K rates per trainee are those of the control's granularity.

`tests/reference/xu2019.py` has the set `paper` in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from lrenv.envs import quantities
from lrenv.lookup import check_arguments, check_new, lookup, what_is
from lrenv.training.dynamics import Dynamics
from lrenv.training.gradient_observer import MEAN, PRODUCTS


class Signal(NamedTuple):
    """One number of an observation."""

    low: float
    high: float
    value: Callable[[Dynamics], Tensor]


def log10(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Returns the decimal logarithm of numbers that may be zero."""
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

TRAINING: dict[str, Signal] = {
    "train_fall": Signal(-6, 3, lambda d: log10(d.train_loss) - log10(d.initial_train_loss)),
    "train_change": Signal(-3, 3, lambda d: log10(d.train_loss) - log10(d.previous_train_loss)),
    "loss_spread": Signal(-6, 3, lambda d: log10(d.loss_spread / d.train_loss.abs().clamp(min=1e-12))),
    "first_update": Signal(-8, 3, lambda d: log10(d.first_update)),
    "last_update": Signal(-8, 3, lambda d: log10(d.last_update)),
    "first_cosine": Signal(-1, 1, lambda d: d.first_cosine),
    "last_cosine": Signal(-1, 1, lambda d: d.last_cosine),
    "steps": Signal(0, 9, lambda d: log10(d.inner_step + 1)),
    "steps_per_decision": Signal(0, 9, lambda d: log10(d.interval)),
    "adaptive": Signal(0, 1, lambda d: d.adaptive),
}
"""What training itself shows, without a validation split and without a horizon, in numbers that stay the same where the
loss is multiplied by a constant; and the optimizer's kind."""

HORIZON: dict[str, Signal] = {
    "progress": Signal(0, 1, lambda d: d.inner_step / d.budget),
    "steps_in_all": Signal(0, 9, lambda d: log10(d.budget)),
}
"""How much of a run is over, and how long it is."""

SETUP: dict[str, Signal] = {
    "batch_size": Signal(0, 9, lambda d: log10(d.batch_size)),
    "kept": Signal(-12, 0, lambda d: log10(1 - d.momentum)),
}
"""What good rates depend on and stays the same: the batch size, and the part of a direction that momentum doesn't take
from earlier ones."""

UNTRAINED: dict[str, Signal] = {
    "first_loss": Signal(-12, 9, lambda d: log10(d.initial_train_loss)),
    "relative_gradient": Signal(-12, 9, lambda d: log10(d.relative_gradient)),
    "weight_size": Signal(-12, 3, lambda d: log10(d.weight_size)),
    "layers": Signal(0, 6, lambda d: log10(d.layers)),
}
"""What the untrained network shows: its loss on the first batch, the largest gradient of a layer there relative to that
layer's weights, the size of the weights, and the number of layers."""

SCALE_FREE: dict[str, Signal] = {
    "train_fall": TRAINING["train_fall"],
    "val_fall": Signal(-6, 3, lambda d: log10(d.val_loss) - log10(d.initial_val_loss)),
    "train_change": TRAINING["train_change"],
    "val_change": Signal(-3, 3, lambda d: log10(d.val_loss) - log10(d.previous_val_loss)),
    "gap": Signal(-6, 6, lambda d: log10(d.val_loss) - log10(d.train_loss)),
    **{name: TRAINING[name] for name in ("loss_spread", "first_update", "last_update", "first_cosine", "last_cosine")},
    "progress": HORIZON["progress"],
}
"""What carries over between tasks: nothing depends on the absolute rate, on the size of the network, or on a constant
that multiplies the loss. Losses are relative to those of the untrained network; `dynamics` has them as they are."""

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

Observation = Mapping[str, Signal] | Callable[[Dynamics], Tensor]
"""A table of signals by name, or a function dynamics -> (n, k), whose numbers have no bounds."""
OBSERVATIONS: dict[str, Observation] = {
    "dynamics": DYNAMICS,
    "paper": PAPER,
    "scale-free": SCALE_FREE,
    "training": TRAINING,
    "horizon": HORIZON,
    "setup": SETUP,
    "untrained": UNTRAINED,
    "clock": CLOCK_SIGNALS,
}
"""Name -> observation."""
FAN_IN = "fan_in"
"""The white-box part that tells of the network alone, and so stays the same."""
WHITE_BOX: dict[str, str] = {
    **dict.fromkeys((*PRODUCTS, FAN_IN), "rates"),
    **dict.fromkeys((MEAN, "parameters"), "parameters"),
}
"""White-box part -> what it has a number for."""
BUILT_IN = frozenset({**OBSERVATIONS, **WHITE_BOX})
OWN = (
    "; one of your own is named by its file, lrenv train ... --observe my_file.py:name and lrenv compare ... "
    "--observations my_file.py:name, or registered by register_observation"
)
Observe = str | Observation | tuple[str | Observation, ...]
"""What `observe=` takes: names, tables, functions."""


def register_observation(name: str, observation: Observation, replace_existing: bool = False) -> Observation:
    """Makes an observation available under a name, wherever one is taken; what raises changes nothing.

    Args:
        name: of letters, digits, "_", "." and "-".
        observation: signal -> `Signal`, or a function from `Dynamics` to numbers (n, k).
        replace_existing: overwrite an observation of that name, other than lrenv's own, instead of refusing.

    Raises:
        TypeError: neither a table of signals nor a function, or one that takes other arguments.
        ValueError: the name is taken, or none that specs can hold.
    """
    _check_observation(observation)
    check_new("observation", name, {**OBSERVATIONS, **WHITE_BOX}, BUILT_IN, replace_existing)
    OBSERVATIONS[name] = observation
    return observation


def parts_of(observe: Observe) -> tuple[str | Observation, ...]:
    """Returns what is observed side by side, be it one thing or several."""
    return tuple(observe) if isinstance(observe, tuple | list) else (observe,)


def names_of(observe: Observe) -> str | tuple[str, ...]:
    """Returns the names of what is observed: a function has its own, a table those of its signals."""
    if isinstance(observe, str):
        return observe
    if isinstance(observe, tuple | list):
        return tuple(_name(each) for each in observe)
    return _name(observe)


def _name(observation: str | Observation) -> str:
    if isinstance(observation, str):
        return observation
    _check_observation(observation)
    if isinstance(observation, Mapping):
        return "+".join(observation)
    return getattr(observation, "__name__", type(observation).__name__)


def _check_observation(observation: object) -> None:
    table = isinstance(observation, Mapping) and observation
    if not (callable(observation) or (table and all(isinstance(x, Signal) for x in table.values()))):
        raise TypeError(
            "an observation is a table of lrenv.envs.observations.Signal by name, or a function from Dynamics to "
            f"numbers (n, k), not {what_is(observation)}"
        )
    if callable(observation):
        check_arguments("observation", observation, "dynamics")


def quantities_of(observe: Observe, reads: Sequence[str] | None = None) -> set[str]:
    """Returns the quantities of training, fields of `Dynamics`, of which an observation is made.

    Args:
        observe: what is observed. A name that nothing is registered under yet may be of anything; white-box parts are
            of none of these.
        reads: the signals that are looked at, as `Observer.names` has them; all if None.
    """
    found: set[str] = set()
    for each in parts_of(observe):
        if isinstance(each, str) and each in WHITE_BOX:
            continue
        observation = OBSERVATIONS.get(each) if isinstance(each, str) else each
        if observation is None:
            return set(Dynamics._fields)
        _check_observation(observation)
        if isinstance(observation, Mapping):
            for name in observation if reads is None else set(reads) & set(observation):
                found |= quantities.looked_at(observation[name].value)
        elif reads is None or any(name.rpartition(".")[0] == names_of(each) for name in reads):
            found |= quantities.looked_at(observation)
    return found


class Observer:
    """Makes observations of what is known of n trainees.

    Several sets of signals stand side by side in one Box. With white-box parts the observation is a dict instead, of
    each set and each part under its name.

    Args:
        observe: a name in `OBSERVATIONS` or `WHITE_BOX`, an observation of one's own, or several of them.
        dtype: of the observations: float32, or float64 for exact comparisons.
        sizes: how many "rates" and "parameters" a trainee has.

    Attributes:
        name: what is observed, by names.
        names: of the signals, in order; those of a function are its name and the numbers of its columns.
        white_box: the white-box parts.
        motion: whether the motion of layers is observed.
        untrained: whether the weights and the gradient of untrained networks are.
        of_budget: the signals that tell how long an episode is.
        space: the single observation space.

    Raises:
        TypeError: an observation that is no name, table of signals, or function.
        ValueError: an unknown name, one that is given twice, a function that does not give numbers (n, k), or a signal
            that does not give numbers (n,).
    """

    def __init__(self, observe: Observe, dtype: torch.dtype, sizes: Mapping[str, int]) -> None:
        self.name = names_of(observe)
        given = parts_of(observe)
        chosen = dict(zip((self.name,) if isinstance(self.name, str) else self.name, given, strict=True))
        if not chosen or len(chosen) < len(given):
            raise ValueError(f"observe={observe!r} must name what is observed, each once")
        for name, each in chosen.items():
            if isinstance(each, str):
                lookup({**OBSERVATIONS, **WHITE_BOX}, name, "observation", OWN)
        self._sets = {
            name: _table(OBSERVATIONS[name] if isinstance(each, str) else each, name, dtype)
            for name, each in chosen.items()
            if not (isinstance(each, str) and each in WHITE_BOX)
        }
        self.white_box = tuple(name for name in chosen if name not in self._sets)
        self.names = tuple(signal for table in self._sets.values() for signal in table.signals)
        own = not all(isinstance(each, str) and each in BUILT_IN for each in given)
        made_of = quantities_of(observe)
        self.of_budget = {name for name in self.names if "budget" in quantities_of(observe, (name,))}
        self.motion = own or bool(quantities.MOTION & made_of)
        self.untrained = own or bool(quantities.UNTRAINED & made_of)
        self._dtype = dtype
        self._numpy_dtype: Any = np.float64 if dtype == torch.float64 else np.float32
        shown: dict[str, gym.Space[Any]] = {name: self._box([table]) for name, table in self._sets.items()}
        for name in self.white_box:
            size = sizes[WHITE_BOX[name]]
            shown[name] = gym.spaces.Box(-np.inf, np.inf, (size,), self._numpy_dtype)
        tables = list(self._sets.values())
        self.space: gym.Space[Any] = gym.spaces.Dict(shown) if self.white_box else self._box(tables)

    def _box(self, tables: Sequence[_Table]) -> gym.spaces.Box:
        bounds = [bound for table in tables for bound in table.signals.values()]
        low, high = (np.array(each, self._numpy_dtype) for each in zip(*bounds, strict=True))
        return gym.spaces.Box(low, high, dtype=self._numpy_dtype)

    def observe(self, dynamics: Dynamics, white_box: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Returns the observations (n, number of signals), or a dict, inside the space whatever the dynamics are.

        Args:
            dynamics: how training goes.
            white_box: part -> (n, size), those of `white_box` among them.
        """
        if not self.white_box:
            return self._values(dynamics, list(self._sets.values()))
        shown = {name: self._values(dynamics, [table]) for name, table in self._sets.items()}
        # A diverged trainee's gradients are no numbers, which no space holds.
        return shown | {name: white_box[name].nan_to_num().to(self._dtype) for name in self.white_box}

    def outside(self, dynamics: Dynamics) -> Tensor:
        """Returns which signals (n, number of signals) are outside their bounds, or are no numbers, before clamping."""
        found = []
        for table in self._sets.values():
            for (low, high), value in zip(table.signals.values(), table.raw(dynamics), strict=True):
                found.append(~((value >= low) & (value <= high)))
        return torch.stack(found, -1)

    def _values(self, dynamics: Dynamics, tables: Sequence[_Table]) -> Tensor:
        return torch.stack([column for table in tables for column in table.columns(dynamics)], -1)


class _Table(NamedTuple):
    """An observation in columns."""

    signals: dict[str, tuple[float, float]]  # name -> bounds
    raw: Callable[[Dynamics], Sequence[Tensor]]  # dynamics -> (n,) each
    columns: Callable[[Dynamics], Sequence[Tensor]]  # the same within the bounds


def _table(observation: Observation, name: str, dtype: torch.dtype) -> _Table:
    largest = torch.finfo(dtype).max
    trial = Dynamics(*(torch.ones(2, dtype=dtype) for _ in Dynamics._fields))
    if isinstance(observation, Mapping):
        signals = list(observation.values())
        for key, signal in observation.items():
            given = signal.value(trial)
            if not isinstance(given, Tensor) or given.shape != (2,):
                raise ValueError(
                    f"signal {key!r} of observation {name!r} must give numbers (n,), (2,) for two trainees, not "
                    f"{_shape(given)}"
                )

        def raw(dynamics: Dynamics) -> Sequence[Tensor]:
            return [signal.value(dynamics) for signal in signals]

        def bounded(dynamics: Dynamics) -> Sequence[Tensor]:
            # In the dtype of the observations, in which a larger number is infinite.
            return [
                value.to(dtype).nan_to_num(nan=min(signal.high, largest)).clamp(signal.low, signal.high)
                for signal, value in zip(signals, raw(dynamics), strict=True)
            ]

        return _Table({key: (signal.low, signal.high) for key, signal in observation.items()}, raw, bounded)
    given = observation(trial)
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != 2 or not given.shape[1]:
        raise ValueError(f"observation {name!r} must give numbers (n, k), (2, k) for two trainees, not {_shape(given)}")

    def unbounded(dynamics: Dynamics) -> Sequence[Tensor]:
        return observation(dynamics).to(dtype).nan_to_num(nan=largest).unbind(1)

    def unchecked(dynamics: Dynamics) -> Sequence[Tensor]:
        return observation(dynamics).unbind(1)

    return _Table({f"{name}.{i}": (-np.inf, np.inf) for i in range(given.shape[1])}, unchecked, unbounded)


def _shape(given: object) -> tuple[int, ...] | str:
    return tuple(given.shape) if isinstance(given, Tensor) else what_is(given)
