"""Trainee-steps per second of the environment, against the plain loop that it replaces.

`python benchmarks/throughput.py --task digits-mlp --envs 64`, and `--compile` for a compiled contestant beside them.

Both train with the same network, data, batch size, optimizer and budget, and measure the validation loss once an
interval. The loop is ordinary PyTorch: one module after the other, `torch.optim`, data in memory. The contestants take
turns, so that a machine whose speed drifts does so for both; medians and their ratio count.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import nn

from lrenv.episode import Episode
from lrenv.process import keep_memory
from lrenv.tasks import make_task


@dataclass(frozen=True)
class Settings:
    """What to time."""

    task: str = "digits-mlp"
    """Trainees' task; one with classes."""
    envs: int = 64
    """Trainees in parallel."""
    decisions: int = 30
    """Decisions in a turn of the environment."""
    turns: int = 5
    """How often each contestant runs."""
    compile: bool = False
    """Also time compiled inner steps; compiling, apart from the rest, takes about half a minute."""


def environment(settings: Settings, compile: bool = False) -> Callable[[], float]:
    """A turn of the batched environment, in trainee-steps per second."""
    begin = time.perf_counter()
    episode = Episode(make_task(settings.task), compile=compile)
    action = torch.zeros(settings.envs, 1)
    with torch.no_grad():
        start = episode.step(episode.reset(range(settings.envs)), action)  # the first step imports and allocates
    if compile:
        print(f"compiled in {time.perf_counter() - begin:.0f} s")

    def turn() -> float:
        state, begin = start, time.perf_counter()
        with torch.no_grad():
            for _ in range(settings.decisions):
                state = episode.step(state, action)
                episode.outcome(state)
        steps = settings.envs * settings.decisions * episode.task.interval
        return steps / (time.perf_counter() - begin)

    return turn


def loop(settings: Settings) -> Callable[[], float]:
    """A turn of the plain loop, on two trainees: their number changes nothing about the rate."""
    task = make_task(settings.task)
    if task.optimizer != "adam" or task.loss != "cross_entropy" or task.augment:
        raise SystemExit(f"the loop trains plain classification with Adam; {settings.task} does something else")
    data = task.load()
    train, val = ((((s.inputs - data.mean) / data.std), s.targets) for s in (data.train, data.val))
    steps = settings.decisions * task.interval // 2

    def single(module: nn.Module) -> None:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for step in range(steps):
            rows = torch.randint(len(train[1]), (task.batch_size,))
            optimizer.zero_grad()
            F.cross_entropy(module(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
            if step % task.interval == task.interval - 1:
                with torch.no_grad():
                    F.cross_entropy(module(val[0]), val[1])

    def turn() -> float:
        modules = [task.module() for _ in range(2)]
        begin = time.perf_counter()
        for module in modules:
            single(module)
        return 2 * steps / (time.perf_counter() - begin)

    turn()
    return turn


def main(settings: Settings) -> None:
    """Prints medians and the ratio."""
    keep_memory()
    contestants = {"loop over modules": loop(settings), "environment": environment(settings)}
    if settings.compile:
        contestants["compiled"] = environment(settings, compile=True)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(settings.turns):
        for name, turn in contestants.items():
            rates[name].append(turn())
    print(
        f"{settings.task}, {settings.envs} envs, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}"
    )
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["loop over modules"], strict=True))
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{name:>20}: {statistics.median(values):10,.0f} trainee-steps/s  {spread:20}  {ratio:5.1f} x the loop")


if __name__ == "__main__":
    main(tyro.cli(Settings))
