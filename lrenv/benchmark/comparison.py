"""Comparing agents on one task: tuned on some seeds, reported on others, the same runs' randomness for everyone."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrenv.benchmark.agent import agent_factory, make_agent
from lrenv.benchmark.evaluation import TUNING_SEEDS, Result, evaluate, tune
from lrenv.benchmark.statistics import mean_std, welch
from lrenv.progress import progress
from lrenv.tasks import Task, count, initial_rates, make_task


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        spec: the agent as it was asked for.
        label: how the agent is called; distinct within a comparison.
        settings: what it was tuned to or given, as text.
        tuning_runs: trainings that its tuning took.
        result: its runs.
        p_value: Welch's t-test of its test losses against the baseline's; None for the baseline.
    """

    spec: str
    label: str
    settings: str
    tuning_runs: int
    result: Result
    p_value: float | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers of the table, as JSON values."""
        numbers = {
            name: dict(zip(("mean", "std"), mean_std(getattr(self.result, name)), strict=True))
            for name in ("val_loss", "test_loss", "test_accuracy")
        }
        diverged = int(self.result.diverged.sum())
        return {
            "agent": self.label, "settings": self.settings, "runs": len(self.result.seeds), **numbers,
            "p_value": self.p_value, "diverged": diverged, "tuning_runs": self.tuning_runs,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Agents side by side on one task.

    Attributes:
        task: what they trained.
        baseline: the label that p-values refer to.
        rows: in the order asked for.
    """

    task: Task
    baseline: str
    rows: list[Row]

    def save(self, out: Path) -> None:
        """Writes results.jsonl (a line a run) and summary.json."""
        out.mkdir(parents=True, exist_ok=True)
        lines = [line for row in self.rows for line in row.result.lines()]
        (out / "results.jsonl").write_text("\n".join(lines) + "\n")
        (out / "summary.json").write_text(json.dumps([row.summary() for row in self.rows], indent=2) + "\n")


def compare(
    task: Task | str,
    agents: Sequence[str],
    seeds: int = 10,
    *,
    baseline: str | None = None,
    initial_lrs: Sequence[float] = (),
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    device: str | None = None,
) -> Comparison:
    """Runs each agent on the seeds 0, 1, ... and holds them against a baseline.

    Args:
        task: a task, or its name.
        agents: names, `name:setting=value:...`, or controller files. A bare name whose factory has a grid is tuned.
        seeds: how many runs each.
        baseline: one of `agents`; `step` if it is among them, else the first.
        initial_lrs: agents that scale the rate get a row from each of these; all the task's, mixed, if empty.
        tuning_seeds: what grids are searched on.
        device: where the trainees live.

    Raises:
        ValueError: an unknown agent or task, unfit settings, a baseline that doesn't take part.
    """
    task = make_task(task)
    count("seeds", seeds)
    if not agents:
        raise ValueError("name at least one agent, as in --agents constant,step,cosine")
    if len(set(agents)) < len(agents):
        raise ValueError(f"an agent is named twice in {','.join(agents)}")
    baseline = baseline or ("step" if "step" in agents else agents[0])
    if baseline not in agents:
        raise ValueError(f"the baseline {baseline!r} is not among the agents {', '.join(agents)}")
    parsed = {spec: _parse(spec) for spec in agents}  # every error before any work
    starts = list(initial_rates(tuple(initial_lrs))) if initial_lrs else []
    rows: list[Row] = []
    with progress(len(agents), "agents") as report:
        for number, (spec, (name, settings)) in enumerate(parsed.items()):
            report(number, spec)
            rows += _rows(spec, name, settings, task, range(seeds), starts, tuning_seeds, device)
            report(number + 1, spec)
    reference = next(row.result for row in rows if row.spec == baseline)
    return Comparison(
        task,
        baseline,
        [
            row if row.result is reference else replace(row, p_value=welch(row.result.test_loss, reference.test_loss))
            for row in rows
        ],
    )


def _rows(
    spec: str,
    name: str,
    settings: dict[str, Any],
    task: Task,
    seeds: Sequence[int],
    starts: list[float],
    tuning_seeds: Sequence[int],
    device: str | None,
) -> list[Row]:
    tuning_runs = 0
    if not settings and not _is_file(name) and getattr(agent_factory(name), "grid", None):
        tuned = tune(name, task, tuning_seeds, device=device)
        settings, tuning_runs = tuned.settings, len(tuned.combinations) * len(tuning_seeds)
    agent = make_agent(name, **settings)
    text = ", ".join(f"{key}={f'{value:g}' if isinstance(value, float) else value}" for key, value in settings.items())
    # Only an agent that scales the rate depends on where it starts.
    scales = str(agent.view.control).startswith(("scale", "discrete", "('scale"))
    rows = []
    for start in starts if scales and starts else [None]:
        label = repr(agent) if _is_file(name) else name
        label += "" if start is None else f" from {start:g}"
        result = evaluate(agent, task, seeds, initial_lr=start, name=label, device=device)
        rows.append(Row(spec, label, text, tuning_runs, result))
    return rows


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value:key=value`, or a path -> name and settings; unknown names and missing files raise."""
    name, *pairs = spec.split(":")
    if _is_file(name):
        make_agent(name)
    else:
        agent_factory(name)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} in agent {spec!r} is no setting; write name:key=value:key=value")
        try:
            settings[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[key] = text
    return name, settings


def _is_file(name: str) -> bool:
    return name.endswith(".safetensors")
