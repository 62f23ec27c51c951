"""Showing a comparison: a table in the terminal, a figure, and one HTML page that holds both."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rich.box
import rich.markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.rows import LEVEL, Comparison, Row
from lrenv.runtime.files import replace_file
from lrenv.training.tasks import LogUniform

COLUMNS = (
    "agent", "settings", "val loss", "test loss", "test accuracy", "p (paired)", "p (Welch)", "diverged", "runs spent",
)  # fmt: skip


def cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """A row's entries under `COLUMNS`: mean (standard deviation) over seeds; of a failed agent, why it failed."""
    if row.result is None:
        return row.label, row.settings, f"failed: {row.failure}"
    summary = row.summary()
    numbers = [_number(summary[name]) for name in ("val_loss", "test_loss", "test_accuracy")]
    tests = [_p(row, value, comparison) for value in (row.paired, row.welch)]
    return row.label, row.settings, *numbers, *tests, str(summary["diverged"]), str(row.runs)


def table(comparison: Comparison) -> Table:
    """The comparison for a terminal of 80 columns, with the paired p-values; bold rows are level with the best."""
    settings = [f"{row.label}: {row.settings}" for row in comparison.rows if row.settings]
    failures = [f"{row.label} failed: {row.failure}" for row in comparison.failed]
    shown = Table(
        title=_title(comparison),
        caption=rich.markup.escape("\n".join([_caption(comparison), *settings, *failures])),
        caption_justify="left",
        box=rich.box.SIMPLE,
    )
    shown.add_column("agent")
    for column in COLUMNS[2:6]:
        shown.add_column(column, justify="right", no_wrap=True)
    best = comparison.best
    for row in comparison.rows:
        label = rich.markup.escape(row.label)
        if row.result is None:
            shown.add_row(f"{label} (failed)", *"----")
            continue
        _, _, *numbers, _, diverged, _ = cells(row, comparison)
        mark = f" ({diverged} diverged)" if row.result.diverged.any() else ""
        shown.add_row(label + mark, *numbers, style="bold" if row in best else None)
    return shown


def figure(comparison: Comparison) -> Figure:
    """Validation loss and learning rate over inner steps: the median over seeds, and the range of the middle half."""
    drawn = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, (row, result) in enumerate(_finished(comparison)):
        curves, colour = result.curves, colours[number % len(colours)]
        step = np.nanmax(curves["inner_step"], axis=1)
        _band(left, step, curves["val_loss"], colour, row.label)
        # The rate belongs to the interval that ends at a step, so it holds back to the step before.
        _band(right, step[1:], np.where(curves["lr"] > 0, curves["lr"], np.nan)[1:], colour, row.label)
    for axes, name in ((left, "validation loss"), (right, "learning rate")):
        axes.set(xlabel="inner step", ylabel=name, yscale="log")
        axes.grid(alpha=0.2)
    if any((result.curves["val_loss"] <= 0).any() for _, result in _finished(comparison)):
        left.set_yscale("linear")
    if _finished(comparison):
        right.legend(frameon=False, fontsize="small")
    return drawn


def save_report(comparison: Comparison, out: Path) -> Path:
    """Writes the runs, the figure comparison.png and report.html to `out`; gives the page's path."""
    comparison.save(out)
    buffer = io.BytesIO()
    figure(comparison).savefig(buffer, format="png")
    replace_file(out / "comparison.png", buffer.getvalue())
    page = PAGE.format(
        title=html.escape(_title(comparison)),
        head="".join(f"<th>{column}</th>" for column in COLUMNS),
        body="".join(_html(row, comparison) for row in comparison.rows),
        caption=html.escape(f"{_caption(comparison)} {SPENT}"),
        image=base64.b64encode(buffer.getvalue()).decode(),
        command=html.escape(comparison.about["command"]),
        machine=html.escape(comparison.about["machine"]),
        views="".join(
            f"<li><b>{html.escape(row.label)}</b> {html.escape(_what(result.view))}</li>\n"
            for row, result in _finished(comparison)
        ),
    )
    path = out / "report.html"
    replace_file(path, page)
    return path


def _html(row: Row, comparison: Comparison) -> str:
    """A row of the page's table; why an agent failed takes all the columns of its numbers."""
    label, settings, *entries = (html.escape(cell) for cell in cells(row, comparison))
    span = f" colspan={len(COLUMNS) - 2} class=failed" if row.result is None else ""
    body = f"<td>{label}</td><td>{settings}</td>" + "".join(f"<td{span}>{entry}</td>" for entry in entries)
    return f"<tr{' class=best' if row in comparison.best else ''}>{body}</tr>\n"


SPENT = "Runs spent: trainings that tuning, learning, and choosing among what was learned took."
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left }}
td:nth-child(n+3) {{ white-space: nowrap }} td.failed {{ white-space: normal; text-align: left }}
tr.best {{ font-weight: 600 }}
img {{ max-width: 100%; margin: 1rem 0 }} .small {{ color: #666; font-size: .9rem }} code {{ background: #f4f4f4 }}
</style>
<h1>{title}</h1>
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody></table></div>
<p class="small">{caption}</p>
<img src="data:image/png;base64,{image}" alt="validation loss and learning rate over inner steps">
<h2>Who saw what</h2>
<ul>
{views}</ul>
<p class="small">Made by <code>{command}</code> on {machine}.</p>
</html>
"""


def _what(view: dict[str, Any]) -> str:
    """What an agent sees and turns, and what it asks of the task."""

    def listed(names: str | tuple[str, ...]) -> str:
        return " and ".join(names) if isinstance(names, tuple) else names

    said = [f"sees {listed(view['observe'])}", f"turns {listed(view['control'])}"]
    if "interval" in view:
        said.append("acts at every step" if view["interval"] == 1 else f"acts every {view['interval']} steps")
    if "optimizer" in view:
        said.append(f"drives {view['optimizer']}")
    return ", ".join(said)


def _title(comparison: Comparison) -> str:
    task = comparison.task
    return f"{task.name}: {task.budget} steps of batch {task.batch_size}, {comparison.seeds} seeds"


def _caption(comparison: Comparison) -> str:
    said = [
        "Mean (standard deviation) over seeds; the test split is read once, at the checkpoint with the best validation "
        "loss."
    ]
    if comparison.seeds < 2:
        said.append("One seed has no deviation and no p-value, and tells nobody apart.")
    elif comparison.baseline in [row.label for row in comparison.failed]:
        said.append(f"No p-values: the baseline, {comparison.baseline}, failed.")
    else:
        said.append(
            f"p: t-test of the test loss against {comparison.baseline}; the paired one holds runs of the same seed "
            "against one another."
        )
    if comparison.best:
        said.append(f"Bold: the lowest test loss, and what is level with it (paired p of {LEVEL} or more).")
    if isinstance(comparison.task.initial_lr, LogUniform) and any(" to " in row.label for row in comparison.rows):
        said.append("Where the rate is scaled, each run's initial rate is drawn from the task's range by its seed.")
    return " ".join(said)


def _finished(comparison: Comparison) -> list[tuple[Row, Result]]:
    return [(row, row.result) for row in comparison.rows if row.result is not None]


def _p(row: Row, value: float | None, comparison: Comparison) -> str:
    if row.label == comparison.baseline:
        return "baseline"
    if comparison.seeds < 2:
        return "one seed"
    return "-" if value is None or np.isnan(value) else f"{value:.2g}"


def _number(value: dict[str, float]) -> str:
    if np.isnan(value["mean"]):
        return "-"
    return f"{value['mean']:.4f}" + ("" if np.isnan(value["std"]) else f" ({value['std']:.4f})")


def _band(axes: Any, x: NDArray[Any], values: NDArray[Any], colour: Any, label: str) -> None:
    alive = np.isfinite(values).any(1)
    x, values = x[alive], values[alive]
    low, middle, high = np.nanpercentile(values, (25, 50, 75), axis=1)
    axes.plot(x, middle, color=colour, label=label, linewidth=1.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
