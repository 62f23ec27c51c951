"""The check of a card runs without one, as far as it can: each part at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
QUICK = ("card", "resets", "syncs", "launches", "speed", "whole", "outer")
SLOW = ("correct", "rivals", "convolutions", "ppo")


def checked(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("parts", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_a_dry_run_goes_through(tmp_path: Path, parts: tuple[str, ...]) -> None:
    done = checked(tmp_path / "x.jsonl", "--dry-run", "--part", *parts)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"about"} | set(parts) - {"launches"}  # only CUDA has them
    for row in rows:
        assert row.get("largest relative error", 0) < (1e-9 if row.get("dtype") == "float64" else 1e-2)
        assert row.get("twice the same bits", True)
        assert row.get("restored", True)


def test_without_a_card_it_says_what_to_do(tmp_path: Path) -> None:
    done = checked(tmp_path / "x.jsonl")
    assert done.returncode == 2
    assert "no CUDA card here; --dry-run" in done.stderr
