"""Showing the scores of a suite: JSON lines, tables in Markdown and CSV, and a figure of what tuning is worth."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrenv.benchmark.run_suite import json_of
from lrenv.benchmark.scores import Budgets, Score, Scores, budgets_of, places_of
from lrenv.runtime.files import replace_file
from lrenv.runtime.json_values import to_json

LEAGUES = {True: "Horizon known", False: "Horizon unknown"}
LINES = 20
"""Names of levels that the figure has room for, one above the other."""


def save(scores: Scores, out: Path) -> None:
    """Writes the results, the tables, and the budgets if there are random draws."""
    outcome, budgets = scores.outcome, budgets_of(scores)
    header = {"suite": outcome.suite.name, "seeds": outcome.suite.seeds} | outcome.about
    privileges = {name: asdict(has) for name, has in outcome.privileges.items()}
    lines = [header, *(json_of(line) | {"privileges": privileges[line.agent]} for line in outcome.lines)]
    replace_file(out / "results.jsonl", "".join(f"{to_json(line)}\n" for line in lines))
    replace_file(out / "table.md", markdown(scores))
    replace_file(out / "table.csv", as_csv(scores))
    if budgets is not None:
        replace_file(out / "budgets.json", to_json(asdict(budgets), indent=2) + "\n")
        buffer = io.BytesIO()
        figure(scores, budgets).savefig(buffer, format="png", metadata={"Software": None})
        replace_file(out / "budgets.png", buffer.getvalue())


def markdown(scores: Scores) -> str:
    """The tables of both leagues, and what must be known of them; nothing in it depends on the time."""
    suite = scores.outcome.suite
    said = [
        f"# Benchmark {suite.name}",
        f"Test losses at the end of training, relative to those of {suite.reference} on the same {suite.seeds} seed"
        f"{'s' * (suite.seeds > 1)}: below 1 is better.",
        "\n".join(
            f"- {told}"
            for told in (
                "Mean: the geometric mean over tasks, with a 95 % interval by a bootstrap over tasks.",
                "Best checkpoint: the same mean at the lowest validation loss, of a run that diverged, too.",
                f"p: that the agent is level with {suite.reference}, by a t-test over tasks, corrected for "
                f"{len(scores.rows) - 1} agents (Holm).",
                "Worst start: the mean from the worst initial rate, of agents that scale it.",
                "Runs: trainings that tuning took on all tasks, or that a controller learned by.",
                f"A run that diverged, or an agent that failed, counts as {suite.cap:g}, which is also the worst that "
                "counts.",
            )
        ),
    ]
    for known, league in LEAGUES.items():
        rows = [row for row in scores.rows if row.privileges.horizon == known]
        if rows:
            said.append(f"## {league}")
            said.append(table(headings(scores), [entries(row, scores) for row in rows]))
    said += _by_optimizer(scores)
    told = [*scores.notes, *(f"{row.agent} failed on {failure}" for row in scores.rows for failure in row.failures)]
    edges = [f"{row.agent} ({', '.join(row.edges)})" for row in scores.rows if row.edges]
    if edges:
        told.append(f"The best settings are at an edge of what was searched for {', '.join(edges)}.")
    if told:
        said += ["## Notes", "\n".join(f"- {note}" for note in told)]
    budgets = budgets_of(scores)
    if budgets is not None:
        said += ["## What tuning is worth", *_budgets(budgets, suite.reference)]
    return "\n\n".join(said) + "\n"


def _by_optimizer(scores: Scores) -> list[str]:
    """The means over the tasks of each optimizer, if there are several."""
    places = places_of(scores.outcome, scores.tasks)
    if not places:
        return []
    told = (
        "The same means over the tasks that train with each optimizer, with 95 % intervals. Agents that use one of "
        "their own train with that instead."
    )
    head = ["agent", *(f"{name}, {len(found)} task{'s' * (len(found) > 1)}" for name, found in places.items())]
    rows = []
    for row in scores.rows:
        reference = row.agent == scores.outcome.suite.reference
        cells = [f"{mean:.3f}" + f" ({_interval(*ends)})" * (not reference) for mean, *ends in row.parts.values()]
        rows.append([row.agent, *cells])
    return ["## By the tasks' optimizers", told, table(head, rows)]


def headings(scores: Scores) -> list[str]:
    """The columns of `entries`."""
    first = ["agent", "mean", "95 % interval", "best checkpoint", "p (Holm)", "worst start"]
    return [*first, "diverged", "runs", "uses", *scores.tasks]


def entries(row: Score, scores: Scores) -> list[str]:
    """A row of the table, as text."""
    reference = row.agent == scores.outcome.suite.reference
    interval = "-" if reference else _interval(row.low, row.high)
    p = "reference" if reference else "-" if math.isnan(row.p) else f"{row.p:.2g}"
    worst = "-" if row.worst is None else f"{row.worst:.3f} from {row.worst_start:g}"
    diverged = f"{row.diverged} of {row.runs}" if row.diverged else "0"
    losses = [f"{row.tasks[task]:.3f}" for task in scores.tasks]
    first = [row.agent, f"{row.mean:.3f}", interval, f"{row.best:.3f}", p, worst, diverged, str(row.spent)]
    return [*first, str(row.privileges), *losses]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def as_csv(scores: Scores) -> str:
    """A line per agent, with all digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["agent", "horizon", "mean", "low", "high", "best_checkpoint", "p_holm", "worst", "worst_start", "diverged",
             "runs", "tuning_runs", "training_runs", "selection_runs", "validation", "gradients",
             "optimizer"]  # fmt: skip
    writer.writerow([*names, *scores.tasks])
    for row in scores.rows:
        has, spent = row.privileges, row.spent
        numbers = [row.mean, row.low, row.high, row.best, row.p, row.worst, row.worst_start]
        written = ["" if x is None or math.isnan(x) else repr(x) for x in numbers]
        costs = [
            row.diverged,
            row.runs,
            spent.tuning,
            spent.training,
            "" if spent.selection is None else spent.selection,
        ]
        flags = [int(flag) for flag in (has.validation, has.gradients, has.optimizer)]
        losses = [repr(row.tasks[task]) for task in scores.tasks]
        writer.writerow([row.agent, int(has.horizon), *written, *costs, *flags, *losses])
    return buffer.getvalue()


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _budgets(budgets: Budgets, reference: str) -> list[str]:
    said = [
        "The expected relative loss of the best of so many random draws from the suite's ranges, chosen by the "
        f"validation loss; 1 is {reference} tuned over its grid. The mean over all sets of draws from the pool.",
        table(
            ["agent", *(f"best of {count}" for count in budgets.counts)],
            [
                [name, *(f"{x:.3f}" for x in curve)]
                for name, curve in [*budgets.families.items(), ("the best of each task, by hindsight", budgets.each)]
            ],
        ),
    ]
    if budgets.worth:
        said.append(
            "Agents without tuning, and the number of draws from which on the best of these families is expected to be "
            "level or ahead:"
        )
        rows = [[name, "more than were drawn" if x is None else str(x)] for name, x in budgets.worth.items()]
        said.append(table(["agent", "draws"], rows))
        said.append(
            f"The same agents relative to the best of {budgets.counts[-1]} draws of the family that is best on each "
            "task, which nobody knows before, with intervals by a bootstrap over tasks:"
        )
        shown = sorted(budgets.against.items(), key=lambda item: item[1])
        said.append(
            table(
                ["agent", "relative loss", "95 %"],
                [[name, f"{mean:.3f}", _interval(*ends)] for name, (mean, *ends) in shown],
            )
        )
    return said


def figure(scores: Scores, budgets: Budgets) -> Figure:
    """The expected best over the number of draws: a line per family, and a level line per agent without tuning."""
    drawn = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(drawn)
    axes: Any = drawn.subplots()
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, (name, curve) in enumerate(budgets.families.items()):
        axes.plot(budgets.counts, curve, "o-", color=colours[number % len(colours)], label=name, linewidth=1.5)
    means = {row.agent: row.mean for row in scores.rows}
    levels = {name: means[name] for name in budgets.worth}
    for level in levels.values():
        axes.axhline(level, color="0.6", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="random draws of settings (runs spent on tuning)")
    axes.set_ylabel(f"loss relative to tuned {scores.outcome.suite.reference}")
    axes.set_xticks(budgets.counts, [str(count) for count in budgets.counts])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    for side in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        side(matplotlib.ticker.StrMethodFormatter("{x:.3g}"))
    low, high = axes.get_ylim()
    for name, place in _apart(levels, (high / low) ** (1 / LINES)).items():
        axes.annotate(name, (1.01, place), xycoords=("axes fraction", "data"), fontsize="small", va="center")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize="small")
    return drawn


def _apart(levels: Mapping[str, float], factor: float) -> dict[str, float]:
    """Where the names of levels stand, from the lowest on, each at least a factor above the one before."""
    places: dict[str, float] = {}
    for name, level in sorted(levels.items(), key=lambda pair: pair[1]):
        places[name] = max([level, *(place * factor for place in [*places.values()][-1:])])
    return places
