"""How many validation examples a decision should measure: `python benchmarks/validation_size.py --task mnist1d-mlp`.

Trains a PPO controller for each size and seed, then runs it on held-out seeds and reads validation and test loss on
whole splits, so that the sizes differ in what the controller learned from and in nothing else. Each controller's
results are a line of `benchmarks/validation_size.jsonl`; lines that are there already are not computed again.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from lrenv.agents.outer.training import train
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.benchmark import evaluate
from lrenv.runtime.files import json_lines
from lrenv.runtime.process import keep_memory, machine

LINES = Path(__file__).with_suffix(".jsonl")
RATES = (1e-2, 1e-3, 1e-4)
"""Initial rates from which each controller runs."""


@dataclass(frozen=True)
class Settings:
    """The settings: which controllers to train."""

    task: str = "mnist1d-mlp"
    """What the trainees learn."""
    sizes: tuple[int, ...] = (1000, 500, 250, 125)
    """Validation examples."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the trainings."""
    episodes: int = 1024
    """Of each training."""


def outcome(settings: Settings, size: int, seed: int) -> dict[str, Any]:
    """Trains one controller; returns its mean losses over seeds 0 to 9 and all initial rates."""
    with tempfile.TemporaryDirectory() as folder:
        ppo = PPOSettings(
            settings.task, Path(folder), episodes=settings.episodes, reward="improvement", gamma=1.0, seed=seed,
            val_examples=size, compile=True,
        )  # fmt: skip
        controller = train(PPOTraining, ppo)
        results = [evaluate(str(controller), settings.task, range(10), initial_lr=rate) for rate in RATES]
    losses = {
        name: torch.tensor([getattr(result, name).mean() for result in results]).mean().item()
        for name in ("val_loss", "test_loss")
    }
    return losses | {"machine": machine()}


def main(settings: Settings) -> None:
    """Computes what is missing, and prints all lines of the task."""
    keep_memory()
    lines = json_lines(LINES)
    done = {(line["task"], line["episodes"], line["size"], line["seed"]) for line in lines}
    for seed in settings.seeds:
        for size in settings.sizes:
            key = {"task": settings.task, "episodes": settings.episodes, "size": size, "seed": seed}
            if tuple(key.values()) not in done:
                lines.append(key | outcome(settings, size, seed))
                LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Table("task", "size", "seed", "val loss", "test loss")
    for line in sorted(lines, key=lambda line: (-line["size"], line["seed"])):
        if line["task"] == settings.task:
            numbers = (f"{line[name]:.4f}" for name in ("val_loss", "test_loss"))
            table.add_row(line["task"], str(line["size"]), str(line["seed"]), *numbers)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
