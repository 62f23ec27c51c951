"""Where a decision's time goes: `python benchmarks/breakdown.py`; `--trace` also writes a trace for Perfetto.

Parts that cannot be told apart within a compiled decision are called alone. Ratios are shares of the whole step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from environments import parts
from harness import Race, Row, Sized, number, peak_mib, rate, report
from lrenv.process import keep_memory

SIDE = 2048
"""Of the matrices whose product measures what the machine can do."""


@dataclass(frozen=True)
class Breakdown(Sized):
    """Where a decision's time goes."""

    trace: Path | None = None
    """File for a trace of three decisions by torch.profiler."""


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Of one call."""
    return 1e3 / rate(work, repeats)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of a call: those of matrix products and convolutions, which are nearly all."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def machine_rate() -> float:
    """Floating-point operations per second of a float32 matrix product, the best of ten."""
    a, b = torch.rand(2, SIDE, SIDE)
    return max(rate(lambda: torch.mm(a, b), units=2 * SIDE**3) for _ in range(10))


def measure(settings: Breakdown) -> Race:
    """Times the parts in turns, in this process."""
    keep_memory()
    begin = time.perf_counter()
    calls = parts(settings.task, settings.envs, settings.compile, **settings.options)
    built = time.perf_counter() - begin
    rounds = [
        {name: milliseconds(call, settings.decisions) for name, call in calls.items()} for _ in range(settings.turns)
    ]
    whole, draws, training, measuring = (
        [turn[name] for turn in rounds] for name in ("step", "draws", "training", "measuring")
    )
    steps = [t - d for t, d in zip(training, draws, strict=True)]
    rest = [w - t - m for w, t, m in zip(whole, training, measuring, strict=True)]
    times = {
        "whole step": whole, "batch draws": draws, "inner steps": steps, "measuring": measuring,
        "rest: actions, signals, packing, restarts": rest,
    }  # fmt: skip
    rows = tuple(Row.of(name, values, whole, built, peak_mib()) for name, values in times.items())

    # Counted on one trainee: the counter overcounts the gradients of grouped convolutions.
    alone = parts(settings.task, 1, **settings.options)
    possible = machine_rate()
    notes = [f"A matrix product of side {SIDE} runs at {number(possible / 1e9)} GFLOP/s."]
    for name, spent in (("training", steps), ("measuring", measuring)):
        flops = settings.envs * operations(alone[name])
        share = flops / (statistics.median(spent) / 1e3) / possible
        notes.append(f"{name.capitalize()}: {number(flops / 1e9)} GFLOP a decision, at {share:.1%} of that rate.")
    if settings.trace:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(3):
                calls["step"]()
        profiler.export_chrome_trace(str(settings.trace))
    title = f"{settings.variant}: a decision of {settings.envs} environments"
    return Race(title, "ms per decision", rows, tuple(notes))


if __name__ == "__main__":
    settings = tyro.cli(Breakdown, description=__doc__)
    report(measure(settings), settings.record)
