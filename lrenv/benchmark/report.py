"""Showing a comparison: a table in the terminal, and the files that keep it."""

from __future__ import annotations

from pathlib import Path

import rich.box
import rich.markup
from rich.table import Table

from lrenv.benchmark import figures, wording
from lrenv.benchmark.page import page
from lrenv.benchmark.rows import Comparison
from lrenv.runtime.files import replace_file


def table(comparison: Comparison) -> Table:
    """Returns the comparison for a terminal of 80 columns, the lowest test loss first; an agent alone ahead is bold."""
    settings = [f"{row.label}: {row.settings}" for row in comparison.ranked if row.settings]
    failures = [f"{row.label} failed: {row.failure}" for row in comparison.failed]
    said = [wording.verdict(comparison), wording.caption(comparison)]
    shown = Table(
        title=rich.markup.escape(wording.title(comparison)),
        caption=rich.markup.escape("\n".join([*said, *settings, *failures])),
        caption_justify="left",
        box=rich.box.SIMPLE,
    )
    headings, names = wording.headings(comparison), ("test_loss", "difference", "final_test_loss")
    shown.add_column("agent", overflow="fold")
    for name in names:
        shown.add_column(rich.markup.escape(headings[name]), justify="right")
    for row in comparison.ranked:
        label = rich.markup.escape(row.label)
        if row.result is None:
            shown.add_row(f"{label} (failed)", *"---")
            continue
        entries = wording.cells(row, comparison)
        mark = f" ({entries['diverged']} diverged)" if row.result.diverged.any() else ""
        style = "bold" if comparison.best == [row] else None
        shown.add_row(label + mark, *(entries[name] for name in names), style=style)
    return shown


def save_report(comparison: Comparison, out: Path) -> Path:
    """Writes the runs, the figure comparison.png and report.html to `out`; gives the page's path."""
    comparison.save(out)
    replace_file(out / "comparison.png", figures.png(comparison))
    path = out / "report.html"
    replace_file(path, page(comparison))
    return path
