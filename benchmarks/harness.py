"""Contestants take turns within one run, each in a process of its own while the others sleep.

The allocator's settings, thread pools and JAX belong to a process, so none of them leaks from one contestant to
another; and a machine whose speed drifts does so for all of them, so ratios within a round are worth more than rates.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import re
import resource
import shlex
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.runtime.process import machine
from lrenv.sources import digest

RESULTS = Path(__file__).parent / "results"
PREAMBLE = """# Results

Generated from `benchmarks/results/*.json` by the scripts of this folder, each with `--record`.
The ratios count: machines drift, and the contestants of a table took turns on one.
"""
STEPS_RATE = "trainee-steps/s"

Turn = Callable[[], float]
"""One turn of a contestant; gives its units per second."""
Build = Callable[[], Turn]
"""Prepares a contestant in its own process, first calls and compilation included; must be picklable."""


def known_as(agent: str) -> dict[str, Any]:
    """What tells rows of an agent from those of others: its name, of a file its digest, of `universal` its version."""
    file = Path(agent)
    if file.suffix == ".safetensors":
        return {"agent": f"{file.parent.name}/{file.name} ({digest(file)})"}
    return {"agent": agent} | ({"policy": POLICY} if agent.startswith("universal") else {})


@dataclass(frozen=True)
class Settings:
    """The settings of every benchmark."""

    task: str = "digits-mlp"
    """Trainees' task; a name from `lrenv tasks`."""
    batch_size: int | None = None
    """Examples an inner step; the task's own by default."""
    val_examples: int | None = None
    """Validation examples that a decision measures; the task's own by default."""
    decisions: int = 30
    """Decisions in a turn; few where one takes seconds."""
    turns: int = 5
    """How often each contestant runs."""
    compile: bool = False
    """Compile the environment; in a race against something else, the eager one takes part as well."""
    record: bool = False
    """Also write the results to benchmarks/results and RESULTS.md."""

    @property
    def options(self) -> dict[str, Any]:
        """The settings of the task that are not its own."""
        own = {"batch_size": self.batch_size, "val_examples": self.val_examples}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def label(self) -> str:
        """The task, as titles name it."""
        parts = [self.task, *(f"{name.replace('_', ' ')} {value}" for name, value in self.options.items())]
        return ", ".join(parts)

    @property
    def variant(self) -> str:
        """The task and whether it is compiled, as titles name them."""
        return f"{self.label}{', compiled' * self.compile}"


@dataclass(frozen=True)
class Sized(Settings):
    """The settings of benchmarks of one number of environments."""

    envs: int = 64
    """Trainees in parallel."""
    bf16: bool = False
    """In a race against something else, the environment in bfloat16 takes part as well."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    contestant: str
    median: float
    low: float
    high: float
    ratio: float
    build_seconds: float
    peak_mib: float

    @classmethod
    def of(cls, contestant: str, values: Sequence[float], base: Sequence[float], build: float, peak: float) -> Row:
        """Returns the line of a contestant.

        Args:
            contestant: its name.
            values: one per round.
            base: the baseline's values, of the same rounds.
            build: seconds of building.
            peak: MiB of memory.
        """
        ratio = statistics.median(value / own for value, own in zip(values, base, strict=True))
        return cls(contestant, statistics.median(values), min(values), max(values), ratio, build, peak)


@dataclass(frozen=True)
class Race:
    """A table of results, and sentences about it."""

    title: str
    unit: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


COLUMNS: dict[str, Callable[[Row], str]] = {
    "contestant": lambda row: row.contestant,
    "median": lambda row: number(row.median),
    "range": lambda row: f"{number(row.low)} to {number(row.high)}",
    "ratio": lambda row: f"{row.ratio:.2f}",
    "build s": lambda row: f"{row.build_seconds:.1f}",
    "peak MiB": lambda row: f"{row.peak_mib:,.0f}",
}


def number(value: float) -> str:
    """Formats a number with three digits, or with all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rate(work: Callable[[], object], repeats: int = 1, units: float = 1) -> float:
    """Measures units per second in `repeats` calls of `units` each."""
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return repeats * units / (time.perf_counter() - begin)


def peak_mib() -> float:
    """Returns the largest resident size of this process so far, in MiB."""
    units_a_mib = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_a_mib


def race(title: str, unit: str, contestants: Mapping[str, Build], turns: int, baseline: str) -> Race:
    """Builds every contestant, then lets them take turns: A B C A B C ...

    Args:
        title: names the race, and its file.
        unit: of a turn's result.
        contestants: name -> builder.
        turns: how many each takes.
        baseline: the contestant that ratios are relative to.

    Raises:
        RuntimeError: a contestant failed; the message holds its traceback.
    """
    with ExitStack() as stack, Console().status("") as status:
        processes: list[_Process] = []
        for name, build in contestants.items():
            status.update(f"building {name}")
            processes.append(stack.enter_context(_Process(name, build)))
            processes[-1].await_build()
        for turn in range(turns):
            for process in processes:
                status.update(f"turn {turn + 1} of {turns}: {process.name}")
                process.take_turn()
    base = next(process.rates for process in processes if process.name == baseline)
    rows = (Row.of(p.name, p.rates, base, p.build_seconds, p.peak_mib) for p in processes)
    return Race(title, unit, tuple(rows))


class _Process:
    """A contestant's process. It starts and ends with a `with` block, and sleeps until it is asked for a turn."""

    def __init__(self, name: str, build: Build) -> None:
        self.name = name
        self.rates: list[float] = []
        self.build_seconds = self.peak_mib = 0.0
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        # No daemon, which could not have child processes: some contestants work with them.
        self._process = context.Process(target=_serve, args=(build, self._theirs))

    def __enter__(self) -> _Process:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._pipe.send(False)
            self._process.join(timeout=10)  # time to end children of its own
        self._process.terminate()
        self._process.join()

    def await_build(self) -> None:
        self.build_seconds, self.peak_mib = self._answer()

    def take_turn(self) -> None:
        self._pipe.send(True)
        value, self.peak_mib = self._answer()
        self.rates.append(value)

    def _answer(self) -> tuple[float, float]:
        try:
            answer: tuple[float, float] | str = self._pipe.recv()
        except EOFError:
            self._process.join()
            answer = f"its process ended with exit code {self._process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name} failed: {answer}")
        return answer


def _serve(build: Build, pipe: Connection[Any, Any]) -> None:
    """A contestant's process: builds, then takes a turn for each True that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its children
    try:
        begin = time.perf_counter()
        turn = build()
        pipe.send((time.perf_counter() - begin, peak_mib()))
        while pipe.recv():
            pipe.send((turn(), peak_mib()))
    except Exception:
        pipe.send(traceback.format_exc())


def report(race: Race, record_it: bool) -> None:
    """Prints a race's table and notes, and records them if asked."""
    table = Table(*COLUMNS, title=f"{race.title} ({race.unit})")
    for row in race.rows:
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    console = Console()
    console.print(table)
    console.print(machine("jax"), *race.notes, sep="\n", highlight=False, soft_wrap=True)
    if record_it:
        record(race, shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def record(race: Race, command: str) -> None:
    """Writes a race to `results/<slug of its title>.json`, and RESULTS.md anew from all files there."""
    slug = re.sub(r"[^a-z0-9]+", "-", race.title.lower()).strip("-")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    entry = asdict(race) | {"command": command, "machine": machine("jax"), "date": date}
    (RESULTS / f"{slug}.json").write_text(json.dumps(entry, indent=2) + "\n")
    entries = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")))
    (RESULTS.parent / "RESULTS.md").write_text("\n".join([PREAMBLE, *map(_markdown, entries)]))


def _markdown(entry: Mapping[str, Any]) -> str:
    cells = [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    cells += [[cell(Row(**row)) for cell in COLUMNS.values()] for row in entry["rows"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    origin = f"`{entry['command']}`  \n{entry['machine']}; {entry['date']}"
    return "\n\n".join([f"## {entry['title']} ({entry['unit']})", origin, table, *entry["notes"]]) + "\n"
