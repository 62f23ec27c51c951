"""The parts of a decision by their time: `python benchmarks/breakdown.py`; `--trace` also writes a trace for Perfetto.

Parts are timed within whole steps, each without the others that it calls, but for measuring alone: compiled, it can't
be told apart from the signals and the best checkpoints. Ratios are shares of the whole step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from environments import parts, stepped
from harness import Race, Row, Sized, number, peak_mib, rate, report
from lrenv.envs import vector_env
from lrenv.runtime.process import keep_memory

SIDE = 2048
"""Of the matrices whose product measures what the machine can do."""
TRAINING, MEASURING, ALONE = "inner steps, draws included", "measuring, signals, checkpoints", "measuring alone"
EAGER, REST = "measuring that is not compiled", "rest: actions, NumPy, Gymnasium"


@dataclass(frozen=True)
class Breakdown(Sized):
    """The settings. Turns should be whole episodes, or resets have a wrong share."""

    trace: Path | None = None
    """File for a trace of three decisions by torch.profiler."""


class Stopwatch:
    """A clock that adds up the time of methods, each without the others that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Counts a method's time as that of a part, from now on."""
        setattr(owner, method, self.timed(getattr(owner, method), part))

    def timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Returns the same call, whose time counts as that of a part."""

        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            self._inner.append(0.0)
            result = call(*args)
            taken = time.perf_counter() - begin
            self.seconds[part] += taken - self._inner.pop()
            self._inner[-1] += taken
            return result

        return timed

    def read(self, scale: float) -> dict[str, float]:
        """Returns part -> seconds times a scale, and sets them to 0."""
        read = {part: seconds * scale for part, seconds in self.seconds.items()}
        self.seconds.clear()
        return read


def operations(work: Callable[[], object]) -> int:
    """Counts the floating-point operations of a call in matrix products and convolutions, which are nearly all."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def machine_rate() -> float:
    """Measures the floating-point operations per second of a float32 matrix product, the best of ten."""
    a, b = torch.rand(2, SIDE, SIDE)
    return max(rate(lambda: torch.mm(a, b), units=2 * SIDE**3) for _ in range(10))


def measure(settings: Breakdown) -> Race:
    """Times the parts in turns, in this process."""
    keep_memory()
    begin = time.perf_counter()
    step, env = stepped(settings.task, settings.envs, settings.compile, settings.options)
    calls = parts(step, env, settings.compile)
    built = time.perf_counter() - begin
    watch = Stopwatch()
    step, measuring = watch.timed(step, REST), watch.timed(calls["measuring"], ALONE)
    for owner, method, part in (
        (env.episode.trainee, "inner_loop", TRAINING), (env.episode, "_measure", MEASURING),
        (env.episode, "reset", "new episodes"), (env.episode.trainee, "evaluate", EAGER),
        (vector_env, "to_host", "time steps, to the host"),
    ):  # fmt: skip
        watch.watch(owner, method, part)
    turns = []
    for _ in range(settings.turns):
        for _ in range(settings.decisions):
            step()
            measuring()
        turns.append(watch.read(1e3 / settings.decisions))
    names = dict.fromkeys(name for turn in turns for name in turn)
    times = {name: [turn.get(name, 0.0) for turn in turns] for name in names}
    whole = [sum(turn.values()) - turn[ALONE] for turn in turns]
    rows = tuple(
        Row.of(name, own, whole, built, peak_mib())
        for name, own in sorted({"whole step": whole, **times}.items(), key=lambda item: -max(item[1]))
    )
    ratios = {row.contestant: row.ratio for row in rows}
    possible = machine_rate()
    inside = (TRAINING, EAGER, ALONE) if settings.compile else (TRAINING, EAGER)
    notes = [
        f"Outside of training and measuring: {1 - sum(ratios.get(part, 0) for part in inside):.1%}.",
        f"A matrix product of side {SIDE} runs at {number(possible / 1e9)} GFLOP/s.",
    ]
    # Counted on one trainee: the counter overcounts the gradients of grouped convolutions.
    alone = parts(*stepped(settings.task, 1, False, settings.options), False)
    medians = {row.contestant: row.median for row in rows}
    for name, part in (("training", TRAINING), ("measuring", ALONE)):
        flops = settings.envs * operations(alone[name])
        share = flops / (medians[part] / 1e3) / possible
        notes.append(f"{name.capitalize()}: {number(flops / 1e9)} GFLOP per decision, at {share:.1%} of that rate.")
    if settings.trace:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(3):
                step()
        profiler.export_chrome_trace(str(settings.trace))
    title = f"{settings.variant}: a decision of {settings.envs} environments"
    return Race(title, "ms per decision", rows, tuple(notes))


if __name__ == "__main__":
    settings = tyro.cli(Breakdown, description=__doc__)
    report(measure(settings), settings.record)
