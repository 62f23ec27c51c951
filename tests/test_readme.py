"""The Python of README.md and of the pages in docs/ runs as it stands, and their links lead somewhere."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lrenv.agents import agents
from lrenv.benchmark import evaluate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = {
    f"{page.name}-{number}": snippet
    for page in PAGES
    if page.name != "tutorial.md"  # its blocks follow from one another: tests/test_tutorial.py
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S), 1)
}


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
@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs(name: str) -> None:
    exec(compile(SNIPPETS[name], name, "exec"), given())


def test_there_are_snippets() -> None:
    pages = [page.read_text() for page in PAGES if page.name != "tutorial.md"]
    assert len(SNIPPETS) == sum(page.count("```python") for page in pages) >= 4
    assert "README.md-1" in SNIPPETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert not missing


def test_readme_is_short_and_names_every_agent() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 800
    assert [name for name in agents() if f"`{name}`" not in text] == []
    table = re.findall(r"^\| `.*\| ([^|]*) \|$", text, re.M)
    files = [file for cell in table for file in re.findall(r"`([^`]+)`", cell)]
    assert len(table) >= 10
    assert [file for file in files if not (ROOT / "agents" / file).is_file()] == []


def test_the_example_of_an_agent_is_a_fair_one() -> None:
    """It ends far below random actions, and below the middle one of the rates that it starts from."""
    names: dict[str, Any] = {}
    exec(next(snippet for snippet in SNIPPETS.values() if "def act" in snippet), names)
    agent = names["GrowOrShrink"]()

    class Random:
        view = agent.view

        def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
            rng = np.random.default_rng(0) if state is None else state
            return rng.uniform(-1, 1, (len(observation), 1)).astype(np.float32), rng

    ours, random, kept = (
        evaluate(x, "digits-mlp", device="cpu").test_loss.mean() for x in (agent, Random(), "constant:peak=0.001")
    )
    assert ours < 0.7 * min(random, kept)
