"""Figures of a comparison: curves over inner steps, and the test loss of each seed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.rows import Comparison, Row
from lrenv.benchmark.statistics import paired_interval

COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#9955bb", "#33aadd", "#aa8800", "#888888")
"""Legible on white and on black, and told apart by readers who are colour-blind (after Paul Tol's vibrant scheme)."""
DASHES = ((), (5.0, 2.0), (1.5, 1.5), (6.0, 1.5, 1.5, 1.5))
"""Lengths of dashes and gaps in line widths; no dashes is a solid line."""
INK = "#1c2026"
"""The colour of text and axes."""
LONGEST = 24
"""Characters of a label at most, where so many tell the labels of a figure apart."""
NARROW = 14
"""Characters of the baseline's label that stand on one line with what they belong to, at most."""
COLUMNS = 7
"""Columns of a legend at most."""
END = 0.2
"""The part of the steps that the magnified panel shows."""


class Style(NamedTuple):
    """How a row is drawn: the colour tells the agent, the dashes tell the initial rate that the row starts from."""

    colour: str
    dashes: tuple[float, ...]


def styles(comparison: Comparison) -> dict[str, Style]:
    """Returns the style of each row, by label."""
    specs = list(dict.fromkeys(row.spec for row in comparison.rows))
    drawn: dict[str, int] = {}
    found = {}
    for row in comparison.rows:
        number, start = specs.index(row.spec), drawn.get(row.spec, 0)
        drawn[row.spec] = start + 1
        dashes = DASHES[(start + number // len(COLOURS)) % len(DASHES)]
        found[row.label] = Style(COLOURS[number % len(COLOURS)], dashes)
    return found


def finished(comparison: Comparison) -> list[tuple[Row, Result]]:
    """Returns the rows of agents that did not fail, in the order of the table, with their results."""
    return [(row, row.result) for row in comparison.ranked if row.result is not None]


def val_loss(axes: Any, comparison: Comparison) -> None:
    """Draws the validation loss over inner steps: the median over seeds, and the range of the middle half."""
    _curves(axes, comparison, "val_loss", "validation loss")
    if any((result.curves["val_loss"] <= 0).any() for _, result in finished(comparison)):
        axes.set_yscale("linear")
    else:
        _log(axes)


def end_of_val_loss(axes: Any, comparison: Comparison) -> None:
    """Draws the last fifth of the same curves, magnified.

    The axis holds the better half of the agents, and those that are not twice as far above the lowest as these.
    """
    _curves(axes, comparison, "val_loss", "validation loss, last fifth")
    begin = comparison.task.budget * (1 - END)
    axes.set_xlim(begin, comparison.task.budget)
    ranges = []
    for _, result in finished(comparison):
        step, (low, _, high) = _quartiles(result, "val_loss")
        shown = step >= begin
        if shown.any():
            ranges.append((low[shown].min(), high[shown].max()))
    if not ranges:
        return
    bottom = min(low for low, _ in ranges)
    heights = sorted(high - bottom for _, high in ranges)
    usual = heights[(len(heights) - 1) // 2]
    top = max(height for height in heights if height <= 2 * usual)
    if top > 0:
        axes.set_ylim(bottom - 0.05 * top, bottom + 1.05 * top)


def rates(axes: Any, comparison: Comparison) -> None:
    """Draws the learning rate over inner steps, likewise; a rate is that of the steps just before the point."""
    _curves(axes, comparison, "lr", "learning rate")
    _log(axes)


def test_losses(axes: Any, comparison: Comparison) -> None:
    """Draws a dot per seed, and the mean."""
    for height, result, colour in _lines(axes, comparison):
        values = result.test_loss[np.isfinite(result.test_loss)]
        _dots(axes, values, height, colour)
        if len(values) and len(values) == comparison.seeds:
            _mean(axes, values.mean(), height)
    axes.set_xlabel("test loss")


def differences(axes: Any, comparison: Comparison) -> None:
    """Draws a dot per seed: its test loss less that of the baseline on that seed; the mean and its 95 % interval."""
    baseline = next((result for row, result in finished(comparison) if row.label == comparison.baseline), None)
    for height, result, colour in _lines(axes, comparison):
        if baseline is None or result is baseline:
            continue
        with np.errstate(invalid="ignore"):
            values = result.test_loss.astype(np.float64) - baseline.test_loss
        _dots(axes, values[np.isfinite(values)], height, colour)
        mean, half = paired_interval(result.test_loss, baseline.test_loss)
        if np.isfinite(half):
            axes.plot([mean - half, mean + half], [height - 0.3] * 2, color=INK, linewidth=1.5, solid_capstyle="butt")
        if np.isfinite(mean):
            _mean(axes, mean, height)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    name = _names(comparison)[comparison.baseline]
    between = " " if len(name) <= NARROW else "\n"
    axes.set_xlabel(f"test loss minus that of{between}{name}")


Draw = Callable[[Any, Comparison], None]
PANELS: dict[str, Draw] = {
    "validation loss over inner steps": val_loss,
    "the last fifth of the validation losses": end_of_val_loss,
    "learning rate over inner steps": rates,
    "test loss of each seed": test_losses,
    "difference of the test loss from the baseline's for each seed": differences,
}
"""What a panel shows -> what draws it."""


def figure(comparison: Comparison) -> Figure:
    """Draws all panels with a legend."""
    with rc_context(_LOOK):
        drawn = Figure(figsize=(13, 7.4), dpi=110, layout="constrained")
        FigureCanvasAgg(drawn)
        # Or the labels of one row would take their room from the other's panels.
        rows = drawn.add_gridspec(2, 1)
        upper, lower = drawn.add_subfigure(rows[0]), drawn.add_subfigure(rows[1])
        for axes, draw in zip((*upper.subplots(1, 3), *lower.subplots(1, 2)), PANELS.values(), strict=True):
            draw(axes, comparison)
        style, names = styles(comparison), _names(comparison)
        lines = [
            Line2D([], [], color=style[row.label].colour, dashes=style[row.label].dashes, label=names[row.label])
            for row, _ in finished(comparison)
        ]
        for columns in range(min(len(lines), COLUMNS), 0, -1):  # as many as the figure is wide enough for
            legend = drawn.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False)
            if columns == 1 or legend.get_window_extent().width <= drawn.bbox.width:
                break
            legend.remove()
    return drawn


def png(comparison: Comparison) -> bytes:
    """Returns the figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure(comparison).savefig(buffer, format="png")
    return buffer.getvalue()


def svg(comparison: Comparison, draw: Draw) -> str:
    """Returns a panel as an element of an HTML page, whose text and axes have the colour of the text around it."""
    with rc_context(_LOOK | {"svg.fonttype": "none", "svg.hashsalt": draw.__name__}):
        drawn = Figure(figsize=(4.4, 3.3), layout="constrained")
        draw(drawn.add_subplot(), comparison)
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"', "", text[text.index("<svg") :])
    # An id may occur once per page: matplotlib's are the same in every figure but for those that it hashes.
    text = re.sub(r' id="[A-Za-z0-9.]*_\d+"', "", text)
    return text.replace(INK, "currentColor")


_LOOK: Any = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#888888", "grid.alpha": 0.3,
    "font.size": 10, "font.sans-serif": ["DejaVu Sans"],
}  # fmt: skip


def _curves(axes: Any, comparison: Comparison, name: str, label: str) -> None:
    style = styles(comparison)
    for row, result in finished(comparison):
        colour, dashes = style[row.label]
        step, (low, middle, high) = _quartiles(result, name)
        axes.plot(step, middle, color=colour, dashes=dashes, linewidth=1.5)
        axes.fill_between(step, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="inner step", ylabel=label)
    axes.grid()


def _quartiles(result: Result, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The steps (k,) at which a run was still going, and the quartiles (3, k) over seeds of the curve called `name`."""
    step, values = np.nanmax(result.curves["inner_step"], axis=1), result.curves[name]
    if name == "lr":
        # The first rate is that before the first action; one of 0 has no place on a log axis.
        step, values = step[1:], np.where(values > 0, values, np.nan)[1:]
    alive = np.isfinite(values).any(1)
    if not alive.any():
        return step[:0], np.empty((3, 0))
    return step[alive], np.nanpercentile(values[alive], (25, 50, 75), axis=1)


def _log(axes: Any) -> None:
    """A log scale whose ticks are plain numbers, at 1, 2 and 5 where it spans less than two decades."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _lines(axes: Any, comparison: Comparison) -> list[tuple[int, Result, str]]:
    """A line of dots per row, in the order of the table from above: its height, its result and its colour."""
    rows, style, names = finished(comparison), styles(comparison), _names(comparison)
    heights = range(len(rows) - 1, -1, -1)
    axes.set_yticks(list(heights), [names[row.label] for row, _ in rows])
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    return [(height, result, style[row.label].colour) for height, (row, result) in zip(heights, rows, strict=True)]


def _names(comparison: Comparison) -> dict[str, str]:
    """What figures have room for of each label: of long ones the end, as long as is needed to tell them apart."""
    labels = [row.label for row in comparison.rows]
    longest = max(map(len, labels))
    for room in range(min(LONGEST, longest), longest + 1):
        names = {label: label if len(label) <= room else f"…{label[1 - room :]}" for label in labels}
        if len(set(names.values())) == len(set(labels)):
            break
    return {label: name.replace("$", r"\$") for label, name in names.items()}  # no formulas


def _dots(axes: Any, values: NDArray[Any], height: int, colour: str) -> None:
    axes.scatter(values, np.full(len(values), height), s=22, color=colour, alpha=0.55, linewidth=0)


def _mean(axes: Any, value: float, height: int) -> None:
    axes.scatter([value], [height], s=160, marker="|", color=INK, linewidth=1.8, zorder=3)
