"""Random search over the schedules that FDS searches for (Bergstra and Bengio 2012, JMLR 13)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lrenv.agents.fds.agent import FDS
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.fds.training import FDSTraining, ScheduleTraining
from lrenv.benchmark.selection import improves, selection_losses
from lrenv.randomness import draws
from lrenv.training.hypergradients import train_by_schedule, validation_loss

RANGES = {"lr": (1e-3, 1.0), "momentum": (1e-2, 1.0), "weight_decay": (1e-6, 3e-3)}
"""Hyperparameter -> bounds, between which values are drawn uniformly on a log scale; of a momentum mu, 1 - mu is drawn.
Ten outer steps of the first sizes reach as far."""


class Search(FDS):
    """The best schedule of a random search."""

    NAME: ClassVar[str] = "search"


class RandomSearch(ScheduleTraining):
    """A search that draws a schedule for each trainee, and keeps the one with the lowest last validation loss.

    All trainees have the same initial weights and batches, so that schedules are all that differs.
    """

    agent = Search

    def __init__(self, settings: FDSSettings) -> None:
        super().__init__(settings)
        self._best = {name: torch.zeros(s, dtype=torch.float64) for name, s in settings.numbers_of_segments.items()}
        self._lowest = float("inf")

    @property
    def schedule(self) -> dict[str, Tensor]:
        """The best schedule so far; zeros if all trainees have diverged under theirs."""
        return self._best

    def drawn(self) -> dict[str, Tensor]:
        """Returns the schedules of this outer step's trainees, name -> (n, S), drawn at random."""
        numbers = self.settings.numbers_of_segments
        seeds = torch.tensor(self.training_seeds(self.settings.trainees, self.episodes))
        places = draws.uniform(draws.fold(seeds, draws.SCHEDULE), (sum(numbers.values()),), torch.float64)
        schedule = {}
        for name, place in zip(numbers, places.split(list(numbers.values()), 1), strict=True):
            low, high = RANGES[name]
            values = low * (high / low) ** place
            schedule[name] = 1 - values if name == "momentum" else values
        return schedule

    @torch.no_grad()
    def outer_step(self) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Draws a schedule for each trainee, and trains the trainees."""
        schedule, measured = self.drawn(), []
        seeds = self.training_seeds(1) * self.settings.trainees
        for group in self.groups():
            own = {name: values[group] for name, values in schedule.items()}
            end = train_by_schedule(self.trainee, self.trainee.init(seeds[group]), own, self.task.budget)
            measured.append(torch.stack((validation_loss(self.trainee, end), end.params.sum(1))))
        loss, total = torch.cat(measured, 1).cpu()  # in one transfer, for it waits for all that was computed
        selected = selection_losses(loss.numpy(), ~total.isfinite().numpy())
        best = int(selected.argmin())
        if improves(float(selected[best]), self._lowest):
            self._lowest = float(selected[best])
            self._best = {name: values[best] for name, values in schedule.items()}
        return loss, {}

    def state(self) -> dict[str, Any]:
        """Returns the best schedule, and its loss."""
        return {"best": self._best, "lowest": self._lowest}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the search goes on exactly as it would have."""
        self._best, self._lowest = state["best"], state["lowest"]


def schedule_training(settings: FDSSettings) -> ScheduleTraining:
    """Returns the training that the settings ask for."""
    return RandomSearch(settings) if settings.method == "random" else FDSTraining(settings)
