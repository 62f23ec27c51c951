"""The mechanical part of the wording: what must have a docstring, how it begins, and phrases that stay out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
WINGS = sorted(
    path.parent
    for top in ("lrenv", "agents")
    for path in (ROOT / top).glob("*/__init__.py")
    if path.parent.name != "agents"
)
FILES = [
    path
    for top in ("lrenv", "agents", "benchmarks", "reproductions")
    for path in sorted((ROOT / top).rglob("*.py"))
    if "agents" not in path.relative_to(ROOT / top).parts
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

FIGURES_OF_SPEECH = re.compile(
    r"\b(paid by|comes? along|at a price|turns? the rate|worth a word|small print|in play"
    r"|hand(s|ed)? back|puts? down to|blows? up)\b",
    re.IGNORECASE,
)
PER = re.compile(
    r"\b(rates?|one|once|numbers?|seeds?|values?|steps?|copies|copy) an? (trainee|layer|tensor|parameter|seed|step"
    r"|interval|round|place|key|channel|env)\b(?! (of|has|have))"
)

VERB = re.compile(r"(Does|Goes|[A-Z]\w*[b-df-z]s|[A-Z]\w*es)\b(?<!This)")
"""A verb in the third person, as far as letters tell."""
WINGS_OF_VERBS = ("controllers", "data", "envs", "networks", "randomness", "runtime", "training")
"""Elsewhere some docstrings are texts that commands show, such as those of agents' factories."""


class Documented(NamedTuple):
    """A public definition."""

    name: str
    kind: str  # "function", "property" or "class"
    docstring: str | None


def definitions(source: str) -> Iterator[Documented]:
    """The public classes, functions and methods of a file; those within functions are nobody's to call."""

    def within(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Documented]:
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
                continue
            name, docstring = f"{prefix}{child.name}", ast.get_docstring(child)
            if isinstance(child, ast.ClassDef):
                yield Documented(name, "class", docstring)
                yield from within(child, f"{name}.")
            else:
                marks = {ast.unparse(mark).rpartition(".")[2] for mark in child.decorator_list}
                if not marks & {"setter", "overload"}:
                    kind = "property" if marks & {"property", "cached_property"} else "function"
                    yield Documented(name, kind, docstring)

    return within(ast.parse(source), "")


def undocumented(source: str) -> list[str]:
    return [each.name for each in definitions(source) if not (each.docstring or "").strip()]


def not_verbs(source: str) -> list[str]:
    """Functions whose docstring begins with something else than a verb; properties and classes are nouns."""
    functions = [each for each in definitions(source) if each.kind == "function" and each.docstring]
    return [each.name for each in functions if not VERB.match(each.docstring or "")]


def phrases(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The phrases of a text that the pattern finds, also where a line breaks within one."""
    return [match[0] for match in pattern.finditer(re.sub(r"\s*\n\s*#?\s*", " ", text))]


def missing_files(docstring: str, stems: list[str]) -> list[str]:
    return [stem for stem in stems if not re.search(rf"`(\w+[./])*{stem}(\.py)?`", docstring)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_has_a_docstring(path: Path) -> None:
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize("wing", WINGS_OF_VERBS)
def test_functions_begin_with_a_verb(wing: str) -> None:
    found = {path.name: not_verbs(path.read_text()) for path in (ROOT / "lrenv" / wing).glob("*.py")}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("wing", WINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_wing_names_its_files_in_reading_order(wing: Path) -> None:
    docstring = ast.get_docstring(ast.parse((wing / "__init__.py").read_text())) or ""
    assert missing_files(docstring, sorted(path.stem for path in wing.glob("*.py") if path.stem != "__init__")) == []


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path: Path) -> None:
    text = path.read_text()
    assert phrases(text, FIGURES_OF_SPEECH) == []
    assert phrases(text, PER) == [], 'write "per"'


def test_the_checks_find_what_they_are_for() -> None:
    source = (
        'class A:\n    """An a."""\n    def f(self): ...\n    def _g(self): ...\n    @property\n    def h(self): ...\n'
    )
    assert undocumented(source) == ["A.f", "A.h"]
    assert not_verbs('def f():\n    """The a."""\ndef g():\n    """Returns a."""\ndef h():\n    """As f."""') == [
        "f",
        "h",
    ]
    assert phrases("its cost is paid\n    by\n    # the caller, once a trainee", FIGURES_OF_SPEECH) == ["paid by"]
    assert phrases("rates a\n    # trainee; one per env; once a step of a wrapper", PER) == ["rates a trainee"]
    assert missing_files("Read `a.py` first, then `lrenv.x.b` and c.", ["a", "b", "c"]) == ["c"]
