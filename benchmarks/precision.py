"""The effect of bfloat16 on results: `python benchmarks/precision.py --task mnist1d-mlp`.

The same trainees, with the same initial weights and batches, are trained in both precisions at constant rates. The
table has test losses of best checkpoints, one per seed and rate, and the ratio of the two.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.progress import track

from harness import Race, Row, Settings, number, peak_mib, report
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.runtime.process import keep_memory
from lrenv.training.objective import PRECISIONS
from lrenv.training.tasks import make_task


@dataclass(frozen=True)
class Precision(Settings):
    """Trainings in both precisions."""

    seeds: int = 8
    """Of initial weights and batches."""
    rates: tuple[float, ...] = (1e-2, 1e-3)
    """Learning rates."""
    budget: int | None = None
    """Inner steps; the task's own by default."""


def test_losses(settings: Precision, precision: str) -> NDArray[np.float64]:
    """Returns test losses (seeds times rates,) of whole trainings."""
    budget = {} if settings.budget is None else {"budget": settings.budget}
    task = make_task(settings.task, **settings.options, **budget)
    seeds, rates = zip(*itertools.product(range(settings.seeds), settings.rates), strict=True)
    env = LearningRateVectorEnv(
        len(seeds), task, control="set-raw", observe="clock", precision=precision, compile=settings.compile,
        autoreset_mode="Disabled",
    )  # fmt: skip
    env.reset(seed=seeds)
    for _ in track(range(env.episode.decisions), precision):
        info = env.step(np.array(rates, np.float32)[:, None])[-1]
    return np.asarray(info["test_loss"], np.float64)


def measure(settings: Precision) -> Race:
    """Trains in each precision, one after the other."""
    keep_memory()
    rows: list[Row] = []
    losses: dict[str, NDArray[np.float64]] = {}
    for precision in PRECISIONS:
        begin = time.perf_counter()
        losses[precision] = test_losses(settings, precision)
        spent = time.perf_counter() - begin
        rows.append(Row.of(precision, list(losses[precision]), list(losses["full"]), spent, peak_mib()))
    gap = losses["bf16"] - losses["full"]
    error = gap.std(ddof=1) / len(gap) ** 0.5
    note = f"bf16 ends {number(gap.mean())} above full, with a standard error of {number(error)} over {len(gap)} pairs."
    return Race(f"{settings.variant}: what bfloat16 does to results", "test loss", tuple(rows), (note,))


if __name__ == "__main__":
    settings = tyro.cli(Precision, description=__doc__)
    report(measure(settings), settings.record)
