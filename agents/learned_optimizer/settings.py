"""How a learned optimizer is trained; the command line is made from this."""

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
from lrenv.training.tasks import Task, make_task

OUTER_LR = {"train": 3e-3, "valid": 3e-4}
"""Adam's rate for each objective (Metz et al. 2019, appendix C.3)."""


@dataclass(frozen=True)
class LearnedOptimizerSettings(OuterSettings):
    """How to train a learned optimizer; the defaults are the paper's where it gives any and two cores can follow.

    Attributes:
        tasks: what the trainees learn, names separated by commas; `task` alone by default.
        classes: each problem has that many of its data's classes, drawn at random; all by default. Where there are
            enough of them, held-out problems have classes of their own (section 4.2), else selections of their own.
        network: the trainees', in each of the `widths`; the tasks' own by default.
        widths: units of each hidden layer, separated by commas.
        problems: drawn for each task and width where classes are selected; in memory as soon as they are trained on.
        held_out: drawn likewise, to validate on; where classes aren't selected, the same problems with other seeds.
        objective: train on fresh batches, at every inner step, or valid on the validation split, after each interval.
        estimator: of the outer gradient; `lrenv.agents.learned_optimizer.gradient_estimators`. es over unrolls as long
            as the budget is full ES; pes counts truncations alike, so it is unbiased for the mean over a budget where
            they are equally long.
        updates: of the optimizer.
        workers: problems in training at a time, each at another stage.
        pairs: antithetic pairs of each worker; together with the workers the paper has 128.
        sigma: standard deviation of the perturbations (section 3).
        first_unroll: inner steps of a truncation at first (section 4.3).
        last_unroll: and in the end, at most the budget, which it is by default.
        curriculum: updates over which it grows.
        jitter: truncations are longer or shorter by up to this share.
        outer_lr: Adam's rate; 3e-3 for train and 3e-4 for valid by default.
        clip: gradients that are longer are cut to this length.
        hidden: units of the optimizer.
        momentum: whether it sees moving averages of gradients (figure 7, as the next two).
        rms: whether it sees root mean squares of gradients.
        time: whether it sees the time.
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
        for name in ("sigma", "clip", "rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
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
        """The tasks by name, before anything is drawn."""
        names = specs.split(self.tasks or self.task)
        own = {name: getattr(self, name) for name in ("budget", "interval", "val_examples")}
        return [make_task(name, **{key: value for key, value in own.items() if value is not None}) for name in names]

    @property
    def rate(self) -> float:
        """Adam's rate for theta."""
        return OUTER_LR[self.objective] if self.outer_lr is None else self.outer_lr

    @property
    def architecture(self) -> Architecture:
        """The optimizer's."""
        return Architecture(self.hidden, self.momentum, self.rms, self.time)

    def unroll(self, update: int, chance: float, budget: int) -> int:
        """Inner steps of a truncation: the curriculum's number at this update, jittered by a chance in [0, 1)."""
        last = budget if self.last_unroll is None else self.last_unroll
        steps = self.first_unroll + (last - self.first_unroll) * min(1.0, update / self.curriculum)
        return max(1, round(steps * (1 + self.jitter * (2 * chance - 1))))
