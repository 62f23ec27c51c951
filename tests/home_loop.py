"""A small loop as a user would write it, which tests drive by `lrenv.LRController`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrenv.home.controller import LRController

T = 24


class Loop:
    """A small regression, trained as a user would."""

    def __init__(self, groups: Sequence[float] = (0.1,), kind: Any = torch.optim.SGD, **options: Any) -> None:
        torch.manual_seed(0)
        self.made = [0.3] * len(groups), kind, options
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        parts = list(self.model.parameters())
        shares = [parts] if len(groups) == 1 else [parts[:2], parts[2:]]
        self.optimizer = kind([{"params": p, "lr": lr} for p, lr in zip(shares, groups, strict=True)], **options)
        self.x, self.y = torch.randn(T * 4, 3), torch.randn(T * 4, 1)
        self.at = 0

    def validate(self) -> Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def step(self, *schedulers: Any, loss: float = 1.0) -> list[float]:
        """One step; gives the rates that it was trained with."""
        i = 4 * (self.at % T)
        batch = nn.functional.mse_loss(self.model(self.x[i : i + 4]), self.y[i : i + 4])
        self.optimizer.zero_grad()
        batch.backward()
        self.optimizer.step()
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        for scheduler in schedulers:
            scheduler.step(*((batch * loss,) if isinstance(scheduler, LRController) else ()))
        self.at += 1
        return rates

    def run(self, controller: Any, steps: int = T) -> list[list[float]]:
        return [self.step(controller) for _ in range(steps)]


def resumed(
    make: Callable[[Loop], LRController], loop: Loop, controller: LRController, optimizer_first: bool
) -> tuple[Loop, LRController]:
    """Another loop that goes on from a checkpoint, which is read back as plain weights."""
    file = io.BytesIO()
    torch.save({"c": controller.state_dict(), "o": loop.optimizer.state_dict(), "m": loop.model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    groups, kind, options = loop.made
    other = Loop(groups, kind, **options)
    other.at = loop.at
    second = make(other)
    if optimizer_first:
        other.optimizer.load_state_dict(saved["o"])
    second.load_state_dict(saved["c"])
    if not optimizer_first:
        other.optimizer.load_state_dict(saved["o"])
    other.model.load_state_dict(saved["m"])
    return other, second
