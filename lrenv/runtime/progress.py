"""Progress of long work: a bar with a line of status in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.measure import measure_renderables
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

QUIET_SECONDS = 10.0
"""The shortest time between two lines where there is no terminal."""

UNCUT = 10_000
"""The width of a terminal that has room for any line."""


class Report(Protocol):
    """A function that shows how much of the work is done."""

    def __call__(self, done: int, status: str = "") -> None:
        """Shows that `done` of the total are done, and the status behind it."""


@contextmanager
def progress(total: int, unit: str, done: int = 0) -> Iterator[Report]:
    """Shows progress on standard error until the block is left.

    Args:
        total: how much there is to do.
        unit: what is counted, such as "runs".
        done: how much was done before.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        if _BARS:  # nested work has a line of its own below the outer one
            yield from _line_of(_BARS[-1], total, unit, done)
            return
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[unit]}", markup=False), TimeElapsedColumn(),
            TextColumn("<"), TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False, table_column=rest),
        )  # fmt: skip
        with _Bars(*columns, console=console, expand=True) as bar:
            _BARS.append(bar)
            try:
                yield from _line_of(bar, total, unit, done)
            finally:
                _BARS.remove(bar)
        return
    begin = time.monotonic()
    last = begin - QUIET_SECONDS

    def line(done: int, status: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= QUIET_SECONDS:
            last = now
            console.print(
                f"{done}/{total} {unit}, {now - begin:.0f} s  {status}", soft_wrap=True, highlight=False, markup=False
            )

    yield line


class _Bars(Progress):
    """Lines of a bar, count, times and status: where the terminal is too narrow, the bar goes, then the status's end.

    The first column is the bar. Of the others only the one with a ratio shrinks.
    """

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        table = super().make_tasks_table(tasks)
        if not table.rows:  # as while the console isn't there yet
            return table
        anything = self.console.options.update(width=UNCUT)
        if measure_renderables(self.console, anything, [table]).maximum <= self.console.width:
            return table
        columns = self.columns
        self.columns = columns[1:]
        try:
            return super().make_tasks_table(tasks)
        finally:
            self.columns = columns


_BARS: list[Progress] = []
"""The bar that is shown, if any: a terminal has room for one."""


def _line_of(bar: Progress, total: int, unit: str, done: int) -> Iterator[Report]:
    """Shows a line of a bar for as long as the generator runs; the outermost line stays on the screen."""
    task = bar.add_task("", total=total, completed=done, unit=unit, status="")
    try:
        yield lambda done, status="": bar.update(task, completed=done, status=status)
    finally:
        if len(bar.tasks) > 1:
            bar.remove_task(task)
