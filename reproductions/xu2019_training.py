"""How `xu2019.py` trains controllers, and how they are carried to other tasks."""

from __future__ import annotations

import csv
import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import plumbing
from lrenv.agents import Agent
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.controllers.agent import State, View
from lrenv.controllers.controller_file import read_metadata
from lrenv.training.tasks import Task

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"reward": "val_loss", "observe": "paper"},
    "ours": {"reward": "improvement", "gamma": 1.0},
}
"""Setting -> settings of its training that are not the default; the rates of actor and critic are the paper's."""
CHECKPOINT = "checkpoint.safetensors"


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
    """A training that is interrupted, as by Ctrl-C, before the first update that would begin after a deadline.

    Args:
        settings: how to train.
        deadline: of `time.monotonic`.
    """

    def __init__(self, settings: PPOSettings, deadline: float) -> None:
        super().__init__(settings)
        self.deadline = deadline

    def iterate(self) -> dict[str, float]:
        """An update; prints how it went, and logs what it took."""
        begin = time.monotonic()
        if begin > self.deadline:
            raise KeyboardInterrupt
        row = super().iterate()
        row["time/seconds"] = time.monotonic() - begin
        episodes = (self.iteration + 1) * self.settings.envs
        print(f"episode {episodes}: {self.status(row)}, {row['time/seconds']:.1f} s", flush=True)
        return row


def controller_of(task: Task, out: Path, own: dict[str, Any], deadline: float) -> Path | None:
    """The file of the best controller of a training, which begins or goes on; None if time was up before the end.

    Args:
        task: what the trainees learn; a registered one.
        out: where the training has its files.
        own: settings that are not the default.
        deadline: of `time.monotonic`.
    """
    settings = PPOSettings(task=task.name, out=out, **own)
    try:
        return plumbing.controller_of(partial(Timed, deadline=deadline), settings)
    except KeyboardInterrupt:
        if time.monotonic() <= deadline:
            raise
        return None


def runs_spent(out: Path) -> dict[str, float]:
    """What a finished training took: trainees, those that evaluate it among them, and seconds of updates."""
    runs = read_metadata(out / "controller.safetensors")["runs"]
    with (out / "progress.csv").open() as log:
        seconds = sum(float(row["time/seconds"]) for row in csv.DictReader(log))
    return {"episodes": runs["training"], "runs_spent": sum(runs.values()), "seconds": round(seconds, 1)}


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
