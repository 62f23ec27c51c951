"""The methods written out in NumPy are independent of lrenv, linked from what they check, and used."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFERENCES = sorted(path for path in (ROOT / "tests" / "reference").glob("*.py") if path.stem != "__init__")
MODULES = [*(ROOT / "lrenv").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    """Everything that a file imports, by its full name."""
    found = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_references_are_independent_linked_and_used(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} <= {
        "__future__", "collections", "math", "typing", "numpy",
    }  # fmt: skip
    docstrings = [ast.get_docstring(syntax(module)) or "" for module in MODULES]
    assert any(f"tests/reference/{path.name}" in docstring for docstring in docstrings), "no module names it"
    checked = re.findall(r"`(\w+/[\w/]+\.py)`", ast.get_docstring(syntax(path)) or "")
    assert checked, "it names no module"
    for module in checked:
        assert (ROOT / module).exists() or (ROOT / "tests" / module).exists(), f"{module} is gone"
    tests = [test for test in ROOT.glob("tests/test_*.py") if f"reference.{path.stem}" in imported(test)]
    assert tests, "no test uses it"
