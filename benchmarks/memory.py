"""The environment's memory over a long run, beside what is predicted: `python benchmarks/memory.py`. Linux only."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.progress import track

from environments import stepping
from harness import Race, Row, Sized, number, peak_mib, report
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee


@dataclass(frozen=True)
class Soak(Sized):
    """A long run of the vector environment."""

    envs: int = 512
    """Trainees in parallel."""
    decisions: int = 2000
    """In all; every tenth of them is a turn."""


def resident_mib() -> float:
    """Returns the resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(settings: Soak) -> Race:
    """Steps the environment in this process, and reads its size after every tenth."""
    stepping(settings.task, 1, 1, settings.compile, **settings.options)()
    trainee, alone = Trainee(make_task(settings.task, **settings.options)), resident_mib()
    begin = time.perf_counter()
    turn = stepping(settings.task, settings.envs, settings.decisions // 10, settings.compile, **settings.options)
    built = time.perf_counter() - begin
    sizes = []
    for _ in track(range(10), "turns of a tenth"):
        turn()
        sizes.append(resident_mib())
    first, last = sizes[0], sizes[-1]
    rows = tuple(
        Row.of(name, [size], [first], built, peak_mib()) for name, size in (("first tenth", first), ("end", last))
    )
    title = f"{settings.variant}: memory of {settings.envs} environments"
    memory = trainee.memory
    predicted = (memory.total(settings.envs, trainee.chunk_size) - memory.data) / 2**20
    notes = (
        f"It grew by {number(last - first)} MiB.",
        f"A process with one environment: {number(alone)} MiB. Predicted for {settings.envs}, data left out: "
        f"{number(predicted)} MiB more. At the end: {number(last - alone)} MiB more.",
    )
    return Race(title, "MiB", rows, notes)


if __name__ == "__main__":
    settings = tyro.cli(Soak, description=__doc__)
    report(soak(settings), settings.record)
