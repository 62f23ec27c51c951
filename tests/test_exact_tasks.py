"""The benchmark of the exact tasks, at a tiny size: nothing is better than the computed optimum."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "exact_tasks.py"


@pytest.mark.slow
def test_no_exact_excess_is_below_the_optimum(tmp_path: Path) -> None:
    small = ("--budget", "100", "--seeds", "3", "--theory", "20", "40", "--out", str(tmp_path))
    done = subprocess.run([sys.executable, str(SCRIPT), *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "exact_tasks.jsonl").read_text().splitlines()]
    exact = [row for row in rows if not row["runs"] and "momentum" not in row["settings"]]
    assert {row["task"] for row in exact} == {"power-law-easy", "power-law-hard"}
    assert {"computed optimum", "linear", "cosine", "step", "constant"} <= {row["agent"] for row in exact}
    assert all(row["ratio"] > 1 - 1e-9 for row in exact)
    reacting = [row for row in rows if row["runs"]]
    assert {"plateau", "sgd-hd", "gala", "osgm"} <= {row["agent"] for row in reacting}
    assert all(row["error"] > 0 and len(row["rates"]) == 10 for row in reacting)
    assert (tmp_path / "exact_tasks.md").read_text().count("\n## ") == 3
    assert (tmp_path / "exact_tasks.png").stat().st_size > 10_000
