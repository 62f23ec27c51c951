"""Agents in three trainings of one's own that nothing was trained on: `python benchmarks/home_unseen.py`.

Each training (`home_unseen_loops.py`) is a loop as a user writes it, with `lrenv.LRController` where a scheduler would
be. It has a usual rate of its own, which the optimizer is made with; in agents' specs `{lr}` stands for it. Beside the
agents in question are the rates that such loops usually have: constant, linear decay, and GreedyLR with its authors'
settings and with those for short runs. Nothing is tuned, and nothing may be chosen by these results.

The final test loss is that of the last weights, the best one that of the weights with the lowest validation loss of 10
measurements. Each run appends a line to results/home_unseen.jsonl, and a command that is repeated goes on after the
last one; the table of the agents that were given is in results/home_unseen.md.

Of one core of an AMD EPYC a run takes 35 s (source-lstm), 30 s (photo-denoising) and 30 s (name-convolutions), those of
seven agents and five seeds together an hour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lrenv
from harness import RESULTS, known_as
from home_unseen_loops import LOOPS, Loop, Splits
from lrenv.benchmark.statistics import paired_interval
from lrenv.runtime.files import append_line, json_lines, replace_file
from lrenv.runtime.json_values import json_value, to_json
from lrenv.runtime.process import command_line, commit, machine

MEASURED = 10
"""Measurements of the whole validation split per run, the last one at the end."""
BASELINE = "linear:peak={lr}"
AGENTS = ("constant:peak={lr}", BASELINE, "greedy:peak={lr}", "greedy-bounded:peak={lr}")
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is run."""

    agents: tuple[str, ...] = AGENTS
    """Specs or controller files."""
    loops: tuple[str, ...] = tuple(LOOPS)
    """Names of trainings."""
    seeds: int = 5
    """Runs of each agent in each training."""
    steps: int | None = None
    """Steps of the optimizer per run, for a trial; each training's own by default."""
    out: Path = RESULTS
    """The folder of the results."""


def batches(loop: Loop, data: Splits, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As many as there are steps, over and over the shuffled examples."""
    loader = DataLoader(data.train, loop.batch_size, shuffle=True, drop_last=True)
    taken = 0
    while True:
        for batch in loader:
            if taken == steps:
                return
            taken += 1
            yield batch


def measured(loop: Loop, model: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """The loss on whole splits."""
    model.eval()
    with torch.no_grad():
        parts = [part.split(256) for part in examples]
        losses = [float(loop.loss(model(x), y)) * len(y) for x, y in zip(*parts, strict=True)]
    model.train()
    return sum(losses) / len(examples[1])


def train(loop: Loop, agent: str, seed: int, steps: int) -> Row:
    """A run."""
    data = loop.data()
    val_x, val_y = (part[: loop.shown] for part in data.val)
    torch.manual_seed(seed)
    model = loop.model()
    optimizer = loop.optimizer(model.parameters(), loop.lr)
    controller = lrenv.LRController(
        optimizer, agent, horizon=steps, evaluate=lambda: loop.loss(model(val_x), val_y), module=model,
        batch_size=loop.batch_size,
    )  # fmt: skip
    best, best_test, seconds, losses, rates = math.inf, math.inf, 0.0, [], []
    began = time.process_time()
    for step, (x, y) in enumerate(batches(loop, data, steps), 1):
        loss = loop.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if loop.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        optimizer.step()
        rates.append(controller.get_last_lr())
        controller.step(loss)
        if step * MEASURED // steps > (step - 1) * MEASURED // steps:
            seconds += time.process_time() - began
            losses.append(measured(loop, model, data.val))
            if losses[-1] < best:
                best, best_test = losses[-1], measured(loop, model, data.test)
            began = time.process_time()
    shown = [[float(f"{rate:.4g}") for rate in each] for each in rates[:: max(1, steps // MEASURED)]]
    return {
        "final": measured(loop, model, data.test),
        "best": best_test,
        "val": losses,
        "rates": shown,  # of the parameter groups, before some of the steps
        "every": controller.every,
        "why": sorted({why for decision in controller.history for why in decision.why}),
        "weights": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 2),
    }


def about(agent: str, name: str, seed: int, steps: int) -> Row:
    """What tells a run from others."""
    data = LOOPS[name].data().digest
    return {"loop": name, "seed": seed, "steps": steps, "data": data} | known_as(agent)


def interval(values: NDArray[Any], baseline: NDArray[Any]) -> str:
    """The mean difference seed by seed, and half its 95 % interval."""
    difference, half = paired_interval(values, baseline)
    return f"{difference:+.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")


def line(agent: str, rows: list[Row], baseline: list[Row]) -> str:
    """A line of the table."""
    cells = [f"`{agent}`"]
    for key in ("final", "best"):
        values, others = (np.array([np.nan if r[key] is None else r[key] for r in each]) for each in (rows, baseline))
        broken = int(np.isnan(values).sum())
        cells.append(f"{broken} of {len(values)} diverged" if broken else f"{values.mean():.4f}")
        pairs = not broken and len(values) == len(others) and rows is not baseline
        cells.append(interval(values, others) if pairs and np.isfinite(others).all() else "")
    cells.append(f"{np.mean([row['seconds'] for row in rows]):.1f}")
    return "| " + " | ".join(cells) + " |"


def table(name: str, runs: dict[str, list[Row]]) -> list[str]:
    """What came of a training's runs, spec of an agent -> rows by seed."""
    loop, rows = LOOPS[name], next(iter(runs.values()))
    title = f"{rows[0]['weights']:,} weights, {rows[0]['steps']} steps, usual rate {loop.lr:g} ({loop.usual})"
    heads = "| agent | final test loss | minus linear | best test loss | minus linear | s |"
    lines = ["", f"## {name}: {title}", "", heads, "|---|---:|---:|---:|---:|---:|"]
    return lines + [line(agent, held, runs.get(BASELINE, [])) for agent, held in runs.items()]


def main(settings: Settings) -> None:
    """Runs what is missing, and writes the table."""
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "home_unseen.jsonl"
    found: dict[str, Row] = {}
    for row in json_lines(path):
        keys = ("loop", "seed", "steps", "data", "agent", "policy")
        found[to_json({key: row[key] for key in keys if key in row})] = row
    shared = {"machine": machine(), "commit": commit() or "unknown"}
    lines = [
        "# Agents in trainings that nothing was trained on",
        "",
        f"`python benchmarks/{command_line()}`, {settings.seeds} seeds; each line of `home_unseen.jsonl` tells "
        "the commit and the machine that made it.",
        "",
        "Mean test loss at the last weights, and at those with the lowest validation loss of 10 measurements; "
        "differences from linear decay seed by seed, ± half the 95 % interval of Student's t; seconds of one core per "
        "run. `{lr}` is the loop's usual rate. Agents that look at a loss are shown that of a small fixed "
        "part of the validation examples.",
    ]
    for name in settings.loops:
        loop = LOOPS[name]
        runs: dict[str, list[Row]] = {}
        steps = loop.steps if settings.steps is None else settings.steps
        for seed in range(settings.seeds):
            for agent in settings.agents:
                key = about(agent, name, seed, steps)
                if (kept := to_json(key)) not in found:
                    run = train(loop, agent.replace("{lr}", repr(loop.lr)), seed, steps)
                    found[kept] = json_value(key | run | shared)
                    append_line(path, to_json(found[kept]))
                    Console(width=160).print(f"{name}, {key['agent']}, seed {seed}: {run['final']:.4f}")
                runs.setdefault(key["agent"], []).append(found[kept])
        lines += table(name, runs)
    text = "\n".join(lines) + "\n"
    replace_file(settings.out / "home_unseen.md", text.encode())
    Console(width=160).print(text)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
