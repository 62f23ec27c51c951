"""Tuning-free optimizers beside tuned linear decay: `python benchmarks/tuning_free.py`.

Each with its authors' recommended options and no tuning; linear decay with the best peak and warm-up of its grid, on
seeds of their own. An optimizer whose package isn't installed (`pip install 'lrenv[baselines]'`) is left out, and the
table says so. Writes results/tuning_free.md, and results/tuning_free.jsonl with a line per agent and task.
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from harness import RESULTS
from lrenv.agents import make_agent
from lrenv.benchmark import Comparison, compare
from lrenv.benchmark.rows import Row
from lrenv.benchmark.statistics import paired_interval
from lrenv.runtime.files import replace_file
from lrenv.runtime.json_values import json_value, to_json
from lrenv.runtime.process import command_line, commit, machine

BASELINE = "linear"
AGENTS = (
    BASELINE, "schedule-free", "schedule-free:base=radam", "prodigy", "prodigy:schedule=constant", "d-adaptation",
    "d-adaptation:schedule=constant", "dog", "dog:layerwise=True", "mechanic", "mechanic:schedule=constant", "momo",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is run."""

    tasks: tuple[str, ...] = ("digits-mlp", "mnist1d-mlp", "text-mlp")
    """Names or specs of tasks."""
    agents: tuple[str, ...] = AGENTS
    """Specs of agents."""
    seeds: int = 3
    """Runs of each agent on each task."""
    out: Path = RESULTS
    """The folder of the results."""


def line(row: Row, comparison: Comparison, shared: dict[str, Any]) -> dict[str, Any]:
    """An agent on a task, as JSON values."""
    about = {"task": comparison.task.name, "budget": comparison.task.budget, "agent": row.spec}
    if row.result is None:
        return about | {"failure": row.failure} | shared
    numbers = {name: [float(f"{x:.6g}") for x in values] for name, values in row.result.numbers().items()}
    return (
        about
        | {"settings": row.settings, "runs_spent": row.runs.tuning, "seeds": row.result.seeds.tolist()}
        | {"view": row.result.view, "diverged": row.result.diverged.tolist(), "seconds": round(row.result.seconds, 1)}
        | numbers
        | shared
    )


def cell(row: Row, comparison: Comparison) -> str:
    """Mean final test loss, and its paired difference from tuned linear decay with its 95 % interval."""
    if row.result is None:
        return "left out"
    diverged = int(row.result.diverged.sum())
    if diverged:
        return f"{diverged} of {len(row.result.seeds)} diverged"
    losses = row.result.final_test_loss
    text = f"{np.mean(losses):.3f}"
    reference = next(other for other in comparison.rows if other.spec == BASELINE)
    if row is reference or reference.result is None or reference.result.diverged.any():
        return text
    mean, half = paired_interval(losses, reference.result.final_test_loss)
    return f"{text} ({mean:+.3f} ± {half:.3f})" if np.isfinite(half) else f"{text} ({mean:+.3f})"


def knows(spec: str) -> str:
    """Whether an agent knows the budget."""
    agent: Any = None if spec == BASELINE else make_agent(spec)
    return "yes" if agent is None or agent.view.horizon else "no"


def main(settings: Settings) -> None:
    """Runs everything and writes both files."""
    torch.set_num_threads(1)
    compared = [compare(task, settings.agents, settings.seeds, device="cpu") for task in settings.tasks]
    shared = {
        "command": f"python benchmarks/{command_line()}", "commit": commit() or "unknown", "machine": machine(),
        "versions": {name: version(name) for name in ("lrenv", "torch", "numpy")},
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    lines = [json_value(line(row, each, shared)) for each in compared for row in each.rows]
    table = [
        "# Tuning-free optimizers beside tuned linear decay",
        "",
        f"`{shared['command']}`, {settings.seeds} seeds, commit {shared['commit']}, {shared['machine']}.",
        "",
        "Final test loss (its difference from tuned linear decay, seed by seed, ± half the 95 % interval of Student's "
        "t). Every optimizer but linear decay's runs once per seed, with its authors' recommended options, in a loop "
        "that is not stacked, on the same initial weights and batches.",
        "",
        f"| agent | knows the budget | package | {' | '.join(settings.tasks)} |",
        f"|---|---|---|{'---:|' * len(settings.tasks)}",
    ]
    for i, spec in enumerate(settings.agents):
        rows = [each.rows[i] for each in compared]
        result = next((row.result for row in rows if row.result is not None), None)
        package = "-" if result is None else result.view.get("optimizer", "-")
        cells = [cell(row, each) for row, each in zip(rows, compared, strict=True)]
        table.append(f"| `{spec}` | {knows(spec)} | {package} | {' | '.join(cells)} |")
    tuned = [f"{each.task.name}: {each.rows[0].settings} after {each.rows[0].runs.tuning} runs" for each in compared]
    table += ["", f"Linear decay was tuned to: {'; '.join(tuned)}.", ""]
    failed = {row.failure for each in compared for row in each.failed}
    table += [f"- {failure}" for failure in sorted(failed)]
    settings.out.mkdir(parents=True, exist_ok=True)
    replace_file(settings.out / "tuning_free.md", "\n".join(table))
    replace_file(settings.out / "tuning_free.jsonl", "".join(f"{to_json(each)}\n" for each in lines))
    sys.stdout.write("\n".join(table))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
