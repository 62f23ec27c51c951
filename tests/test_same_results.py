"""The comparison of results before and after a change: what it keeps of files, what it sees, that it goes on."""

from __future__ import annotations

import json
import math
import subprocess
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import same_results
from safetensors.numpy import save_file
from same_results import REPRODUCTIONS, TASKS, differences, main, numbers

WRITES = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True)
(out / "runs.jsonl").write_text(json.dumps({"loss": 0.1, "seconds": 3, "file": str(out)}) + chr(10))
"""
TABLES = """| time |
| --- |
| 9 |

9

| on | seconds | best |
| --- | --- | --- |
| a1 | 7 | -1.5 ± 2e-3 |
| time | 7 | 8 |
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of two parts in place of the real ones; the second one fails."""
    (tmp_path / "writes.py").write_text(WRITES)
    (tmp_path / "fails.py").write_text("raise SystemExit('no good')")
    found = {"a": [f"{tmp_path}/writes.py {{out}}/sub"], "b": [f"{tmp_path}/fails.py {{out}}"]}
    monkeypatch.setattr(same_results, "parts", lambda: found)
    return list(found)


def recorded(file: Path, **parts: Any) -> str:
    file.write_text(json.dumps({name: {"seconds": 1.0, "numbers": own} for name, own in parts.items()}))
    return str(file)


def test_the_last_digit_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"runs.jsonl": [{"loss": 0.1, "curve": [1.0, math.nan, None]}]}
    other = {"runs.jsonl": [{"loss": math.nextafter(0.1, 1), "curve": [1.0, math.nan, None]}]}
    before = recorded(tmp_path / "before.json", one=own, two=own)
    after = recorded(tmp_path / "after.json", one=own, two=other)
    assert main(["compare", before, after]) == 1
    assert main(["compare", before, after, "--only", "one"]) == 0
    said = capsys.readouterr().out
    assert "one: same to the last digit" in said
    assert "two: 1 of 4 numbers differ, relatively by 1.4e-16 at most\n    /runs.jsonl/0/loss: 0.1, then 0.1000" in said


def test_parts_and_numbers_that_are_missing_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = recorded(tmp_path / "before.json", one=[1, 2], two=[1])
    after = recorded(tmp_path / "after.json", one=[1], three=[1])
    assert differences([1], [1, 2]) == ["1 of 2 numbers differ, relatively by 0 at most", "/1 is only after"]
    assert main(["compare", before, after]) == main(["compare", after, before]) == 1
    said = capsys.readouterr().out
    assert "one: 1 of 2 numbers differ, relatively by 0 at most\n    /1 is only before" in said
    assert f"two: missing from {after}" in said
    assert f"three: missing from {before}" in said


@pytest.mark.parametrize(
    ("a", "b", "largest"), [(2.0, 1.0, "0.5"), (0.0, -1.0, "1"), (math.nan, 1.0, "inf"), (None, 1.0, "inf"),
                            (math.inf, -math.inf, "inf"), (math.inf, 1.0, "inf")],
)  # fmt: skip
def test_the_largest_difference_is_relative_to_the_larger_number(a: Any, b: Any, largest: str) -> None:
    head, *_ = differences([a, 100.0], [b, 99.0])
    assert head == f"2 of 2 numbers differ, relatively by {largest} at most"


def test_durations_paths_and_versions_are_left_out(tmp_path: Path) -> None:
    files = {
        "runs.jsonl": '{"loss": 0.5, "seconds": 2, "path": "x", "versions": {"torch": 2}}\n{"loss": NaN, "ok": true}\n',
        "summary.json": '{"settings": {"seed": 1}, "curve": {"dtype": "float32", "values": [1, "inf", "nan"]}}',
        "progress.csv": "loss,time/seconds,kept\n0.25,3,\n",
        "results.md": TABLES,
        "comparison.png": "1",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {name: [x for _, x in same_results.flat(numbers(tmp_path / name))] for name in list(files)[:-1]}
    assert found["runs.jsonl"][:1] + found["runs.jsonl"][2:] == [0.5, True]
    assert math.isnan(found["runs.jsonl"][1])
    assert found["summary.json"][:2] == [1, math.inf]
    assert found["progress.csv"] == [0.25]
    assert found["results.md"] == [1.0, -1.5, 2e-3]
    assert numbers(tmp_path / "comparison.png") is None


def test_weights_count_and_checkpoints_do_not(tmp_path: Path) -> None:
    for name in ("controller", "checkpoint"):
        save_file(
            {"b": np.ones((1, 2), np.float32), "a": np.array([0.1], np.float32)}, tmp_path / f"{name}.safetensors"
        )
    weights = numbers(tmp_path / "controller.safetensors")
    assert weights == {"a": [float(np.float32(0.1))], "b": [1.0, 1.0]}
    assert numbers(tmp_path / "checkpoint.safetensors") is None


def test_what_is_there_is_not_made_again(
    tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert main(["record", str(file)]) == 1
    assert "b failed: " in (said := capsys.readouterr().out)
    assert said.rstrip().endswith("no good")
    found = json.loads(file.read_text())
    assert list(found) == ["a"]
    assert [*same_results.flat(found["a"]["numbers"])] == [("/sub/runs.jsonl/0/loss", 0.1)]
    monkeypatch.setattr(same_results, "made", lambda own: own)
    assert main(["record", str(file), "--only", "a"]) == 0
    assert json.loads(file.read_text()) == found
    assert main(["record", str(file)]) == 0
    assert list(json.loads(file.read_text())) == commands


def test_entry_points_are_those_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "lrenv"\nversion = "9"\n[project.entry-points."lrenv.agents"]\nown = "some:where"\n'
    )
    monkeypatch.setattr(same_results, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "path")
    (tmp_path / "path").mkdir()
    same_results.advertise(tmp_path / "path")
    assert [(point.name, point.value) for point in entry_points(group="lrenv.agents")] == [("own", "some:where")]
    assert version("lrenv") == "9"


def test_unknown_parts_are_refused(tmp_path: Path, commands: list[str]) -> None:
    with pytest.raises(SystemExit, match="no part is called c; there are a, b"):
        main(["record", str(tmp_path / "found.json"), "--only", "c"])
    assert not (tmp_path / "found.json").exists()


@pytest.mark.skipif(not (same_results.ROOT / ".git").exists(), reason="only git knows which controllers are committed")
def test_every_reproduction_and_committed_controller_has_a_part() -> None:
    folder = same_results.ROOT / "reproductions"
    assert {path.stem for path in folder.glob("*.py") if "(Reproduction[" in path.read_text()} == set(REPRODUCTIONS)
    parts = same_results.parts()
    acting = [commands for commands in parts.values() if len(commands) == len(TASKS) and "--budget" in commands[0]]
    files = subprocess.check_output(["git", "ls-files"], cwd=folder.parent, text=True).splitlines()
    assert len(acting) == sum(file.endswith(".safetensors") for file in files) == len(parts) - 1 - len(REPRODUCTIONS)
    assert {"metz2019-cpu", "fu2017/noh"} < set(parts)


def test_numbers_that_moved_are_not_gone() -> None:
    before = {"runs.jsonl": [{"a": 1.5, "b": [2, 2]}]}
    assert same_results.moved(before, {"runs.jsonl": [{"new": 7}, {"c": {"b": 2, "a": 1.5}, "d": 2}]}) == []
    (told,) = same_results.moved(before, {"runs.jsonl": [{"a": 1.5, "b": 2}]})
    assert told == "runs.jsonl: 1 of 3 numbers are gone, as 2"
