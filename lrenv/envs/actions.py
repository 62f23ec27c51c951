"""Controls: how an action sets the learning rate and, where asked for, momentum and weight decay.

A control is named `kind` or `kind/granularity`:

| kind | action | the rate becomes |
|---|---|---|
| `scale` | Box[-1, 1] | lr * 2 ** a (Xu et al. 2019, section 2.2) |
| `scale10` | Box[-1, 1] | lr * 10 ** a; likewise any decimal number above 1, such as `scale1.5` |
| `set` | Box[-1, 1] | a place on a log scale between the bounds |
| `set-raw` | any number | a |
| `discrete` | 0, 1, 2 | lr / 2, lr, lr * 2 |

There is one rate per trainee, or one per `layer` (a module that holds parameters), `tensor`, or `parameter`.
`momentum`, `weight_decay`, and `ema`, the decay of an average (Box[-1, 1]), can be controlled together with a Box
control: `("scale", "momentum")`.

`tests/reference/xu2019.py` has the control `scale` in NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.lookup import lookup
from lrenv.training.optimizers import Hyper

FACTOR = 2.0
"""k: the most that one action of `scale` changes the rate by, where its name gives no other factor."""
BOUNDS = (1e-7, 10.0)
"""`scale`, `set` and `discrete` keep the rate between these. `set-raw` is free."""
LARGEST_FACTOR = BOUNDS[1] / BOUNDS[0]
"""An action of `scale` with this factor leads from any rate to any other."""
Rule = Callable[[Tensor, Tensor], Tensor]
"""(action, rates before) -> rates; all (n, K)."""


def _scale(action: Tensor, lr: Tensor, factor: float = FACTOR) -> Tensor:
    return (lr * factor**action).clamp(*BOUNDS)


def _set(action: Tensor, lr: Tensor) -> Tensor:
    low, high = BOUNDS
    return low * (high / low) ** ((action + 1) / 2)


def _set_raw(action: Tensor, lr: Tensor) -> Tensor:
    return action.clone()  # it may be the memory of the agent's own array


def _discrete(action: Tensor, lr: Tensor) -> Tensor:
    return _scale(action - 1, lr)


def momentum(action: Tensor) -> Tensor:
    """Returns the momentum mu, or decay of an average: 1 - mu lies on a log scale between 1 (none) and 1e-3."""
    return 1 - 10.0 ** (-1.5 * (action + 1))


def weight_decay(action: Tensor) -> Tensor:
    """Returns the weight decay of an action in [-1, 1], on a log scale between 1e-6 and 1e-1, and none at -1."""
    return torch.where(action <= -1, 0.0, 10.0 ** (2.5 * (action + 1) - 6))


def action_of(name: str, value: Tensor) -> Tensor:
    """Returns the action in [-1, 1] that sets `name`, a key of `HYPERPARAMETERS`, to this value or the nearest one."""
    if name in ("momentum", "ema"):
        return (-(1 - value).log10() / 1.5 - 1).clamp(-1, 1)
    # At -1 there is no weight decay: the least, 1e-6, is a little above it, also in the precision of actions.
    action = ((value.log10() + 6) / 2.5 - 1).clamp(1e-6 - 1, 1)
    return torch.where(value < 5e-7, -1.0, action)


KINDS: dict[str, Rule] = {
    "scale": _scale,
    "set": _set,
    "set-raw": _set_raw,
    "discrete": _discrete,
}
"""Kind -> how its actions change rates; `scale` with a factor is made from its name."""
HYPERPARAMETERS: dict[str, Callable[[Tensor], Tensor]] = {
    "momentum": momentum,
    "weight_decay": weight_decay,
    "ema": momentum,
}
"""Hyperparameter that can be controlled together with the rate -> (action (n, 1) -> values (n, 1))."""


def is_relative(control: str | tuple[str, ...]) -> bool:
    """Returns whether rates under this control depend on where they started."""
    names = (control,) if isinstance(control, str) else control
    return any(_kind_and_factor(name.partition("/")[0])[0] in ("scale", "discrete") for name in names)


def _kind_and_factor(name: str) -> tuple[str, str]:
    """The kind that a control names, and the factor behind `scale` as it is written; "" where there is none."""
    found = re.fullmatch(r"scale([-+]?[.0-9].*)", name, re.DOTALL)
    return ("scale", found[1]) if found else (name, "")


def _rule(name: str) -> tuple[str, Rule]:
    """The kind that a control without its granularity names, and its rule.

    Raises:
        ValueError: there is no such kind, or the factor is none.
    """
    kind, written = _kind_and_factor(name)
    if not written:
        hint = "; scale with a factor of its own is written scale10, for lr * 10 ** a"
        return kind, lookup(KINDS, kind, "control", hint)
    factor = float(written) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", written) else 0.0
    if not 1 < factor <= LARGEST_FACTOR:
        raise ValueError(
            f"control {name!r}: the factor behind scale must be a decimal number above 1 and at most "
            f"{LARGEST_FACTOR:.0f}, as in scale10 or scale1.5"
        )
    return kind, partial(_scale, factor=factor)


class Control:
    """The action space of an environment, and what actions do.

    Args:
        control: a control's name, or a tuple with one of them and some of `HYPERPARAMETERS`.
        sizes: granularity -> K, how many rates it makes a trainee; without one in the control's name, "trainee".
        hyper: the hyperparameters that the optimizer reads.
        dtype: of Box actions.

    Attributes:
        name: the control, as it was asked for.
        granularity: what has a rate of its own.
        rates: K, learning rates per trainee.
        hyperparameters: those that are controlled, too, in the order of their columns in an action.
        space: the single action space.

    Raises:
        ValueError: an unknown or contradictory control.
    """

    def __init__(
        self,
        control: str | tuple[str, ...],
        sizes: Mapping[str, int],
        hyper: Collection[str],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = control if isinstance(control, str) else tuple(control)
        names = [control] if isinstance(control, str) else list(control)
        self.hyperparameters = [name for name in names if name in HYPERPARAMETERS]
        main = [name for name in names if name not in HYPERPARAMETERS]
        if len(main) != 1:
            raise ValueError(f"control={control!r} must name one way to set the rate, one of {', '.join(KINDS)}")
        if twice := [name for name in self.hyperparameters if names.count(name) > 1]:
            raise ValueError(f"control={control!r} names {twice[0]} more than once; name each once")
        kind, slash, granularity = main[0].partition("/")
        self.granularity = granularity if slash else "trainee"
        self._kind, self._rates = _rule(kind)
        self.rates = lookup(sizes, self.granularity, f"granularity of control {kind!r}")
        for name in self.hyperparameters:
            if name not in hyper:
                raise ValueError(f"control {name!r}: this optimizer has no {name}; it has {', '.join(hyper) or 'none'}")
        if kind == "discrete" and self.hyperparameters:
            raise ValueError(
                f"control 'discrete' can't be combined with {', '.join(self.hyperparameters)}; use 'scale' or 'set'"
            )
        self.space = self._space(np.float64 if dtype == torch.float64 else np.float32)
        self._dtype = dtype

    def _space(self, dtype: Any) -> gym.Space[Any]:
        if self._kind == "discrete":
            return gym.spaces.Discrete(3) if self.rates == 1 else gym.spaces.MultiDiscrete([3] * self.rates)
        bound = np.inf if self._kind == "set-raw" else 1.0
        high = np.array([bound] * self.rates + [1.0] * len(self.hyperparameters), dtype)
        return gym.spaces.Box(-high, high, dtype=dtype)

    def check(self, actions: Any, n: int) -> NDArray[Any]:
        """Returns the actions of n trainees as an array (n, K + hyperparameters) of the space's dtype.

        Raises:
            ValueError: wrong shape, no numbers, not finite in the space's dtype, or outside the space.
        """
        if getattr(actions, "requires_grad", False):
            raise ValueError("actions must be an array; a gradient doesn't pass through here, so detach the tensor")
        try:
            array = np.asarray(actions)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
            raise ValueError(f"actions must be an array, and can't be made one: {error}") from error
        shape = (n, *(self.space.shape or ()))
        if array.shape != shape:
            raise ValueError(f"actions must have shape {shape} (environments first), not {array.shape}")
        if array.dtype.kind not in "fiub" or (self._kind == "discrete" and array.dtype.kind not in "iu"):
            kind = "integers" if self._kind == "discrete" else "numbers"
            raise ValueError(f"actions must be {kind}, not of dtype {array.dtype}")
        with np.errstate(over="ignore"):  # said below
            rows = array.astype(self.space.dtype).reshape(n, -1)
        if not np.isfinite(rows).all():
            broken = np.flatnonzero(~np.isfinite(rows).all(1)).tolist()
            raise ValueError(
                f"actions of environments {broken} are NaN or infinite in {rows.dtype}; the agent has broken down"
            )
        if isinstance(self.space, gym.spaces.Box):
            low, high = self.space.low, self.space.high
        else:
            low, high = np.zeros(rows.shape[1]), np.full(rows.shape[1], 2)
        outside = ((rows < low) | (rows > high)).any(1)
        if outside.any():
            raise ValueError(
                f"actions of environments {np.flatnonzero(outside).tolist()} lie outside {self.space}; "
                "clip or squash them"
            )
        return rows

    def apply(self, action: Tensor, lr: Tensor, hyper: Hyper) -> tuple[Tensor, Hyper]:
        """Returns the rates and hyperparameters that actions lead to.

        Args:
            action: (n, A), K columns for the rates and one for each controlled hyperparameter.
            lr: (n, K) rates before.
            hyper: hyperparameter -> (n, 1) before.
        """
        action = action.to(lr.dtype)
        rates = self._rates(action[:, : self.rates], lr)
        others = {
            name: HYPERPARAMETERS[name](action[:, self.rates + i, None]) for i, name in enumerate(self.hyperparameters)
        }
        return rates, hyper | others
