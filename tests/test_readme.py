"""README's Python runs as it stands."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lrenv.benchmark import evaluate

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a snippet registers is gone afterwards."""
    tasks = importlib.import_module("lrenv.training.tasks")
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def given() -> dict[str, Any]:
    """The reader's own data, which a snippet takes as given."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, size in (("train", 100), ("val", 20), ("test", 20)):
        arrays |= {f"x_{split}": rng.standard_normal((size, 5)), f"y_{split}": np.arange(size) % 3}
    return arrays


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=[snippet.split("\n")[0] for snippet in SNIPPETS])
def test_a_snippet_runs(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), given())


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == (ROOT / "README.md").read_text().count("```python") >= 4


def test_the_example_of_an_agent_is_a_fair_one() -> None:
    """It ends far below random actions, and below the middle one of the rates that it starts from."""
    names: dict[str, Any] = {}
    exec(next(snippet for snippet in SNIPPETS if "def predict" in snippet), names)
    agent = next(x for x in names.values() if isinstance(x, type) and hasattr(x, "predict"))()

    class Random:
        view = agent.view

        def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
            rng = np.random.default_rng(0) if state is None else state
            return rng.uniform(-1, 1, (len(observation), 1)).astype(np.float32), rng

    ours, random, kept = (
        evaluate(x, "digits-mlp", device="cpu").test_loss.mean() for x in (agent, Random(), "constant:peak=0.001")
    )
    assert ours < 0.7 * min(random, kept)
