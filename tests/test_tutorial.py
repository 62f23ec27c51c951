"""The tutorial runs from top to bottom as it stands: its commands, its sessions and its programs, in one folder."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from lrenv import cli

PAGE = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)


def run_command(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "lrenv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        assert cli.main() == 0


def run_session(text: str, names: dict[str, Any]) -> None:
    session = doctest.DocTestParser().get_doctest(text, names, "tutorial", "docs/tutorial.md", 0)
    told: list[str] = []
    doctest.DocTestRunner().run(session, out=told.append, clear_globs=False)
    names.update(session.globs)
    assert not told, "".join(told)


def run_all(blocks: list[tuple[str, str]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for language, text in blocks:
        if language == "sh":
            for line in text.splitlines():
                run_command(line)
        elif language == "pycon":
            run_session(text, names)
        elif language == "python":
            exec(compile(text, "tutorial", "exec"), names)
    return names


def test_every_block_is_of_a_kind_that_runs() -> None:
    assert [language for language, _ in BLOCKS if language not in ("sh", "pycon", "python")] == ["console"]
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {"sh", "pycon", "python"} <= {language for language, _ in BLOCKS}


def test_it_runs_with_a_quarter_of_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [(kind, text) for kind, text in BLOCKS if "compare" not in text]
    shorter = [(kind, text.replace("--episodes 1024", "--episodes 256")) for kind, text in blocks]
    assert shorter != blocks
    names = run_all(shorter)
    assert names["test_loss"] < 1.0
    assert (tmp_path / "rates.png").is_file()


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_all(BLOCKS)
    assert names["test_loss"] < 0.5  # untrained networks are at 2.3
    assert (tmp_path / "runs/compare/report.html").is_file()
