"""The peaks that are best on drawn tasks, and how well a power law as in `agents/universal/policy.py` meets them.

On each task runs with warm-up and linear decay, or with warm-up alone (`--no-horizon`), a batch of all peaks of a grid,
with rates per layer that are proportional to fan-in^-e for some e; a line per task is appended to a file, from which
the same command goes on.

From tasks for training, for each family of optimizers the exponents are found that make the regret least with one rate:
the mean over tasks of the logarithm of the validation loss at the peak of the power law, relative to that at the task's
best peak, interpolated between the grid's peaks. `PEAK` has them, rounded, but 1 for the size of weights. Other tasks,
for choosing designs, tell the regret on tasks that nothing was fitted to: of the power laws as they were found, and as
they are in `PEAK`; of those without some of the quantities; and what rates by fan-in are worth, with the best e for all
tasks and for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from drawn_rows import falls
from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.agents.universal.policy import (
    HIGHEST,
    SCHEDULE,
    WARMUP,
    Architecture,
    first_loss,
    log_decay,
    log_warmup,
    logarithms,
    shown,
    signals,
)
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.envs.episode import TimeStep
from lrenv.envs.observations import FAN_IN, SETUP, UNTRAINED
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import append_line, json_lines
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

FACTORS = 2.0 ** np.arange(-5, 9)
CENTRE = {"adaptive": 5e-3, "sgd": 5e-2}
"""The peaks of the grid, by family, are these times the factors."""
EXPONENTS = {"training": (0.0,), "selection": (0.0, 0.5, 1.0)}
"""Purpose of tasks -> the e that are tried; rates by fan-in take no part in the fit."""
FIRST = {"training": 500_000, "selection": 1000}
"""The place of the first task of each purpose, far from those that controllers of these seeds are trained on."""
THINNED = 3
"""Of tasks for training with an optimizer that scales gradients, those whose numbers this divides are searched: three
of four drawn tasks have one, and the other family's power law is the one that needs more."""
SEEDS = 3
SEEN = ("adaptive", *SETUP, *UNTRAINED, "steps_in_all")
"""Signals that power laws are made of."""
CLIP = 1.0
"""The most that a task's regret counts, e times the best loss: a run that diverges is lost, however far it does."""
OUTSIDE = 0.3
"""What a factor of e beyond the grid's ends is taken to cost."""
OUTSIDE_SIGHT = {"adaptive": ("weight_size", "layers"), "sgd": ("gradient",)}
"""What power laws lack that are of batch size alone (Adam), or of batch size, budget and momentum (SGD)."""
SHORTER = math.log(0.05 / WARMUP)
"""Of `log_warmup`: these runs warm up for a twentieth of the budget, as `universal` did before it had a guard."""
STEPS, LR = 1500, 0.02


@dataclass(frozen=True)
class Settings:
    """The settings: how many tasks, and where what was found is kept."""

    fitted: int = 600
    """Tasks for training that power laws are fitted to."""
    tasks: int = 300
    """Other tasks, which tell what they are worth."""
    horizon: bool = True
    """Whether rates decay; without, power laws are of policies that don't know the budget."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/drawn_peaks.jsonl")
    """The file of what was found."""


def log_shape(architecture: Architecture, seen: dict[str, Tensor]) -> Tensor:
    """The logarithm of the schedule (n, 1) in the middle of the interval to come, relative to its peak."""
    shape = torch.zeros(len(seen["steps"]), len(SCHEDULE))
    if architecture.horizon:
        shape[:, SCHEDULE.index("log_warmup")] = SHORTER
    else:
        shape[:, SCHEDULE.index("log_power")] = -math.inf  # no decay
    return log_warmup(architecture, shape, seen) + log_decay(architecture, shape, seen)


def searched(training: UniversalTraining, task: Task, exponents: Sequence[float]) -> dict[str, Any]:
    """The losses of one task's runs, by e and peak, and what is seen of it before the first step."""
    architecture = training.architecture
    _, episode = training.run(task)
    family = "adaptive" if episode.trainee.optimizer.adaptive else "sgd"
    peaks = CENTRE[family] * FACTORS
    grid = torch.cartesian_prod(
        torch.tensor(exponents), torch.from_numpy(peaks).float().log(), torch.arange(float(SEEDS))
    )
    exponent, log_peak = (column[:, None] for column in grid.unbind(1)[:2])

    def log_rates(step: TimeStep) -> Tensor:
        fan_in = shown(step)[FAN_IN].log()
        by_layer = log_peak - exponent * (fan_in - fan_in.mean(1, keepdim=True))
        return by_layer + log_shape(architecture, signals(architecture, shown(step)))

    losses = falls(episode, seeds_for("selection", SEEDS) * (len(grid) // SEEDS), log_rates)
    losses = losses.view(len(exponents), len(peaks), SEEDS).mean(2)
    return {
        "task": task.name, "version": VERSION, "family": family, **seen_of(training, task),
        **grid_of(training, family, exponents),
        "log_loss": [[round(x, 4) for x in row] for row in losses.tolist()],
    }  # fmt: skip


def grid_of(training: UniversalTraining, family: str, exponents: Sequence[float]) -> dict[str, Any]:
    """What is tried on a task of a family, as JSON values."""
    peaks = (CENTRE[family] * FACTORS).tolist()
    return {"horizon": training.architecture.horizon, "peaks": peaks, "exponents": list(exponents), "seeds": SEEDS}


def seen_of(training: UniversalTraining, task: Task) -> dict[str, Any]:
    """What a version of the policy sees of a task's untrained networks, a mean over seeds."""
    _, episode = training.run(task)
    _, step = episode.reset(seeds_for("selection", SEEDS))
    seen = {name: x for name, x in signals(training.architecture, shown(step)).items() if name in SEEN}
    return {"policy": POLICY, "seen": {name: round(float(x.mean()), 5) for name, x in seen.items()}}


def tasks_of(training: UniversalTraining, purpose: str, number: int) -> Iterator[Task]:
    """The tasks of a purpose, one by one."""
    place = FIRST[purpose]
    while number > 0:
        (seed,) = seeds_for(purpose, 1, place)
        place += 1
        task = training.distribution.task(seed)
        if purpose == "selection" or task.optimizer == "momentum" or seed % THINNED == 0:
            number -= 1
            yield task


def known(file: Path, training: UniversalTraining) -> dict[str, dict[str, Any]]:
    """What a file has of these runs of the tasks that are drawn now, by the task's name."""
    rows = [row for row in json_lines(file) if row["version"] == VERSION]
    grids = {(family, e): grid_of(training, family, e) for family in CENTRE for e in EXPONENTS.values()}
    return {
        row["task"]: row for row in rows
        if (grid := grids.get((row["family"], tuple(row["exponents"])))) is not None and grid.items() <= row.items()
    }  # fmt: skip


def found(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """What was found of the tasks of each purpose, before and now; this is appended to the file."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    training = UniversalTraining(UniversalSettings(limit=settings.limit, layers=True, horizon=settings.horizon))
    of_task = known(settings.out, training)
    rows: dict[str, list[dict[str, Any]]] = {"training": [], "selection": []}
    with progress(settings.fitted + settings.tasks, "tasks") as report:
        for purpose, number in (("training", settings.fitted), ("selection", settings.tasks)):
            for task in tasks_of(training, purpose, number):
                report(sum(map(len, rows.values())))
                row = of_task.get(task.name)
                if row is None or row["policy"] != POLICY:
                    # What runs lose doesn't depend on the policy, so it is computed once.
                    row = searched(training, task, EXPONENTS[purpose]) if row is None else row | seen_of(training, task)
                    append_line(settings.out, json.dumps(row))
                rows[purpose].append(row)
    return rows


@dataclass(frozen=True)
class Curves:
    """What tasks of one family lose by a peak.

    Attributes:
        logarithms: name -> (tasks,), what powers are of (`lrenv.agents.universal.policy.logarithms`).
        offset: (tasks,), of log peak: what has no exponent.
        losses: (tasks, e, peaks), logarithms.
        centre: of the grid of peaks.
        highest: of log peak.
    """

    logarithms: dict[str, Tensor]
    offset: Tensor
    losses: Tensor
    centre: float
    highest: float

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], family: str) -> Curves:
        """Those of the rows of a family."""
        own = [row for row in rows if row["family"] == family]
        seen = {name: torch.tensor([[row["seen"][name]] for row in own]) for name in own[0]["seen"]}
        offset = -math.log(10) * first_loss(seen)[:, 0] if family == "sgd" else torch.zeros(len(own))
        logs = {name: x[:, 0] for name, x in logarithms(seen).items()}
        return cls(
            logs, offset, torch.tensor([row["log_loss"] for row in own]), CENTRE[family], math.log(HIGHEST[family])
        )

    def regret(self, exponents: dict[str, Tensor]) -> Tensor:
        """What each task (tasks,) loses at the peak of a power law with one rate."""
        log_peak = sum((a * self.logarithms[name] for name, a in exponents.items()), self.offset)
        return self.lost(log_peak.clamp(max=self.highest), torch.arange(len(self.losses)))

    def lost(self, log_peak: Tensor, task: Tensor) -> Tensor:
        """What tasks (n,), given by their places, lose at peaks (n,) with one rate."""
        places = (log_peak - math.log(self.centre * FACTORS[0])) / math.log(2)
        curves = self.losses[task, 0]
        curves = (curves - curves.min(1, keepdim=True).values).clamp(max=CLIP)
        last = curves.shape[1] - 1
        low = places.detach().floor().clamp(0, last - 1)
        part = places - low
        left, right = (curves.gather(1, (low.long() + i)[:, None])[:, 0] for i in (0, 1))
        beyond = (part - 1).clamp(min=0) + (-part).clamp(min=0)
        return left + (right - left) * part.clamp(0, 1) + OUTSIDE * math.log(2) * beyond

    def fitted(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The exponents of these quantities with the least regret."""
        spreads = {name: self.logarithms[name].std().clamp(min=0.1) if name != "one" else 1.0 for name in names}
        scaled = {name: torch.zeros((), requires_grad=True) for name in names}
        # Between two peaks, for at a peak torch's derivative of a clamp is 0.
        scaled["one"].data.fill_(math.log(3 * self.centre) - float(self.offset.mean()))
        optimizer = torch.optim.Adam(scaled.values(), LR)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.regret({name: a / spreads[name] for name, a in scaled.items()}).mean().backward()
            optimizer.step()
            decay.step()
        return {name: a.detach() / spreads[name] for name, a in scaled.items()}


def main(settings: Settings) -> None:
    """Searches, fits and prints."""
    peak, rows = Architecture(horizon=settings.horizon).peak, found(settings)
    print("The regret on tasks that nothing was fitted to:\n")
    print(
        "| family | fitted to | told on | one peak | without what the network shows | power law | PEAK | no HIGHEST |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    laws = {}
    for family, law in peak.items():
        fit, other = (Curves.of(rows[purpose], family) for purpose in ("training", "selection"))
        laws[family] = fit.fitted(list(law))
        own = {name: torch.tensor(a) for name, a in law.items()}
        blind = fit.fitted([name for name in law if name not in OUTSIDE_SIGHT[family]])
        told = [other.regret(each) for each in (fit.fitted(["one"]), blind, laws[family], own)]
        told.append(replace(other, highest=math.inf).regret(own))
        regrets = " | ".join(f"{float(x.mean()):.3f}" for x in told)
        print(f"| {family} | {len(fit.losses)} | {len(other.losses)} | {regrets} |", flush=True)
    print()
    for family, fitted in laws.items():
        print(f"{family}: " + ", ".join(f"{name} {float(a):.2f}" for name, a in fitted.items()))
    print("\nThe best loss with rates by fan-in, relative to that with one rate, both with their best peaks:\n")
    print(f"| family | {' | '.join(f'e = {e}' for e in EXPONENTS['selection'])} | the best e of each task |")
    print(f"|---|{'---:|' * (len(EXPONENTS['selection']) + 1)}")
    for family in peak:
        best = Curves.of(rows["selection"], family).losses.min(2).values
        relative = (best - best[:, :1]).clamp(-CLIP, CLIP)
        figures = [*relative.mean(0).tolist(), float(relative.min(1).values.mean())]
        print(f"| {family} | {' | '.join(f'{math.exp(x):.3f}' for x in figures)} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
