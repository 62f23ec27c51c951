"""The schema of the metadata of controller files: every field's type and range, checked before anything is built.

A check is a function (place of a value, value as JSON reads it) that raises a ValueError if the value doesn't fit:

    >>> record({"hidden": integer(1, 64)})("architecture", {"hidden": 65})
    Traceback (most recent call last):
    ValueError: architecture.hidden must be an integer from 1 to 64, not 65
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym
import torch

from lrenv.envs.actions import HYPERPARAMETERS, Control
from lrenv.envs.observations import Observer
from lrenv.training.optimizers import make_optimizer

Check = Callable[[str, Any], None]
"""A function (place, value) that raises a ValueError if the value doesn't fit."""

MOST = 2**53
"""The largest count; above it, not every JSON reader tells two integers apart."""
LONGEST_INTERVAL = 10**6
"""The largest interval of a controller, in inner steps; tasks are hardly that long."""
LARGEST_SIZE = 2**20
"""The largest number of inputs, units or outputs of a controller's network."""


def _check(wanted: str, accepts: Callable[[Any], bool]) -> Check:
    def check(where: str, value: Any) -> None:
        if not accepts(value):
            raise ValueError(f"{where} must be {wanted}, not {reprlib.repr(value)}")

    return check


def integer(low: int, high: int = MOST) -> Check:
    """Returns a check for integers from `low` to `high`, both included; true and false are none."""
    return _check(f"an integer from {low} to {high}", lambda x: type(x) is int and low <= x <= high)


def number(low: float, high: float) -> Check:
    """Returns a check for finite numbers above `low` and at most `high`."""
    return _check(
        f"a number above {low:g} and at most {high:g}",
        lambda x: type(x) in (int, float) and math.isfinite(x) and low < x <= high,
    )


def one_of(names: Iterable[str]) -> Check:
    """Returns a check for one of some names."""
    known = tuple(names)
    return _check(f"one of {', '.join(known)}", lambda x: isinstance(x, str) and x in known)


def optional(check: Check) -> Check:
    """Returns a check for null, or what the check accepts."""

    def either(where: str, value: Any) -> None:
        if value is not None:
            check(where, value)

    return either


def several(check: Check, least: int = 0) -> Check:
    """Returns a check for lists of at least `least` values, each of which the check accepts."""
    is_list = _check(f"a list of {least} or more", lambda x: isinstance(x, list) and len(x) >= least)

    def all_of(where: str, value: Any) -> None:
        is_list(where, value)
        for i, x in enumerate(value):
            check(f"{where}[{i}]", x)

    return all_of


def record(needed: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """Returns a check for objects with the needed fields.

    Args:
        needed: field -> its check.
        known: optional field -> its check. If this is given, any other fields are accepted unchecked; if it is None, no
            other fields are accepted.
    """
    is_object = _check("an object", lambda x: isinstance(x, dict))

    def check(where: str, value: Any) -> None:
        is_object(where, value)
        for name in needed:
            if name not in value:
                raise ValueError(f"{where} lacks {name}")
        for name, x in value.items():
            if name in needed:
                needed[name](f"{where}.{name}", x)
            elif known is None:
                raise ValueError(f"{where} has a field {reprlib.repr(name)}, which is not known; it has {list(needed)}")
            elif name in known:
                known[name](f"{where}.{name}", x)

    return check


BOOLEAN = _check("true or false", lambda x: isinstance(x, bool))
TEXT = _check("text", lambda x: isinstance(x, str))
NAME = _check("a name of at most 100 characters", lambda x: isinstance(x, str) and 0 < len(x) <= 100)
LOSS = _check("a number or null", lambda x: x is None or type(x) in (int, float))
"""The check of a measured loss; that of a run that diverged is NaN, infinity or null."""
OBJECT = record({}, {})

FACTS: dict[str, Check] = {
    "versions": _check(
        "an object of texts", lambda x: isinstance(x, dict) and all(isinstance(text, str) for text in x.values())
    ),
    "view": OBJECT,
    "architecture": OBJECT,
    "settings": OBJECT,
    "command": TEXT,
    "episodes": integer(0),
    "val_loss": LOSS,
    "best_val_loss": LOSS,
    "iteration": integer(0),
    "best_iteration": optional(integer(0)),
    "runs": record({"training": integer(0), "selection": integer(0)}),
    "selection_runs": integer(0),
    "finished": BOOLEAN,
}
"""Field -> its check, in any file: how its controller was trained, and how far its training is.

Agents and trainings may write other fields beside these."""
KINDS: dict[str, Check] = {
    "controller": record({"agent": NAME}, FACTS),
    "checkpoint": record({"settings": OBJECT, "iteration": integer(0)}, FACTS),
}
"""Kind of file (an agent, or the state of a training) -> the check of its metadata."""

_NAMES = _check(
    "a name or a list of names",
    lambda x: all(isinstance(name, str) and len(name) <= 100 for name in (x if isinstance(x, list) else [x])),
)
_VIEW = record(
    {
        "control": _NAMES,
        "observe": _NAMES,
        "interval": optional(integer(1, LONGEST_INTERVAL)),
        "optimizer": optional(NAME),
    }
)


def check_view(where: str, value: Any) -> None:
    """Checks the fields of a `lrenv.controllers.agent.View`: their names must exist and be combinable.

    Raises:
        ValueError: they don't.
    """
    _VIEW(where, value)
    spaces(view_settings(value), rates=1)


def view_settings(view: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a view from JSON, in which tuples are lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in view.items()}


def spaces(view: Mapping[str, Any], rates: int) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Returns the single observation and action spaces of environments with this view.

    Args:
        view: the fields of a view.
        rates: K, learning rates per trainee where the control's granularity makes several.

    Raises:
        ValueError: names are unknown, or can't be combined.
    """
    optimizer = view["optimizer"]
    made = None if optimizer is None else make_optimizer(f"sgd{optimizer}" if optimizer.startswith("+") else optimizer)
    # A task's own optimizer may read any hyperparameter.
    hyper = tuple(HYPERPARAMETERS) if made is None or optimizer.startswith("+") else tuple(made.hyper)
    sizes = {"trainee": 1} | dict.fromkeys(("layer", "tensor", "parameter"), rates)
    observer = Observer(view["observe"], torch.float32, {"rates": rates, "parameters": rates})
    return observer.space, Control(view["control"], sizes, hyper).space
