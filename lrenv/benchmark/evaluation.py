"""Running agents on tasks: the same initial weights and batches for every agent, test loss read once per run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lrenv.benchmark.optimizer_runs import run_optimizers
from lrenv.controllers.agent import Agent, AgentError, State, called, make_agent, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.controllers.sb3_agent import as_agent
from lrenv.envs.observations import names_of
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.lookup import count, error_line, what_is
from lrenv.runtime.ambient import with_own_settings
from lrenv.runtime.compiling import CaptureError, Compile
from lrenv.runtime.json_values import to_json
from lrenv.runtime.memory import choose_device
from lrenv.training.dynamics import one_rate_of
from lrenv.training.tasks import InitialLR, Task, make_task

NUMBERS = ("val_loss", "test_loss", "test_metric", "final_val_loss", "final_test_loss", "final_test_metric")
"""The attributes of a `Result` that measure runs."""
ARRAYS = ("seeds", *NUMBERS, "diverged")
"""Those that have one entry per run."""


@dataclass(frozen=True, repr=False)
class Result:
    """What one agent achieved on one task, a run per seed: at each run's best checkpoint, and at its end.

    Attributes:
        agent: how the agent is called in tables.
        task: the task's name.
        metric: what is measured beside the loss (`lrenv.training.losses`); None if nothing is.
        seeds: (n,) of the runs.
        val_loss: (n,) of each run's best checkpoint, that with the lowest validation loss.
        test_loss: (n,) of the same checkpoint, read once.
        test_metric: (n,) the same; NaN where there is no metric.
        final_val_loss: (n,) of the last network; infinite where the run diverged.
        final_test_loss: (n,) the same, read once.
        final_test_metric: (n,) the same; NaN where the run diverged, or where there is no metric.
        diverged: (n,) bool.
        curves: name -> (decisions + 1, n): `inner_step`, `train_loss`, `val_loss`, `lr`. NaN after a run's end.
        seconds: wall-clock of all the runs; no part of `lines`, which are equal whenever runs are.
        view: what the agent saw and turned, as JSON values and tuples.
    """

    agent: str
    task: str
    metric: str | None
    seeds: NDArray[np.int64]
    val_loss: NDArray[Any]
    test_loss: NDArray[Any]
    test_metric: NDArray[Any]
    final_val_loss: NDArray[Any]
    final_test_loss: NDArray[Any]
    final_test_metric: NDArray[Any]
    diverged: NDArray[np.bool_]
    curves: dict[str, NDArray[Any]]
    seconds: float
    view: dict[str, Any]

    def __repr__(self) -> str:
        diverged = f", {int(self.diverged.sum())} diverged" if self.diverged.any() else ""
        return (
            f"<Result: {self.agent} on {self.task}, {len(self.seeds)} seeds{diverged}, mean test loss "
            f"{np.mean(self.test_loss):.4g}>"
        )

    def numbers(self) -> dict[str, NDArray[Any]]:
        """Name -> (n,): the losses, and the metric under its own name, such as `final_test_accuracy`."""
        named = {name: name.replace("metric", self.metric or "") for name in NUMBERS}
        return {to: getattr(self, name) for name, to in named.items() if self.metric or "metric" not in name}

    def lines(self) -> list[str]:
        """One JSON line per run; null where there is no number."""
        shared = {"agent": self.agent, "task": self.task, "view": self.view}
        return [
            to_json(
                shared
                | {name: values[i].item() for name, values in self.numbers().items()}
                | {"seed": int(seed), "diverged": bool(self.diverged[i])}
                | {"curves": {name: [float(f"{x:.6g}") for x in curve[:, i]] for name, curve in self.curves.items()}}
            )
            for i, seed in enumerate(self.seeds)
        ]


@with_own_settings
def evaluate(
    agent: Agent | Path | str,
    task: Task | str,
    seeds: Sequence[int] = range(10),
    *,
    initial_lr: InitialLR | None = None,
    name: str | None = None,
    device: str | None = None,
    capture: bool = False,
    environments: Callable[..., LearningRateVectorEnv] = LearningRateVectorEnv,
) -> Result:
    """Runs an agent, deterministically, on one trainee per seed, all in one batch.

    Args:
        agent: an agent, or the name, spec or file of one; a Stable-Baselines3 model is one as it stands, with the
            normalisation of its environment and what that let it see and turn (`lrenv.agents.SB3Agent`). One that
            is an optimizer of its own (`lrenv.agents.OptimizerAgent`) trains on the same initial weights and batches.
        task: a task, or its name.
        seeds: of the initial weights and batches.
        initial_lr: the rate before the first action, for agents that scale it; the task's own if None.
        name: how to call the agent in tables; its `repr` if None.
        device: where the trainees live.
        capture: on CUDA, replay decisions as CUDA graphs, with the same numbers; optimizers and networks that wait for
            the device can't be captured.
        environments: what makes them, by (n, task) and settings of `LearningRateVectorEnv`; such as a subclass of one's
            own in which something happens.

    Raises:
        ValueError: no seeds, a task that can't be made, or environments of one's own for an optimizer, which has none.
        AgentError: the agent has no view, one that the task can't offer, fails at a decision, or can't be captured.
    """
    agent = as_agent(make_agent(agent) if isinstance(agent, str | Path) else agent)
    if isinstance(seeds, int):
        raise ValueError(f"seeds must be several, as in seeds=range({seeds})")
    task, seeds = make_task(task), list(seeds)
    name = called(agent) if name is None else name
    view = view_of(agent)
    if not seeds:
        raise ValueError("evaluate needs at least one seed")
    chosen = choose_device(device)
    if isinstance(agent, OptimizerAgent):
        if environments is not LearningRateVectorEnv:
            raise ValueError(
                f"agent {name!r} is an optimizer, which trains without environments: leave environments out"
            )
        return _optimized(agent, name, task, seeds, chosen)
    compile: Compile = "graph" if capture and chosen.type == "cuda" else False
    envs = _environments(environments, name, agent, task, len(seeds), chosen, compile)
    acting = agent.on_device(chosen) if hasattr(agent, "on_device") else agent
    begin = time.perf_counter()
    options = {} if initial_lr is None else {"initial_lr": initial_lr}
    observation, info = envs.reset(seed=seeds, options=options)
    who = _Who(name, envs, seeds)
    ended, start = np.zeros(len(seeds), dtype=bool), np.ones(len(seeds), dtype=bool)
    memory: State = None
    shown = ("inner_step", "train_loss", "val_loss", "lr")
    curves: dict[str, list[NDArray[Any]]] = {key: [one_rate_of(info[key])] for key in shown}
    best, metric = info["val_loss"].copy(), envs.episode.trainee.metric
    # Where there is no metric, its rows stay NaN.
    tests = [f"{when}test_{what}" for when in ("", "final_") for what in ("loss", metric)]
    tested = {name: np.full(len(seeds), np.nan) for name in tests}
    while not ended.all():
        action, memory = who.decides(acting, observation, memory, start, info)
        try:
            observation, _, terminated, _, info = envs.step(action)
        except CaptureError as error:
            raise AgentError(f"agent {name!r}: {error}") from error
        except (ValueError, TypeError) as error:
            who.check(action, info, error)
            raise
        for key in shown:
            curves[key].append(np.where(ended, np.nan, one_rate_of(info[key])))
        best = np.where(ended | info["diverged"], best, np.minimum(best, info["val_loss"]))
        for key in tested.keys() & info.keys():
            tested[key] = np.where(info[f"_{key}"], info[key], tested[key])
        ended, start = terminated, np.zeros(len(seeds), dtype=bool)
    return Result(
        agent=name,
        task=envs.task.name,
        metric=metric,
        seeds=np.asarray(seeds, dtype=np.int64),
        val_loss=best,
        test_loss=tested["test_loss"],
        test_metric=tested[f"test_{metric}"],
        final_val_loss=np.where(info["diverged"], np.inf, info["val_loss"]),
        final_test_loss=tested["final_test_loss"],
        final_test_metric=tested[f"final_test_{metric}"],
        diverged=info["diverged"],
        curves={key: np.stack(curve) for key, curve in curves.items()},
        seconds=time.perf_counter() - begin,
        view={key: _shown(key, x) for key, x in view.settings().items()},
    )


def _optimized(agent: OptimizerAgent, name: str, task: Task, seeds: list[int], device: torch.device) -> Result:
    """The runs of an agent that is an optimizer."""
    begin = time.perf_counter()
    runs = run_optimizers(agent, name, task, seeds, device)
    return Result(
        agent=name,
        task=task.name,
        metric=runs.metric,
        seeds=np.asarray(seeds, dtype=np.int64),
        **runs.arrays,
        curves=runs.curves,
        seconds=time.perf_counter() - begin,
        view={"optimizer": agent.source(), "loop": "one per run, not stacked"},
    )


def measured_every(task: Task, interval: int) -> int:
    """Returns the steps between two measurements of an agent that acts at such an interval.

    Who acts more often than others is measured no more often, for the best of many measurements is lower.
    """
    measured = task.measure_interval or max(task.interval, interval)
    return -(-measured // interval) * interval


def _environments(
    make: Callable[..., LearningRateVectorEnv],
    name: str,
    agent: Agent,
    task: Task,
    n: int,
    device: torch.device,
    compile: Compile,
) -> LearningRateVectorEnv:
    """What the agent called `name` acts on."""
    settings = {"interval": task.interval} | view_of(agent).settings()
    interval = settings["interval"]
    try:
        measured = settings["measure_interval"] = measured_every(task, count("interval", interval))
        if measured > interval and getattr(agent, "counts_measurements", False):
            raise ValueError(
                f"it counts validation losses at each decision, every {interval} steps, but they are measured every "
                f"{measured}: give the task interval={measured}, or measure_interval={interval}"
            )
        return make(n, task, **settings, device=device, compile=compile, autoreset_mode=AutoresetMode.DISABLED)
    except (ValueError, TypeError) as error:
        # Is it the agent, or the task by itself?
        make(1, task, device=device)
        raise AgentError(f"agent {name!r} can't act on task {task.name!r}: {error}") from error


@dataclass(frozen=True)
class _Who:
    """An agent at work, so that an error can say who failed, where and when.

    Attributes:
        name: the agent's.
        envs: what it acts on.
        seeds: of the environments.
    """

    name: str
    envs: LearningRateVectorEnv
    seeds: list[int]

    def decides(
        self, agent: Agent, observation: Any, memory: State, start: NDArray[np.bool_], info: dict[str, Any]
    ) -> tuple[NDArray[Any], State]:
        """The agent's actions and its memory.

        Raises:
            AgentError: `predict` raises, or gives something else than actions and a memory.
        """
        try:
            answer: Any = agent.predict(observation, memory, start, deterministic=True)
        except Exception as error:
            raise self._failed(info, f"predict raised {error_line(error)}") from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            wanted = "a pair of actions and memory: `return action, state`, with None for no memory"
            raise self._failed(info, f"predict must give {wanted}; it gave {what_is(answer)}")
        return answer

    def check(self, action: Any, info: dict[str, Any], error: Exception) -> None:
        """Tells an error that came of the action from any other.

        Raises:
            AgentError: the action is not what the environments take.
        """
        control = self.envs.episode.control
        try:
            control.check(action, len(self.seeds))
        except (ValueError, TypeError) as refused:
            shape = ", ".join(map(str, (len(self.seeds), *(control.space.shape or ()))))
            wanted = f"it must be an array ({shape}), a row per environment, each inside {control.space}"
            raise self._failed(info, f"its action is no good: {refused}; {wanted}", self._at_fault(action)) from error

    def _at_fault(self, action: Any) -> list[int]:
        """The environments whose actions are bad; none if it isn't a matter of single ones."""
        control = self.envs.episode.control
        try:
            rows = np.asarray(action)
        except (TypeError, ValueError, RuntimeError):  # no array at all
            return []
        if rows.shape[:1] != (len(self.seeds),):
            return []
        bad = []
        for i in range(len(self.seeds)):
            try:
                control.check(rows[i : i + 1], 1)
            except ValueError:
                bad.append(i)
        return bad if len(bad) < len(self.seeds) else []

    def _failed(self, info: dict[str, Any], what: str, environments: list[int] | None = None) -> AgentError:
        """The error that tells `what` the agent did; all environments are concerned unless some are named."""
        concerned = environments or list(range(len(self.seeds)))
        seeds = ", ".join(str(self.seeds[i]) for i in concerned[:8]) + ", ..." * (len(concerned) > 8)
        numbers = ", ".join(map(str, concerned[:8])) + ", ..." * (len(concerned) > 8)
        step = int(np.max(info["inner_step"]))
        decision = -(-step // self.envs.task.interval) + 1
        return AgentError(
            f"agent {self.name!r} on task {self.envs.task.name!r}, decision {decision} (inner step {step}), "
            f"environments {numbers} (seeds {seeds}): {what}"
        )


def joined(results: Sequence[Result]) -> Result:
    """The runs of several results of one agent on one task, side by side; curves are as long as the longest."""
    if len(results) == 1:
        return results[0]

    def beside(curves: list[NDArray[Any]]) -> NDArray[Any]:
        longest = max(map(len, curves))
        return np.concatenate(
            [np.pad(curve, ((0, longest - len(curve)), (0, 0)), constant_values=np.nan) for curve in curves], 1
        )

    arrays: dict[str, Any] = {name: np.concatenate([getattr(result, name) for result in results]) for name in ARRAYS}
    curves = {name: beside([result.curves[name] for result in results]) for name in results[0].curves}
    return replace(results[0], **arrays, curves=curves, seconds=sum(result.seconds for result in results))


def _shown(name: str, value: Any) -> Any:
    """A setting of a view as names or numbers."""
    if name == "observe":
        return names_of(value)
    return value if isinstance(value, str | int) or _names(value) else called(value)


def _names(value: object) -> bool:
    """Whether it is a tuple of names, as controls and observations are."""
    return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
