"""How `xu2019.py` trains controllers, and how they are carried to other tasks."""

from __future__ import annotations

import csv
import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.agents import Agent
from lrenv.agents.ppo.training import PPOTraining
from lrenv.controllers.agent import State, View
from lrenv.controllers.controller_file import read_metadata

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"reward": "val_loss", "observe": "paper"},
    "ours": {"reward": "improvement", "gamma": 1.0},
}
"""Setting -> settings of its training that are not the default; the rates of actor and critic are the paper's."""


@dataclass(frozen=True)
class Carried:
    """An agent that acts as often as the task says, whatever it was trained at."""

    agent: Agent

    @property
    def view(self) -> View:
        """The agent's, but for the interval."""
        return replace(self.agent.view, interval=None)

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """What the agent does."""
        return self.agent.predict(observation, state, episode_start, deterministic)


class Timed(PPOTraining):
    """A training that logs how long updates took, and prints how they went."""

    def iterate(self) -> dict[str, float]:
        """An update."""
        begin = time.monotonic()
        row = super().iterate()
        row["time/seconds"] = time.monotonic() - begin
        episodes = (self.iteration + 1) * self.settings.envs
        print(f"episode {episodes}: {self.status(row)}, {row['time/seconds']:.1f} s", flush=True)
        return row


def runs_spent(out: Path) -> dict[str, float]:
    """What a finished training took: trainees, those that evaluate it among them, and seconds of updates."""
    runs = read_metadata(out / "controller.safetensors")["runs"]
    with (out / "progress.csv").open() as log:
        seconds = sum(float(row["time/seconds"]) for row in csv.DictReader(log))
    return {"episodes": runs["training"], "runs_spent": sum(runs.values()), "seconds": round(seconds, 1)}


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
