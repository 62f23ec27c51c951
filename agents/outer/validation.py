"""How runs on several tasks are compared: by how far the validation loss falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrenv.benchmark.evaluation import evaluate
from lrenv.controllers.agent import Agent
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task

WORST = 1.0
"""The most that a run counts, e times the loss of the untrained network, and what one counts that diverges. It must be
finite, for an infinity would hide all else that distinguishes two controllers of which each kills one network in
thirty, and no run that goes on may count more than one that is dead."""
FLOOR = 1e-8
"""Losses count from here on, as in the rewards."""


def fall_of(first: Tensor, last: Tensor, diverged: Tensor) -> Tensor:
    """What runs (n,) count: log(last / first), at most `WORST`, which trainees that diverged have as well."""
    fall = (last.clamp(min=FLOOR) / first).log()
    return fall.masked_fill(diverged, math.inf).nan_to_num(math.inf).clamp(max=WORST)


class Validation:
    """Tasks and seeds on which controllers are compared.

    The score of a controller is the mean, over tasks and seeds, of ln(v / v_0), with v the validation loss at the end
    of its run, and v_0 that of the untrained network. The difference of two scores is the logarithm of a geometric mean
    of relative losses.

    Args:
        tasks: what the controllers act on.
        seeds: per task, each task having its own.
        device: where the trainees live.
        measured: whether the validation loss is measured at every decision, for controllers that observe it.
    """

    def __init__(self, tasks: Sequence[Task], seeds: int, device: str | None, measured: bool = True) -> None:
        self.tasks = [task if measured else replace(task, measure_interval=task.budget) for task in tasks]
        self.device = device
        listed = seeds_for("validation", seeds * len(self.tasks))
        self.seeds = [listed[i * seeds : (i + 1) * seeds] for i in range(len(self.tasks))]

    @property
    def runs(self) -> int:
        """The number of trainees of a comparison."""
        return sum(map(len, self.seeds))

    def score(self, agent: Agent) -> float:
        """Returns the score of an agent; lower is better."""
        scores = []
        for task, seeds in zip(self.tasks, self.seeds, strict=True):
            result = evaluate(agent, task, seeds, device=self.device)
            first, last = (torch.from_numpy(x).double() for x in (result.curves["val_loss"][0], result.final_val_loss))
            scores.append(float(fall_of(first, last, torch.from_numpy(result.diverged)).mean()))
        return sum(scores) / len(scores)
