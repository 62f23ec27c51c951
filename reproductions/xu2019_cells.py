"""What the lines of `xu2019.py` say: runs of a method on a row, and what a schedule was set to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flow import Lines
from xu2019_tasks import GRIDS, Version, combinations

Array = NDArray[np.float64]

SCHEDULES = {"step": "step decay", "linear": "linear decay", "cosine": "cosine"}
ACTORS = {"mlp": "perceptron", "lstm": "LSTM"}


class Chosen(NamedTuple):
    """The outcome of a grid search."""

    settings: dict[str, float]
    val_loss: float
    tried: list[dict[str, float]]
    """Combinations that there are results of."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs of a method on a row, sorted by seed."""

    data: str
    network: str
    method: str
    source: str
    start: float
    version: Version
    seeds: list[int]
    numbers: dict[str, Array]
    """Name -> (seeds,), of the checkpoint with the lowest validation loss."""
    curves: dict[str, Array]
    """Name -> (seeds, decisions + 1); NaN behind a divergence."""
    chosen: Chosen | None = None
    """Of a schedule, what it was set to."""
    trained: Version | None = None
    """Of a controller, what it was trained on."""

    @property
    def row(self) -> str:
        """The data set and the network."""
        carried = f", from {self.source}" if self.source != self.data else ""
        return f"{self.data} {self.network}{carried}" + (", reduced" if self.version != Version() else "")

    @property
    def title(self) -> str:
        """The method."""
        if self.is_schedule:
            return titled(self.method, self.chosen)
        setting, actor = self.method.split("-")
        cheaper = ", trained on a cheaper version" if self.is_from_cheaper else ""
        return f"PPO ({setting}), {ACTORS[actor]}, from {self.start:g}{cheaper}"

    @property
    def is_schedule(self) -> bool:
        """Whether no controller acts."""
        return self.method in SCHEDULES

    @property
    def is_from_cheaper(self) -> bool:
        """Whether its controller was trained on another version than that of these runs."""
        return self.trained not in (None, self.version)

    @property
    def is_the_papers(self) -> bool:
        """Whether published numbers may stand beside it: nothing is reduced."""
        fewer = self.chosen is not None and len(self.chosen.tried) < len(combinations(GRIDS[self.method]))
        return self.version == Version() and not self.is_from_cheaper and not fewer


def titled(schedule: str, chosen: Chosen | None) -> str:
    """A schedule in tables."""
    return SCHEDULES[schedule] + (f", best of {len(chosen.tried)}" if chosen else "")


def best(lines: Lines, data: str, network: str, schedule: str) -> Chosen | None:
    """The combination with the lowest validation loss on a data set, of those tried so far."""
    found = lines.where(stage="tune", data=data, network=network, method=schedule)
    results = [combination for line in found for combination in line["combinations"]]
    if not results:
        return None
    losses = [np.inf if result["val_loss"] is None else result["val_loss"] for result in results]
    tried = [{name: value for name, value in result.items() if name != "val_loss"} for result in results]
    lowest = int(np.argmin(losses))
    return Chosen(tried[lowest], losses[lowest], tried, sum(line["seconds"] for line in found))


def cells(lines: Lines) -> list[Cell]:
    """All reported runs, in the order in which their first ones were made.

    Raises:
        ValueError: lines of one cell are of different versions, or have a seed twice.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines.where(stage="report"):
        key = tuple(line[name] for name in ("data", "network", "method", "source", "start"))
        groups.setdefault(key, []).append(line)
    found = []
    for (data, network, method, source, start), own in groups.items():
        own.sort(key=lambda line: line["part"])
        seeds = [seed for line in own for seed in line["seeds"]]
        version, *others = {Version(*line["version"]) for line in own}
        if others or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"{lines.path}: runs of {data} {network} {method} do not belong together; begin another --out"
            )
        trainings = lines.where(stage="train", data=source, network=network, method=method)
        names = ("val_loss", "test_loss", "test_accuracy", "diverged")
        found.append(Cell(
            data=data, network=network, method=method, source=source, start=start, version=version, seeds=seeds,
            numbers={name: joined(line[name] for line in own) for name in names},
            curves={name: joined(line["curves"][name] for line in own) for name in ("val_loss", "lr")},
            chosen=best(lines, source, network, method) if method in SCHEDULES else None,
            trained=Version(*trainings[0]["version"]) if trainings else None,
        ))  # fmt: skip
    return found


def joined(parts: Iterable[Any]) -> Array:
    """Numbers of several lines as one array; null becomes NaN."""
    return np.concatenate([np.array(part, np.float64) for part in parts])


def lacking(found: list[Cell], others: Lines | None) -> list[Cell]:
    """Whole runs of schedules among other lines, for rows that have none of their own."""

    def whole(cells: list[Cell]) -> dict[tuple[str, ...], Cell]:
        return {(c.data, c.network, c.source, c.method): c for c in cells if c.version == Version()}

    own = whole(found)
    theirs = {} if others is None else whole(cells(others))
    return [cell for key, cell in theirs.items() if cell.is_schedule and key not in own]
