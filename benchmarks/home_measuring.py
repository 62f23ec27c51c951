"""What measuring costs in a loop of one's own, and what it brings: `python benchmarks/home_measuring.py`.

Agents that react to a loss are shown that of the whole validation split at each decision, of a small fixed part of it,
or the mean training loss since the decision before; beside them two schedules, which look at no loss. Every loop is
written as a user would, and has the same initial weights and batches per seed. Writes results/home_measuring.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

import lrenv
from harness import RESULTS
from lrenv.benchmark.statistics import paired_interval
from lrenv.runtime.files import replace_file
from lrenv.runtime.process import machine
from lrenv.training.losses import LOSSES
from lrenv.training.trainee import Trainee

BASELINE = "linear"
SCHEDULES = (BASELINE, "constant")
REACTING = ("plateau", "greedy-bounded")
WAYS = ("whole validation split", "part of it", "training losses alone")


@dataclass(frozen=True)
class Settings:
    """What is run."""

    tasks: tuple[str, ...] = ("mnist1d-mlp", "text-mlp")
    """Names of tasks."""
    peak: float = 1e-2
    """The rate that all agents begin with."""
    every: int = 10
    """Steps between two decisions."""
    part: int = 64
    """Validation examples of the small part."""
    seeds: int = 5
    """Runs of each."""
    out: Path = RESULTS
    """The folder of the results."""


class Run(NamedTuple):
    """What came of a run."""

    loss: float  # of the test split, at the last weights
    seconds: float  # of a processor, for the run
    measuring: float  # of them, in `evaluate`


class Data(NamedTuple):
    """A task as a user has it."""

    module: Callable[[], nn.Module]
    trainee: Trainee  # its splits and batches
    loss: Callable[[Tensor, Tensor], Tensor]


def train(task: Data, agent: str, way: str, settings: Settings, seed: int) -> Run:
    """A run of one loop."""
    torch.manual_seed(seed)
    module, trainee, budget = task.module(), task.trainee, task.trainee.task.budget
    batches = trainee.batch_indices(trainee.init([seed]), budget)[0]
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.peak)
    size = settings.part if way == WAYS[1] else len(trainee.val.targets)
    inputs, targets = trainee.val.inputs[:size], trainee.val.targets[:size]
    recent: list[Tensor] = []
    spent = 0.0

    def evaluate() -> Tensor:
        nonlocal spent
        begin = time.process_time()
        if way == WAYS[2]:
            loss = torch.stack(recent).mean()
            recent.clear()
        else:
            loss = task.loss(module(inputs), targets)
        spent += time.process_time() - begin
        return loss

    begin = time.process_time()
    shown = evaluate if way else None
    controller = lrenv.LRController(optimizer, agent, budget, settings.every, shown, module=module)
    for i, batch in enumerate(batches):
        loss = task.loss(module(trainee.train.inputs[batch]), trainee.train.targets[batch])
        if way == WAYS[2]:
            recent.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step(loss)
        assert controller.last_epoch == i + 1
    seconds = time.process_time() - begin
    module.eval()
    with torch.no_grad():
        return Run(float(task.loss(module(trainee.test.inputs), trainee.test.targets)), seconds, spent)


def made(name: str) -> Data:
    """A task by its name."""
    task = lrenv.make_task(name)
    per_example = LOSSES[str(task.loss)].per_example
    return Data(task.module, Trainee(task), lambda outputs, targets: per_example(outputs[None], targets[None]).mean())


def row(about: str, runs: list[Run], baseline: list[Run]) -> str:
    """A line of the table."""
    losses, others = (np.array([run.loss for run in each]) for each in (runs, baseline))
    difference, half = paired_interval(losses, others)
    cells = [about, f"{losses.mean():.3f}", "" if runs is baseline else f"{difference:+.3f} ± {half:.3f}"]
    seconds, measuring = (np.mean([getattr(run, name) for run in runs]) for name in ("seconds", "measuring"))
    return "| " + " | ".join([*cells, f"{seconds:.2f}", f"{measuring:.2f}"]) + " |"


def main(settings: Settings) -> None:
    """Runs all, and writes the table."""
    torch.set_num_threads(1)
    lines = [
        "# What measuring costs in a loop of one's own",
        "",
        f"`python benchmarks/home_measuring.py`, {settings.seeds} seeds, {machine()}.",
        "",
        f"Adam from the rate {settings.peak:g}, which is tuned for none of the agents; a decision per {settings.every} "
        f"steps (schedules: the same). The small part has {settings.part} examples. Final test loss, its difference "
        "from linear decay seed by seed (± half the 95 % interval of Student's t), and seconds of one processor core "
        "per run, those in `evaluate` among them.",
    ]  # fmt: skip
    for name in settings.tasks:
        task = made(name)
        about = f"{len(task.trainee.val.targets)} validation examples, {task.trainee.task.budget} steps"
        heads = ("agent", "is shown", "final test loss", "minus linear", "s", "s measuring")
        lines += ["", f"## {name}: {about}", "", f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|"]
        cases = [(agent, "") for agent in SCHEDULES] + [(agent, way) for agent in REACTING for way in WAYS]
        train(task, f"{BASELINE}:peak={settings.peak}", "", settings, 0)  # the first run takes longer
        runs: dict[tuple[str, str], list[Run]] = {case: [] for case in cases}
        for seed in range(settings.seeds):  # contestants take turns
            for agent, way in cases:
                runs[agent, way].append(train(task, f"{agent}:peak={settings.peak}", way, settings, seed))
        lines += [row(f"`{agent}` | {way or 'no loss'}", runs[agent, way], runs[BASELINE, ""]) for agent, way in cases]
    text = "\n".join(lines) + "\n"
    replace_file(settings.out / "home_measuring.md", text.encode())
    Console(width=160).print(text)


if __name__ == "__main__":
    main(tyro.cli(Settings))
