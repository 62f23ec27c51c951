"""Training a PPO controller from beginning to end: iterations, progress, logs, validation, checkpoints, resuming."""

from __future__ import annotations

import csv
import time
from dataclasses import fields, replace
from pathlib import Path

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from agents.ppo_learner import PPOTraining
from agents.ppo_settings import PPOSettings
from lrenv.benchmark import controller_file
from lrenv.progress import progress

CHECKPOINT_SECONDS = 30.0
"""The least time between two checkpoints; an interruption saves one more."""


def train(settings: PPOSettings) -> Path:
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
    training = PPOTraining(settings)
    if settings.overwrite:
        for old in (settings.out / "controller.safetensors", checkpoint, *settings.out.glob("events.out.tfevents.*")):
            old.unlink(missing_ok=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.resume:
        training.restore(*controller_file.read(checkpoint))
    logger = _logger(settings.out, training.iteration)
    training.model.set_logger(logger)
    saved = training.checkpoint() if settings.resume else None
    last = time.monotonic()
    envs = settings.envs
    try:
        with progress(training.iterations * envs, "episodes", training.iteration * envs) as report:
            while training.iteration < training.iterations:
                row = training.iterate()
                if training.iteration % settings.eval_every == 0 or training.iteration == training.iterations:
                    row |= training.validate()
                for name, value in row.items():
                    logger.record(name, value)
                logger.dump(training.iteration)
                report(training.iteration * envs, _status(row, training.best_val_loss))
                saved = training.checkpoint()
                if time.monotonic() - last > CHECKPOINT_SECONDS:
                    controller_file.write(checkpoint, *saved)
                    last = time.monotonic()
    except KeyboardInterrupt:
        if saved is None:
            raise
        done = saved[1]["iteration"] * envs
        raise KeyboardInterrupt(f"{done} episodes are saved; --resume --out {settings.out} goes on") from None
    finally:
        # Also when interrupted: the last whole iteration, whatever the present one has got to.
        if saved is not None:
            controller_file.write(checkpoint, *saved)
        logger.close()
    return settings.out / "controller.safetensors"


def _resumed(settings: PPOSettings, checkpoint: Path) -> PPOSettings:
    """The settings of the training to resume; what is not the default must agree, but `episodes` may be another."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: there is no {checkpoint}; leave --resume out to start")
    metadata = controller_file.read_metadata(checkpoint)
    before = metadata["settings"]
    defaults = {f.name: f.default for f in fields(PPOSettings)}
    given = settings.essence()
    if before.keys() != given.keys():
        raise controller_file.ControllerFileError(f"{checkpoint} was written by another version of lrenv; start anew")
    clash = [name for name in before if given[name] not in (before[name], defaults[name])]
    if clash:
        pairs = ", ".join(f"{name}={given[name]!r} (was {before[name]!r})" for name in clash)
        raise ValueError(f"can't resume with other settings: {pairs}; leave them out, or start anew in another --out")
    episodes = metadata["episodes"] if settings.episodes == defaults["episodes"] else settings.episodes
    return replace(settings, **before, episodes=episodes)


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


def _status(row: dict[str, float], best: float) -> str:
    rates = " ".join(f"{row[f'episode/lr_{at}']:.1e}" for at in ("first", "middle", "last"))
    return (
        f"return {row['episode/return']:.3f}  val loss {row['episode/val_loss']:.4f} (best {best:.4f})  lr {rates}"
    )  # fmt: skip
