"""The settings of the training of a universal controller, from which the command line is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrenv.agents.outer.settings import OuterSettings
from lrenv.agents.universal.policy import Architecture
from lrenv.controllers import schema
from lrenv.randomness.seeds import seeds_for
from lrenv.training.drawn import TaskDistribution

OF_TASKS = ("budget", "interval", "optimizer", "val_examples")
"""The settings of other trainings that drawn tasks have for themselves."""


@dataclass(frozen=True)
class UniversalSettings(OuterSettings):
    """How to train a universal controller on drawn tasks.

    Attributes:
        task: stays `drawn`: tasks are drawn as training goes (`lrenv.training.drawn`).
        limit: the most FLOPs that a run on a drawn task may take.
        eval_seeds: the number of runs on each task that controllers are chosen by.
        eval_tasks: the number of these tasks, which are drawn, too, and are never trained on.
        updates: the number of updates of theta.
        tasks: the number of tasks per update.
        pairs: the number of antithetic pairs per task; both of a pair share their initial weights and batches.
        sigma: the standard deviation of the perturbations.
        outer_lr: the learning rate of Adam for theta; it falls linearly to 0 over `updates`. A training that is resumed
            with other updates goes on at the rate that these give its next update, and so ends with another controller
            than one that had them from the beginning.
        spread: the differences of a task's pairs are divided by their root mean square, so that no task outweighs
            others, but at least by this: tasks on which the policy matters less than that count less.
        layers: a rate per layer instead of one for the network.
        horizon: whether the policy knows the budget; without, it works in runs without an end.
        gradients: whether the policy sees gradients.
        hidden: the number of units of a perceptron beside the linear correction; with none, 32 pairs cover all
            directions of theta.
    """

    LENGTH: ClassVar[str] = "updates"
    COUNTS: ClassVar[tuple[str, ...]] = (*OuterSettings.COUNTS, "eval_tasks", "tasks", "pairs")

    task: str = "drawn"
    out: Path = Path("runs/universal")
    limit: float = 1e9
    eval_every: int = 20
    eval_seeds: int = 2
    eval_tasks: int = 16
    updates: int = 100
    tasks: int = 6
    pairs: int = 32
    sigma: float = 0.1
    outer_lr: float = 0.03
    spread: float = 0.05
    layers: bool = False
    horizon: bool = True
    gradients: bool = False
    hidden: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        super().__post_init__()
        schema.integer(0, schema.LARGEST_SIZE)("hidden", self.hidden)
        TaskDistribution(self.limit)
        seeds_for("validation", self.eval_tasks)
        if self.task != "drawn":
            raise ValueError(f"universal controllers are trained on drawn tasks; leave task={self.task!r} out")
        for name in OF_TASKS:
            if getattr(self, name) is not None:
                raise ValueError(f"each drawn task has its own {name}; leave {name}={getattr(self, name)!r} out")
        if self.compile is not False:
            raise ValueError("each task is another program, and is run too few times to be compiled; leave compile out")
        for name in ("sigma", "outer_lr", "spread"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    @property
    def architecture(self) -> Architecture:
        """What the policy sees and sets."""
        return Architecture(self.layers, self.horizon, self.gradients, self.hidden)
