"""Shocks in the middle of runs, and what is told of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.data import Split
from lrenv.training.tasks import make_task

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def shocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import shocks

    yield shocks
    sys.modules.pop("shocks")


@pytest.mark.parametrize(
    ("control", "action", "rates"),
    [("set-raw", 0.01, [0.01, 0.01, 0.1, 0.01]), ("scale", 0.0, [0.01, 0.01, 0.1, 0.1])],
)
def test_who_sets_the_rate_has_its_own_again(shocks: Any, control: str, action: float, rates: list[float]) -> None:
    task = make_task("noisy-quadratic", budget=20, interval=5)
    envs = shocks.Shocked("rate", 2, task, control=control, device="cpu", initial_lr=0.01)
    envs.reset(seed=0)
    seen = [envs.step(np.full((2, 1), action, np.float32))[4]["lr"] for _ in range(4)]
    # The third of four decisions is the first in the second half.
    assert np.allclose(seen, np.array(rates)[:, None], rtol=1e-5)


def test_labels_are_exchanged_from_the_middle_on(shocks: Any) -> None:
    task = make_task("digits-mlp", budget=20, interval=5)
    runs = {}
    for shock in shocks.SHOCKS:
        envs = shocks.Shocked(shock, 1, task, control="set-raw", device="cpu")
        envs.reset(seed=0)
        runs[shock] = [float(envs.step(np.full((1, 1), 0.01, np.float32))[4]["train_loss"][0]) for _ in range(4)]
    assert runs["labels"][:2] == runs["none"][:2]
    assert runs["labels"][2] > 1.2 * runs["none"][2]


def test_exchanged_targets_are_those_of_other_examples(shocks: Any) -> None:
    split = Split(torch.arange(100.0)[:, None], torch.arange(100))
    changed = shocks.exchanged(split)
    assert torch.equal(changed.inputs, split.inputs)
    assert int((changed.targets != split.targets).sum()) == 50
    assert changed.targets.sort().values.tolist() == list(range(100))
    assert split.targets.tolist() == list(range(100)), "the task's own data stay"


def test_a_run_that_diverged_counts_as_the_most(shocks: Any) -> None:
    assert shocks.relative([2.0, None], [1.0, 1.0]) == pytest.approx((np.log(2) + np.log(shocks.CAP)) / 2)
