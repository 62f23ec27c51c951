"""Scores of a suite: losses at the end of runs relative to those of a tuned reference, and what tuning is worth.

Of an agent a on task t and seed s stands d = log(L_a / L_r), the test losses at the end, with the same initial weights
and batches for both. The relative loss on a task is exp(mean of d over seeds), and that over tasks exp(mean of these
means), the geometric mean. A run that diverged, and an agent that failed, count as `cap` times the reference, and no
run counts as less than 1 / cap of it. Best checkpoints are compared in the same way, of runs that diverged later, too.
An agent that scales the rate counts by the mean over the initial rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.privileges import Privileges
from lrenv.benchmark.rows import Runs
from lrenv.benchmark.run_suite import Line, Outcome
from lrenv.benchmark.search import Record
from lrenv.benchmark.statistics import bootstrap_interval, expected_best, holm, paired_t

Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What an agent achieved on all tasks.

    Attributes:
        agent: its label.
        tasks: task -> its loss relative to the reference's at the end.
        mean: the geometric mean of these.
        low: the lower end of its 95 % interval by a bootstrap over tasks; NaN with fewer than two tasks or seeds.
        high: the upper end.
        best: the geometric mean at the checkpoints with the best validation loss, relative to those of the reference.
        parts: optimizer -> the geometric mean over the tasks that train with it, and the ends of its 95 % interval;
            nothing if all train with the same.
        p: of a t-test that the logarithms have mean 0 over tasks, by Holm's correction for the number of agents.
        worst: the geometric mean from the worst initial rate; None of an agent that sets rates.
        worst_start: that rate.
        diverged: runs that did.
        runs: all that it made to be reported.
        spent: trainings before, the sum over tasks; what a controller learned by counts once.
        seconds: of them and the runs themselves, apart from what a controller learned by.
        failures: why it failed on a task, a sentence each.
        edges: tasks on which its tuning ended at an edge of its grid.
        privileges: what it makes use of.
    """

    agent: str
    tasks: dict[str, float]
    mean: float
    low: float
    high: float
    best: float
    parts: dict[str, tuple[float, float, float]]
    p: float
    worst: float | None
    worst_start: float | None
    diverged: int
    runs: int
    spent: Runs
    seconds: float
    failures: list[str]
    edges: list[str]
    privileges: Privileges


@dataclass(frozen=True)
class Scores:
    """The table of a suite.

    Attributes:
        outcome: what was run.
        tasks: those that the reference trained to the end, which alone are scored.
        rows: the lowest mean first.
        notes: what must be known of the numbers, a sentence each.
    """

    outcome: Outcome
    tasks: list[str]
    rows: list[Score]
    notes: list[str]


def scored(outcome: Outcome) -> Scores:
    """The scores of all agents.

    Raises:
        ValueError: the reference trained on no task to the end.
    """
    suite = outcome.suite
    notes = list(outcome.skipped)
    notes += [f"No random draws of {agent} on {task}: {why}" for (agent, task), why in outcome.undrawn.items()]
    references = {}
    for line in outcome.lines:
        if line.agent != suite.reference:
            continue
        why = line.failure or _unfit(line)
        if why:
            every = _all_failed(outcome, line.task)
            told = "every agent failed there" if every else f"the reference, {line.agent}, is no measure there"
            notes.append(f"Task {line.task} is not scored, for {told}: {why}.")
        else:
            references[line.task] = line
    tasks = [task for task in outcome.tasks if task in references]
    if not tasks:
        raise ValueError(f"no task can be scored. {' '.join(notes)}")
    if suite.seeds < 2:
        notes.append("One seed has no interval.")
    if len(tasks) < 2:
        notes.append("One task has no interval over tasks and no p-value.")
    labels = list(dict.fromkeys(line.agent for line in outcome.lines))
    rows = [_score(label, outcome, tasks, references) for label in labels]
    corrected = holm(np.array([math.nan if row.agent == suite.reference else row.p for row in rows]))
    rows = [replace(row, p=float(p)) for row, p in zip(rows, corrected, strict=True)]
    return Scores(outcome, tasks, sorted(rows, key=lambda row: row.mean), notes)


def _unfit(line: Line) -> str:
    """Why a reference's losses can't be divided by; empty if they can."""
    assert line.result is not None
    losses = np.concatenate([line.result.final_test_loss, line.result.test_loss])
    if line.result.diverged.any():
        return f"{int(line.result.diverged.sum())} of {len(line.result.seeds)} runs diverged"
    if line.start is not None:
        return "the reference must set its rates, not scale an initial one"
    return "" if (np.isfinite(losses) & (losses > 0)).all() else "its losses are not all above 0"


def _all_failed(outcome: Outcome, task: str) -> bool:
    lines = [line for line in outcome.lines if line.task == task]
    return all(line.result is None or line.result.diverged.all() for line in lines)


def _score(label: str, outcome: Outcome, tasks: list[str], references: dict[str, Line]) -> Score:
    suite = outcome.suite
    lines = [line for line in outcome.lines if line.agent == label and line.task in tasks]
    final, best = (_logs(lines, tasks, references, name, suite.cap) for name in ("final_test_loss", "test_loss"))
    means = final.mean((1, 2))
    mean, low, high = _geometric(final)
    # A task on which it failed before it had a start has one line.
    starts = max(([line.start for line in lines if line.task == task] for task in tasks), key=len)
    by_start = final.mean((0, 2))
    worst = int(by_start.argmax())
    relative = len(starts) > 1 or starts[0] is not None
    finished = [line.result for line in lines if line.result is not None]
    spent = [next(line for line in lines if line.task == task) for task in tasks]
    return Score(
        agent=label,
        tasks={task: math.exp(mean) for task, mean in zip(tasks, means, strict=True)},
        mean=mean,
        low=low,
        high=high,
        best=math.exp(best.mean((1, 2)).mean()),
        parts={name: _geometric(final[places]) for name, places in places_of(outcome, tasks).items()},
        p=paired_t(means),
        worst=math.exp(by_start[worst]) if relative else None,
        worst_start=starts[worst] if relative else None,
        diverged=sum(int(result.diverged.sum()) for result in finished),
        runs=sum(len(result.seeds) for result in finished),
        spent=replace(spent[0].runs, tuning=sum(line.runs.tuning for line in spent)),
        seconds=sum(line.seconds for line in spent) + sum(result.seconds for result in finished),
        failures=[f"{line.task}: {line.failure}" for line in lines if line.failure],
        edges=[line.task for line in spent if not line.inside],
        privileges=outcome.privileges[label],
    )


def places_of(outcome: Outcome, tasks: list[str]) -> dict[str, list[int]]:
    """Optimizer -> the places of the tasks that train with it; nothing if all train with the same."""
    found: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        found.setdefault(outcome.tasks[task], []).append(place)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _geometric(logs: Logs) -> tuple[float, float, float]:
    """The geometric mean of (tasks, starts, seeds) logarithms, and the ends of its interval over tasks."""
    low, high = bootstrap_interval(logs.mean(1))
    return math.exp(logs.mean((1, 2)).mean()), math.exp(low), math.exp(high)


def _logs(lines: list[Line], tasks: list[str], references: dict[str, Line], name: str, cap: float) -> Logs:
    """(tasks, starts, seeds) logarithms of losses relative to the reference's."""
    logs = []
    for task in tasks:
        below = getattr(_result(references[task]), name)
        own = [line.result for line in lines if line.task == task]
        logs.append([capped_log(None if r is None else getattr(r, name), below, cap) for r in own])
    widest = max(map(len, logs))  # an agent that failed before it had a start has one line
    return np.array([rows * (widest if len(rows) < widest else 1) for rows in logs])


def _result(line: Line) -> Result:
    assert line.result is not None
    return line.result


def capped_log(losses: Any, reference: NDArray[Any], cap: float) -> Logs:
    """(seeds,) log(losses / reference) within log(1 / cap) and log(cap); log(cap) where there is no loss."""
    if losses is None:
        return np.full(len(reference), math.log(cap))
    ratios = np.asarray(losses, np.float64) / np.asarray(reference, np.float64)
    ratios = np.where(np.isnan(ratios), np.inf, ratios)
    return np.log(np.clip(ratios, 1 / cap, cap))


@dataclass(frozen=True)
class Budgets:
    """What tuning by random draws brings, and what that makes of agents that need none.

    Attributes:
        counts: numbers of draws.
        families: agent -> (counts,) the geometric mean over tasks of the expected relative loss of the best of so many.
        each: (counts,) the same, of the family whose test loss is best on each task: by hindsight.
        worth: agent without tuning -> the least number of draws at which the best family is expected to be level or
            ahead; None if all that were made aren't enough.
        against: agent without tuning -> its loss relative to the last of `each`, the geometric mean over tasks, and the
            ends of a 95 % interval by a bootstrap over tasks.
        tasks: those that are averaged over.
    """

    counts: list[int]
    families: dict[str, list[float]]
    each: list[float]
    worth: dict[str, int | None]
    against: dict[str, tuple[float, float, float]]
    tasks: list[str]


def budgets_of(scores: Scores) -> Budgets | None:
    """The tuning budgets of a suite that has random draws; None of one without.

    Families are averaged over the tasks that are scored; one that failed on any of them is left out.
    """
    outcome, suite = scores.outcome, scores.outcome.suite
    drawn = dict.fromkeys(agent for agent, _ in outcome.pools)
    families = [agent for agent in drawn if all((agent, task) in outcome.pools for task in scores.tasks)]
    if not families:
        return None
    references = {
        line.task: line for line in outcome.lines if line.agent == suite.reference and line.task in scores.tasks
    }
    losses = {task: _result(line).final_test_loss for task, line in references.items()}
    every = range(1, suite.pool + 1)
    logs = np.array(
        [
            [_curve(outcome.pools[family, task], losses[task], suite.cap, every) for task in scores.tasks]
            for family in families
        ]
    )  # (families, tasks, draws)
    curves = dict(zip(families, np.exp(logs.mean(1)), strict=True))
    of_each = logs.min(0)
    lowest = np.min(list(curves.values()), 0)
    counts = [count for count in suite.budgets if count <= suite.pool]
    untuned = [row for row in scores.rows if not row.spent.tuning and row.agent != suite.reference]
    against = {}
    for row in untuned:
        lines = [line for line in outcome.lines if line.agent == row.agent and line.task in scores.tasks]
        own = _logs(lines, scores.tasks, references, "final_test_loss", suite.cap).mean(1)
        own -= of_each[:, counts[-1] - 1, None]
        low, high = bootstrap_interval(own)
        against[row.agent] = math.exp(own.mean()), math.exp(low), math.exp(high)
    return Budgets(
        counts,
        {family: [float(curve[count - 1]) for count in counts] for family, curve in curves.items()},
        [float(np.exp(of_each[:, count - 1].mean())) for count in counts],
        {row.agent: _worth(row.mean, lowest) for row in untuned},
        against,
        scores.tasks,
    )


def _curve(record: Record, reference: NDArray[Any], cap: float, counts: range) -> Logs:
    """(counts,) the expected mean over seeds of the logarithm of the best of so many draws."""
    tested = np.array(record["test_loss"], np.float64)  # (draws, seeds), the first of the seeds for reports
    logs = capped_log(tested, reference[: tested.shape[1]], cap).mean(1)
    chosen_by = np.array(record["val_loss"], np.float64)
    return np.array([expected_best(chosen_by, logs, count) for count in counts])


def _worth(mean: float, lowest: NDArray[Any]) -> int | None:
    """The least number of draws whose expected best is at most `mean`."""
    level = np.flatnonzero(lowest <= mean)
    return int(level[0]) + 1 if len(level) else None
