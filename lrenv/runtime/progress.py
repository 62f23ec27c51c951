"""Progress of long work: a bar with a line of status in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0
"""Where there is no terminal, a line is printed this often at most."""


class Report(Protocol):
    """Says how far the work has come."""

    def __call__(self, done: int, status: str = "") -> None:
        """`done` of the total, and how it goes."""


@contextmanager
def progress(total: int, unit: str, done: int = 0) -> Iterator[Report]:
    """Shows progress on standard error until the block is left.

    Args:
        total: how much there is to do.
        unit: of what.
        done: how much was done before.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            BarColumn(20), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("<"),
            TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, completed=done, status="")
            yield lambda done, status="": bar.update(task, completed=done, status=status)
        return
    begin = time.monotonic()
    last = begin - QUIET_SECONDS

    def line(done: int, status: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= QUIET_SECONDS:
            last = now
            console.print(f"{done}/{total} {unit}, {now - begin:.0f} s  {status}", soft_wrap=True, highlight=False)

    yield line
