"""Which steps an optimizer took, and with which losses: a GradScaler skips some, accumulation calls for fewer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from numbers import Real
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakMethod

import torch
from torch import Tensor

from lrenv.lookup import what_is

LISTENERS = "lrenv_listeners"
"""The attribute of a wrapped `optimizer.step` with its `Listeners`; whoever wraps it further by `wraps` copies that."""


class Steps:
    """Notices calls of `optimizer.step`, as torch's schedulers do: the method of this one instance is wrapped.

    However many listen, it is wrapped once, and when the last of them is gone, it is as it was. Hooks of the
    optimizer's class would do, but `torch.compile` switches them off for the whole process.

    Args:
        optimizer: any object; one without a method `step` is taken to step whenever it is asked.
        before: called before each step.
        look: called when the gradient of the step is there: before it, or where a closure computes it, within the step.
        looks: tells whether `look` has something to do at the step to come.

    Attributes:
        taken: the steps that were taken since the last call of `since`.
        found_inf: of the last step of a fused optimizer under a GradScaler: not 0 if it left the weights alone. It is
            on the device of the weights.
    """

    def __init__(
        self, optimizer: Any, before: Callable[[], None], look: Callable[[], None], looks: Callable[[], bool]
    ) -> None:
        self.found_inf: Tensor | None = None
        self.taken = 0
        self.noticed = callable(getattr(optimizer, "step", None))
        if self.noticed:
            (listeners_of(optimizer) or Listeners(optimizer)).add(before, look, looks, self._after)

    def _after(self, found_inf: Any) -> None:
        self.taken += 1
        self.found_inf = found_inf if isinstance(found_inf, Tensor) else None

    def skipped(self) -> bool:
        """Whether a fused optimizer left the weights alone at its last step; this waits for the device."""
        return self.found_inf is not None and bool(self.found_inf)

    def since(self) -> int:
        """How many steps were taken since the last call of this method."""
        taken, self.taken = self.taken if self.noticed else 1, 0
        return taken


class Listener(NamedTuple):
    """One who is told of steps, as long as it is there."""

    before: WeakMethod[Any]  # called before each step
    look: WeakMethod[Any]  # called when its gradient is there
    looks: WeakMethod[Any]  # tells whether `look` has something to do
    after: WeakMethod[Any]  # called after the step, with the optimizer's `found_inf`


class Listeners:
    """Those who are told of an optimizer's steps. Its method is wrapped as this is made, until the last one is gone."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._own = optimizer, vars(optimizer).get("step")
        self._held: list[Listener] = []
        step = optimizer.step

        # Compilers that trace the loop's step leave these out: what they do takes decisions, and is no part of a graph.
        trains, before, look, after = map(torch.compiler.disable, (self._trains, self._before, self.look, self._after))

        @wraps(step)
        def told(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            closure = args[0] if args else kwargs.get("closure")
            if not trains(closure):
                return step(*args, **kwargs)
            before()
            if callable(closure):
                closure = _heard(optimizer, closure, self)
                args, kwargs = ((closure, *args[1:]), kwargs) if args else (args, {**kwargs, "closure": closure})
            else:
                look()
            result = step(*args, **kwargs)
            after(getattr(optimizer, "found_inf", None))
            return result

        setattr(told, LISTENERS, self)
        # A bound method: torch's schedulers, which wrap it again, look for its function.
        self._told = optimizer.step = MethodType(told, optimizer)

    def _trains(self, closure: Any) -> bool:
        """Whether this step trains.

        `torch.distributed.checkpoint` creates an optimizer's state by a step without a closure, with rates and
        gradients of 0, which is not told.
        """
        groups = self._optimizer.param_groups
        if closure is not None or getattr(self._optimizer, "state", True) or any(group["lr"] != 0 for group in groups):
            return True
        gradients = (p.grad for group in groups for p in group["params"] if p.grad is not None)
        return any(bool(getattr(x, "_local_tensor", x).abs().sum()) for x in gradients)

    def _before(self) -> None:
        for listener in reversed(tuple(self._held)):
            if (found := listener.before()) is not None:
                found()

    def looks(self) -> bool:
        """Whether anybody looks at the gradient of the step to come."""
        return any(looks is not None and looks() for looks in (listener.looks() for listener in self._held))

    def look(self) -> None:
        """Has them look at it."""
        for listener in reversed(tuple(self._held)):
            if (found := listener.look()) is not None:
                found()

    def _after(self, found_inf: Any) -> None:
        for listener in tuple(self._held):
            if (found := listener.after()) is not None:
                found(found_inf)

    def add(
        self,
        before: Callable[[], None],
        look: Callable[[], None],
        looks: Callable[[], bool],
        after: Callable[[Any], None],
    ) -> None:
        """Has these methods called, as long as their objects are there."""
        first = WeakMethod(before, self._forget)
        self._held.append(Listener(first, WeakMethod(look), WeakMethod(looks), WeakMethod(after)))

    def there(self) -> list[Any]:
        """The objects whose methods are called, earlier ones first."""
        found = (listener.before() for listener in self._held)
        return [method.__self__ for method in found if method is not None]

    def _forget(self, _: Any) -> None:
        self._held = [listener for listener in self._held if listener.before() is not None]
        if self._held or vars(self._optimizer).get("step") is not self._told:  # somebody has wrapped it further
            return
        if self._own is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own


def _heard(optimizer: Any, closure: Callable[[], Any], listeners: Listeners) -> Callable[[], Any]:
    """Wraps a closure so that those who look at its gradient do so once, right after its first call.

    L-BFGS reads its rate before that. For it, the closure is called ahead, and not again for the same weights.
    """
    if not listeners.looks():
        return closure
    if isinstance(optimizer, torch.optim.LBFGS):
        with torch.enable_grad():
            loss = closure()
        listeners.look()
        weights = _versions(optimizer)
        return lambda: loss if _versions(optimizer) == weights else closure()
    called = False

    def heard() -> Any:
        nonlocal called
        loss = closure()
        if not called:
            called = True
            listeners.look()
        return loss

    return heard


def _versions(optimizer: Any) -> list[int]:
    """How often each of the weights was changed."""
    return [p._version for group in optimizer.param_groups for p in group["params"]]


def listeners_of(optimizer: Any) -> Listeners | None:
    """Those who are told of its steps; None for an optimizer that is not wrapped."""
    found: Listeners | None = getattr(getattr(optimizer, "step", None), LISTENERS, None)
    return found


class Losses:
    """The losses of the steps since the last decision, on their device, and which of the steps came to nothing."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._found_inf: list[Tensor | None] = []

    def add(self, loss: Tensor | None, found_inf: Tensor | None) -> None:
        """Appends a step.

        Args:
            loss: None if nobody looks at it.
            found_inf: as in `Steps`.
        """
        if loss is not None:
            self._losses.append(loss)
        if found_inf is not None or self._found_inf:
            self._found_inf.append(found_inf)

    @property
    def unsettled(self) -> int:
        """The steps of which it isn't known yet whether they were taken."""
        return len(self._found_inf)

    def settle(self) -> int:
        """Drops the steps that a fused optimizer skipped, and tells how many. It may wait for the device."""
        taken = [found is None or not bool(found) for found in self._found_inf]
        self._found_inf = []
        if self._losses:
            counted = [True] * (len(self._losses) - len(taken)) + taken
            self._losses = [x for x, kept in zip(self._losses, counted, strict=True) if kept]
        return taken.count(False)

    def stacked(self) -> Tensor | None:
        """The losses (k,); None if there are none."""
        return torch.stack([x.to(self._losses[0].device) for x in self._losses]) if self._losses else None

    def restore(self, losses: Tensor | None) -> None:
        """Goes on with the losses (k,), or without any."""
        self._losses, self._found_inf = [] if losses is None else [x.clone() for x in losses.unbind()], []


def loss_of(loss: Any) -> Tensor:
    """A loss (), in memory of its own: the next step may overwrite that of the loop's.

    Raises:
        TypeError: no number.
        ValueError: there is none.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        own = loss.detach().clone()
        return own if own.ndim == 0 else own.reshape(())
    if isinstance(loss, Real) and not isinstance(loss, bool):
        return torch.tensor(float(loss), dtype=torch.float64)
    if loss is None:
        raise ValueError("the agent looks at training losses: call step(loss) with the loss of the batch")
    held = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else what_is(loss)
    raise TypeError(f"step takes the loss of a batch, one number, not {held}")
