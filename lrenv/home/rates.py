"""What an optimizer is driven with: the agent's rates and other hyperparameters, within what the user allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lrenv.home.groups import Groups
from lrenv.training.optimizers import Hyper

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)


class Rates:
    """The rates of a loop, one for each of K pieces of its network, and the hyperparameters.

    Args:
        groups: of its optimizer.
        names: of the hyperparameters that the agent controls besides the rate.
        bounds: rates are kept between these two.
        shadow: whether to change nothing.
        dtype: of rates.

    Attributes:
        groups: as above.
    """

    def __init__(self, groups: Groups, names: list[str], bounds: Bounds, shadow: bool, dtype: torch.dtype) -> None:
        self.groups, self._bounds, self._shadow, self._dtype = groups, bounds, shadow, dtype
        self._lr = [groups.base] * (1 if groups.layers is None else groups.layers.number)
        self._hyper: Hyper = groups.hyper(names, dtype)
        self._held: list[float] | None = None

    @property
    def lr(self) -> Tensor:
        """The rates (1, K) that the optimizer is driven with now."""
        return torch.tensor([self._now], dtype=self._dtype, device="cpu")

    @property
    def _now(self) -> list[float]:
        return self.groups.pieces_now() if self._shadow else list(self._lr)

    @property
    def held(self) -> bool:
        """Whether the user keeps them."""
        return self._held is not None

    @property
    def hyper(self) -> Hyper:
        """The hyperparameters that it is driven with now, name -> (1, 1)."""
        return self.groups.hyper(self._hyper, self._dtype) if self._shadow else self._hyper

    def decide(self, proposed: Sequence[float], hyper: Hyper) -> list[str]:
        """Carries out what the agent asks for, as far as it may be.

        Args:
            proposed: the rates (K).
            hyper: name -> (1, 1).

        Returns:
            What came in between, in words.
        """
        rates, why = self._allowed(proposed)
        if not self._shadow:
            self._lr, self._hyper = rates, hyper
            self.write()
        return why

    def write(self) -> None:
        """Sets the optimizer's rates and hyperparameters; in shadow mode it leaves them."""
        if not self._shadow:
            self.groups.set_rates(self._lr)
            self.groups.set_hyper({name: float(value) for name, value in self._hyper.items()})

    def complete(self) -> bool:
        """Sets the rates of groups that don't have those that were set, and tells whether there were such."""
        if self._shadow or not self.groups.complete(self._lr):
            return False
        self.groups.set_hyper({name: float(value) for name, value in self._hyper.items()})
        return True

    def _allowed(self, rates: Sequence[float]) -> tuple[list[float], list[str]]:
        """The rates that are set where the agent asks for others, and why."""
        if self._held is not None:
            return self._held, ["held"]
        low, high = self._bounds
        clipped = [self.within(rate) for rate in rates]
        kept = [now if rate < 0 else rate for rate, now in zip(clipped, self._lr, strict=True)]
        why = [BELOW] if kept != clipped else []
        return kept, why + ([f"clipped to {low:g} .. {high:g}"] if clipped != list(rates) else [])

    def within(self, rate: float) -> float:
        """The rate that is allowed and nearest to this one."""
        low, high = self._bounds
        return min(max(rate, low), high)

    def hold(self, lr: float | Sequence[float] | None) -> None:
        """Keeps rates whatever the agent does.

        Args:
            lr: one rate for all pieces, or one for each; those of the moment if None.

        Raises:
            ValueError: no numbers of 0 or more, not finite, or too many; or in shadow mode, which changes nothing.
        """
        if self._shadow:
            raise ValueError("shadow=True changes no rate, so there is none to hold: set the optimizer's own")
        number_of = len(self._lr)
        given = self._lr if lr is None else list(lr) if isinstance(lr, list | tuple) else [lr] * number_of
        rates = [number(rate) for rate in given]
        if len(rates) != number_of or not all(0 <= rate < math.inf for rate in rates):
            each = "" if number_of == 1 else f", or {number_of} of them, one for each piece"
            raise ValueError(f"lr must be a rate, one number of 0 or more{each}, not {lr!r}")
        self._held = self._lr = rates
        self.groups.set_rates(rates)

    def keep_within(self) -> None:
        """Brings the highest of the optimizer's own rates between the bounds, before the agent has decided."""
        if self._shadow or self.held or self._bounds == ANY:
            return
        highest = self.groups.highest(self.groups.rates())
        if highest and (allowed := self.within(highest)) != highest:
            self.groups.scale(allowed / highest)

    def release(self) -> None:
        """Lets the agent go on from the rate that was held."""
        self._held = None

    def state(self) -> dict[str, Any]:
        """What goes on from here, as plain values."""
        return {
            "lr": self._now,
            "hyper": {name: float(value) for name, value in self.hyper.items()},
            "held": None if self._held is None else list(self._held),
            "base": self.groups.base,
            "initial": self.groups.initial(),
        }

    def restoring(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: its agent controls other hyperparameters.
        """
        held = None if state["held"] is None else [float(x) for x in state["held"]]
        lr = [float(x) for x in state["lr"]]
        for rates in (lr, held or lr):
            if len(rates) != len(self._lr):
                raise ValueError(f"it has {len(rates)} rates, and here are {len(self._lr)}")
        hyper = {
            name: torch.full((1, 1), value, dtype=self._dtype, device="cpu") for name, value in state["hyper"].items()
        }
        if set(hyper) != set(self._hyper):
            raise ValueError(f"its agent controls {sorted(hyper)} besides the rate, and here {sorted(self._hyper)}")
        base, initial = float(state["base"]), [float(x) for x in state["initial"]]

        def restore() -> None:
            self._lr, self._hyper, self._held = lr, hyper, held
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
        return ANY
    given = [number(bound) for bound in bounds] if isinstance(bounds, tuple | list) else []
    if not (len(given) == 2 and 0 <= given[0] <= given[1]):
        raise ValueError(f"bounds must be two rates, 0 or more, the lower one first, not {bounds!r}")
    return given[0], given[1]


def number(value: Any) -> float:
    """One real number, also of a tensor; NaN for anything else, and for truth values."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
