"""Who recovers from a shock in the middle of a run, on drawn tasks for reports that train with Adam or AdamW.

- rate: in one interval, half of the budget over, steps are 10 times as long as the agent wants. Agents that scale the
  rate go on from there and have to undo it; those that set it have their own again at the next decision.
- labels: from then on the training targets of half of the examples are those of others. Validation and test splits
  stay as they are.

What is told is log(test loss at the end / that of the same agent, weights and batches without a shock), the mean over
seeds and tasks with its standard error over tasks, and the loss without a shock relative to that of the first agent, so
that an agent which can't lose much is known by it. No agent is tuned.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor

from lrenv.agents import make_agent
from lrenv.benchmark.scores import capped_log
from lrenv.data import Split
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.progress import progress
from lrenv.training.drawn import TaskDistribution
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
        "universal", "linear:peak=0.003:warmup=0.05", "constant:peak=0.003", "plateau:peak=0.003",
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
    """Environments that a shock befalls in the middle of their budgets.

    Args:
        shock: one of `SHOCKS`.
        num_envs: n.
        task: the task.
        more: as environments take it.
    """

    def __init__(self, shock: str, num_envs: int, task: Task, **more: Any) -> None:
        super().__init__(num_envs, task, **more)
        self.shock = shock
        self.left = math.ceil(self.task.budget / self.task.interval / 2)
        """Decisions before the shock."""

    def step(self, actions: Any) -> Any:
        """A decision, which may be the one with the shock."""
        control, trainee = self.episode.control, self.episode.trainee
        self.left -= 1
        if self.left != -1 or self.shock == "none":
            return super().step(actions)
        if self.shock == "labels":
            trainee.train = exchanged(trainee.train)
            return super().step(actions)
        apply = control.apply

        def longer(action: Tensor, lr: Tensor, hyper: Any) -> Any:
            lr, hyper = apply(action, lr, hyper)
            return FACTOR * lr, hyper

        control.apply = longer  # type: ignore[method-assign]
        try:
            return super().step(actions)
        finally:
            control.apply = apply  # type: ignore[method-assign]


def exchanged(split: Split) -> Split:
    """The split with the targets of a part of the examples in another order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(split.targets), generator=generator)[: round(SHARE * len(split.targets))]
    targets = split.targets.clone()
    targets[order] = split.targets[order.roll(1)]
    return Split(split.inputs, targets)


def last_test_losses(name: str, task: Task, shock: str, seeds: list[int]) -> list[float | None]:
    """The test losses at the end (n,); None where a run diverged."""
    agent = make_agent(name)
    settings = {"interval": task.interval, "measure_interval": task.interval} | agent.view.settings()
    envs = Shocked(shock, len(seeds), task, **settings, device="cpu", autoreset_mode=AutoresetMode.DISABLED)
    observation, info = envs.reset(seed=seeds, options={"initial_lr": 0.003})
    memory, start = None, np.ones(len(seeds), dtype=bool)
    ended, losses = ~start, np.full(len(seeds), np.nan)
    while not ended.all():
        action, memory = agent.predict(observation, memory, start, deterministic=True)
        observation, _, ended, _, info = envs.step(action)
        start = np.zeros(len(seeds), dtype=bool)
        if "final_test_loss" in info:
            losses = np.where(info["_final_test_loss"], info["final_test_loss"], losses)
    losses = np.where(info["diverged"], np.nan, losses)
    return [None if math.isnan(x) else x for x in losses.tolist()]


def relative(losses: list[float | None], reference: list[float | None]) -> float:
    """The mean over seeds of log(losses / reference), a run that diverged counting as `CAP`."""
    return float(capped_log(np.array(losses, np.float64), np.array(reference, np.float64), CAP).mean())


def main(settings: Settings) -> None:
    """Runs and prints."""
    drawn = TaskDistribution(settings.limit).tasks("report", settings.tasks)
    tasks = [task for task in drawn if task.optimizer != "momentum"]
    seeds = seeds_for("report", settings.seeds)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in settings.out.read_text().splitlines()] if settings.out.exists() else []
    found = {(row["agent"], row["task"]): row["test_loss"] for row in known if row["seeds"] == seeds}
    with settings.out.open("a") as file, progress(len(tasks) * len(settings.agents), "agents on tasks") as report:
        for place, (task, agent) in enumerate((task, agent) for task in tasks for agent in settings.agents):
            report(place, f"{agent} on {task.name}")
            if (agent, task.name) not in found:
                losses = {shock: last_test_losses(agent, task, shock, seeds) for shock in SHOCKS}
                found[agent, task.name] = losses
                file.write(json.dumps({"agent": agent, "task": task.name, "seeds": seeds, "test_loss": losses}) + "\n")
                file.flush()
    print(f"{len(tasks)} tasks, {len(seeds)} seeds; logarithms, with standard errors over tasks:\n")
    print("| agent | without a shock, relative to the first | rate times 10 | labels exchanged |")
    print("|---|---:|---:|---:|")
    for agent in settings.agents:
        own = [found[agent, task.name] for task in tasks]
        first = [found[settings.agents[0], task.name] for task in tasks]
        level = [relative(mine["none"], other["none"]) for mine, other in zip(own, first, strict=True)]
        told = [level, *([relative(mine[shock], mine["none"]) for mine in own] for shock in SHOCKS[1:])]
        cells = [f"{np.mean(x):+.3f} ({np.std(x, ddof=1) / len(x) ** 0.5:.3f})" for x in told]
        print(f"| {agent} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
