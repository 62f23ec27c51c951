"""Who recovers from a shock in the middle of a run, on drawn tasks for reports that train with Adam or AdamW.

- rate: for one of the task's intervals, from the middle of its budget on, steps are 10 times as long as the agent
  wants. Agents that set the rate have their own again after it; those that scale it go on from there.
- labels: from then on the training targets of half of the examples are those of others. Validation and test splits
  stay as they are.

What is told is log(test loss at the end / that of the same agent, weights and batches without a shock), the mean over
seeds and tasks with its standard error over tasks, and the loss without a shock relative to that of the first agent, so
that an agent which has little to lose is known by it. No agent is tuned.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from harness import known_as
from lrenv.agents import make_agent
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.scores import capped_log
from lrenv.data import Split
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import append_line, json_lines
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION, TaskDistribution
from lrenv.training.tasks import Task

SHOCKS = ("none", "rate", "labels")
FACTOR = 10.0
"""What the rate is multiplied by."""
SHARE = 0.5
"""The part of the training targets that are exchanged."""
CAP = 10.0
"""A run that diverged counts as so many times the loss without a shock, which is also the most that counts."""


@dataclass(frozen=True)
class Settings:
    """The settings: who is shocked, and where."""

    agents: tuple[str, ...] = (
        "universal", "universal-anytime", "linear:peak=0.003:warmup=0.05", "constant:peak=0.003", "plateau:peak=0.003",
        "greedy-bounded:peak=0.003", "adam-hd:initial_lr=0.003", "gala:initial_lr=0.003",
    )  # fmt: skip
    """Names, specs or files; where they scale the rate, they begin at 0.003."""
    tasks: int = 24
    """Drawn tasks for reports, of which those with Adam or AdamW are taken."""
    seeds: int = 5
    """Runs of each agent on each task."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/shocks.jsonl")
    """A line per agent and task; what is there is not run again."""


class Shocked(LearningRateVectorEnv):
    """Environments whose first episodes a shock befalls, half of the budget over.

    Args:
        num_envs: n.
        task: the task.
        shock: one of `SHOCKS`.
        more: as environments take it.

    Raises:
        ValueError: the agent's interval doesn't divide the task's, so that the shock would be another one for it.
    """

    def __init__(self, num_envs: int, task: Task, *, shock: str, **more: Any) -> None:
        super().__init__(num_envs, task, **more)
        if task.interval % self.task.interval:
            raise ValueError(f"an interval of {self.task.interval} steps doesn't divide the task's, {task.interval}")
        self.shock = shock
        # The task's interval, whatever the agent's is, so that it is the same shock for all.
        self.begins = task.interval * (-(-task.budget // task.interval) // 2)
        self.ends = self.begins + task.interval
        self.shocked = False

    def step(self, actions: Any) -> Any:
        """A decision, which may be one with the shock."""
        trainee, now = self.episode.trainee, int(self._inner_step.max())
        if self.shock == "labels" and not self.shocked and now >= self.begins:
            self.shocked, trainee.train = True, exchanged(trainee.train)
        if self.shock == "rate" and self.begins <= now < self.ends:
            return self._with_longer_steps(actions)
        return super().step(actions)

    def _with_longer_steps(self, actions: Any) -> Any:
        apply = self.episode.control.apply
        own = FACTOR if self.shocked else 1.0

        def longer(action: Tensor, lr: Tensor, hyper: Any) -> Any:
            lr, hyper = apply(action, lr / own, hyper)
            return FACTOR * lr, hyper

        self.shocked = True
        self.episode.control.apply = longer  # type: ignore[method-assign]
        try:
            return super().step(actions)
        finally:
            self.episode.control.apply = apply  # type: ignore[method-assign]


def exchanged(split: Split) -> Split:
    """The split with the targets of a part of the examples in another order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(split.targets), generator=generator)[: round(SHARE * len(split.targets))]
    targets = split.targets.clone()
    targets[order] = split.targets[order.roll(1)]
    return Split(split.inputs, targets)


def last_test_losses(agent: Any, task: Task, shock: str, seeds: list[int]) -> list[float | None]:
    """The test losses at the end (n,); None where a run diverged."""
    found = evaluate(agent, task, seeds, initial_lr=0.003, device="cpu", environments=partial(Shocked, shock=shock))
    return [x if math.isfinite(x) else None for x in found.final_test_loss.tolist()]


def relative(losses: list[float | None], reference: list[float | None]) -> float:
    """The mean over seeds of log(losses / reference), within `CAP` either way; a run that diverged is at the cap.

    Seeds on which the reference diverged are left out; NaN if it did on all.
    """
    pairs = [(own, other) for own, other in zip(losses, reference, strict=True) if other is not None]
    if not pairs:
        return math.nan
    own, other = np.array(pairs, np.float64).T
    return float(capped_log(own, other, CAP).mean())


def cell(logs: list[float]) -> str:
    """A mean over tasks with its standard error; and how many tasks have none."""
    known = np.array([x for x in logs if not math.isnan(x)])
    left_out = f", {len(logs) - len(known)} left out" if len(known) < len(logs) else ""
    return f"{known.mean():+.3f} ({known.std(ddof=1) / len(known) ** 0.5:.3f}{left_out})" if len(known) > 1 else "-"


def main(settings: Settings) -> None:
    """Runs and prints.

    Raises:
        SystemExit: too few tasks to tell anything.
        ValueError: an agent is unknown or can't be made.
    """
    drawn = TaskDistribution(settings.limit).tasks("report", settings.tasks)
    tasks = [task for task in drawn if task.optimizer != "momentum"]
    if len(tasks) < 2:
        raise SystemExit(f"{settings.tasks} tasks hold {len(tasks)} with Adam or AdamW; ask for more")
    agents = {name: make_agent(name) for name in settings.agents}
    seeds = seeds_for("report", settings.seeds)
    about = {"seeds": seeds, "version": VERSION, "factor": FACTOR, "share": SHARE}
    own = {name: about | known_as(name) for name in settings.agents}
    found = {
        (name, row["task"]): row["test_loss"] for row in json_lines(settings.out) for name, key in own.items()
        if key.items() <= row.items()
    }  # fmt: skip
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with progress(len(tasks) * len(agents), "agents on tasks") as report:
        for place, (task, name) in enumerate((task, name) for task in tasks for name in agents):
            report(place, f"{name} on {task.name}")
            if (name, task.name) not in found:
                losses = {shock: last_test_losses(agents[name], task, shock, seeds) for shock in SHOCKS}
                found[name, task.name] = losses
                row = {"task": task.name} | own[name] | {"test_loss": losses}
                append_line(settings.out, json.dumps(row))
    print(f"{len(tasks)} tasks, {len(seeds)} seeds; logarithms, with standard errors over tasks:\n")
    print("| agent | without a shock, relative to the first | rate times 10 | labels exchanged |")
    print("|---|---:|---:|---:|")
    for name in agents:
        runs = [found[name, task.name] for task in tasks]
        first = [found[settings.agents[0], task.name] for task in tasks]
        level = [relative(mine["none"], other["none"]) for mine, other in zip(runs, first, strict=True)]
        told = [level, *([relative(mine[shock], mine["none"]) for mine in runs] for shock in SHOCKS[1:])]
        print(f"| {name} | {' | '.join(map(cell, told))} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
