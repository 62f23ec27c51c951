"""Training an agent from beginning to end: iterations, progress, logs, validation, checkpoints, resuming.

`train` is the loop, and the same for all. A `Training` holds what differs between kinds of agents: an iteration, the
controller that comes of it, and the state between two iterations.
"""

from __future__ import annotations

import math
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from lrenv.agents.outer.folder import Folder
from lrenv.agents.outer.settings import OuterSettings, own_specs
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.selection import improves, selection_losses
from lrenv.controllers import controller_file
from lrenv.controllers.agent import Agent
from lrenv.controllers.state_file import restored, stored
from lrenv.envs.snapshots import contents_of
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.ambient import own_settings
from lrenv.runtime.files import locked_folder
from lrenv.runtime.json_values import json_value
from lrenv.runtime.process import command_line
from lrenv.runtime.progress import progress
from lrenv.training.tasks import Task

CHECKPOINT_SECONDS = 30.0
"""The most time between two checkpoints, to within an iteration; a better controller and an interruption save one,
too."""

S = TypeVar("S", bound=OuterSettings)


class Controller(Agent, Protocol):
    """An agent that can be written to a file."""

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the controller, with how it was trained."""


class Training(ABC, Generic[S]):
    """A training that stands between two iterations; `train` calls `iterate`, `validate` and `checkpoint` in turn.

    Args:
        settings: how to train.
        task: what the trainees learn.

    Attributes:
        iteration: the number of iterations that are done.
        best_val_loss: what `held_out_loss` gave for the best controller so far; None before the first.
        best_iteration: the number of iterations after which that controller was made.
        selection_runs: the number of trainees that were trained so far to choose it.
        finished: whether the checkpoint that it goes on from was the last of a training of the length then asked for.
        command: the command that began the training.
        files: spec of something of one's own that takes part -> what tells its file from another version.
        unit: what the progress bar counts.
    """

    unit = "iterations"

    def __init__(self, settings: S, task: Task) -> None:
        self.settings = settings
        self.task = task
        self.iteration = 0
        self.best_val_loss: float | None = None
        self.best_iteration: int | None = None
        self.selection_runs = 0
        self.finished = False
        self.command = command_line()
        self.files = settings.files()

    @property
    def tasks_trained_on(self) -> Sequence[Task]:
        """The tasks whose data training looks at."""
        return [self.task]

    @cached_property
    def contents(self) -> list[dict[str, str]]:
        """What tells the data and the network of each task from others that its settings would describe as well."""
        return [contents_of(task) for task in self.tasks_trained_on]

    @property
    @abstractmethod
    def iterations(self) -> int:
        """The number of iterations in the whole training."""

    @property
    def units(self) -> int:
        """The number of units in an iteration."""
        return 1

    @property
    def length(self) -> int:
        """The number of units in the whole training."""
        return self.iterations * self.units

    @property
    def done(self) -> int:
        """The number of units that are done."""
        return self.iteration * self.units

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far, each for a budget."""
        return self.iteration

    @abstractmethod
    def iterate(self) -> dict[str, float]:
        """Makes one iteration, and gives what to log."""

    @abstractmethod
    def controller(self) -> Controller:
        """Returns the controller as it is now, without a draw from a global generator."""

    @abstractmethod
    def status(self, row: dict[str, float]) -> str:
        """Returns what to show of an iteration, in a line."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Returns everything that the next iteration depends on: a tree of tensors, arrays and JSON values."""

    def template(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns a state with structure and shapes of that which has the JSON values `values`, path -> value."""
        return self.state()

    @abstractmethod
    def restore_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state, exactly."""

    def attach(self, logger: Logger) -> None:
        """Takes the logger, for trainings that log more than `iterate` gives."""

    def training_seeds(self, number: int, first: int = 0) -> list[int]:
        """Returns seeds that no other training has."""
        return seeds_for("training", number, first, self.settings.seed)

    @property
    def held_out_seeds(self) -> list[int]:
        """The seeds of the episodes on which controllers are compared."""
        return seeds_for("validation", self.settings.eval_seeds)

    @property
    def runs_per_validation(self) -> int:
        """The number of trainees that `held_out_loss` trains."""
        return self.settings.eval_seeds

    @property
    def runs(self) -> dict[str, int]:
        """The numbers of trainees that were trained so far: to learn from, and to choose the best controller."""
        return {"training": self.episodes, "selection": self.selection_runs}

    @property
    def over(self) -> str:
        """Why there is nothing to do, in a line of status."""
        return f"it was finished; a larger --{self.settings.LENGTH.replace('_', '-')} goes further"

    @property
    def best_shown(self) -> str:
        """The best held-out loss so far, in a line of status."""
        return "-" if self.best_val_loss is None else f"{self.best_val_loss:.4f}"

    def held_out_loss(self, controller: Controller) -> float:
        """Returns the loss by which controllers are chosen: the mean over held-out seeds of best validation losses."""
        settings = self.settings
        result = evaluate(
            controller, self.task, self.held_out_seeds, device=settings.device, capture=settings.compile is not False
        )
        return float(selection_losses(result.val_loss, result.diverged).mean())

    def validate(self) -> dict[str, float]:
        """Returns the controller's held-out loss, and keeps the best controller so far for the next checkpoint."""
        controller = self.controller()
        loss = self.held_out_loss(controller)
        loss = math.inf if math.isnan(loss) else loss
        self.selection_runs += self.runs_per_validation
        if improves(loss, self.best_val_loss):
            self.best_val_loss, self.best_iteration = loss, self.iteration
            trained = {
                "episodes": self.episodes, "iteration": self.iteration, "runs": self.runs, "finished": False,
                "val_loss": json_value(loss), "command": self.command,
                "settings": self.settings.as_json(),
            }  # fmt: skip
            Folder(self.settings.out).propose(self.iteration, lambda path: controller.save(path, trained))
        assert self.best_val_loss is not None, "the first loss improves"
        return {"eval/val_loss": loss, "eval/best_val_loss": self.best_val_loss}

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns tensors and metadata of a checkpoint; before the first iteration they depend on settings alone."""
        settings = self.settings
        tensors, values = stored(self.state() if self.iteration else {})
        return tensors, {
            "iteration": self.iteration, "finished": self.iteration >= self.iterations, "values": values,
            "best_iteration": self.best_iteration, "best_val_loss": json_value(self.best_val_loss),
            "selection_runs": self.selection_runs, "command": self.command, "settings": settings.essence(),
            "files": self.files, "contents": self.contents,
            settings.LENGTH: getattr(settings, settings.LENGTH),
        }  # fmt: skip

    def restore(self, path: Path) -> None:
        """Goes on from the checkpoint in a file, exactly.

        Raises:
            lrenv.controllers.controller_file.ControllerFileError: it is of another training.
            ValueError: the data of a task, or its network, are no longer those that the training began with.
        """
        tensors, metadata = controller_file.read(path)
        pairs = zip(self.tasks_trained_on, self.contents, metadata.get("contents", self.contents), strict=True)
        if changed := [task.name for task, now, before in pairs if now != before]:
            raise ValueError(
                f"the data or the network of {', '.join(changed)} have changed since the training began: put the old "
                "ones back, or start anew in another --out"
            )
        try:
            values, self.command, self.finished = metadata["values"], metadata["command"], metadata["finished"]
            self.iteration, self.best_iteration = metadata["iteration"], metadata["best_iteration"]
            self.selection_runs, best = metadata["selection_runs"], metadata["best_val_loss"]
        except KeyError as error:
            raise controller_file.ControllerFileError(
                f"{path} lacks {error}: it was written by another version of lrenv; start anew in another --out"
            ) from error
        if self.best_iteration is not None:
            self.best_val_loss = math.inf if best is None else best
        if self.iteration:
            self.restore_state(restored(self.template(values), tensors, values, path))


def train(kind: Callable[[S], Training[S]], settings: S, deadline: float = math.inf) -> Path:
    """Trains a controller and gives the path of the best one.

    Interrupted (KeyboardInterrupt), it saves the last finished iteration; `resume` goes on from there, and ends with
    the same controller, to the last bit, on the same machine. A training that was extended was also validated at its
    first end, if that is no multiple of `eval_every`.

    Args:
        kind: what is trained.
        settings: how to train.
        deadline: of `time.monotonic`; the first iteration that would begin after it is interrupted.

    Raises:
        FileExistsError: `out` holds a training, and neither `resume` nor `overwrite` is set.
        FileNotFoundError: nothing to resume.
        OSError: `out` can't be written, or is full.
        ValueError: settings that cannot be meant, or that differ from those of the training to resume.
    """
    folder = Folder(settings.out)
    if not (settings.resume or settings.overwrite) and folder.begun:
        raise FileExistsError(f"{settings.out} holds a training: add --resume, --overwrite, or choose another --out")
    if settings.resume:
        settings = _resumed(settings, folder.checkpoint)
    # A program may have switched gradients off around this, or other settings that would change numbers.
    with own_settings(), torch.enable_grad():
        training = kind(settings)
        with locked_folder(settings.out):
            return _trained(training, settings, folder, deadline)


def _trained(training: Training[S], settings: S, folder: Folder, deadline: float) -> Path:
    """Runs the training from its beginning, or from the checkpoint, to its end."""
    if settings.resume:
        training.restore(folder.checkpoint)
        if training.iteration > training.iterations:
            name = settings.LENGTH
            raise ValueError(
                f"{name}={getattr(settings, name)} is less than the {training.done} {training.unit} that are done: "
                "give more, or leave it out to go on to the end that was asked for before"
            )
        folder.settle(training.best_iteration)
    else:
        folder.save(*training.checkpoint())
        if settings.overwrite:
            folder.discard_logs()
    # One that is resumed to end where it is, between two validations, has still to be validated there.
    ends = training.iteration >= training.iterations and settings.resume
    unseen = ends and not training.finished and training.iteration % settings.eval_every > 0
    saved, done = training.checkpoint(), training.done
    saved[1]["finished"] &= not unseen
    logger = folder.logger(training.iteration)
    training.attach(logger)
    last = time.monotonic()
    try:
        with progress(training.length, training.unit, done) as report:
            if training.iteration >= training.iterations:
                if unseen:
                    training.validate()
                    saved = training.checkpoint()
                report(done, f"{training.over}  held-out best {training.best_shown}")
            while training.iteration < training.iterations:
                if time.monotonic() >= deadline:
                    raise KeyboardInterrupt
                row = training.iterate()
                training.iteration += 1
                row |= {"iteration": training.iteration, "episodes": training.episodes}
                if training.iteration % settings.eval_every == 0 or training.iteration >= training.iterations:
                    row |= training.validate()
                for name, value in row.items():
                    logger.record(name, value)
                logger.dump(training.iteration)
                report(training.done, f"{training.status(row)}  held-out best {training.best_shown}")
                saved, done = training.checkpoint(), training.done
                better = training.best_iteration == training.iteration
                if better or time.monotonic() - last > CHECKPOINT_SECONDS:
                    folder.save(*saved)
                    last = time.monotonic()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} {training.unit} are saved; --resume --out {settings.out} goes on") from None
    finally:
        try:
            # Also when interrupted: the last whole iteration, whatever the present one has got to.
            folder.save(*saved)
        finally:
            logger.close()
    folder.finish(training.runs)
    return folder.controller


def _resumed(settings: S, checkpoint: Path) -> S:
    """Gives the settings of the training to resume; those that are not the default must agree, except the length."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: there is no {checkpoint}; leave --resume out to start")
    metadata = controller_file.read_metadata(checkpoint)
    before, length = metadata.get("settings", {}), settings.LENGTH
    defaults = {f.name: f.default for f in fields(settings)}
    given = settings.essence()
    if before.keys() != given.keys():
        raise controller_file.ControllerFileError(
            f"{checkpoint} was written by another kind of training, or by another version of lrenv; start anew"
        )
    clash = [name for name in before if given[name] not in (before[name], defaults[name])]
    if clash:
        pairs = ", ".join(f"{name}={given[name]!r} (was {before[name]!r})" for name in clash)
        raise ValueError(f"can't resume with other settings: {pairs}; leave them out, or start anew in another --out")
    for name, listed in own_specs(before).items():
        if given[name] != before[name]:
            wanted = f"--{name} {shlex.quote(','.join(listed))}"
            raise ValueError(f"the training ran code of your own, which no checkpoint makes run: add {wanted}")
    now = settings.files()
    changed = [spec for spec, digest in metadata.get("files", {}).items() if now.get(spec) != digest]
    if changed:
        raise ValueError(
            f"the file of {', '.join(changed)} has changed since the training began: put the old one back, or start "
            "anew in another --out"
        )
    asked = getattr(settings, length)
    return replace(settings, **before, **{length: metadata[length] if asked == defaults[length] else asked})


def begin_adam(optimizer: torch.optim.Optimizer) -> None:
    """Gives Adam the moments that it would make at its first step, so that states have them from the beginning."""
    for group in optimizer.param_groups:
        for weights in group["params"]:
            moments = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weights] = {"step": torch.tensor(0.0), **moments}


def on_host(values: dict[str, Tensor]) -> dict[str, float]:
    """Copies single numbers of a device to the host in one transfer, so that logging waits for the device once."""
    found = torch.stack([value.double() for value in values.values()]).cpu().tolist()
    return dict(zip(values, found, strict=True))
