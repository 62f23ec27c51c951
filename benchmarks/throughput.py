"""Trainee-steps per second of the environment, over the number of environments: `python benchmarks/throughput.py`.

Counted are whole steps of the vector environment, from NumPy to NumPy, with the restarts of ended episodes. A turn of
30 decisions is an episode of `digits-mlp`. `--ppo` adds the training of a controller as `make demo` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tyro

from environments import stepping
from harness import STEPS_RATE, Race, Row, Settings, number, peak_mib, race, rate, report
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.runtime.process import keep_memory
from lrenv.training.tasks import make_task


@dataclass(frozen=True)
class Throughput(Settings):
    """The settings of the sweep over numbers of environments."""

    envs: str = "1,16,64,256,1024"
    """Trainees in parallel, numbers separated by commas."""
    ppo: bool = False
    """Also train a controller, and tell how much of the time passes outside the environment."""


def sweep(settings: Throughput) -> Race:
    """Returns a contestant for each number of environments."""
    contestants = {
        f"n = {envs}": partial(
            stepping, settings.task, int(envs), settings.decisions, settings.compile, **settings.options
        )
        for envs in settings.envs.split(",")
    }
    baseline = next((name for name in contestants if name == "n = 64"), next(iter(contestants)))
    title = f"{settings.variant}: n environments"
    result = race(title, STEPS_RATE, contestants, settings.turns, baseline)
    interval = make_task(settings.task).interval
    rates = ", ".join(f"{number(row.median / interval)} for {row.contestant}" for row in result.rows)
    return replace(result, notes=(f"Decisions/s, all environments together: {rates}.",))


def training(settings: Throughput) -> Race:
    """Times iterations of PPO in this process, as there is nothing to take turns with."""
    keep_memory()
    begin = time.perf_counter()
    ppo = PPOTraining(PPOSettings(settings.task, reward="improvement", gamma=1.0, compile=settings.compile))
    spent = [clocked(ppo.envs, name) for name in ("step_wait", "reset")]
    ppo.iterate()
    built = time.perf_counter() - begin
    steps = ppo.envs.num_envs * ppo.task.budget
    inside, whole = [], []
    for _ in range(settings.turns):
        for seconds in spent:
            seconds.clear()
        whole.append(rate(ppo.iterate, units=steps))
        inside.append(steps / sum(map(sum, spent)))
    rows = tuple(
        Row.of(name, rates, inside, built, peak_mib())
        for name, rates in (("the environment's part", inside), ("end to end", whole))
    )
    title = f"{settings.variant}: PPO with {ppo.envs.num_envs} environments"
    return Race(title, STEPS_RATE, rows, (f"{1 - rows[1].ratio:.0%} of the time passes outside the environment.",))


def clocked(owner: Any, name: str) -> list[float]:
    """Makes a method record the seconds of each of its calls; returns the list of them."""
    method: Callable[..., Any] = getattr(owner, name)
    seconds: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - begin)
        return result

    setattr(owner, name, timed)
    return seconds


def main(settings: Throughput) -> None:
    """Runs and reports the sweep, and the training if asked."""
    report(sweep(settings), settings.record)
    if settings.ppo:
        report(training(settings), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Throughput, description=__doc__))
