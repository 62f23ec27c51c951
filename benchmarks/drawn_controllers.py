"""Universal controllers against one another on drawn tasks for validation that none of them was trained or chosen on.

On each task all of them run on the same seeds as one batch; a line per task is appended to a file, from which the same
command goes on. What is told is the logarithm of the last validation loss relative to that of the untrained network,
less that of the policy with power laws alone, with the standard error over tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from lrenv.agents.universal.agent import UniversalController, universal
from lrenv.agents.universal.policy import Architecture
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.progress import progress
from lrenv.training.tasks import Task

FIRST_TASK, FIRST_SEED = 1000, 100
"""The places of the first task and of the first seed, beyond those that trainings choose their controllers on."""
SEEDS = 2


@dataclass(frozen=True)
class Settings:
    """The settings: what to compare, and where what was found is kept."""

    controllers: tuple[Path, ...]
    """Files of universal controllers that know the budget and set one rate."""
    tasks: int = 165
    """Tasks to try them on."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("runs/controllers.jsonl")
    """The file of what was found."""


def tried(training: UniversalTraining, task: Task, controllers: dict[str, UniversalController]) -> dict[str, Any]:
    """The mean log loss of each controller's runs on a task."""
    run, episode = training.run(task)
    theta = torch.stack([controller.theta for controller in controllers.values()]).repeat_interleave(SEEDS, 0)
    seeds = seeds_for("validation", SEEDS, FIRST_SEED) * len(controllers)
    with torch.no_grad():
        losses = run(theta, episode.reset(seeds)[0])[0].view(len(controllers), SEEDS).mean(1)
    log_loss = {name: round(loss, 4) for name, loss in zip(controllers, losses.tolist(), strict=True)}
    return {"task": task.name, "optimizer": task.optimizer, "log_loss": log_loss}


def main(settings: Settings) -> None:
    """Runs, and prints differences."""
    base = universal()
    controllers = {"power laws": base} | {path.stem: UniversalController.load(path) for path in settings.controllers}
    if any(controller.architecture != base.architecture for controller in controllers.values()):
        raise SystemExit(f"all must be of {Architecture()}")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    lines = settings.out.read_text().splitlines() if settings.out.exists() else []
    known = {row["task"]: row for row in map(json.loads, lines) if set(row["log_loss"]) == set(controllers)}
    training = UniversalTraining(UniversalSettings(limit=settings.limit))
    tasks, rows = training.distribution.tasks("validation", settings.tasks, FIRST_TASK), []
    with settings.out.open("a") as file, progress(len(tasks), "tasks") as report:
        for place, task in enumerate(tasks):
            report(place)
            if task.name not in known:
                known[task.name] = tried(training, task, controllers)
                file.write(json.dumps(known[task.name]) + "\n")
                file.flush()
            rows.append(known[task.name])
    print("| controller | all tasks | adaptive | sgd |")
    print("|---|---:|---:|---:|")
    for name in [*controllers][1:]:
        cells = []
        for momentum in (None, False, True):
            own = [row for row in rows if momentum is None or (row["optimizer"] == "momentum") is momentum]
            less = np.array([row["log_loss"][name] - row["log_loss"]["power laws"] for row in own])
            cells.append(f"{less.mean():+.4f} ({less.std(ddof=1) / len(own) ** 0.5:.4f}, {len(own)} tasks)")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
