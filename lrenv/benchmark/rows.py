"""What a comparison gives: a row per agent and start, the statistics of its runs, and which rows are best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.statistics import mean_std, paired
from lrenv.runtime.files import replace_file
from lrenv.runtime.json_values import to_json
from lrenv.training.tasks import Task

LEVEL = 0.05
"""A p-value from which on two agents count as level."""
FILES = ("results.jsonl", "summary.json", "comparison.png", "report.html")
"""What is made of a comparison's cells, in its folder."""


@dataclass(frozen=True)
class Runs:
    """How many trainings an agent has cost before it was reported on.

    Attributes:
        tuning: of its grid, here.
        training: those it learned from.
        selection: those that chose among what it learned; None if its file doesn't say.
    """

    tuning: int = 0
    training: int = 0
    selection: int | None = 0

    def __str__(self) -> str:
        known = self.tuning + self.training + (self.selection or 0)
        return f"{known}" if self.selection is not None else f"{known} and those of selection, not recorded"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        spec: the agent as it was asked for.
        label: how the agent is called; distinct within a comparison.
        settings: what it was tuned to or given, as text.
        runs: trainings that its tuning, its learning and the choice among what it learned took.
        result: its runs; None if it failed.
        failure: who failed, where and when.
        paired: p-value of the paired t-test of its test losses against the baseline's, seed by seed; None for the
            baseline, and where there is nothing to test.
        welch: that of Welch's t-test, likewise.
        horizon: whether the agent knows the budget; None if it couldn't be made.
    """

    spec: str
    label: str
    settings: str
    runs: Runs
    result: Result | None
    failure: str = ""
    paired: float | None = None
    welch: float | None = None
    horizon: bool | None = None

    def summary(self) -> dict[str, Any]:
        """Returns the numbers of the table, as JSON values."""
        shared = {"agent": self.label, "settings": self.settings, "runs_spent": vars(self.runs)}
        if self.result is None:
            return shared | {"failure": self.failure}
        numbers = {
            name: dict(zip(("mean", "std"), mean_std(values), strict=True))
            for name, values in self.result.numbers().items()
        }
        tests = {"p_paired": self.paired, "p_welch": self.welch}
        counts = {"runs": len(self.result.seeds), "diverged": int(self.result.diverged.sum())}
        return shared | counts | numbers | tests


@dataclass(frozen=True)
class Comparison:
    """Agents side by side on one task.

    Attributes:
        task: what they trained.
        seeds: runs of each agent.
        baseline: the label that p-values refer to.
        rows: in the order asked for.
        about: the command and the machine that began it.
    """

    task: Task
    seeds: int
    baseline: str
    rows: list[Row]
    about: dict[str, str]

    @property
    def failed(self) -> list[Row]:
        """The rows of agents that failed."""
        return [row for row in self.rows if row.result is None]

    @property
    def whole(self) -> list[tuple[Row, Result]]:
        """The rows of which every run trained to the end, with their results, the lowest mean test loss first."""
        found = [(row, row.result) for row in self.rows if row.result is not None and not row.result.diverged.any()]
        found = [(row, result) for row, result in found if np.isfinite(result.test_loss).all()]
        return sorted(found, key=lambda pair: float(np.mean(pair[1].test_loss)))

    @property
    def ranked(self) -> list[Row]:
        """All rows: `whole` in its order, then those with runs that diverged, then those that failed."""
        whole = [row for row, _ in self.whole]
        rest = [row for row in self.rows if not any(row is other for other in whole)]
        return whole + sorted(rest, key=lambda row: row.result is None)

    @property
    def best(self) -> list[Row]:
        """The row with the lowest mean test loss, and those that are level with it by the paired t-test.

        One with a run that diverged is never among them. With one seed nothing can be told apart, and there is none.
        """
        if self.seeds < 2 or not self.whole:
            return []
        lowest, best = self.whole[0]
        return [row for row, r in self.whole if row is lowest or paired(r.test_loss, best.test_loss) >= LEVEL]

    def save(self, out: Path) -> None:
        """Writes results.jsonl (a line per run) and summary.json."""
        out.mkdir(parents=True, exist_ok=True)
        lines = [line for row in self.rows if row.result is not None for line in row.result.lines()]
        replace_file(out / "results.jsonl", "".join(f"{line}\n" for line in lines))
        replace_file(out / "summary.json", (to_json([row.summary() for row in self.rows], indent=2) + "\n"))
