"""Training an agent from beginning to end: iterations, progress, logs, validation, checkpoints, resuming.

What is special to a kind of agent is a `Training`; whatever learns from running trainees goes through `train`.
"""

from __future__ import annotations

import csv
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from torch import Tensor

from agents.outer_settings import OuterSettings
from lrenv.benchmark import controller_file
from lrenv.benchmark.agent import Agent
from lrenv.benchmark.evaluation import evaluate
from lrenv.progress import progress
from lrenv.tasks import Task

CHECKPOINT_SECONDS = 30.0
"""The least time between two checkpoints; an interruption saves one more."""
TRAINING_SEEDS = 1_000_000
"""Training seed s starts its environments at s + 1 times this, far from the seeds that results are reported on."""
VALIDATION_SEEDS = 20_000
"""The best controller is chosen on the seeds from here on."""

S = TypeVar("S", bound=OuterSettings)


class Controller(Agent, Protocol):
    """An agent that can be written to a file."""

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the controller, with how it was trained."""


class Training(ABC, Generic[S]):
    """A training between two iterations: `iterate`, look, `checkpoint`, and the same again.

    Args:
        settings: how to train.
        task: what the trainees learn.

    Attributes:
        iteration: how many are done.
        best_val_loss: what `held_out_loss` gave for the best controller so far.
        unit: what progress counts.
    """

    unit = "iterations"

    def __init__(self, settings: S, task: Task) -> None:
        self.settings = settings
        self.task = task
        self.iteration = 0
        self.best_val_loss = float("inf")

    @property
    @abstractmethod
    def iterations(self) -> int:
        """Of the whole training."""

    @property
    def units(self) -> int:
        """How many units an iteration has."""
        return 1

    @property
    def episodes(self) -> int:
        """Trainees that were trained so far, each for a budget."""
        return self.iteration

    @abstractmethod
    def iterate(self) -> dict[str, float]:
        """One iteration; gives what to log."""

    @abstractmethod
    def controller(self) -> Controller:
        """The controller as it is now; made without a draw from a global generator."""

    @abstractmethod
    def status(self, row: dict[str, float]) -> str:
        """What to show of an iteration, in a line."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next iteration depends on: tensors, and JSON values."""

    @abstractmethod
    def restore_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Goes on from a state, exactly."""

    def attach(self, logger: Logger) -> None:
        """Hands over a logger; for those who log more than `iterate` gives."""

    @property
    def held_out_seeds(self) -> range:
        """Of the episodes that controllers are compared on."""
        return range(VALIDATION_SEEDS, VALIDATION_SEEDS + self.settings.eval_seeds)

    def held_out_loss(self, controller: Controller) -> float:
        """What the best controller is chosen by: its mean best validation loss on held-out seeds."""
        return float(evaluate(controller, self.task, self.held_out_seeds, device=self.settings.device).val_loss.mean())

    def validate(self) -> dict[str, float]:
        """The controller's held-out loss; the best controller so far is saved."""
        controller = self.controller()
        loss = self.held_out_loss(controller)
        if loss < self.best_val_loss or self.best_val_loss == float("inf"):
            self.best_val_loss = loss
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            trained = {"episodes": self.episodes, "val_loss": loss, "command": command}
            controller.save(
                self.settings.out / "controller.safetensors", trained | {"settings": self.settings.as_json()}
            )
        return {"eval/val_loss": loss, "eval/best_val_loss": self.best_val_loss}

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state, how far the training is, and what it was asked."""
        tensors, values = self.state()
        settings = self.settings
        shared = {"iteration": self.iteration, "best_val_loss": self.best_val_loss, "settings": settings.essence()}
        return tensors, values | shared | {settings.LENGTH: getattr(settings, settings.LENGTH)}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Goes on from a checkpoint, exactly."""
        self.iteration, self.best_val_loss = metadata["iteration"], metadata["best_val_loss"]
        self.restore_state(tensors, metadata)


def train(kind: Callable[[S], Training[S]], settings: S) -> Path:
    """Trains a controller and gives the path of the best one.

    Interrupted with Ctrl-C (KeyboardInterrupt), it saves the last finished iteration; `resume` goes on from there.

    Raises:
        FileExistsError: `out` holds a training, and neither `resume` nor `overwrite` is set.
        FileNotFoundError: nothing to resume.
        ValueError: settings that cannot be meant, or that differ from those of the training to resume.
    """
    checkpoint = settings.out / "checkpoint.safetensors"
    if checkpoint.exists() and not (settings.resume or settings.overwrite):
        raise FileExistsError(f"{settings.out} holds a training: add --resume, --overwrite, or choose another --out")
    if settings.resume:
        settings = _resumed(settings, checkpoint)
    training = kind(settings)
    if settings.overwrite:
        for old in (settings.out / "controller.safetensors", checkpoint, *settings.out.glob("events.out.tfevents.*")):
            old.unlink(missing_ok=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.resume:
        try:
            training.restore(*controller_file.read(checkpoint))
        except KeyError as error:
            raise controller_file.ControllerFileError(
                f"{checkpoint} lacks {error}: it was written by another version of lrenv; start anew in another --out"
            ) from error
    logger = _logger(settings.out, training.iteration)
    training.attach(logger)
    saved = training.checkpoint() if settings.resume else None
    last = time.monotonic()
    units = training.units
    try:
        with progress(training.iterations * units, training.unit, training.iteration * units) as report:
            while training.iteration < training.iterations:
                row = training.iterate()
                training.iteration += 1
                row |= {"iteration": training.iteration, "episodes": training.episodes}
                if training.iteration % settings.eval_every == 0 or training.iteration == training.iterations:
                    row |= training.validate()
                for name, value in row.items():
                    logger.record(name, value)
                logger.dump(training.iteration)
                report(training.iteration * units, f"{training.status(row)}  best {training.best_val_loss:.4f}")
                saved = training.checkpoint()
                if time.monotonic() - last > CHECKPOINT_SECONDS:
                    controller_file.write(checkpoint, *saved)
                    last = time.monotonic()
    except KeyboardInterrupt:
        if saved is None:
            raise
        done = saved[1]["iteration"] * units
        raise KeyboardInterrupt(f"{done} {training.unit} are saved; --resume --out {settings.out} goes on") from None
    finally:
        # Also when interrupted: the last whole iteration, whatever the present one has got to.
        if saved is not None:
            controller_file.write(checkpoint, *saved)
        logger.close()
    return settings.out / "controller.safetensors"


def _resumed(settings: S, checkpoint: Path) -> S:
    """The settings of the training to resume; what is not the default must agree, but the length may be another."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: there is no {checkpoint}; leave --resume out to start")
    metadata = controller_file.read_metadata(checkpoint)
    before, length = metadata["settings"], settings.LENGTH
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
    asked = getattr(settings, length)
    return replace(settings, **before, **{length: metadata[length] if asked == defaults[length] else asked})


def _logger(out: Path, iteration: int) -> Logger:
    """CSV and TensorBoard logs; rows of a resumed training up to `iteration` are kept."""
    path = out / "progress.csv"
    kept: list[dict[str, str]] = []
    if iteration and path.exists():
        with path.open() as file:
            kept = [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]
    table = CSVOutputFormat(str(path))
    for row in kept:
        table.write({name: value for name, value in row.items() if value}, dict.fromkeys(row, ()))
    return Logger(str(out), [table, TensorBoardOutputFormat(str(out))])
