"""Which quantities of training an observation depends on: what is measured for it, and what it tells an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor

from lrenv.training.dynamics import Dynamics, Untrained

TRAINING = {"train_loss", "previous_train_loss", "initial_train_loss", "loss_spread"}
PREDICTIONS = {"prediction_variance", "prediction_change"}
VALIDATION = {"val_loss", "previous_val_loss", "initial_val_loss"} | PREDICTIONS
MOTION = {"first_update", "last_update", "first_cosine", "last_cosine"}
"""What takes passes over whole layers."""
LAST = {"weight_mean", "weight_variance"}
UNTRAINED = set(Untrained._fields)
"""What takes a gradient as an episode begins."""


class _Recorder:
    """Stands for a `Dynamics` and notes which quantities are looked at; whoever treats it as a tuple looks at all."""

    def __init__(self) -> None:
        self._dynamics = Dynamics(*(torch.ones(2) for _ in Dynamics._fields))
        self.looked_at: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.looked_at |= {name} if name in Dynamics._fields else set(Dynamics._fields)
        return getattr(self._dynamics, name)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._replace())

    def __getitem__(self, index: Any) -> Any:
        return self._replace()[index]

    def __len__(self) -> int:
        return len(self._dynamics)


def looked_at(value: Callable[[Dynamics], Tensor]) -> set[str]:
    """Returns the quantities that a function looks at in a trial, and those that it names, where it looks at others."""
    recorder = _Recorder()
    try:
        value(cast(Dynamics, recorder))
    except Exception:  # it takes nothing but a true tuple, such as torch.stack does
        return set(Dynamics._fields)
    return recorder.looked_at | _named(getattr(value, "__code__", None))


def _named(code: CodeType | None) -> set[str]:
    """The quantities that the code of a function names, and that of functions within."""
    if code is None:
        return set()
    within = (_named(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(Dynamics._fields).intersection(code.co_names).union(*within)
