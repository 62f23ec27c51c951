"""FDS against its rivals: `python reproductions/micaelli2021.py --scale cpu --out runs/micaelli2021`.

Micaelli and Storkey 2021, "Gradient-based hyperparameter optimization over long horizons" (first version: "Non-greedy
gradient-based hyperparameter optimization over long horizons", 2020): seven learning rates, a momentum and a weight
decay of SGD, all from zero, in ten outer steps. Beside it, greedy and truncated hypergradients with the same outer
steps, and random search over the same schedules, all with the same number of inner steps.

The schedule after every outer step trains networks on held-out seeds; so does the last one, stretched to five times
the budget. `paper` is the setting of the paper's figure on CIFAR-10, but for a fifth of the training images held out
instead of a twentieth, and a first outer step as long as the others. `cpu` has the same schedules on MNIST, `smoke`
shorter ones on 8x8 digits, to see whether everything works.

Each search is a line of `runs.jsonl`; one that was killed goes on from its last checkpoint, in `searches`.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import flow
from flow import COLOURS, Claim, Report, Reproduction, Result, command, markdown, panels, short
from lrenv.agents.fds.random_search import schedule_training
from lrenv.agents.fds.settings import FDSSettings
from lrenv.benchmark.statistics import mean_std
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.memory import choose_device
from lrenv.training.hypergradients import train_by_schedule
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

METHODS = ("fds", "greedy", "truncated", "random")
COLOUR = dict(zip(METHODS, COLOURS, strict=False))
STRETCHED = 5
"""Times the budget, as in the paper: 10 epochs for the search and 50 for the training."""


class Scale(NamedTuple):
    """What is trained, and for how long."""

    task: str
    budget: int
    outer_steps: int = 10
    seeds: int = 3
    val_examples: int | None = None
    """Those that searches measure; schedules are measured on all."""
    measured: int = 3
    """Held-out seeds that a schedule is measured on."""


SCALES = {
    "smoke": Scale("digits-mlp", budget=60, outer_steps=3, seeds=2, measured=2),
    "cpu": Scale("mnist-mlp20", budget=2000, val_examples=1000),
    "paper": Scale("cifar10-wrn16-1", budget=1560),
}
"""Scale -> the setting: seconds, an hour or two on a core, a day or so on a GPU."""


@dataclass(frozen=True)
class Run:
    """A search."""

    method: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """How long."""
    out: Path = Path("runs/micaelli2021")
    """Where results go."""
    methods: tuple[Literal["fds", "greedy", "truncated", "random"], ...] = METHODS  # type: ignore[assignment]
    """Which searches."""
    device: str | None = None
    """Where trainees live; CUDA where there is any by default."""


def search_settings(settings: Settings, method: Any, seed: int) -> FDSSettings:
    """How to search; all methods make the same number of inner steps, random search those of a seed in one batch."""
    scale = SCALES[settings.scale]
    steps, trainees = (1, scale.outer_steps) if method == "random" else (scale.outer_steps, 1)
    out = settings.out / "searches" / f"{method}-{seed}"
    return FDSSettings(
        task=scale.task, budget=scale.budget, val_examples=scale.val_examples, method=method, outer_steps=steps,
        trainees=trainees, seed=seed, out=out, eval_every=steps, eval_seeds=1, device=settings.device,
    )  # fmt: skip


def found(search: FDSSettings) -> tuple[dict[str, NDArray[np.float64]], list[dict[str, str]]]:
    """The schedules after each outer step, hyperparameter -> (k, S), and the rows of the log."""
    with (search.out / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([[float(row[f"schedule/{name}_{s}"]) for s in range(number)] for row in rows])
        for name, number in search.numbers_of_segments.items()
    }, rows


@torch.no_grad()
def measured(
    trainee: Trainee, schedules: dict[str, NDArray[np.float64]], seeds: int, steps: int
) -> dict[str, NDArray[np.float64]]:
    """What k schedules reach on held-out seeds, name -> (k, seeds): losses and accuracies on both held-out splits."""
    number = len(schedules["lr"])
    runs = seeds_for("schedules", seeds) * number
    values = {name: torch.from_numpy(own).repeat_interleave(seeds, 0) for name, own in schedules.items()}
    parts: dict[str, list[torch.Tensor]] = {}
    first = 0
    for n in trainee.chunks(len(runs)):
        group, first = slice(first, first + n), first + n
        schedule = {name: own[group] for name, own in values.items()}
        end = train_by_schedule(trainee, trainee.init(runs[group]), schedule, steps)
        for split in ("val", "test"):
            measurement = trainee.evaluate(end.params, end.buffers, getattr(trainee, split))
            for name, value in (("loss", measurement.loss), ("accuracy", measurement.metric)):
                parts.setdefault(f"{split}_{name}", []).append(value)
    return {name: torch.cat(own).view(number, seeds).cpu().double().numpy() for name, own in parts.items()}


class Micaelli2021(Reproduction[Settings, Run]):
    """FDS and other ways to find the same schedules."""

    paper, title = "Micaelli and Storkey 2021", "FDS"
    name, scales = Run, SCALES

    def runs(self) -> Iterator[list[Run]]:
        """The searches one by one, a seed of each method before the next seed of any."""
        for seed, method in itertools.product(range(self.scale.seeds), self.settings.methods):
            yield [Run(method, seed)]

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        """A search, and what its schedules reach."""
        (run,) = batch
        scale, device = self.scale, choose_device(self.settings.device)
        search = search_settings(self.settings, run.method, run.seed)
        self.controller_of(schedule_training, search)
        schedules, rows = found(search)
        trainee = Trainee(make_task(search.make_task(), val_examples=None), device)
        each = measured(trainee, schedules, scale.measured, scale.budget)
        last = {name: own[-1:] for name, own in schedules.items()}
        stretched = measured(trainee, last, scale.measured, STRETCHED * scale.budget)
        return [
            {
                "inner_steps": [int(float(row["inner_steps"])) for row in rows],
                "seconds": float(f"{sum(float(row['time/seconds']) for row in rows):.4g}"),
                "schedule": {name: [short(values) for values in own.tolist()] for name, own in schedules.items()},
                "measured": {name: short(own.mean(1)) for name, own in each.items()},
                "stretched": {name: short(own.mean(1))[0] for name, own in stretched.items()},
            }
        ]

    def report(self) -> Report:
        """Accuracies by method, and the schedules."""
        return report({method: own for method in METHODS if (own := self.lines.where(method=method))})


def report(results: dict[str, list[Result]]) -> Report:
    """Accuracies, claims and fds.png, by method."""
    text = "\n## Accuracies\n\nMeans over searches ± standard deviations, in percent.\n\n"
    text += markdown(
        ("method", "searches", "inner steps", "seconds", "val accuracy", "test accuracy", f"test, {STRETCHED}x budget"),
        [
            (
                method,
                len(own),
                max(result["inner_steps"][-1] for result in own),
                f"{np.mean([result['seconds'] for result in own]):.0f}",
                *(
                    spread([result["measured"][name][-1] for result in own])
                    for name in ("val_accuracy", "test_accuracy")
                ),
                spread([result["stretched"]["test_accuracy"] for result in own]),
            )
            for method, own in results.items()
        ],
    )
    if {"fds", "random"} <= results.keys():
        text += f"\n{effort(results)}\n"
    return Report(claims(results), text, {"fds.png": partial(draw, results)})


def effort(results: dict[str, list[Result]]) -> str:
    """What random search had beside FDS: as many inner steps, but not as many seconds."""
    fds, random = (np.mean([result["seconds"] for result in results[method]]) for method in ("fds", "random"))
    draws = max(len(result["inner_steps"]) for result in results["fds"])
    return (
        f"At the same inner steps, random search draws {draws} schedules, which run as one batch; FDS takes"
        f" {fds / random:.1f} times as many seconds. What random search finds in as many was not tried."
    )


def spread(values: list[float]) -> str:
    """Percentages."""
    return "{:.1f} ± {:.1f}".format(*mean_std(100 * np.array(values, np.float64)))


def claims(results: dict[str, list[Result]]) -> list[Claim]:
    """The paper's claims, whether they hold here, and by how much."""

    def ends(method: str) -> NDArray[np.float64]:
        return 100 * np.array([result["measured"]["val_accuracy"][-1] for result in results[method]], np.float64)

    rows = []
    for rival in METHODS[1:]:
        if {"fds", rival} <= results.keys():
            gain = float(ends("fds").mean() - ends(rival).mean())
            apart = int((ends("fds")[:, None] > ends(rival)).all(1).sum())
            place, published = ("not in it", "") if rival == "truncated" else ("abstract", "by nearly 10 %, CIFAR-10")
            claim = f"FDS ends above {rival} at the same inner steps"
            found = f"{gain:+.1f} points; {apart} of {len(results['fds'])} searches above all of {rival}"
            rows.append(Claim(place, claim, published, found, "yes" if gain > 0 else "no"))
    if "fds" in results:
        curves = [100 * np.array(result["measured"]["val_accuracy"], np.float64) for result in results["fds"]]
        first, late, end = (np.mean([curve[max(i, -len(curve))] for curve in curves]) for i in (0, -3, -1))
        numbers = f"{first:.1f} % after the first, {late:.1f} % two before the end, {end:.1f} % at the end"
        claim, holds = f"{max(map(len, curves))} outer steps suffice", "yes" if end - late < 1 else "no"
        rows.append(Claim("abstract", claim, "about 10", numbers, holds))
    return rows


def draw(results: dict[str, list[Result]]) -> Figure:
    """Validation loss and accuracy against inner steps, and each method's learning rates."""
    figure, axes = panels(2, 3)
    for column, (name, label) in enumerate((("val_accuracy", "validation accuracy"), ("val_loss", "validation loss"))):
        ax = axes[column, 0]
        for method, own in results.items():
            for i, result in enumerate(own):
                line = {"marker": "o", "markersize": 3, "label": method if i == 0 else None}
                ax.plot(result["inner_steps"], np.array(result["measured"][name], float), color=COLOUR[method], **line)
        ax.set(xlabel="inner steps", ylabel=label)
        ax.locator_params(axis="x", nbins=4)
    axes[1, 0].set_yscale("log")
    if results:
        axes[0, 0].legend()
    for ax, (method, own) in zip(axes[:, 1:].flat, results.items(), strict=False):
        for result in own:
            rates = result["schedule"]["lr"][-1]
            ax.stairs(rates, np.linspace(0, 1, len(rates) + 1), baseline=None, color=COLOUR[method])
        ax.set(xlabel="part of the budget", ylabel="learning rate", title=method, ylim=(0, None))
    return figure


if __name__ == "__main__":
    sys.exit(command(Micaelli2021, Settings, __doc__))
