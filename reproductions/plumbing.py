"""What reproductions share: results as JSON lines that a killed run goes on from, figures, Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.outer_settings import OuterSettings
from agents.outer_training import Training, train
from lrenv.benchmark.evaluation import to_json

S = TypeVar("S", bound=OuterSettings)
COLOURS: tuple[Any, ...] = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]


class Lines:
    """Results in a file, one a JSON line, under the values of some of their fields.

    Args:
        path: the file; it need not exist.
        key: the fields that tell results apart.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self._path, self._key = path, tuple(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        # A run that was killed while it wrote leaves half a line, which the next one must not go on from.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        self._results = {self.key(result): result for result in map(json.loads, whole.splitlines())}

    def key(self, result: dict[str, Any]) -> tuple[Any, ...]:
        """What tells this result apart."""
        return tuple(result[name] for name in self._key)

    def __contains__(self, result: dict[str, Any]) -> bool:
        return self.key(result) in self._results

    def add(self, result: dict[str, Any]) -> None:
        """Writes one more; numbers that are not finite become null."""
        line = to_json(result)
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._results[self.key(result)] = json.loads(line)

    def where(self, **fields: Any) -> list[dict[str, Any]]:
        """The results with these values, in the order in which they were added."""
        return [r for r in self._results.values() if all(r[name] == value for name, value in fields.items())]


def controller_of(kind: Callable[[S], Training[S]], settings: S) -> Path:
    """The file of the best agent of a training, which goes on if it was interrupted.

    An agent that lies in `out` without a checkpoint is taken as it is.
    """
    file, checkpoint = (settings.out / f"{name}.safetensors" for name in ("controller", "checkpoint"))
    if file.exists() and not checkpoint.exists():
        return file
    # A training that was finished is resumed, too: it then has nothing left to do.
    return train(kind, replace(settings, resume=checkpoint.exists()))


def short(values: Iterable[float]) -> list[float]:
    """Numbers to six significant digits: what a file of curves needs."""
    return [float(f"{x:.6g}") for x in values]


def panels(rows: int, columns: int) -> tuple[Figure, np.ndarray[Any, np.dtype[Any]]]:
    """A figure of (rows, columns) axes with a grid."""
    figure = Figure(figsize=(4.2 * columns, 3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    ax: Axes
    for ax in axes.flat:
        ax.grid(alpha=0.2)
    return figure, axes


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
