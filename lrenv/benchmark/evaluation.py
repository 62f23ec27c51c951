"""Running agents on tasks: the same initial weights and batches for every agent, test loss read once a run."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lrenv.benchmark.agent import Agent, agent_factory, make_agent, view_of
from lrenv.seeds import seeds_for
from lrenv.tasks import InitialLR, Task, make_task
from lrenv.vector_env import LearningRateVectorEnv

TUNING_SEEDS = tuple(seeds_for("tuning", 3))
"""Schedules are tuned on these; results are reported on others."""


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with null for numbers that are not finite: JSON knows neither NaN nor infinity, and strict readers fail.

    What else JSON doesn't know, such as an optimizer, is written as it prints.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=repr)


@dataclass(frozen=True)
class Result:
    """What one agent achieved on one task, a run a seed.

    Attributes:
        agent: how the agent is called in tables.
        task: the task's name.
        seeds: (n,) of the runs.
        val_loss: (n,) of each run's best checkpoint.
        test_loss: (n,) of the same checkpoint, read once.
        test_accuracy: (n,), NaN where the task has no classes.
        diverged: (n,) bool.
        curves: name -> (decisions + 1, n): `inner_step`, `train_loss`, `val_loss`, `lr`. NaN after a run's end.
        seconds: wall-clock of the whole batch of runs.
        view: what the agent saw and turned.
    """

    agent: str
    task: str
    seeds: NDArray[np.int64]
    val_loss: NDArray[Any]
    test_loss: NDArray[Any]
    test_accuracy: NDArray[Any]
    diverged: NDArray[np.bool_]
    curves: dict[str, NDArray[Any]]
    seconds: float
    view: dict[str, Any]

    def lines(self) -> list[str]:
        """One JSON line a run; null where there is no number."""
        shared = {"agent": self.agent, "task": self.task, "view": self.view, "seconds": round(self.seconds, 3)}
        return [
            to_json(
                shared
                | {name: getattr(self, name)[i].item() for name in ("val_loss", "test_loss", "test_accuracy")}
                | {"seed": int(seed), "diverged": bool(self.diverged[i])}
                | {"curves": {name: [float(f"{x:.6g}") for x in curve[:, i]] for name, curve in self.curves.items()}}
            )
            for i, seed in enumerate(self.seeds)
        ]


def evaluate(
    agent: Agent | str,
    task: Task | str,
    seeds: Sequence[int] = range(10),
    *,
    initial_lr: InitialLR | None = None,
    name: str | None = None,
    device: str | None = None,
) -> Result:
    """Runs an agent, deterministically, on one trainee a seed, all in one batch.

    Args:
        agent: an agent, or the name or file of one; a Stable-Baselines3 model is one as it stands.
        task: a task, or its name.
        seeds: of the initial weights and batches.
        initial_lr: the rate before the first action, for agents that scale it; the task's own if None.
        name: how to call the agent in tables; its `repr` if None.
        device: where the trainees live.

    Raises:
        ValueError: no seeds, or an agent that doesn't fit the task.
    """
    agent = make_agent(agent) if isinstance(agent, str) else agent
    view = view_of(agent)
    if not len(seeds):
        raise ValueError("evaluate needs at least one seed")
    task = make_task(task)
    settings = {"interval": task.interval} | view.settings()
    # An agent that acts more often than others is measured no more often: the best of many measurements is lower.
    measured = task.measure_interval or max(task.interval, settings["interval"])
    envs = LearningRateVectorEnv(
        len(seeds),
        task,
        **settings,
        measure_interval=-(-measured // settings["interval"]) * settings["interval"],
        device=device,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    begin = time.perf_counter()
    options = {} if initial_lr is None else {"initial_lr": initial_lr}
    observation, info = envs.reset(seed=list(seeds), options=options)
    ended, start, memory = np.zeros(len(seeds), dtype=bool), np.ones(len(seeds), dtype=bool), None
    shown = ("inner_step", "train_loss", "val_loss", "lr")
    curves: dict[str, list[NDArray[Any]]] = {key: [_one_rate(info[key])] for key in shown}
    best, tested = info["val_loss"].copy(), np.full((2, len(seeds)), np.nan)
    while not ended.all():
        action, memory = agent.predict(observation, memory, start, deterministic=True)
        observation, _, terminated, _, info = envs.step(action)
        for key in shown:
            curves[key].append(np.where(ended, np.nan, _one_rate(info[key])))
        best = np.where(ended | info["diverged"], best, np.minimum(best, info["val_loss"]))
        for row, key in enumerate(("test_loss", "test_accuracy")):
            if key in info:
                tested[row] = np.where(info[f"_{key}"], info[key], tested[row])
        ended, start = terminated, np.zeros(len(seeds), dtype=bool)
    return Result(
        repr(agent) if name is None else name,
        envs.task.name,
        np.asarray(seeds, dtype=np.int64),
        best,
        tested[0],
        tested[1],
        info["diverged"],
        {key: np.stack(curve) for key, curve in curves.items()},
        time.perf_counter() - begin,
        view.settings(),
    )


@dataclass(frozen=True)
class Tuned:
    """The outcome of a grid search.

    Attributes:
        settings: the best combination.
        combinations: all of them.
        val_loss: (combinations,) mean of the best validation losses over the tuning seeds.
    """

    settings: dict[str, Any]
    combinations: list[dict[str, Any]]
    val_loss: NDArray[Any]


def tune(
    name: str, task: Task | str, seeds: Sequence[int] = TUNING_SEEDS, at_once: int = 256, device: str | None = None
) -> Tuned:
    """Searches the grid that an agent's factory carries, by validation loss, all combinations as one batch.

    Args:
        name: the agent's; its factory's `grid` maps hyperparameters to values, whose product is searched.
        task: what to tune on.
        seeds: each combination runs on all of them.
        at_once: trainees in a batch at most, which bounds memory.
        device: where the trainees live.

    Raises:
        ValueError: the agent has no grid.
    """
    factory = agent_factory(name)
    grid = getattr(factory, "grid", None)
    if not grid:
        raise ValueError(f"agent {name!r} has no grid to tune over; give its settings, as in {name}:peak=0.01")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    pairs = [(combination, seed) for combination in combinations for seed in seeds]
    losses = []
    for first in range(0, len(pairs), at_once):
        part = pairs[first : first + at_once]
        settings = {key: np.array([combination[key] for combination, _ in part]) for key in grid}
        result = evaluate(factory(**settings), make_task(task), [seed for _, seed in part], device=device)
        losses.append(result.val_loss)
    mean = np.concatenate(losses).reshape(len(combinations), len(seeds)).mean(1)
    return Tuned(combinations[int(mean.argmin())], combinations, mean)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _one_rate(values: NDArray[Any]) -> NDArray[Any]:
    """(n,) as it is; of several rates a trainee, (n, K), the geometric mean."""
    return values if values.ndim == 1 else np.exp(np.log(np.abs(values).clip(1e-12)).mean(1))
