"""What an optimizer is driven with: the agent's rate and other hyperparameters, within what the user allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lrenv.home.groups import Groups
from lrenv.training.optimizers import Hyper

Bounds = tuple[float, float]


class Rates:
    """The rate and the hyperparameters of a loop.

    Args:
        groups: of its optimizer.
        names: of the hyperparameters that the agent controls besides the rate.
        bounds: rates are kept between these two.
        shadow: whether to change nothing.
        dtype: of rates.

    Attributes:
        groups: as above.
        hyper: name -> (1, 1).
    """

    def __init__(self, groups: Groups, names: list[str], bounds: Bounds, shadow: bool, dtype: torch.dtype) -> None:
        self.groups, self._bounds, self._shadow = groups, bounds, shadow
        self._lr = torch.tensor([[groups.base]], dtype=dtype)
        self.hyper: Hyper = groups.hyper(names, dtype)
        self._held: float | None = None

    @property
    def lr(self) -> Tensor:
        """The rate (1, 1) that the optimizer is driven with now."""
        return torch.full_like(self._lr, self.groups.rate()) if self._shadow else self._lr

    def decide(self, proposed: float, hyper: Hyper) -> list[str]:
        """Carries out what the agent asks for, as far as it may be.

        Returns:
            What came in between, in words.
        """
        rate, why = self._allowed(proposed)
        if not self._shadow:
            self._lr, self.hyper = torch.full_like(self._lr, rate), hyper
            self.write()
        return why

    def write(self) -> None:
        """Sets the optimizer's rates and hyperparameters; in shadow mode it leaves them."""
        if not self._shadow:
            self.groups.set_rate(float(self._lr))
            self.groups.set_hyper({name: float(value) for name, value in self.hyper.items()})

    def _allowed(self, rate: float) -> tuple[float, list[str]]:
        """The rate that is set where the agent asks for another, and why."""
        if self._held is not None:
            return self._held, ["held"]
        low, high = self._bounds
        clipped = self.within(rate)
        if clipped < 0:
            return float(self._lr), [BELOW]
        return clipped, [f"clipped to {low:g} .. {high:g}"] if clipped != rate else []

    def within(self, rate: float) -> float:
        """The rate that is allowed and nearest to this one."""
        low, high = self._bounds
        return min(max(rate, low), high)

    def hold(self, lr: float | None) -> None:
        """Keeps a rate whatever the agent does.

        Args:
            lr: the rate; that of the moment if None.

        Raises:
            ValueError: no number of 0 or more, or not finite; or in shadow mode, which changes nothing.
        """
        if self._shadow:
            raise ValueError("shadow=True changes no rate, so there is none to hold: set the optimizer's own")
        rate = float(self._lr) if lr is None else number(lr)
        if not 0 <= rate < math.inf:
            raise ValueError(f"lr must be a rate, one number of 0 or more, not {lr!r}")
        self._held = rate
        self._lr = torch.full_like(self._lr, rate)
        self.groups.set_rate(rate)

    def release(self) -> None:
        """Lets the agent go on from the rate that was held."""
        self._held = None

    def state(self) -> dict[str, Any]:
        """What goes on from here, as plain values."""
        return {
            "lr": float(self._lr),
            "hyper": {name: float(value) for name, value in self.hyper.items()},
            "held": self._held,
            "base": self.groups.base,
            "initial": self.groups.initial(),
        }

    def restoring(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: its agent controls other hyperparameters.
        """
        lr, held = float(state["lr"]), None if state["held"] is None else float(state["held"])
        hyper = {name: torch.full_like(self._lr, value) for name, value in state["hyper"].items()}
        if set(hyper) != set(self.hyper):
            raise ValueError(f"its agent controls {sorted(hyper)} besides the rate, and here {sorted(self.hyper)}")
        base, initial = float(state["base"]), [float(x) for x in state["initial"]]

        def restore() -> None:
            self._lr, self.hyper, self._held = torch.full_like(self._lr, lr), hyper, held
            self.groups.restore(base, initial)

        return restore


BELOW = "below 0"
"""Why a rate was not set."""


def checked_bounds(bounds: tuple[float, float] | None) -> Bounds:
    """The bounds, or none.

    Raises:
        ValueError: they aren't two rates, the lower one first.
    """
    if bounds is None:
        return -math.inf, math.inf
    given = [number(bound) for bound in bounds] if isinstance(bounds, tuple | list) else []
    if not (len(given) == 2 and 0 <= given[0] <= given[1]):
        raise ValueError(f"bounds must be two rates, 0 or more, the lower one first, not {bounds!r}")
    return given[0], given[1]


def number(value: Any) -> float:
    """One real number, also of a tensor; NaN for anything else, and for truth values."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
