"""Figures and tables of `fu2017.py`."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flow import COLOURS, Claim, Lines, Report, markdown, panels
from lrenv.agents.noh.settings import HYPERGRADIENT
from lrenv.benchmark.statistics import mean_std, paired_t
from lrenv.controllers import controller_file

Array = NDArray[np.float64]
EVERY = 50
"""Inner steps that a point of a curve is the mean of."""
LAST = 100
"""Inner steps that a final loss is the mean of."""
SCHEDULES = ("linear", "cosine")
"""Decay to 0 at the end of a run, so that there are runs of their own for every budget."""
TUNED = (0.0, 0.0)
"""First rate and beta that the reported runs of a schedule stand under; their peak is that of `best`."""
TITLES = {
    "adam": "Adam, best constant rate", "linear": "Adam, tuned linear decay", "cosine": "Adam, tuned cosine decay",
    "adam-hd": "Adam-HD, best of grid", "dmopt": "DMopt", "noh": "NOH", "noh-layers": "NOH per layer, by whole runs",
    "noh-parameters": "NOH, by whole runs",
}  # fmt: skip
NOHS = ("noh", "noh-layers", "noh-parameters")
"""The paper's, trained by hypergradients, and those that are trained by the loss at the end of whole runs."""


def finals(lines: Lines, data: str, method: str, budget: int) -> dict[tuple[float, float], Array]:
    """(first rate, beta) -> the losses after `budget` steps, by seed; infinite where a run diverged."""
    groups: dict[tuple[float, float], list[float]] = {}
    own = {"budget": budget} if method in SCHEDULES else {}
    for run in sorted(lines.where(data=data, method=method, **own), key=lambda run: run["seed"]):
        tail = run["loss"][(budget - LAST) // EVERY : budget // EVERY]
        groups.setdefault((run["alpha0"], run["beta"]), []).append(np.inf if None in tail else float(np.mean(tail)))
    return {key: np.array(values) for key, values in groups.items()}


def best(lines: Lines, data: str, method: str, budget: int) -> tuple[float, float] | None:
    """The first rate and beta with the lowest mean loss after `budget` steps.

    Of a schedule, on the seeds that its peak is tuned on; of others, on the very seeds that are reported.
    """
    groups = finals(lines, data, method, budget)
    if method in SCHEDULES:
        groups.pop(TUNED, None)
    return min(groups, key=lambda key: groups[key].mean()) if groups else None


def reported(lines: Lines, data: str, method: str, budget: int) -> Array | None:
    """The losses of a method at its best settings, by seed."""
    key = TUNED if method in SCHEDULES else best(lines, data, method, budget)
    return None if key is None else finals(lines, data, method, budget).get(key)


def report(lines: Lines, data: Sequence[str], budget: int, longer: int, out: Path) -> Report:
    """Final losses, claims and curves.png, of the data sets that there are runs on."""
    data = [name for name in data if lines.where(data=name)]
    text = f"\nTraining loss, mean over the last {LAST} steps' batches, then over seeds ± standard deviation. Constant"
    text += " rates and Adam-HD are the best of a grid on these seeds and for this horizon: a choice in their favour."
    text += " Linear and cosine decay end at 0 at this horizon; their peaks have the lowest loss on"
    text += f" seeds of their own.{''.join(policy(out / method, TITLES[method]) for method in NOHS)}\n\n"
    text += markdown(("data", "steps", *TITLES.values()), table(lines, data, (budget, budget * longer)))
    figures = {"curves.png": partial(draw, lines, data, budget * longer)}
    return Report(claims(lines, data, budget, longer), text, figures)


def policy(folder: Path, title: str) -> str:
    """Which policy one of `NOHS` is, by its file and its log; nothing before its training has ended."""
    file = folder / "controller.safetensors"
    held = controller_file.read_metadata(file) if file.exists() else {}
    if not held.get("finished"):
        return ""
    with (folder / "progress.csv").open() as log:
        last = list(csv.DictReader(log))[-1]
    runs, loss, settings = held["runs"], float(last["eval/val_loss"] or "inf"), held["settings"]
    measured = "training" if settings.get("estimator", HYPERGRADIENT) == HYPERGRADIENT else "validation"
    return (
        f"\n\n{title}: the policy after update {held['iteration']} of {last['iteration']} ({held['episodes']} of"
        f" {runs['training']} runs), of those along the way the one with the lowest {measured} loss at the end of"
        f" held-out runs: {held['val_loss']:.4f}, where the last one has {loss:.4f}. It took {runs['training']} runs of"
        f" training and {runs['selection']} of selection. The rate that it begins with, `scale` ="
        f" {settings['scale']:g}, was chosen by hand, by the constant rates of this table, so on the seeds that"
        " are reported."
    )


def table(lines: Lines, data: Sequence[str], budgets: Sequence[int]) -> list[list[str]]:
    """A row per data set and horizon, a column per method."""
    rows = []
    for name in data:
        for budget in budgets:
            cells = []
            for method in TITLES:
                key, losses = best(lines, name, method, budget), reported(lines, name, method, budget)
                chosen = f" ({key[0]:g}{f', {key[1]:g}' if key[1] else ''})" if key and key[0] else ""
                cells.append("" if losses is None else "{:.4f} ± {:.4f}".format(*mean_std(losses)) + chosen)
            rows.append([name, str(budget), *cells])
    return rows


def claims(lines: Lines, data: Sequence[str], budget: int, longer: int) -> list[Claim]:
    """The paper's claims, of figures it gives no numbers for, and others, and whether the means of these runs agree."""
    rows, source = [], data[0]
    for own, name, horizon in itertools.product(NOHS, data, (budget, budget * longer)):
        ours = reported(lines, name, own, horizon)
        if own != "noh" and ours is None:
            continue  # what isn't in the paper is told where it was run
        title = TITLES[own] if name == source else f"frozen {TITLES[own]}"
        for method in TITLES:
            theirs = None if method in NOHS[NOHS.index(own) :] else reported(lines, name, method, horizon)
            if theirs is not None:
                place = "section 3.1" if own == "noh" and method not in SCHEDULES and name == source else "not in it"
                rows.append(compared(place, f"{name}, {horizon} steps: {title} below {TITLES[method]}", ours, theirs))
        key, there = best(lines, source, "adam", budget), finals(lines, name, "adam", horizon)
        if name != source and key in there:
            claim = f"{name}, {horizon} steps: {title} below Adam at {source}'s best rate, {key[0]:g}"
            rows.append(compared("section 3.2" if own == "noh" else "not in it", claim, ours, there[key]))
    return rows


def compared(place: str, claim: str, losses: Array | None, theirs: Array) -> Claim:
    """A claim about two methods.

    Runs with the same seed are pairs: they start from the same weights and see the same batches.
    """
    if losses is None:
        return Claim(place, claim, "", "", "not run")
    n = min(len(losses), len(theirs))
    differences = losses[:n] - theirs[:n]
    wins = int((differences < 0).sum())
    # A difference that a test of the pairs does not tell from chance is none.
    verdict = "level" if paired_t(differences) > 0.05 else "yes" if differences.mean() < 0 else "no"
    numbers = f"{losses.mean():.4f} against {theirs.mean():.4f}; lower on {wins} of {n} seeds"
    return Claim(place, claim, "", numbers, verdict)


def draw(lines: Lines, data: Sequence[str], budget: int) -> Figure:
    """The paper's figure 3: losses above, rates of single parameters, or layers, under NOH below."""
    learned = [method for method in NOHS if lines.where(method=method)]
    figure, axes = panels(1 + len(learned), len(data), dpi=80)
    for i, name in enumerate(data):
        losses, *rates = axes[:, i]
        for colour, (method, title) in zip(COLOURS, TITLES.items(), strict=False):
            key = TUNED if method in SCHEDULES else best(lines, name, method, budget)
            runs = lines.where(data=name, method=method, alpha0=key[0], beta=key[1], budget=budget) if key else []
            if runs:
                plot(losses, np.array([run["loss"] for run in runs], np.float64), colour, title)
        losses.set(title=name, yscale="log", ylabel="training loss")
        if losses.lines:
            losses.legend(fontsize=7)
        for own, method in zip(rates, learned, strict=True):
            for run in lines.where(data=name, method=method, seed=0):
                for curve in run["rates"]:
                    own.plot(EVERY * np.arange(len(curve)), curve, linewidth=0.8)
            own.set(xlabel="inner steps", ylabel=f"rates of {TITLES[method]}", yscale="log")
    return figure


def plot(ax: Axes, curves: Array, colour: Any, label: str) -> None:
    """A mean of curves (seeds, points), with their range."""
    steps = EVERY * (np.arange(curves.shape[1]) + 0.5)
    ax.plot(steps, curves.mean(0), color=colour, label=label, linewidth=1)
    ax.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
