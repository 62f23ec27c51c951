"""What every training of an agent asks; the command lines are made from these and what each kind adds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrenv import sources, specs
from lrenv.lookup import count
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.compiling import Compile
from lrenv.training.tasks import Task, make_task


@dataclass(frozen=True)
class OuterSettings:
    """How an agent is trained.

    Attributes:
        task: what the trainees learn: a name from `lrenv tasks`, name:setting=value, or my_tasks.py:name for a task of
            your own.
        out: folder for controller.safetensors, checkpoint.safetensors, progress.csv and TensorBoard's events.
        budget: inner steps of an episode; the task's own by default, as for the next three.
        interval: inner steps between two actions.
        optimizer: the trainees'.
        val_examples: validation examples that a decision measures.
        eval_every: iterations between two evaluations of the controller on held-out seeds.
        eval_seeds: how many of them.
        compile: True compiles the trainees' decisions, which pays in long trainings; on CUDA, True and graph replay
            each decision of an environment as one CUDA graph.
        seed: of initial weights, exploration and episodes.
        device: where the trainees live; CUDA where there is any by default.
        resume: go on from the checkpoint in `out`, with its settings; one given here that is not the default must
            agree with them, but the length of the training may be another.
        overwrite: start anew although `out` holds a training.
    """

    LENGTH: ClassVar[str]
    """The setting that says how long the training is."""
    COUNTS: ClassVar[tuple[str, ...]] = ("eval_every", "eval_seeds")
    """The settings that count something."""

    task: str = "digits-mlp"
    out: Path = Path("runs/training")
    budget: int | None = None
    interval: int | None = None
    optimizer: str | None = None
    val_examples: int | None = None
    eval_every: int = 4
    eval_seeds: int = 16
    compile: Compile = False
    seed: int = 0
    device: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        for name in (*self.COUNTS, self.LENGTH):
            count(name, getattr(self, name))
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
        seeds_for("validation", self.eval_seeds)
        seeds_for("training", 1, training=self.seed)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a training and --overwrite discards it: choose one")

    def make_task(self, **others: Any) -> Task:
        """The task with these settings, and others."""
        own = {name: getattr(self, name) for name in ("budget", "interval", "optimizer", "val_examples")}
        return make_task(self.task, **{name: value for name, value in own.items() if value is not None}, **others)

    def own_specs(self) -> dict[str, list[str]]:
        """Setting -> the specs in it that name something of one's own, in a Python file."""
        named = {name: getattr(self, name, "") for name in ("task", "tasks", "observe", "reward")}
        texts = {name: specs.split(value) for name, value in named.items() if isinstance(value, str)}
        found = {name: [text for text in listed if specs.parse(text).own] for name, listed in texts.items()}
        return {name: listed for name, listed in found.items() if listed}

    def files(self) -> dict[str, str]:
        """Spec of something of one's own -> what tells its file from another version."""
        listed = [spec for each in self.own_specs().values() for spec in each]
        owns = {spec: specs.parse(spec).own for spec in listed}
        return {spec: sources.digest(sources.own_path(own)) for spec, own in owns.items() if own is not None}

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, but those that say what to do about an earlier training."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name not in ("resume", "overwrite")
        }

    def essence(self) -> dict[str, Any]:
        """The settings that a resumed training must share with its beginning, as JSON values."""
        free = ("out", "device", self.LENGTH)
        return {name: value for name, value in self.as_json().items() if name not in free}
