"""The benchmark of agents in trainings that nothing was trained on, for a few steps; and its data."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loops() -> dict[str, Any]:
    found: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "home_unseen_loops.py"))["LOOPS"]
    return found


@pytest.mark.parametrize("name", ["source-lstm", "photo-denoising", "name-convolutions"])
def test_a_training_has_data_of_its_own_and_begins_at_chance(name: str, loops: dict[str, Any]) -> None:
    loop = loops[name]
    data = loop.data()
    held = {tuple(x.flatten().tolist()) for x in data.test[0]}
    shown = [tuple(data.train[i][0].flatten().tolist()) for i in range(0, len(data.train), 7)]
    assert sum(x in held for x in shown) <= 0.01 * len(shown)  # a line of code may come again
    assert len(data.train) > 10 * loop.batch_size
    assert data.digest == loop.data().digest
    torch.manual_seed(0)
    model = loop.model()
    x, y = (torch.stack(part) for part in zip(*(data.train[i] for i in range(loop.batch_size)), strict=True))
    loss = float(loop.loss(model(x), y).detach())
    chance = {"source-lstm": math.log(128), "photo-denoising": 1.0, "name-convolutions": math.log(12)}
    assert loss == pytest.approx(chance[name], rel=0.15)
    assert (sum(p.numel() for p in model.parameters()) > 1e6) == (name == "source-lstm")


def test_a_command_that_is_repeated_goes_on_after_the_last_run(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "home_unseen.py"), "--steps", "20", "--loops", "name-convolutions"]

    def runs(seeds: int, *agents: str) -> list[dict[str, Any]]:
        command = [*script, "--out", str(tmp_path), "--seeds", str(seeds), "--agents", *agents]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return [json.loads(line) for line in (tmp_path / "home_unseen.jsonl").read_text().splitlines()]

    first = runs(1, "linear:peak={lr}")
    assert [row["rates"][0] for row in first] == [[0.01]]
    assert first[0]["rates"][5] == [pytest.approx(0.005)]
    second = runs(2, "linear:peak={lr}", "constant:peak={lr}")
    assert second[0] == first[0]
    assert [(row["agent"][:6], row["seed"]) for row in second] == [
        ("linear", 0), ("consta", 0), ("linear", 1), ("consta", 1)
    ]  # fmt: skip
    assert all(0 < row["best"] <= 1.2 * row["final"] < 4 and len(row["val"]) == 10 for row in second)
    table = (tmp_path / "home_unseen.md").read_text()
    means = [sum(row["final"] for row in second[i::2]) / 2 for i in (0, 1)]
    assert f"| `linear:peak={{lr}}` | {means[0]:.4f} |  |" in table
    assert f"| `constant:peak={{lr}}` | {means[1]:.4f} | {means[1] - means[0]:+.4f} ± " in table
