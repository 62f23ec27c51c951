"""What agents' hyperparameters are: one number, or one per env, checked, and the values worth tuning over."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Hyperparameter = float | Sequence[float] | NDArray[Any]
"""One number for all envs, or one per env."""
Choice = str | Sequence[str] | NDArray[Any]
"""One name for all envs, or one per env."""
Hyperparameters = tuple[tuple[str, float | str | tuple[float, ...] | tuple[str, ...]], ...]
"""Checked (name, value) pairs, in the order of the factory's signature."""

P = ParamSpec("P")
A_co = TypeVar("A_co", covariant=True)


class Tunable(Protocol[P, A_co]):
    """A factory of agents that knows over which values benchmarks should tune it."""

    grid: Mapping[str, tuple[Any, ...]]
    """Hyperparameter -> values; the grid is their product."""
    extends: bool
    """Whether more rates are tried where the best one is at an end (`lrenv.benchmark.tuning.tune`)."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A_co:
        """Makes the agent."""


def tuned(*, extends: bool = True, **grid: tuple[Any, ...]) -> Callable[[Callable[P, A_co]], Tunable[P, A_co]]:
    """Attaches the default tuning grid to a factory, as `factory.grid`, and whether its rates may be extended."""

    def attach(factory: Callable[P, A_co]) -> Tunable[P, A_co]:
        tunable = cast("Tunable[P, A_co]", factory)
        tunable.grid, tunable.extends = grid, extends
        return tunable

    return attach


LIMITS: dict[str, tuple[Callable[[Array], NDArray[np.bool_]], str]] = {
    "peak": (lambda v: v >= 0, "a learning rate, 0 or more"),
    "floor": (lambda v: v >= 0, "a learning rate, 0 or more"),
    "warmup": (
        lambda v: (v >= 0) & ((v < 1) | (v == np.floor(v))),
        "a whole number of inner steps, or a fraction of the budget below 1",
    ),
    "decay_fraction": (lambda v: (v >= 0) & (v <= 1), "a fraction of the budget between 0 and 1"),
    "power": (lambda v: v > 0, "positive"),
    "discount_step": (lambda v: v >= 1, "a number of inner steps, 1 or more"),
    "discount_factor": (lambda v: (v > 0) & (v <= 1), "above 0 and at most 1"),
    "decay": (lambda v: (v > 0) & (v <= 1), "above 0 and at most 1"),
    "pct_start": (lambda v: (v >= 0) & (v <= 1), "a fraction of the budget between 0 and 1"),
    "div_factor": (lambda v: v > 0, "positive"),
    "final_div_factor": (lambda v: v > 0, "positive"),
    "period": (lambda v: v >= 1, "a number of inner steps, 1 or more"),
    "multiplier": (lambda v: v >= 1, "1 (equal periods) or more"),
    "timescale": (lambda v: v >= 1, "a number of inner steps, 1 or more"),
    "factor": (lambda v: (v > 0) & (v <= 1), "above 0 and at most 1"),
    "patience": (lambda v: (v >= 0) & (v == np.floor(v)), "a whole number of decisions, 0 or more"),
    "threshold": (lambda v: (v >= 0) & (v < 1), "a relative improvement, 0 or more and below 1"),
    "cooldown": (lambda v: (v >= 0) & (v == np.floor(v)), "a whole number of decisions, 0 or more"),
    "margin": (lambda v: v >= 0, "a difference of losses, 0 or more"),
    "pause": (lambda v: (v >= 0) & (v == np.floor(v)), "a whole number of decisions, 0 or more"),
    "window": (lambda v: (v >= 1) & (v == np.floor(v)), "a whole number of decisions, 1 or more"),
    "reset": (lambda v: (v >= 1) & (v == np.floor(v)), "a whole number, 1 or more"),
    "smoothing": (lambda v: (v >= 0) & (v <= 1), "a fraction of the run between 0 and 1"),
    "exponent": (lambda v: v > 0, "positive"),
    "fan_in": (lambda v: v >= 0, "an exponent, 0 or more"),
    "weight_decay": (lambda v: (v == 0) | ((v >= 1e-6) & (v <= 0.1)), "0, or between 1e-6 and 0.1"),
    "ema": (lambda v: (v >= 0) & (v <= 0.999), "a decay per inner step, between 0 and 0.999"),
    "initial_lr": (lambda v: v >= 0, "a learning rate, 0 or more"),
    "low": (np.isfinite, "a learning rate"),
    "high": (np.isfinite, "a learning rate"),
    "beta": (lambda v: v >= 0, "0 or more"),
    "delta": (lambda v: v >= 0, "a weight, 0 or more"),
    "adagrad_lr": (lambda v: v > 0, "positive"),
}
"""Hyperparameter -> (what is accepted, the same in words)."""
_CHOICES = {"shape": ("linear", "1-sqrt", "cosine")}
"""Hyperparameter -> the names that it may be."""
_ORDER = (("floor", "peak"), ("warmup", "timescale"), ("low", "high"), ("low", "initial_lr"), ("initial_lr", "high"))
"""Pairs of hyperparameters of which the second is not below the first."""


def checked(**given: Hyperparameter | Choice | None) -> Hyperparameters:
    """Returns the hyperparameters as hashable values.

    Raises:
        ValueError: one of them is wrong; the message says which, and what it may be.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in given.items():
        array = np.asarray(value)
        if name in _CHOICES:
            if array.ndim > 1 or array.size == 0 or not np.isin(array, _CHOICES[name]).all():
                raise ValueError(f"{name}={value!r}: {name} must be one of {', '.join(_CHOICES[name])}, or one per env")
            arrays[name] = array
            continue
        accepts, words = LIMITS[name]
        if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0:
            raise ValueError(f"{name}={value!r}: pass one number, or a flat array of one number per env")
        if not np.all(np.isfinite(array) & accepts(array)):
            raise ValueError(f"{name}={value!r}: {name} must be {words}")
        arrays[name] = array
    sizes = {name: array.size for name, array in arrays.items() if array.ndim}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"hyperparameters of unequal length {sizes}: an array holds one value per env")
    in_order(arrays, given)
    return tuple((name, tuple(array.tolist()) if array.ndim else array.item()) for name, array in arrays.items())


def in_order(arrays: Mapping[str, NDArray[Any]], shown: Mapping[str, object] | None = None) -> None:
    """Checks the hyperparameters of which one is not to be above another.

    Args:
        arrays: name -> values, of shape (n,) or ().
        shown: how an error shows them.

    Raises:
        ValueError: one is above the other.
    """
    for low, high in _ORDER:
        if {low, high} <= set(arrays) and np.any(arrays[low] > arrays[high]):
            of = arrays if shown is None else shown
            raise ValueError(f"{low}={of[low]!r} is above {high}={of[high]!r}: lower {low} or raise {high}")


def per_env(hyperparameters: Hyperparameters, n: int) -> dict[str, Array]:
    """Returns name -> array of shape () or (n,).

    Raises:
        ValueError: an array of another length.
    """
    arrays: dict[str, Any] = {
        name: np.asarray(value) if name in _CHOICES else np.asarray(value, np.float64)
        for name, value in hyperparameters
    }
    for name, array in arrays.items():
        if array.ndim and array.size != n:
            raise ValueError(
                f"{name} has {array.size} values, one per env, but this is a batch of {n}: "
                f"make {array.size} envs, or pass {name} as one number"
            )
    return arrays


def show(name: str, settings: Iterable[tuple[str, object]]) -> str:
    """Returns an agent as the call that made it, long arrays cut short."""
    return f"{name}({', '.join(f'{key}={reprlib.repr(value)}' for key, value in settings)})"
