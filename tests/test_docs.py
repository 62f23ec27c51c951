"""The generated pages of the documentation are complete: whatever is registered or public has its place there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lrenv
from lrenv.agents import agents
from lrenv.controllers.agent import agent_factory
from lrenv.data import datasets
from lrenv.envs.actions import HYPERPARAMETERS, KINDS
from lrenv.envs.observations import OBSERVATIONS, WHITE_BOX, Signal
from lrenv.envs.rewards import REWARDS
from lrenv.training.losses import LOSSES
from lrenv.training.optimizers import OPTIMIZERS
from lrenv.training.tasks import tasks

pytest.importorskip("sphinx")

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("generator")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    made: dict[str, str] = generator.pages()
    return made


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("agents/index", agents()),
        ("catalogue/tasks", tasks()),
        ("catalogue/data", datasets()),
        ("catalogue/observations", (*(f"## `{name}`\n" for name in OBSERVATIONS), *WHITE_BOX)),
        ("catalogue/actions", tuple(f"| `{name}` | `" for name in KINDS)),
        ("catalogue/actions", tuple(HYPERPARAMETERS)),
        ("catalogue/rewards", tuple(f"## `{name}`\n" for name in REWARDS)),
        ("catalogue/optimizers", (*OPTIMIZERS, *LOSSES)),
    ],
)
def test_the_catalogue_has_everything_that_is_registered(
    pages: dict[str, str], page: str, names: tuple[str, ...]
) -> None:
    wanted = [name if "`" in name else f"`{name}`" for name in names]
    assert [name for name in wanted if name not in pages[page]] == []


@pytest.mark.parametrize("agent", agents())
def test_an_agent_has_a_page(pages: dict[str, str], agent: str) -> None:
    page = pages[f"agents/{agent}"]
    assert re.search(r"\| file \| `agents/\S+\.py` \|", page)
    assert "\n## Limits\n\n- " in page
    factory = agent_factory(agent)
    settings = [] if "`--task`" in page else list(inspect.signature(factory).parameters)
    assert [name for name in settings if f"| `{name}` |" not in page] == []
    if agent in ("universal", "universal-anytime"):
        assert "It works in your own loop" in page


def test_an_equation_stands_on_each_page(pages: dict[str, str]) -> None:
    """Agents from other packages have the rate in a row of the table instead."""
    without = [name for name in agents() if "## Equation" not in pages[f"agents/{name}"]]
    assert without == [name for name in agents() if "| package | `" in pages[f"agents/{name}"]]


def test_every_public_name_is_documented(pages: dict[str, str]) -> None:
    """Found by importing the modules, where the pages are made from their source."""
    text = "\n".join(page for name, page in pages.items() if name.startswith("api/"))
    missing = []
    for found in pkgutil.walk_packages(lrenv.__path__, "lrenv."):
        if found.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # an extra that isn't installed
            if str(error.name).startswith("lrenv"):
                raise
            continue
        for name, value in vars(module).items():
            own = inspect.isclass(value) or inspect.isfunction(value)
            if not own or name.startswith("_") or value.__module__ != found.name or value.__name__ != name:
                continue
            kind = "class" if inspect.isclass(value) else "function"
            if not re.search(rf"\{{py:{kind}\}} {name}\b.*\n:module: {re.escape(found.name)}$", text, re.MULTILINE):
                missing.append(f"{found.name}.{name}")
    assert missing == []
    front = pages["api/index"]
    assert [name for name in lrenv.__all__ if f"`lrenv.{name} <" not in front] == []


def test_a_signal_is_shown_as_it_is_computed(pages: dict[str, str]) -> None:
    page = pages["catalogue/observations"]
    assert "| `progress` | 0 | 1 | `inner_step / budget` |" in page
    assert "| `weight_mean` | -15 | 15 | `(weight_mean / 0.001).asinh()` |" in page
    signals = [
        name for table in OBSERVATIONS.values() for name, each in dict(table).items() if isinstance(each, Signal)
    ]
    assert [name for name in signals if f"| `{name}` |" not in page] == []


def test_docstrings_are_taken_apart(generator: ModuleType) -> None:
    parsed = generator.docstrings.parse(
        """Does a.

        More.

        Limits: not much
        of it.

        Args:
            x: of two
                lines.
            **others: any.

        Returns:
            A number.

        Raises:
            ValueError: it's bad.
        """
    )
    assert parsed.text == "Does a.\n\nMore."
    assert parsed.limits == "Not much\nof it."
    assert parsed.sections == {
        "Args": {"x": "of two lines.", "**others": "any."},
        "Returns": {"": "A number."},
        "Raises": {"ValueError": "it's bad."},
    }


def test_names_in_backticks_lead_to_their_places(generator: ModuleType) -> None:
    links = generator.links
    assert links.linked("see `lrenv.Task`") == "see {py:obj}`lrenv.Task <lrenv.training.tasks.Task>`"
    assert links.linked("`lrenv.envs.actions`") == "{py:mod}`lrenv.envs.actions <lrenv.envs.actions>`"
    assert links.linked("`linear` and `Task`", "lrenv.training.tasks").endswith("`Task <lrenv.training.tasks.Task>`")
    assert links.linked("    code\n\n`lrenv.Task`").startswith("    code\n\n{py:obj}")
    assert links.linked("    `lrenv.Task`\n") == "    `lrenv.Task`\n"
    assert links.linked("```\n`lrenv.Task` <b>\n```") == "```\n`lrenv.Task` <b>\n```"
    assert links.linked("train/<class>, `a <b>`, <g_t, d>, 1 < 2") == "train/\\<class>, `a <b>`, \\<g_t, d>, 1 < 2"
    assert links.placed("(x: lrenv.data.Data, y: lrenv.nothing.Here)") == "(x: lrenv.data.types.Data, y: Here)"
