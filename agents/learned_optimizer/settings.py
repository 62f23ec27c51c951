"""The settings of the training of a learned optimizer, from which the command line is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lrenv import specs
from lrenv.agents.learned_optimizer.agent import Architecture
from lrenv.agents.outer.settings import OuterSettings
from lrenv.controllers import schema
from lrenv.lookup import count
from lrenv.training.drawn import check_for_training
from lrenv.training.tasks import Task, make_task

OUTER_LR = {"train": 3e-3, "valid": 3e-4}
"""Objective -> learning rate of Adam for theta (Metz et al. 2019, appendix C.3)."""


@dataclass(frozen=True)
class LearnedOptimizerSettings(OuterSettings):
    """How to train a learned optimizer; the defaults are the paper's where it gives any and two cores can follow.

    Attributes:
        tasks: names of the tasks that the trainees learn, separated by commas; `task` alone by default.
        classes: number of classes per problem, drawn at random from those of its data; all by default. Where there are
            enough of them, held-out problems have classes of their own (section 4.2), else selections of their own.
        network: kind of the trainees' network, in each of the `widths`; the tasks' own by default.
        widths: numbers of units of each hidden layer, separated by commas.
        problems: number of problems drawn for each task and width where classes are selected; each stays in memory once
            it has been trained on.
        held_out: number of problems drawn likewise, to validate on; where classes aren't selected, these are the same
            problems with other seeds.
        objective: loss that theta is trained for: train is the loss on new batches at every inner step, valid that on
            the validation split after each interval.
        estimator: estimator of the outer gradient (`lrenv.agents.outer.gradient_estimators`). es over
            unrolls as long as the budget is full ES; pes gives every truncation the same weight, so it is unbiased for
            the mean over a budget if they are equally long.
        updates: number of updates of theta.
        workers: number of problems in training at a time, each at another stage.
        pairs: number of antithetic pairs per worker; together with the workers the paper has 128.
        sigma: standard deviation of the perturbations (section 3).
        first_unroll: number of inner steps of a truncation at first (section 4.3).
        last_unroll: number of inner steps of a truncation in the end, at most the budget, which is the default.
        curriculum: number of updates over which truncations grow from first_unroll to last_unroll.
        jitter: largest share by which a truncation is made longer or shorter at random.
        outer_lr: learning rate of Adam for theta; 3e-3 for the objective train and 3e-4 for valid by default.
        clip: largest length of an outer gradient; longer ones are scaled down to it.
        hidden: number of hidden units of the learned optimizer.
        momentum: whether its features hold moving averages of gradients (figure 7, as the next two).
        rms: whether its features hold root mean squares of gradients.
        time: whether its features hold the time.
    """

    LENGTH: ClassVar[str] = "updates"
    COUNTS: ClassVar[tuple[str, ...]] = (
        *OuterSettings.COUNTS, "problems", "held_out", "workers", "pairs", "first_unroll", "curriculum", "hidden",
    )  # fmt: skip

    out: Path = Path("runs/lopt")
    eval_every: int = 100
    eval_seeds: int = 4
    tasks: str = ""
    classes: int | None = None
    network: Literal["mlp", "conv3"] | None = None
    widths: str = ""
    problems: int = 8
    held_out: int = 2
    objective: Literal["train", "valid"] = "train"
    estimator: Literal["merged", "reparameterisation", "es", "pes"] = "merged"
    updates: int = 1000
    workers: int = 4
    pairs: int = 4
    sigma: float = 0.1
    first_unroll: int = 50
    last_unroll: int | None = None
    curriculum: int = 5000
    jitter: float = 0.2
    outer_lr: float | None = None
    clip: float = 1.0
    hidden: int = 32
    momentum: bool = True
    rms: bool = True
    time: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        super().__post_init__()
        schema.integer(1, schema.LARGEST_SIZE)("hidden", self.hidden)
        if self.optimizer is not None:
            raise ValueError(f"the optimizer is what is trained; leave optimizer={self.optimizer!r} out")
        if self.classes is not None and count("classes", self.classes) < 2:
            raise ValueError("a problem needs at least two classes; set classes to 2 or more")
        if (self.network is None) != (not self.widths):
            raise ValueError("network and widths go together: --network mlp --widths 16,32")
        if self.workers * self.pairs < 2:
            raise ValueError("variances need at least two pairs: raise workers or pairs")
        for name, value in (("sigma", self.sigma), ("clip", self.clip), ("outer_lr", self.rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, not {value}")
        self.refuse(task=not self.tasks, problems=self.classes is not None)
        if self.compile == "graph":
            raise ValueError("compile='graph' captures decisions of environments, and there are none: leave it out")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, not {self.jitter}")
        if self.last_unroll is not None and count("last_unroll", self.last_unroll) < self.first_unroll:
            raise ValueError(f"last_unroll={self.last_unroll} is below first_unroll={self.first_unroll}; swap them")
        budget = min(task.budget for task in self.each_task())
        for name in ("first_unroll", "last_unroll"):
            if (getattr(self, name) or 0) > budget:
                raise ValueError(
                    f"{name}={getattr(self, name)} is longer than the budget of {budget} inner steps: lower {name}, or "
                    "raise budget"
                )

    def each_task(self) -> list[Task]:
        """Returns the tasks of `tasks`, before classes and networks are drawn."""
        names = specs.split(self.tasks or self.task)
        own = {name: getattr(self, name) for name in ("budget", "interval", "val_examples")}
        given = {key: value for key, value in own.items() if value is not None}
        return [check_for_training(make_task(name, **given)) for name in names]

    @property
    def rate(self) -> float:
        """The learning rate of Adam for theta."""
        return OUTER_LR[self.objective] if self.outer_lr is None else self.outer_lr

    @property
    def architecture(self) -> Architecture:
        """The architecture of the learned optimizer."""
        return Architecture(self.hidden, self.momentum, self.rms, self.time)

    def unroll(self, update: int, chance: float, budget: int) -> int:
        """Returns the inner steps of a truncation at an update, jittered by a uniform number `chance` in [0, 1)."""
        last = budget if self.last_unroll is None else self.last_unroll
        steps = self.first_unroll + (last - self.first_unroll) * min(1.0, update / self.curriculum)
        return max(1, round(steps * (1 + self.jitter * (2 * chance - 1))))
