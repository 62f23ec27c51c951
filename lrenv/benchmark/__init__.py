"""Comparisons of agents: how they are run, tuned and compared, and how results are shown.

All agents have the same seeds, so the same initial weights and batches; what counts is the paired difference of test
losses L over m seeds, with the 95 % interval of Student's t:

    mean of (L_agent - L_baseline) +- t_(0.975, m - 1) s / sqrt(m)

Read `evaluation.py` first (agents on a task), then `selection.py` (the one rule of what is better, for runs that
diverge too), `tuning.py` (grids whose rates are extended, on seeds of their own) and `comparison.py`, which does both
for several agents: `contenders.py` are those that take part, `cells.py` keeps finished parts in a file, `rows.py` are
the results. `optimizer_runs.py` runs agents that are optimizers, and `held_out.py` has the tasks on which controllers
of drawn tasks are reported. Results are shown by `statistics.py`, `wording.py`, `figures.py`, `page.py` (HTML) and
`report.py` (the terminal, and the files).

Several tasks at once are a suite: `suite.py` reads it from TOML, `search.py` finds settings (grids that grow, random
draws), `run_suite.py` runs it on the same kind of cells, with what `privileges.py` says of each agent. `scores.py` has
losses at the end of training relative to those of a tuned reference r, over T tasks and m seeds each,

    exp(mean over tasks and seeds of log(L_agent / L_r)),

with an interval by a bootstrap of tasks, and `score_tables.py` shows them.
"""

from __future__ import annotations

from lrenv.benchmark.comparison import compare
from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.benchmark.rows import Comparison
from lrenv.benchmark.tuning import Tuned, tune

__all__ = [
    "Comparison",
    "Result",
    "Tuned",
    "compare",
    "evaluate",
    "tune",
]
