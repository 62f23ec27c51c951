"""The peaks that are best on drawn tasks, and how well a power law as in `agents/universal/policy.py` meets them.

On each task runs with warm-up and linear decay, a batch of all peaks of a grid, with rates per layer that are
proportional to fan-in^-e for some e; a line per task is appended to a file, from which the same command goes on. Then,
for each family of optimizers, the exponents a_i are found that make the regret least with one rate: the mean over tasks
of the logarithm of the validation loss at the peak of the power law, relative to that at the task's best peak,
interpolated between the grid's peaks. And what rates by fan-in are worth: the same with the best e for all tasks, and
with the best for each. Tasks are those for choosing designs ("selection").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from lrenv.agents.universal.policy import EXPONENT, PEAK, SCHEDULE, features, shown, signals
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.envs.observations import FAN_IN
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

FACTORS = 2.0 ** np.arange(-5, 9)
CENTRE = {"adaptive": 5e-3, "sgd": 5e-2}
"""The peaks of the grid, by family, are these times the factors."""
EXPONENTS = (0.0, 0.5, 1.0)
"""The e that are tried."""
SEEDS = 3
CLIP = 1.0
"""The most that a task's regret counts, e times the best loss: a run that diverges is lost, however far it does."""
OUTSIDE = 0.3
"""What a factor of e beyond the grid's ends is taken to cost."""
FOLDS = 5
STEPS, LR = 1500, 0.02


@dataclass(frozen=True)
class Settings:
    """The settings: how many tasks, and where what was found is kept."""

    tasks: int = 300
    """Tasks to search."""
    first: int = 1000
    """The place of the first of them among those for choosing designs."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/drawn_peaks.jsonl")
    """The file of what was found."""


def searched(training: UniversalTraining, task: Task) -> dict[str, Any]:
    """The losses of one task's runs, by e and peak, with the task's features and family of optimizers."""
    architecture = training.architecture
    run, episode = training.run(task)
    family = "adaptive" if episode.trainee.optimizer.adaptive else "sgd"
    peaks = CENTRE[family] * FACTORS
    constant = dict.fromkeys(architecture.features, 0.0)
    rows = [[(constant | {"one": math.log(peak)})[name] - PEAK[family][name] for name in constant] for peak in peaks]
    theta = torch.zeros(len(EXPONENTS), len(peaks), architecture.size)
    parts = architecture.parts(theta)
    parts["peak"][:, :, list(PEAK).index(family)] = torch.tensor(rows)
    parts["schedule"][..., SCHEDULE.index("exponent")] = torch.tensor(EXPONENTS)[:, None] - EXPONENT
    population = theta.flatten(0, 1).repeat_interleave(SEEDS, 0)
    with torch.no_grad():
        state, step = episode.reset(seeds_for("selection", SEEDS) * (len(population) // SEEDS))
        mean = shown(step)[FAN_IN].log().mean(1, keepdim=True)
        phi = features(architecture, signals(architecture, shown(step)), mean)[0]
        losses = run(population, state)[0].view(len(EXPONENTS), len(peaks), SEEDS).mean(2)
    return {
        "task": task.name, "version": VERSION, "family": family,
        "phi": dict(zip(architecture.features, phi.tolist(), strict=True)),
        "peaks": peaks.tolist(), "exponents": EXPONENTS,
        "log_loss": [[round(x, 4) for x in row] for row in losses.tolist()],
    }  # fmt: skip


def found(settings: Settings) -> Iterator[dict[str, Any]]:
    """What was found before, and what is found now, which is appended to the file."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in settings.out.read_text().splitlines()] if settings.out.exists() else []
    of_task = {row["task"]: row for row in known if row["version"] == VERSION}
    training = UniversalTraining(UniversalSettings(limit=settings.limit, layers=True))
    tasks = training.distribution.tasks("selection", settings.tasks, settings.first)
    with settings.out.open("a") as file, progress(len(tasks), "tasks") as report:
        for place, task in enumerate(tasks):
            report(place)
            if task.name not in of_task:
                of_task[task.name] = searched(training, task)
                file.write(json.dumps(of_task[task.name]) + "\n")
                file.flush()
            yield of_task[task.name]


def regret(curves: Tensor, places: Tensor) -> Tensor:
    """The regrets (n,) of curves (n, peaks) at places on the grid (n,), in steps of the grid."""
    last = curves.shape[1] - 1
    low = places.detach().floor().clamp(0, last - 1)
    part = places - low
    left, right = (curves.gather(1, (low.long() + i)[:, None])[:, 0] for i in (0, 1))
    beyond = (part - 1).clamp(min=0) + (-part).clamp(min=0)
    return left + (right - left) * part.clamp(0, 1) + OUTSIDE * math.log(2) * beyond


def fitted(phi: Tensor, curves: Tensor, centre: float) -> Tensor:
    """The a_i (features,) of least regret over tasks with features phi (n, features) and curves (n, peaks)."""
    a = torch.zeros(phi.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([a], LR)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    a.data[0] = math.log(3 * centre)  # between two peaks, for at a peak torch's derivative of a clamp is 0
    for _ in range(STEPS):
        optimizer.zero_grad()
        regret(curves, place(phi @ a, centre)).mean().backward()
        optimizer.step()
        decay.step()
    return a.detach()


def place(log_peak: Tensor, centre: float) -> Tensor:
    """Where a peak is on the grid, in steps of the grid."""
    return (log_peak - math.log(centre * FACTORS[0])) / math.log(2)


def main(settings: Settings) -> None:
    """Searches, fits and prints."""
    rows = list(found(settings))
    by_exponent = {}
    print("| family | tasks | regret of one peak | of the power law | on tasks it was not fitted to | a |")
    print("|---|---:|---:|---:|---:|---|")
    for family, centre in CENTRE.items():
        own = [row for row in rows if row["family"] == family]
        names = [name for name in own[0]["phi"] if family == "sgd" or name != "kept"]
        phi = torch.tensor([[row["phi"][name] for name in names] for row in own])
        losses = torch.tensor([row["log_loss"] for row in own])  # (tasks, e, peaks)
        by_exponent[family] = losses.min(2).values
        curves = (losses[:, 0] - losses[:, 0].min(1, keepdim=True).values).clamp(max=CLIP)
        a = fitted(phi, curves, centre)
        told = [regret(curves, place(phi[:, :n] @ fitted(phi[:, :n], curves, centre), centre)) for n in (1, len(names))]
        unseen = []
        for fold in range(FOLDS):
            test = torch.arange(len(own)) % FOLDS == fold
            of_others = fitted(phi[~test], curves[~test], centre)
            unseen.append(regret(curves[test], place(phi[test] @ of_others, centre)))
        figures = [*(float(x.mean()) for x in told), float(torch.cat(unseen).mean())]
        exponents = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, a.tolist(), strict=True))
        print(f"| {family} | {len(own)} | {' | '.join(f'{x:.3f}' for x in figures)} | {exponents} |", flush=True)
    print("\nThe best loss with rates by fan-in, relative to that with one rate, both with their best peaks:\n")
    print(f"| family | {' | '.join(f'e = {e}' for e in EXPONENTS)} | the best e of each task |")
    print(f"|---|{'---:|' * (len(EXPONENTS) + 1)}")
    for family, best in by_exponent.items():
        relative = (best - best[:, :1]).clamp(-CLIP, CLIP)
        figures = [*relative.mean(0).tolist(), float(relative.min(1).values.mean())]
        print(f"| {family} | {' | '.join(f'{math.exp(x):.3f}' for x in figures)} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
