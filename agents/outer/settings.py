"""The settings that all trainings share; the command lines are made from these and what each kind of training adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from lrenv import sources, specs
from lrenv.lookup import count
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.compiling import Compile
from lrenv.training.drawn import check_for_training
from lrenv.training.tasks import Task, make_task


@dataclass(frozen=True)
class OuterSettings:
    """How an agent is trained.

    Attributes:
        task: what the trainees learn: a name from `lrenv tasks`, name:setting=value, or my_tasks.py:name for a task of
            your own.
        out: the folder for controller.safetensors, checkpoint.safetensors, progress.csv and TensorBoard's events.
        budget: T, the inner steps of an episode; None takes the task's own, as it does in the next three settings.
        interval: N, the inner steps between two actions.
        optimizer: the optimizer of the trainees.
        val_examples: the number of validation examples on which each decision measures the loss.
        eval_every: the number of iterations between two evaluations of the controller on held-out seeds.
        eval_seeds: the number of held-out seeds.
        compile: whether decisions are compiled, which makes long trainings faster; on CUDA, both True and graph replay
            each decision of an environment as one CUDA graph.
        seed: the seed of initial weights, exploration and episodes.
        device: the device of the trainees; None takes CUDA where there is any.
        resume: whether to go on from the checkpoint in `out`, with its settings. A setting given here that is not the
            default must agree with them; only the length of the training may be another.
        overwrite: whether to start anew although `out` holds a training, which is lost.
    """

    LENGTH: ClassVar[str]
    """The name of the setting that says how long the training is."""
    COUNTS: ClassVar[tuple[str, ...]] = ("eval_every", "eval_seeds")
    """The names of settings that are whole numbers, 1 or more."""

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
        for name, kind in get_type_hints(type(self)).items():
            known = _choices(kind)
            if known and getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {getattr(self, name)!r}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
        seeds_for("validation", self.eval_seeds)
        seeds_for("training", 1, training=self.seed)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a training and --overwrite discards it: choose one")

    def refuse(self, **used: bool) -> None:
        """Refuses settings that would do nothing.

        Args:
            **used: name of a setting -> whether anything reads it, as the others are.

        Raises:
            ValueError: one that nothing reads isn't the default.
        """
        for name, is_used in used.items():
            if not is_used and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} would do nothing beside these settings; leave it out")

    def make_task(self, **others: Any) -> Task:
        """Makes the task with these settings, and others.

        Raises:
            ValueError: they can't be meant, or it is a drawn task that is not for training.
        """
        own = {name: getattr(self, name) for name in ("budget", "interval", "optimizer", "val_examples")}
        given = {name: value for name, value in own.items() if value is not None}
        return check_for_training(make_task(self.task, **given, **others))

    def files(self) -> dict[str, str]:
        """Returns spec of one's own object -> hash of its file."""
        listed = [spec for each in own_specs(vars(self)).values() for spec in each]
        owns = {spec: specs.parse(spec).own for spec in listed}
        return {spec: sources.digest(sources.own_path(own)) for spec, own in owns.items() if own is not None}

    def as_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values, without those that say what to do about an earlier training."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name not in ("resume", "overwrite")
        }

    def essence(self) -> dict[str, Any]:
        """Returns the settings that a resumed training must share with its beginning, as JSON values."""
        free = ("out", "device", self.LENGTH)
        return {name: value for name, value in self.as_json().items() if name not in free}


def _choices(kind: Any) -> list[Any]:
    """What a setting of this type can be; empty where that can't be listed."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if not all(part is NoneType or get_origin(part) is Literal for part in parts):
        return []
    return [choice for part in parts for choice in ((None,) if part is NoneType else get_args(part))]


def own_specs(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns name of a setting -> the specs in it that name something of one's own, in a Python file."""
    texts = {name: settings.get(name) for name in ("task", "tasks", "observe", "reward")}
    listed = {name: specs.split(text) for name, text in texts.items() if isinstance(text, str)}
    found = {name: [spec for spec in each if specs.parse(spec).own] for name, each in listed.items()}
    return {name: each for name, each in found.items() if each}
