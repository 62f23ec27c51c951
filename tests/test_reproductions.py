"""The committed results: pages and the table of all claims are what their lines give."""

from __future__ import annotations

from typing import Any

import pytest

import readme
from flow import Reproduction

COMMITTED = {own.out.name: own for own in readme.committed()}


@pytest.mark.parametrize("name", COMMITTED)
def test_a_page_is_what_its_lines_give(name: str) -> None:
    """But for the commit, which a checkout without its history does not tell."""
    own: Reproduction[Any, Any] = COMMITTED[name]
    report = own.report()
    drawn, kept = own.page(report).split("\n\n"), (own.out / "results.md").read_text().split("\n\n")
    assert len(drawn) == len(kept)
    for number, (one, other) in enumerate(zip(drawn, kept, strict=True)):
        assert number == 2 or one == other
    assert kept[1].startswith(f"Made by `python reproductions/{type(own).__module__}.py {own.arguments()}`")
    assert kept[2].startswith("| commit | date | machine |\n| --- | --- | --- |\n| ")
    assert kept[2 + 1 + (not own.lines.complete)] == "## Claims"
    assert set(report.figures) == {path.name for path in own.out.glob("*.png")}
    for claim in report.claims:
        assert claim.paper
        assert claim.claim
        assert claim.holds.partition(" (")[0] in ("yes", "no", "level", "not run", "?", "")


def test_every_reproduction_is_in_the_table() -> None:
    names = {path.stem for path in readme.HERE.glob("*.py") if "(Reproduction[" in path.read_text()}
    assert names == {kind.__module__ for kind, *_ in readme.ALL.values()}


def test_readme_holds_all_claims() -> None:
    _, title, table = readme.README.read_text().partition(readme.TITLE)
    assert title
    assert table == "\n" + readme.table(list(COMMITTED.values()))
