"""Universal controllers against one another on drawn tasks for validation that none of them was trained or chosen on.

On each task all of them run on the same seeds; a line per task is appended to a file, from which the same command goes
on. What is told is the logarithm of the last validation loss relative to that of the untrained network, less that of
`universal`, which is power laws alone, with the standard error over tasks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from drawn_rows import Row, by_optimizer, digest_of, rows_of
from lrenv.agents.universal.agent import UniversalController, universal
from lrenv.agents.universal.policy import Architecture
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.randomness.seeds import seeds_for
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

FIRST_TASK, FIRST_SEED = 1000, 100
"""The places of the first task and of the first seed, beyond those that trainings choose their controllers on."""
SEEDS = 2
BASE, FAN_IN_RULE = "universal", "rates by fan-in alone"
"""The power laws with one rate, and with rates per layer as an untrained policy has them."""


@dataclass(frozen=True)
class Settings:
    """The settings: what to compare, and where what was found is kept."""

    controllers: tuple[Path, ...]
    """Files of universal controllers that know the budget. They are called by their folders, as trainings name them."""
    tasks: int = 165
    """Tasks to try them on."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("runs/controllers.jsonl")
    """The file of what was found."""


def loaded(files: tuple[Path, ...]) -> dict[str, UniversalController]:
    """The controllers by name, after `universal`.

    Raises:
        SystemExit: two have one name, or one doesn't know the budget.
    """
    found = {BASE: universal()}
    for file in files:
        name, controller = file.resolve().parent.name, UniversalController.load(file)
        if name in found:
            raise SystemExit(f"there are two controllers {name}: name their folders differently")
        if not controller.architecture.horizon:
            raise SystemExit(f"{file} doesn't know the budget, and can't stand beside universal")
        found[name] = controller
    if any(controller.architecture.layers for controller in found.values()):
        rule = Architecture(layers=True)
        found[FAN_IN_RULE] = UniversalController(rule.init(0), rule)
    return found


def tried(
    trainings: dict[Architecture, UniversalTraining], task: Task, controllers: dict[str, UniversalController]
) -> dict[str, float]:
    """The mean log loss of each controller's runs on a task."""
    seeds, losses = seeds_for("validation", SEEDS, FIRST_SEED), {}
    for name, controller in controllers.items():
        run, episode = trainings[controller.architecture].run(task)
        with torch.no_grad():
            fall, _ = run(controller.theta.expand(SEEDS, -1), episode.reset(seeds)[0])
        losses[name] = round(float(fall.mean()), 4)
    return losses


def told(rows: list[Row]) -> str:
    """The table."""
    lines = ["| controller | more than universal |", "|---|---:|"]
    for name in rows[0]["log_loss"]:
        if name != BASE:
            less = np.array([row["log_loss"][name] - row["log_loss"][BASE] for row in rows])
            lines.append(f"| {name} | {less.mean():+.4f} ({less.std(ddof=1) / len(rows) ** 0.5:.4f}) |")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    """Runs, and prints differences."""
    controllers = loaded(settings.controllers)
    files = [
        hashlib.sha256(controller.theta.double().numpy().tobytes()).hexdigest() for controller in controllers.values()
    ]
    designs = digest_of([*zip(controllers, files, strict=True)])
    trainings = {}
    for architecture in {controller.architecture for controller in controllers.values()}:
        own: dict[str, Any] = vars(architecture)
        trainings[architecture] = UniversalTraining(UniversalSettings(limit=settings.limit, **own))
    tasks = next(iter(trainings.values())).distribution.tasks("validation", settings.tasks, FIRST_TASK)

    def row(task: Task) -> Row:
        losses = tried(trainings, task, controllers)
        about = {"task": task.name, "version": VERSION, "designs": designs, "optimizer": task.optimizer}
        return about | {"log_loss": losses}

    print(by_optimizer(rows_of(settings.out, tasks, lambda row: row["designs"] == designs, row), told))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
