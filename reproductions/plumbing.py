"""What reproductions share: results as JSON lines that a killed run goes on from, figures, Markdown tables."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrenv.agents.outer.folder import Folder
from lrenv.agents.outer.settings import OuterSettings
from lrenv.agents.outer.training import Training, train
from lrenv.controllers import controller_file
from lrenv.runtime.files import append_line, replace_file, whole_lines
from lrenv.runtime.json_values import to_json
from lrenv.runtime.process import keep_memory, status_of

C = TypeVar("C")
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
        path.open("ab").close()  # where nothing can be written, no work is to begin
        self._results = {self.key(result): result for result in map(json.loads, whole_lines(path))}

    def key(self, result: dict[str, Any]) -> tuple[Any, ...]:
        """What tells this result apart."""
        return tuple(result[name] for name in self._key)

    def __contains__(self, result: dict[str, Any]) -> bool:
        return self.key(result) in self._results

    def add(self, result: dict[str, Any]) -> None:
        """Writes one more; numbers that are not finite become null."""
        line = to_json(result)
        append_line(self._path, line)
        self._results[self.key(result)] = json.loads(line)

    def where(self, **fields: Any) -> list[dict[str, Any]]:
        """The results with these values, in the order in which they were added."""
        return [r for r in self._results.values() if all(r[name] == value for name, value in fields.items())]


def command(main: Callable[[C], Any], settings: type[C], description: str | None) -> int:
    """Runs a reproduction from the command line; gives the exit status."""
    keep_memory()
    return status_of(lambda: main(tyro.cli(settings, description=description)))


def controller_of(kind: Callable[[S], Training[S]], settings: S) -> Path:
    """The file of the best agent of a training, which goes on if it was killed.

    The outcome of a training that has ended is taken as it is, also where its checkpoint no longer lies beside it.

    Raises:
        FileExistsError: an agent lies there without a checkpoint, and is not marked as the outcome of a training.
    """
    folder = Folder(settings.out)
    if folder.checkpoint.exists():
        # One that has ended is resumed, too: it then has nothing left to do.
        return train(kind, replace(settings, resume=True))
    if folder.controller.exists() and controller_file.read_metadata(folder.controller).get("finished") is True:
        return folder.controller
    return train(kind, settings)


def short(values: Iterable[float]) -> list[float]:
    """Numbers to six significant digits: what a file of curves needs."""
    return [float(f"{x:.6g}") for x in values]


def save_figure(figure: Figure, path: Path, dpi: float | Literal["figure"] = "figure") -> None:
    """Draws a figure to a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    replace_file(path, image.getvalue())


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
