"""Comparing agents on one task: tuned on some seeds, reported on others, the same runs' randomness for everyone."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrenv.benchmark.agent import agent_factory, make_agent, view_of
from lrenv.benchmark.controller_file import read_metadata
from lrenv.benchmark.evaluation import TUNING_SEEDS, Result, evaluate, to_json, tune
from lrenv.benchmark.statistics import mean_std, welch
from lrenv.controls import is_relative
from lrenv.progress import progress
from lrenv.tasks import Task, count, initial_rates, make_task


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        spec: the agent as it was asked for.
        label: how the agent is called; distinct within a comparison.
        settings: what it was tuned to or given, as text.
        runs_spent: trainings that its tuning, or its learning, took.
        result: its runs.
        p_value: Welch's t-test of its test losses against the baseline's; None for the baseline.
    """

    spec: str
    label: str
    settings: str
    runs_spent: int
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
            "p_value": self.p_value, "diverged": diverged, "runs_spent": self.runs_spent,
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
        (out / "summary.json").write_text(to_json([row.summary() for row in self.rows], indent=2) + "\n")


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
    labels = _labels(parsed)
    rows: list[Row] = []
    with progress(len(agents), "agents") as report:
        for number, (spec, (name, settings)) in enumerate(parsed.items()):
            report(number, spec)
            rows += _rows(spec, labels[spec], name, settings, task, range(seeds), starts, tuning_seeds, device)
            report(number + 1, spec)
    reference = next(row for row in rows if row.spec == baseline)
    held_against = reference.result.test_loss
    return Comparison(
        task,
        reference.label,
        [row if row is reference else replace(row, p_value=welch(row.result.test_loss, held_against)) for row in rows],
    )


def _labels(parsed: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Spec -> what to call the agent: its name, or the whole spec where several have that name."""
    short = {spec: repr(make_agent(name)) if _is_file(name) else name for spec, (name, _) in parsed.items()}
    names = list(short.values())
    return {spec: spec if names.count(name) > 1 else name for spec, name in short.items()}


def _rows(
    spec: str,
    called: str,
    name: str,
    settings: dict[str, Any],
    task: Task,
    seeds: Sequence[int],
    starts: list[float],
    tuning_seeds: Sequence[int],
    device: str | None,
) -> list[Row]:
    runs_spent = read_metadata(Path(name)).get("episodes", 0) if _is_file(name) else 0
    if not settings and _is_tuned(name):
        tuned = tune(name, task, tuning_seeds, device=device)
        settings, runs_spent = tuned.settings, len(tuned.combinations) * len(tuning_seeds)
    agent = make_agent(name, **settings)
    text = ", ".join(f"{key}={f'{value:g}' if isinstance(value, float) else value}" for key, value in settings.items())
    rows = []
    for start in starts if starts and is_relative(view_of(agent).control) else [None]:
        label = called if start is None else f"{called} from {start:g}"
        result = evaluate(agent, task, seeds, initial_lr=start, name=label, device=device)
        rows.append(Row(spec, label, text, runs_spent, result))
    return rows


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value:key=value`, or a path -> name and settings; whatever can't be made raises."""
    name, *pairs = spec.split(":")
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} in agent {spec!r} is no setting; write name:key=value:key=value")
        try:
            settings[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[key] = text
    if settings or not _is_tuned(name):
        make_agent(name, **settings)
    return name, settings


def _is_tuned(name: str) -> bool:
    return not _is_file(name) and bool(getattr(agent_factory(name), "grid", None))


def _is_file(name: str) -> bool:
    return name.endswith(".safetensors")
