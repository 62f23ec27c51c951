"""The check of a card runs without one, as far as it can: each part at a tiny size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("card", "resets", "syncs", "launches", "speed", "whole", "outer")
SLOW = ("correct", "rivals", "convolutions", "ppo")


@pytest.fixture
def gpu_check(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which leaves this process's allocator alone."""
    module = script("gpu_check")
    monkeypatch.setattr(module, "keep_memory", lambda: False)
    return module


@pytest.mark.parametrize("parts", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_a_dry_run_goes_through(gpu_check: Any, tmp_path: Path, parts: tuple[str, ...]) -> None:
    assert gpu_check.main(gpu_check.Settings(parts, tmp_path / "x.jsonl", dry_run=True)) == 0
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"about"} | set(parts) - {"launches"}  # only CUDA has them
    for row in rows:
        assert row.get("largest relative error", 0) < (1e-9 if row.get("dtype") == "float64" else 1e-2)
        assert row.get("twice the same bits", True)
        assert row.get("restored", True)


def test_without_a_card_it_says_what_to_do(gpu_check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(gpu_check.Settings(out=tmp_path / "x.jsonl")) == 2
    assert "no CUDA card here; --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()
