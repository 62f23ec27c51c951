"""What is measured on validation data, by the functions that environments use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrenv.lookup import lookup, what_is
from lrenv.runtime.ambient import without_gradients
from lrenv.training.losses import LOSSES
from lrenv.training.objective import PROBE

Evaluate = Callable[[], Any]
"""() -> the validation loss, a number or a tensor of one; or (logits, targets)."""


class Validated(NamedTuple):
    """What was measured on validation data."""

    loss: Tensor  # (1,)
    predictions: Tensor  # (1, k, p); a 0 where they aren't needed


class Validation:
    """Measures on validation data what environments measure there.

    Args:
        evaluate: gives the loss, or logits (m, ...) and targets (m, ...).
        loss: of logits and targets, a name in `lrenv.training.losses.LOSSES`.
        module: is in evaluation mode meanwhile; None leaves that to `evaluate`.
        target_std: the standard deviation of the training targets where they are numbers, the unit in which predictions
            are compared; that of the validation targets if None.
        predictions: whether logits are needed; the loss alone is measured if not.

    Raises:
        ValueError: an unknown loss.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        loss: str,
        module: nn.Module | None,
        target_std: float | Tensor | None,
        predictions: bool,
    ) -> None:
        self._evaluate, self._loss, self._module = evaluate, lookup(LOSSES, loss, "loss"), module
        self._std = None if target_std is None else torch.as_tensor(target_std)
        self._needed = predictions

    def __call__(self, like: Tensor) -> Validated:
        """Measures, with the dtype and on the device of `like`.

        Raises:
            TypeError: `evaluate` gives something else than it should.
            ValueError: it gives a loss alone where predictions are observed.
        """
        with torch.no_grad(), _evaluation_mode(self._module):
            given = _whole(self._evaluate())
        if isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(x, Tensor) for x in given):
            return self._of_outputs(given[0], given[1], like)
        loss = given if isinstance(given, Tensor) else torch.tensor(float(given)) if isinstance(given, Real) else None
        if loss is None or loss.numel() != 1:
            held = f"a tensor of shape {tuple(loss.shape)}" if loss is not None else what_is(given)
            raise TypeError(f"evaluate must give a loss, which is one number, or a pair (logits, targets), not {held}")
        if self._needed:
            raise ValueError(
                "this agent observes how predictions change, so evaluate must give (logits, targets) and not the loss "
                "alone"
            )
        return Validated(loss.detach().reshape(1).to(like), like.new_zeros(1, 1, 1))

    @without_gradients
    def _of_outputs(self, outputs: Tensor, targets: Tensor, like: Tensor) -> Validated:
        outputs, targets = outputs.detach().to(like)[None], targets.to(like.device)[None]
        if targets.is_floating_point():
            targets = targets.to(like.dtype)
            if self._std is None:
                std = targets[0].double().std(0, correction=0)
                self._std = torch.where(std > 0, std, 1.0)
        std = (torch.ones(()) if self._std is None else self._std).to(like)
        try:
            loss = self._loss.per_example(outputs, targets).mean(1)
        except (RuntimeError, ValueError, IndexError) as error:
            raise TypeError(
                f"evaluate gives logits {tuple(outputs.shape[1:])} and targets {tuple(targets.shape[1:])}, which loss "
                f"{self._loss.name!r} can't take ({error}): classes are the last axis of logits, and their targets "
                f"int64; name another loss by loss=, one of {', '.join(LOSSES)}, or give the loss alone"
            ) from error
        if not self._needed:
            return Validated(loss, like.new_zeros(1, 1, 1))
        probed = max(1, PROBE // math.prod(outputs.shape[2:-1]))
        return Validated(loss, self._loss.predictions(outputs[:, :probed], std))


def _whole(given: Any) -> Any:
    """What `evaluate` gave, with DTensors gathered."""
    if isinstance(given, tuple | list):
        return tuple(map(_whole, given))
    return given.full_tensor() if hasattr(given, "full_tensor") else given


@contextmanager
def _evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards each part is in the mode that it was in."""
    training = [] if module is None else [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
