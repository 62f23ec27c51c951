"""The optimizers that learned ones are compared with: momentum, RMSprop and Adam at their best constant rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrenv.agents.schedules.agent import constant
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.benchmark.tuning import TUNING_SEEDS
from lrenv.training.tasks import Task, make_task

BASELINES = ("momentum", "rmsprop", "adam")
RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 10, 11))
"""Learning rates to choose from (Metz et al. 2019, section 4.4)."""


@dataclass(frozen=True)
class Tuning:
    """The losses of an optimizer at each rate.

    Attributes:
        train_loss: (rates,) training loss of the last interval, mean over the seeds; infinite if a run diverges.
        val_loss: (rates,) validation loss of each run's best checkpoint, likewise.
        rates: (rates,), the learning rates.
    """

    train_loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    rates: NDArray[np.float64]

    def best(self, objective: str) -> float:
        """Returns the rate with the lowest loss; the objective is train or valid.

        Raises:
            ValueError: every rate diverges.
        """
        losses = self.train_loss if objective == "train" else self.val_loss
        if not np.isfinite(losses).any():
            raise ValueError(f"runs diverge at all of the rates {self.rates.tolist()}; try lower ones")
        return float(self.rates[losses.argmin()])


def tune_optimizers(
    task: Task | str,
    seeds: Sequence[int] = TUNING_SEEDS,
    rates: Sequence[float] = RATES,
    optimizers: Sequence[str] = BASELINES,
    device: str | None = None,
) -> dict[str, Tuning]:
    """Runs every rate on every seed, all as one batch.

    Args:
        task: that the optimizers are tuned on.
        seeds: of initial weights and batches.
        rates: constant learning rates.
        optimizers: their names.
        device: of the trainees.
    """
    agent = constant(peak=np.repeat(rates, len(seeds)))
    found = {}
    for optimizer in optimizers:
        run = evaluate(agent, make_task(task, optimizer=optimizer), list(seeds) * len(rates), device=device)
        train, val = (
            selection_losses(loss, run.diverged).reshape(len(rates), len(seeds)).mean(1)
            for loss in (run.curves["train_loss"][-1], run.val_loss)
        )
        found[optimizer] = Tuning(train, val, np.asarray(rates))
    return found
