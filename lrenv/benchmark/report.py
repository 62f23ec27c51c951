"""Showing a comparison: a table in the terminal, a figure, and one HTML page that holds both."""

from __future__ import annotations

import base64
import html
import io
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rich.box
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from lrenv.benchmark.comparison import Comparison, Row

COLUMNS = ("agent", "settings", "val loss", "test loss", "test accuracy", "p", "diverged", "runs spent")


def cells(row: Row) -> tuple[str, ...]:
    """A row's entries under `COLUMNS`: mean (standard deviation) over seeds."""
    summary = row.summary()
    numbers = [_number(summary[name]) for name in ("val_loss", "test_loss", "test_accuracy")]
    p_value = "baseline" if row.p_value is None else "-" if np.isnan(row.p_value) else f"{row.p_value:.2g}"
    return row.label, row.settings, *numbers, p_value, str(summary["diverged"]), str(row.runs_spent)


def table(comparison: Comparison) -> Table:
    """The comparison for a terminal of 80 columns; the lowest test loss is bold."""
    settings = [f"{row.label}: {row.settings}" for row in comparison.rows if row.settings]
    shown = Table(
        title=_title(comparison),
        caption="\n".join([_caption(comparison), *settings]),
        caption_justify="left",
        box=rich.box.SIMPLE,
    )
    shown.add_column("agent")
    for column in COLUMNS[2:6]:
        shown.add_column(column, justify="right", no_wrap=True)
    best = _best(comparison)
    for row in comparison.rows:
        label, _, *numbers, diverged, _ = cells(row)
        mark = f" ({diverged} diverged)" if row.result.diverged.any() else ""
        shown.add_row(label + mark, *numbers, style="bold" if row is best else None)
    return shown


def figure(comparison: Comparison) -> Figure:
    """Validation loss and learning rate over inner steps: the median over seeds, and the range of the middle half."""
    drawn = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, row in enumerate(comparison.rows):
        curves, colour = row.result.curves, colours[number % len(colours)]
        step = np.nanmax(curves["inner_step"], axis=1)
        _band(left, step, curves["val_loss"], colour, row.label)
        # The rate belongs to the interval that ends at a step, so it holds back to the step before.
        _band(right, step[1:], np.where(curves["lr"] > 0, curves["lr"], np.nan)[1:], colour, row.label)
    for axes, name in ((left, "validation loss"), (right, "learning rate")):
        axes.set(xlabel="inner step", ylabel=name, yscale="log")
        axes.grid(alpha=0.2)
    if any((row.result.curves["val_loss"] <= 0).any() for row in comparison.rows):
        left.set_yscale("linear")
    right.legend(frameon=False, fontsize="small")
    return drawn


def save_report(comparison: Comparison, out: Path) -> Path:
    """Writes the runs, the figure comparison.png and report.html to `out`; gives the page's path."""
    comparison.save(out)
    buffer = io.BytesIO()
    figure(comparison).savefig(buffer, format="png")
    (out / "comparison.png").write_bytes(buffer.getvalue())
    best = _best(comparison)
    body = "".join(
        f"<tr{' class=best' if row is best else ''}>{''.join(f'<td>{html.escape(c)}</td>' for c in cells(row))}</tr>\n"
        for row in comparison.rows
    )
    page = PAGE.format(
        title=html.escape(_title(comparison)),
        head="".join(f"<th>{column}</th>" for column in COLUMNS),
        body=body,
        caption=html.escape(_caption(comparison) + " Runs spent: trainings that tuning or learning took."),
        image=base64.b64encode(buffer.getvalue()).decode(),
        command=html.escape(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        machine=html.escape(_machine()),
        views="".join(
            f"<li><b>{html.escape(row.label)}</b> {html.escape(_what(row.result.view))}</li>\n"
            for row in comparison.rows
        ),
    )
    path = out / "report.html"
    path.write_text(page)
    return path


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left }}
td:nth-child(n+3) {{ white-space: nowrap }} tr.best {{ font-weight: 600 }}
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
    return f"{task.name}: {task.budget} steps of batch {task.batch_size}, {len(comparison.rows[0].result.seeds)} seeds"


def _caption(comparison: Comparison) -> str:
    return (
        "Mean (standard deviation) over seeds; the test split is read once, at the checkpoint with the best validation "
        f"loss. p: Welch's t-test of the test loss against {comparison.baseline}."
    )


def _best(comparison: Comparison) -> Row:
    return min(comparison.rows, key=lambda row: float(np.mean(row.result.test_loss)))


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


def _machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, lrenv {version('lrenv')}"
    )
