"""Notices which steps an optimizer took: a GradScaler skips some, and accumulation calls for fewer than batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any
from weakref import WeakMethod

from torch import Tensor


class Steps:
    """Notices calls of `optimizer.step`, as torch's schedulers do: the method of this one instance is wrapped.

    Hooks of the optimizer's class would do, but `torch.compile` switches them off for the whole process.

    Args:
        optimizer: any object; one without a method `step` is taken to step whenever it is asked.
        before: called before each step.

    Attributes:
        taken: whether a step was taken since this was last set to False.
        found_inf: of the last step of a fused optimizer under a GradScaler: not 0 if it left the weights alone. It is
            on the device of the weights.
    """

    def __init__(self, optimizer: Any, before: Callable[[], None]) -> None:
        self.found_inf: Tensor | None = None
        self.taken = False
        self.noticed = callable(getattr(optimizer, "step", None))
        if self.noticed:
            _wrap(optimizer, WeakMethod(before), WeakMethod(self._after))

    def _after(self, found_inf: Any) -> None:
        self.taken = True
        self.found_inf = found_inf if isinstance(found_inf, Tensor) else None

    def since(self) -> bool:
        """Whether a step was taken since the last call of this method."""
        taken, self.taken = self.taken or not self.noticed, False
        return taken


def _wrap(optimizer: Any, before: WeakMethod[Any], after: WeakMethod[Any]) -> None:
    """Has the optimizer tell of its steps, as long as what listens is there."""
    step = optimizer.step

    @wraps(step)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (listener := before()) is not None:
            listener()
        result = step(*args, **kwargs)
        if (listener := after()) is not None:
            listener(getattr(self, "found_inf", None))
        return result

    # A bound method: torch's schedulers, which wrap it again, look for its function.
    optimizer.step = MethodType(told, optimizer)
