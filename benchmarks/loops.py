"""The loop that the environment replaces: plain PyTorch, one module after the other, as a user would write it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import Turn, rate
from lrenv.data import Split
from lrenv.runtime.process import keep_memory
from lrenv.training.tasks import Task, make_task

LR = 1e-3
MODULES = 2
"""Trained in a turn; their number changes nothing about the rate."""


def modules(
    task: str, number: int, dataloader: bool = False, keep: bool = False, device: str = "cpu", **options: Any
) -> Turn:
    """Builds the loop over modules; a turn is in trainee-steps per second, validation included.

    Args:
        task: a task's name.
        number: decisions, of each module in a turn.
        dataloader: take batches from a `DataLoader` instead of indexing tensors.
        keep: have the allocator keep memory, as the environment does.
        device: where the modules live.
        **options: settings of the task.
    """
    if keep:
        keep_memory()
    plain = plain_task(task, "adam", "sgd", "momentum", **options)
    train, val = (Split(*(x.to(device) for x in split)) for split in normalised(plain))
    draw = _loaded if dataloader else _indexed

    def turn(number: int) -> float:
        fresh = [plain.module().to(device) for _ in range(MODULES)]

        def work() -> None:
            for module in fresh:
                _train(plain, module, draw(train, plain.batch_size), val, number)

        return rate(work, units=MODULES * number * plain.interval)

    turn(1)
    return partial(turn, number)


def plain_task(name: str, *optimizers: str, **options: Any) -> Task:
    """Returns the task, if it is plain classification with one of these optimizers.

    Raises:
        ValueError: the task is something else.
    """
    task = make_task(name, **options)
    if task.optimizer not in optimizers or task.loss != "cross_entropy" or task.augment:
        raise ValueError(f"{name} is not plain classification with {' or '.join(optimizers)}: nothing to race against")
    return task


def normalised(task: Task) -> tuple[Split, Split]:
    """Returns the training split and the validation examples that a decision measures, both normalised."""
    data = task.load()
    train, val = (Split((split.inputs - data.mean) / data.std, split.targets) for split in (data.train, data.val))
    return train, Split(*(x[: task.val_examples] for x in val))


def piece(task: Task) -> int:
    """Returns how many validation examples a network computes in one pass."""
    return max(task.batch_size, 512)


def _train(
    task: Task, module: nn.Module, batches: Iterator[tuple[torch.Tensor, ...]], val: Split, decisions: int
) -> None:
    optimizer = _optimizer(task, module)
    for _ in range(decisions):
        module.train()
        for _ in range(task.interval):
            inputs, targets = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            pieces = zip(*(x.split(piece(task)) for x in val), strict=True)
            total = sum(F.cross_entropy(module(inputs), targets, reduction="sum") for inputs, targets in pieces)
            total / len(val.targets)


def _optimizer(task: Task, module: nn.Module) -> torch.optim.Optimizer:
    momentum, weight_decay = (task.hyper.get(name, 0.0) for name in ("momentum", "weight_decay"))
    if task.optimizer == "adam":
        return torch.optim.Adam(module.parameters(), LR, betas=(momentum, 0.999), weight_decay=weight_decay)
    return torch.optim.SGD(module.parameters(), LR, momentum, weight_decay=weight_decay)


def _indexed(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    size = len(split.targets) // batch_size * batch_size
    while True:
        for rows in torch.randperm(len(split.targets), device=split.targets.device)[:size].split(batch_size):
            yield tuple(x[rows] for x in split)


def _loaded(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    loader = DataLoader(TensorDataset(*split), batch_size, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader
