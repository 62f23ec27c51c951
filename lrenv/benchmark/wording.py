"""What a comparison says in words and numbers: the entries of its table, who is ahead of whom, and the notes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lrenv.benchmark.evaluation import Result, measured_every
from lrenv.benchmark.rows import LEVEL, Comparison, Row
from lrenv.benchmark.statistics import paired, paired_interval
from lrenv.training.tasks import LogUniform

METRICS = {"accuracy": "accuracy", "bits_per_character": "bits per character", "r2": "R²", "d2": "D²"}
"""What `lrenv.training.losses` measures beside the loss, in words."""


def headings(comparison: Comparison) -> dict[str, str]:
    """Returns the heading of each column of the table, in order."""
    found = next((row.result.metric for row in comparison.rows if row.result is not None), None)
    metric = METRICS.get(found or "", "metric")
    return {
        "agent": "agent", "settings": "settings", "test_loss": "test loss",
        "difference": f"difference from {comparison.baseline}", "p": "p (paired)", "metric": f"test {metric}",
        "final_test_loss": "final test loss", "val_loss": "val loss", "diverged": "diverged", "runs": "runs spent",
    }  # fmt: skip


def cells(row: Row, comparison: Comparison) -> dict[str, str]:
    """Returns a row's entries under `headings`: mean (standard deviation) over seeds; or why an agent failed."""
    known = {"agent": row.label, "settings": row.settings}
    if row.result is None:
        return known | {"failure": f"failed: {row.failure}"}
    summary, places = row.summary(), _places(comparison)
    numbers = {name: _number(summary[name], places) for name in ("test_loss", "final_test_loss", "val_loss")}
    metric = f"test_{row.result.metric}"
    numbers["metric"] = _number(summary[metric], max(places, 4)) if metric in summary else "-"
    others = {"difference": _difference(row, comparison), "p": _p(row.paired)}
    return known | numbers | others | {"diverged": str(summary["diverged"]), "runs": str(row.runs)}


def title(comparison: Comparison) -> str:
    """Returns the task, and how much was run."""
    task = comparison.task
    seeds = f"{comparison.seeds} seed{'s' * (comparison.seeds > 1)}"
    return f"{task.name}: {task.budget} steps of batch {task.batch_size}, {seeds}"


def verdict(comparison: Comparison) -> str:
    """Tells who is ahead of whom in test loss, and by how much, or who is level."""
    if comparison.seeds < 2:
        return "One seed tells no agents apart."
    if not comparison.whole:
        return "Every agent failed or has runs that diverged, so none is ahead."
    (first, best), *others = comparison.whole
    if len(comparison.rows) == 1:
        return f"{first.label} is the only agent; there is none to compare."
    places = _places(comparison)
    ahead: list[str] = []
    level: list[str] = []
    for row, result in others:
        kind = ahead if paired(result.test_loss, best.test_loss) < LEVEL else level
        kind.append(f"{row.label} ({_interval(result, best, places)})")
    said = [f"{first.label} has the lowest test loss."] if others else []
    found = [f"{what} {_listed(rows)}" for what, rows in (("level with", level), ("ahead of", ahead)) if rows]
    if found:
        said.append(f"It is {', and '.join(found)}. In brackets: their test loss minus its own, seed by seed.")
    left = [row for row in comparison.rows if all(row is not other for other, _ in comparison.whole)]
    if left:
        said.append(f"Left out: {', '.join(map(_why_left_out, left))}.")
    return " ".join(said)


def caption(comparison: Comparison) -> str:
    """Explains what the numbers of the table mean."""
    said = [
        "Mean (standard deviation) over seeds. The test split is read once, at the end of a run: at the checkpoint "
        "with the best validation loss, and at the last network (final)."
    ]
    if comparison.seeds < 2:
        said.append("One seed has no deviation, no interval and no p-value.")
    elif comparison.baseline in [row.label for row in comparison.failed]:
        said.append(f"There are no differences to show, for the baseline, {comparison.baseline}, failed.")
    else:
        said.append(
            "A difference is that of the test losses of runs with the same seed: the mean, ± half the 95 % interval of "
            f"Student's t. Two agents are level where it holds 0 (paired t-test: p of {LEVEL} or more); there is no "
            "correction for the number of agents."
        )
    alone = [row.label for row in comparison.rows if row.result is not None and "loop" in row.result.view]
    if alone:
        said.append(
            f"Of {_listed(alone)} each run has an optimizer of its own, in a loop that is not stacked, on the initial "
            "weights and batches of the others. Where it is measured at other weights than it trains, running "
            "statistics of batch norm are estimated anew for them; an average by +ema has those of the iterates."
        )
    said += _measured(comparison)
    know, not_ = ([row.label for row in comparison.rows if row.horizon is known] for known in (True, False))
    if know and not_:
        said.append(
            f"{_listed(know)} {'know' if len(know) > 1 else 'knows'} how long training will take; no other does."
        )
    if isinstance(comparison.task.initial_lr, LogUniform) and any(" to " in row.label for row in comparison.rows):
        said.append("Where the rate is scaled, each run's initial rate is drawn from the task's range by its seed.")
    return " ".join(said)


def _measured(comparison: Comparison) -> list[str]:
    """Who is measured less often than others: the best of few checkpoints is worse, whatever the training."""
    task = comparison.task
    views = {row.label: row.result.view for row in comparison.rows if row.result is not None}
    every = {label: measured_every(task, view.get("interval", task.interval)) for label, view in views.items()}
    seldom = [f"{label} (every {steps} steps)" for label, steps in every.items() if steps > min(every.values())]
    if not seldom:
        return []
    return [
        f"Less often than others are measured: {_listed(seldom)}. Where there are fewer checkpoints to choose from, "
        "the best one is worse; the last network has no such disadvantage."
    ]


def what(view: dict[str, Any]) -> str:
    """Tells what an agent observes and controls, and what it asks of the task."""

    def listed(names: str | tuple[str, ...]) -> str:
        return " and ".join(names) if isinstance(names, tuple) else names

    if "loop" in view:
        return f"optimizer {view['optimizer']}, {view['loop']}"
    said = [f"observation {listed(view['observe'])}", f"control {listed(view['control'])}"]
    if "interval" in view:
        said.append("an action at every step" if view["interval"] == 1 else f"an action every {view['interval']} steps")
    if "optimizer" in view:
        said.append(f"optimizer {view['optimizer']}")
    return ", ".join(said)


def _listed(items: list[str]) -> str:
    """The items as a list in a sentence."""
    return " and ".join([", ".join(items[:-1])] * (len(items) > 1) + items[-1:])


def _why_left_out(row: Row) -> str:
    if row.result is None:
        return f"{row.label} (failed)"
    diverged = int(row.result.diverged.sum())
    return f"{row.label} ({diverged or 'some'} of {len(row.result.seeds)} runs diverged)"


def _difference(row: Row, comparison: Comparison) -> str:
    if row.label == comparison.baseline:
        return "baseline"
    baseline = next(other.result for other in comparison.rows if other.label == comparison.baseline)
    if row.result is None or baseline is None:
        return "-"
    return _interval(row.result, baseline, _places(comparison))


def _interval(result: Result, baseline: Result, places: int) -> str:
    """The paired difference of the test losses, ± half the width of its interval; without it for a single seed."""
    mean, half = paired_interval(result.test_loss, baseline.test_loss)
    if np.isnan(mean):
        return "-"
    return f"{mean:+.{places}f}" + ("" if np.isnan(half) else f" ± {half:.{places}f}")


def _p(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.2g}"


def _places(comparison: Comparison) -> int:
    """Decimal places of losses: four, or what gives the lowest mean from 10 on five digits, and small ones three."""
    means = [abs(float(np.mean(result.test_loss))) for _, result in comparison.whole] or [0.0]
    if min(means) >= 10:
        return max(4 - math.floor(math.log10(min(means))), 0)
    return 4 if not 0 < max(means) < 0.1 else min(2 - math.floor(math.log10(max(means))), 12)


def _number(value: dict[str, float], places: int) -> str:
    if np.isnan(value["mean"]):
        return "-"
    if np.isinf(value["mean"]):
        return "inf"
    return f"{value['mean']:.{places}f}" + ("" if np.isnan(value["std"]) else f" ({value['std']:.{places}f})")
