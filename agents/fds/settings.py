"""The settings of the search for a schedule, from which the command line is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lrenv.agents.outer.settings import OuterSettings
from lrenv.lookup import count
from lrenv.training.tasks import Task

DIFFERENTIABLE = ("sgd", "momentum", "nesterov")
"""Optimizers whose steps have derivatives everywhere; the roots of the others have none where a gradient is 0."""


@dataclass(frozen=True)
class FDSSettings(OuterSettings):
    """How to search for a schedule; the defaults are those of the paper's experiments on CIFAR-10 where it gives any.

    Attributes:
        method: way to search: fds differentiates the whole training in forward mode, truncated differentiates windows
            of so many inner steps as the setting window says in reverse mode, greedy windows of one inner step; random
            draws schedules at random.
        outer_steps: number of steps on the schedule, each of which trains `trainees` networks for a budget.
        trainees: number of networks in parallel. Hypergradients are averaged over them; random gives each a schedule of
            its own.
        segments: number of learning rates, each for an equal segment of the budget.
        momentum_segments: number of momenta; 0 leaves the task's own.
        weight_decay_segments: number of weight decays; 0 leaves the task's own.
        lr_step: size of the first steps on a learning rate.
        momentum_step: size of the first steps on a momentum.
        weight_decay_step: size of the first steps on a weight decay.
        window: number of inner steps per window of the method truncated.
    """

    LENGTH: ClassVar[str] = "outer_steps"
    COUNTS: ClassVar[tuple[str, ...]] = (*OuterSettings.COUNTS, "segments", "trainees", "window")

    out: Path = Path("runs/fds")
    optimizer: str | None = "momentum"
    eval_every: int = 1
    method: Literal["fds", "greedy", "truncated", "random"] = "fds"
    outer_steps: int = 10
    trainees: int = 4
    segments: int = 7
    momentum_segments: int = 1
    weight_decay_segments: int = 1
    lr_step: float = 0.1
    momentum_step: float = 0.1
    weight_decay_step: float = 3e-4
    window: int = 50

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        super().__post_init__()
        signs = self.method != "random"
        self.refuse(
            window=self.method == "truncated", lr_step=signs, momentum_step=signs and self.momentum_segments > 0,
            weight_decay_step=signs and self.weight_decay_segments > 0,
        )  # fmt: skip
        for name in ("momentum_segments", "weight_decay_segments"):
            if getattr(self, name):
                count(name, getattr(self, name))
        for name, size in self.first_steps.items():
            if not 0 < size < 1:
                raise ValueError(f"{name}_step must lie between 0 and 1, not {size}")

    @property
    def numbers_of_segments(self) -> dict[str, int]:
        """Hyperparameter -> S, the number of its values in the schedule."""
        numbers = (self.segments, self.momentum_segments, self.weight_decay_segments)
        return {name: number for name, number in zip(self.first_steps, numbers, strict=True) if number}

    @property
    def first_steps(self) -> dict[str, float]:
        """Hyperparameter -> the size of the first sign steps."""
        return {"lr": self.lr_step, "momentum": self.momentum_step, "weight_decay": self.weight_decay_step}

    def make_task(self, **others: Any) -> Task:
        """Returns the task with these settings, and others.

        Raises:
            ValueError: the schedule has more segments than the budget has steps, or does not fit the optimizer.
        """
        task = super().make_task(**others)
        if task.optimizer not in DIFFERENTIABLE:
            raise ValueError(
                f"hypergradients are computed through the optimizers {', '.join(DIFFERENTIABLE)}, not through "
                f"{task.optimizer!r}; choose one of these"
            )
        for name, number in self.numbers_of_segments.items():
            flag = "segments" if name == "lr" else f"{name}_segments"
            if number > task.budget:
                raise ValueError(
                    f"{flag}={number}, but the budget has {task.budget} inner steps; give at most one per step"
                )
            if name != "lr" and name not in task.hyper:
                raise ValueError(f"optimizer {task.optimizer!r} has no {name}; set {flag}=0")
        return task
