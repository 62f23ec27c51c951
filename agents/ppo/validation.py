"""How controllers of several tasks are compared: by logarithms of losses relative to those of a fixed reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.schedules.agent import linear
from lrenv.benchmark.evaluation import evaluate
from lrenv.controllers.agent import Agent
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task

PEAKS = {"sgd": 1e-1, "momentum": 3e-2, "nesterov": 3e-2}
"""Optimizer -> the peak of the reference."""
PEAK = 1e-2
"""That of all others, whose updates have about the length of the rate in each coordinate, as Adam's do."""
FLOOR = 1e-8
"""Losses count from here on, as in the rewards."""
DIVERGED = float(np.log(100))
"""What a run counts that diverges, and the most that any run counts. It must be finite, for an infinity would hide all
else that distinguishes two controllers of which each kills one network in thirty, and no run that goes on may count
more than one that is dead."""


class Validation:
    """Tasks and seeds on which controllers are compared.

    The score of a controller is the mean, over tasks and seeds, of ln(v / r), with v the best validation loss of its
    run and r that of the reference on the same seed: linear decay to zero from the peak of the task's optimizer. What
    the reference reaches shifts all scores alike, unless runs reach the most that one counts, so it has hardly a part
    in the choice of the best; it makes the score tell something: exp(score) is a geometric mean of relative losses.

    Args:
        tasks: what the controllers act on.
        seeds: per task, each task having its own.
        device: where the trainees live.

    Attributes:
        reference: (tasks, seeds), ln r; NaN before `run_reference`.
    """

    def __init__(self, tasks: Sequence[Task], seeds: int, device: str | None) -> None:
        self.tasks, self.device = list(tasks), device
        listed = seeds_for("validation", seeds * len(self.tasks))
        self.seeds = [listed[i * seeds : (i + 1) * seeds] for i in range(len(self.tasks))]
        self.reference = np.full((len(self.tasks), seeds), np.nan)

    @property
    def runs(self) -> int:
        """The number of trainees of a comparison."""
        return self.reference.size

    def run_reference(self) -> None:
        """Runs the reference, a trainee for each seed; one that diverges counts by its best loss."""
        for i, task in enumerate(self.tasks):
            peak = PEAKS.get(task.optimizer, PEAK) if isinstance(task.optimizer, str) else PEAK
            self.reference[i], _ = self._losses(linear(peak=peak), i)

    def score(self, agent: Agent) -> float:
        """Returns the score of an agent, after `run_reference`; lower is better."""
        scores = []
        for i in range(len(self.tasks)):
            losses, diverged = self._losses(agent, i)
            relative = np.where(diverged, np.inf, losses - self.reference[i])
            scores.append(np.nan_to_num(relative, nan=np.inf).clip(max=DIVERGED).mean())
        return float(np.mean(scores))

    def _losses(self, agent: Agent, i: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Logarithms (seeds,) of best validation losses on a task, and which runs diverged."""
        result = evaluate(agent, self.tasks[i], self.seeds[i], device=self.device)
        return np.log(np.fmax(result.val_loss.astype(np.float64), FLOOR)), result.diverged
