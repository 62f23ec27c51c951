"""What all reproductions do the same way: scales, runs, compute, report.

A `Reproduction` says which runs there are, how some of them are computed together, and what is reported of them. The
rest is here: the command line, going on after an interruption, deadlines, progress, and a report that is drawn anew
while results come in.

Each run is a line of `runs.jsonl` under the values that tell it apart. Before the first line that a command adds stands
a line that says which command it was, of which commit, when, and on what machine.
"""

from __future__ import annotations

import inspect
import io
import itertools
import json
import math
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

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
from lrenv.runtime.files import append_line, json_lines, locked_folder, replace_file
from lrenv.runtime.json_values import to_json
from lrenv.runtime.process import command_line, commit, keep_memory, machine, status_of
from lrenv.runtime.progress import progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HERE = Path(__file__).parent
REDRAW_SECONDS = 60.0
"""The least time between two reports while runs go on."""
COLOURS: tuple[Any, ...] = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
COLUMNS = ("paper", "claim", "published", "ours", "holds")

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run."""

    scale: str = "cpu"
    """How much."""
    out: Path = Path("runs")
    """Where results go."""
    seconds: float = math.inf
    """Begin no run, and no iteration of a training, after so many seconds; the same command then goes on. 0 draws the
    report of the results that are there."""


class Claim(NamedTuple):
    """What a paper says, beside what was found."""

    paper: str
    """The place in the paper; "not in it" of a comparison that the paper does not have."""
    claim: str
    published: str
    ours: str
    holds: str
    """yes, no, level where chance explains the difference, "not run", ? where there is nothing to test, or empty where
    nothing is asked."""


class Report(NamedTuple):
    """What is told of the results that are there."""

    claims: Sequence[Claim]
    text: str
    """Markdown that follows the table of claims."""
    figures: Mapping[str, Callable[[], Figure]]
    """File name -> what draws it."""


Name = TypeVar("Name", bound="DataclassInstance")
"""A frozen dataclass whose fields together tell a run apart."""
Chosen = TypeVar("Chosen", bound=Settings)
Outer = TypeVar("Outer", bound=OuterSettings)


LINES = "runs.jsonl"
"""The file of a folder of results that has them line by line."""


class Lines:
    """Results in a file, one per line as JSON, under the values of some of their fields.

    Args:
        path: the file; it need not exist.
        key: the fields that tell results apart.

    Attributes:
        origins: what added results to the file, in order: command, commit, date, machine.
        complete: whether there is an origin for every result.

    Raises:
        OSError: the file can't be written.
        ValueError: a line that is not the last one is damaged, or of another program.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self._key = path, tuple(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # where nothing can be written, no work is to begin
        entries = json_lines(path)
        self.origins: list[dict[str, str]] = [entry["origin"] for entry in entries if "origin" in entry]
        self.complete = not entries or "origin" in entries[0]
        results = [entry for entry in entries if "origin" not in entry]
        if any(not set(self._key) <= entry.keys() for entry in results):
            raise ValueError(f"{path} holds results of another program: choose another --out")
        self._results = {self.key(entry): entry for entry in results}

    def key(self, result: Result) -> tuple[Any, ...]:
        """What tells this result apart: the values as JSON holds them, before and after they are written alike."""
        return tuple(_held([result[name] for name in self._key]))

    def __contains__(self, result: Result) -> bool:
        return self.key(result) in self._results

    def begin(self, origin: dict[str, str]) -> None:
        """Writes what adds the results that follow."""
        append_line(self.path, to_json({"origin": origin}))
        self.origins.append(origin)

    def add(self, result: Result) -> None:
        """Writes one more; numbers that are not finite become null."""
        append_line(self.path, to_json(result))
        self._results[self.key(result)] = _held(result)

    def where(self, **values: Any) -> list[Result]:
        """The results with these values, in the order in which they were added."""
        wanted = _held(values)
        return [r for r in self._results.values() if all(r[name] == value for name, value in wanted.items())]


def _held(value: Any) -> Any:
    """What is read where this was written as JSON."""
    return json.loads(to_json(value))


class Reproduction(ABC, Generic[Chosen, Name]):
    """A paper's experiments.

    Args:
        settings: what to run.

    Attributes:
        paper: authors and year.
        title: what it is about.
        name: the dataclass that tells runs apart.
        scales: scale -> what it has.
        lines: the results that are there.
        deadline: of `time.monotonic`.
        status: says what is going on, in a few words.

    Raises:
        OSError: the folder of results can't be written.
        ValueError: it holds results of another scale.
    """

    paper: ClassVar[str]
    title: ClassVar[str]
    name: type[Name]
    scales: ClassVar[dict[str, Any]]

    def __init__(self, settings: Chosen) -> None:
        self.settings = settings
        self.scale = self.scales[settings.scale]
        self.out = settings.out
        self.lines = Lines(self.out / LINES, [field.name for field in fields(self.name)])
        self.deadline = time.monotonic() + settings.seconds
        self.status: Callable[[str], None] = lambda text: None
        others = {line["scale"] for line in self.lines.where() if "scale" in line} - {settings.scale}
        if others:
            raise ValueError(f"{self.out} holds results of --scale {', '.join(others)}; choose another --out")

    @abstractmethod
    def runs(self) -> Iterable[Sequence[Name]]:
        """The runs asked for, in the order in which they are made, in batches that are made together."""

    @abstractmethod
    def compute(self, batch: Sequence[Name]) -> Sequence[Result] | None:
        """A result for each run of a batch, or None if what it needs is not there yet.

        A batch is always made as a whole, also where some of its runs are there: a smaller one would differ by
        roundings.
        """

    @abstractmethod
    def report(self) -> Report:
        """What there is to tell of the results so far; there is one at least."""

    def run(self) -> None:
        """Makes the runs that are missing and draws what there is.

        Raises:
            OSError: `out` can't be written, or another process writes it.
        """
        begin = drawn = time.monotonic()
        batches = list(self.runs())
        wanted = dict.fromkeys(itertools.chain(*batches))
        done = sum(self.made(run) for run in wanted)
        recorded = False
        with locked_folder(self.out), progress(len(wanted), "runs", done) as tell:
            for batch in batches:
                missing = [not self.made(run) for run in batch]
                if not any(missing):
                    continue
                if time.monotonic() >= self.deadline:
                    break
                self.status = lambda text, done=done: tell(done, text)  # type: ignore[misc]
                self.status(told(batch[0]))
                try:
                    results = self.compute(batch)
                except KeyboardInterrupt:
                    if time.monotonic() < self.deadline:
                        raise
                    break  # a training that the deadline has stopped
                if results is None:
                    continue
                if not recorded:
                    self.lines.begin(origin())
                    recorded = True
                for run, new, result in zip(batch, missing, results, strict=True):
                    if new:
                        self.lines.add({"scale": self.settings.scale} | asdict(run) | result)
                done += sum(missing)
                tell(done)
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    self.draw()
                    drawn = time.monotonic()
        if done < len(wanted):
            print(f"{done} of {len(wanted)} runs are there after {time.monotonic() - begin:.0f} s", flush=True)
        self.draw()

    def made(self, run: Name) -> bool:
        """Whether there is a result of this run."""
        return asdict(run) in self.lines

    def draw(self) -> None:
        """Writes results.md and the figures, if there are results."""
        if self.lines.where():
            found = self.report()
            replace_file(self.out / "results.md", self.page(found))
            for name, drawn in found.figures.items():
                image = io.BytesIO()
                drawn().savefig(image, format="png")
                replace_file(self.out / name, image.getvalue())

    def page(self, found: Report) -> str:
        """results.md: what made the results, the claims, and the rest."""
        rows = [tuple(own[name] for name in ("commit", "date", "machine")) for own in self.lines.origins]
        if not self.lines.complete:
            rows.insert(0, (*committed(self.lines.path), "not recorded"))
        origin = markdown(("commit", "date", "machine"), dict.fromkeys(rows))
        if not self.lines.complete:
            origin += "\nWhere no machine is recorded, commit and date are those of `runs.jsonl`, by git.\n"
        command = f"`python reproductions/{Path(inspect.getfile(type(self))).name} {self.arguments()}`"
        return (
            f"# {self.title} ({self.paper})\n\nMade by {command}, `runs.jsonl` holds the runs.\n\n{origin}\n"
            f"## Claims\n\n{markdown(COLUMNS, found.claims)}{found.text}"
        )

    def arguments(self) -> str:
        """What the page is drawn with."""
        return f"--scale {self.settings.scale}"

    def controller_of(self, kind: Callable[[Outer], Training[Outer]], settings: Outer) -> Path:
        """The file of the best agent of a training, which goes on if it was interrupted.

        The outcome of a training that has ended is taken as it is, also where its checkpoint no longer lies beside it.

        Raises:
            FileExistsError: an agent lies there without a checkpoint, and is not marked as the outcome of a training.
            KeyboardInterrupt: time was up before the end of the training.
        """
        folder = Folder(settings.out)
        if folder.checkpoint.exists():
            # One that has ended is resumed, too: it then has nothing left to do.
            return train(kind, replace(settings, resume=True), self.deadline)
        if folder.controller.exists() and controller_file.read_metadata(folder.controller).get("finished") is True:
            return folder.controller
        return train(kind, settings, self.deadline)


def told(run: Any) -> str:
    """A run in a few words: the values that tell it apart, but for those that are empty or 0."""
    return " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in asdict(run).values() if x)


def command(kind: type[Reproduction[Chosen, Any]], settings: type[Chosen], description: str | None) -> int:
    """Runs a reproduction from the command line; gives the exit status."""
    keep_memory()
    return status_of(lambda: kind(tyro.cli(settings, description=description)).run())


def origin() -> dict[str, str]:
    """What adds results now: command, commit, date and machine."""
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    return {"command": command_line(), "commit": commit() or "unknown", "date": date, "machine": machine()}


def committed(path: Path) -> tuple[str, str]:
    """The commit and the date of the last change of a file, by git."""
    last, _, date = _git("log", "-1", "--format=%h %cs", "--", str(path.resolve())).partition(" ")
    return last or "unknown", date or "unknown"


def _git(*arguments: str) -> str:
    """What git says about this checkout; nothing where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def short(values: Iterable[float]) -> list[float]:
    """Numbers to six significant digits: what a file of curves needs."""
    return [float(f"{x:.6g}") for x in values]


def panels(rows: int, columns: int, dpi: int = 110) -> tuple[Figure, np.ndarray[Any, np.dtype[Any]]]:
    """A figure of (rows, columns) axes with a grid."""
    figure = Figure(figsize=(4.2 * columns, 3 * rows), dpi=dpi, layout="constrained")
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


def cut(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Parts of at most `size` things, in order."""
    return (things[first : first + size] for first in range(0, len(things), size))
