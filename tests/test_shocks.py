"""Shocks in the middle of runs, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.agents import make_agent
from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.benchmark import evaluate
from lrenv.data import Split
from lrenv.runtime.files import append_line
from lrenv.training.drawn import VERSION, TaskDistribution
from lrenv.training.tasks import make_task


@pytest.fixture
def shocks(script: Callable[[str], Any]) -> Any:
    return script("shocks")


@pytest.mark.parametrize(
    ("control", "interval", "action", "rates"),
    [
        ("set-raw", 5, 0.01, [0.01, 0.01, 0.1, 0.01]),
        ("scale", 5, 0.0, [0.01, 0.01, 0.1, 0.1]),
        ("set-raw", 1, 0.01, [0.01] * 10 + [0.1] * 5 + [0.01] * 5),
        ("scale", 1, 0.0, [0.01] * 10 + [0.1] * 10),
    ],
)
def test_who_sets_the_rate_has_its_own_again(
    shocks: Any, control: str, interval: int, action: float, rates: list[float]
) -> None:
    """The shock is the task's, for agents with an interval of their own as well."""
    task = make_task("noisy-quadratic", budget=20, interval=5)
    envs = shocks.Shocked(2, task, shock="rate", control=control, interval=interval, device="cpu", initial_lr=0.01)
    envs.reset(seed=0)
    seen = [envs.step(np.full((2, 1), action, np.float32))[4]["lr"] for _ in rates]
    assert np.allclose(seen, np.array(rates)[:, None], rtol=1e-5)


def test_an_interval_that_does_not_divide_the_tasks_is_refused(shocks: Any) -> None:
    task = make_task("noisy-quadratic", budget=20, interval=5)
    with pytest.raises(ValueError, match="an interval of 3 steps doesn't divide the task's, 5"):
        shocks.Shocked(1, task, shock="rate", interval=3, device="cpu")


def test_labels_are_exchanged_from_the_middle_on(shocks: Any) -> None:
    task = make_task("digits-mlp", budget=20, interval=5)
    runs = {}
    for shock in shocks.SHOCKS:
        envs = shocks.Shocked(1, task, shock=shock, control="set-raw", device="cpu")
        envs.reset(seed=0)
        runs[shock] = [float(envs.step(np.full((1, 1), 0.01, np.float32))[4]["train_loss"][0]) for _ in range(4)]
    assert runs["labels"][:2] == runs["none"][:2]
    assert runs["labels"][2] > 1.2 * runs["none"][2]


def test_without_a_shock_a_run_is_that_of_evaluate(shocks: Any) -> None:
    task, agent = make_task("digits-mlp", budget=20, interval=5), make_agent("linear:peak=0.01")
    usual = evaluate(agent, task, [0, 1], device="cpu").final_test_loss.tolist()
    assert shocks.last_test_losses(agent, task, "none", [0, 1]) == usual
    assert shocks.last_test_losses(agent, task, "labels", [0, 1]) != usual
    with pytest.raises(ValueError, match="is an optimizer, which trains without environments"):
        shocks.last_test_losses(make_agent("prodigy"), task, "none", [0])


def test_what_is_printed(shocks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file of what was found, in which the rate costs nothing and labels double the loss."""
    out = tmp_path / "shocks.jsonl"
    settings = shocks.Settings(agents=("universal", "constant:peak=0.1"), tasks=2, seeds=2, out=out)
    tasks = [task for task in TaskDistribution(1e9).tasks("report", 2) if task.optimizer != "momentum"]
    about = {"seeds": [0, 1], "version": VERSION, "factor": shocks.FACTOR, "share": shocks.SHARE}
    for name, level in zip(settings.agents, (1.0, 4.0), strict=True):
        for task in tasks:
            losses = {"none": [level, level], "rate": [level, level], "labels": [2 * level, 2 * level]}
            append_line(
                out, json.dumps({"agent": name, "task": task.name, "test_loss": losses} | about | {"policy": POLICY})
            )
    shocks.main(settings)
    assert "| constant:peak=0.1 | +1.386 (0.000) | +0.000 (0.000) | +0.693 (0.000) |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0 tasks hold 0 with Adam or AdamW; ask for more"):
        shocks.main(replace(settings, tasks=0))


def test_exchanged_targets_are_those_of_other_examples(shocks: Any) -> None:
    split = Split(torch.arange(100.0)[:, None], torch.arange(100))
    changed = shocks.exchanged(split)
    assert torch.equal(changed.inputs, split.inputs)
    assert int((changed.targets != split.targets).sum()) == 50
    assert changed.targets.sort().values.tolist() == list(range(100))
    assert split.targets.tolist() == list(range(100)), "the task's own data stay"


def test_runs_that_diverged(shocks: Any) -> None:
    assert shocks.relative([2.0, None], [1.0, 1.0]) == pytest.approx((np.log(2) + np.log(shocks.CAP)) / 2)
    assert shocks.relative([2.0, 5.0], [1.0, None]) == pytest.approx(np.log(2))
    assert np.isnan(shocks.relative([2.0], [None]))
    assert shocks.cell([0.5, float("nan"), 0.7]) == "+0.600 (0.100, 1 left out)"


def test_a_file_is_known_by_what_it_holds(script: Callable[[str], Any], tmp_path: Path) -> None:
    harness, file = script("harness"), tmp_path / "mine" / "controller.safetensors"
    file.parent.mkdir()
    found = []
    for content in (b"1", b"2"):
        file.write_bytes(content)
        found.append(harness.known_as(str(file)))
    assert found[0] != found[1]
    assert harness.known_as("cosine") == {"agent": "cosine"}
    assert harness.known_as("universal") == {"agent": "universal", "policy": POLICY}
