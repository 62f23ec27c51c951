"""What a learned optimizer is trained on: problems drawn from tasks, and others that are held out.

Metz et al. 2019, section 4.2. A problem is a task with a selection of its data's classes and a network of a certain
width. Initial weights and batches differ from one trainee to the next in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from lrenv import networks
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.data import Data, Split
from lrenv.data.types import with_statistics
from lrenv.networks.architectures import NetworkFactory
from lrenv.training.tasks import Task

HELD_OUT_CLASSES = 0.3
"""Share of the classes that held-out problems have for themselves, where there are enough (section 4.2)."""
NETWORKS: dict[str, Callable[[int], NetworkFactory]] = {
    "mlp": lambda width: networks.mlp(width, width),
    "conv3": networks.conv3,
}
"""Name -> width -> network."""


class Problems(NamedTuple):
    """A distribution of tasks."""

    train: list[Task]
    held_out: list[Task]


def problems(settings: LearnedOptimizerSettings) -> Problems:
    """Draws the problems; the same settings give the same ones.

    Raises:
        ValueError: widths that are no numbers, too few classes to draw from, or problems with different numbers of
            classes, whose losses one population can't average.
    """
    train, held_out = [], []
    for task in settings.each_task():
        for version in _widths(task, settings):
            own, other = ([version], [version]) if settings.classes is None else _subsets(version, settings)
            train += own
            held_out += other
    numbers = {task.name: task.load().classes for task in train}
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{name} has {number}" for name, number in numbers.items())
        raise ValueError(
            f"one population can't average losses over different numbers of classes: {listed}; choose other tasks, or "
            "draw equally many with --classes"
        )
    return Problems(train, held_out)


def class_subset(data: Data, classes: Sequence[int]) -> Data:
    """Returns the examples of some classes, which are numbered anew in the order given."""
    number = torch.full((data.classes,), -1)
    number[list(classes)] = torch.arange(len(classes))

    def part(split: Split) -> Split:
        targets = number[split.targets]
        return Split(split.inputs[targets >= 0], targets[targets >= 0])

    return with_statistics(part(data.train), part(data.val), part(data.test), len(classes))


def _widths(task: Task, settings: LearnedOptimizerSettings) -> list[Task]:
    if settings.network is None:
        return [task]
    try:
        widths = [int(width) for width in settings.widths.split(",")]
    except ValueError as error:
        raise ValueError(f"widths are whole numbers separated by commas, not {settings.widths!r}") from error
    make = NETWORKS[settings.network]
    return [replace(task, name=f"{task.name}, {settings.network} {width}", network=make(width)) for width in widths]


def _subsets(task: Task, settings: LearnedOptimizerSettings) -> tuple[list[Task], list[Task]]:
    """Problems with different selections of classes, to train on and held out."""
    assert settings.classes is not None
    k, classes = settings.classes, task.load().classes
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(classes)
    reserved = round(HELD_OUT_CLASSES * classes)
    apart = reserved >= k and math.comb(reserved, k) >= settings.held_out
    pools = (order[reserved:], order[:reserved]) if apart else (order, order)
    needed = settings.problems + settings.held_out * (not apart)
    if k > classes or math.comb(len(pools[0]), k) < needed:
        raise ValueError(
            f"{task.name} has {classes} classes, of which there are fewer than {needed} selections of {k}: lower "
            "classes, problems or held_out"
        )
    chosen: list[tuple[int, ...]] = []
    for pool, number in zip(pools, (settings.problems, settings.held_out), strict=True):
        before = len(chosen)
        while len(chosen) < before + number:
            drawn = tuple(sorted(rng.choice(pool, k, replace=False).tolist()))
            chosen += [drawn] * (drawn not in chosen)
    selected = [
        replace(task, name=f"{task.name} {drawn}", data=partial(_selected, task, drawn), data_options={})
        for drawn in chosen
    ]
    return selected[: settings.problems], selected[settings.problems :]


def _selected(task: Task, classes: tuple[int, ...]) -> Data:
    return class_subset(task.load(), classes)
