"""What all reproductions share: runs that are made once, deadlines, where results come from, reports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import flow
from flow import Claim, Lines, Report, Reproduction, Result, Settings, panels
from lrenv.agents.fds.random_search import schedule_training
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.outer import training as outer_training
from lrenv.runtime.process import machine


@dataclass(frozen=True)
class Run:
    """A number to be squared."""

    number: int
    power: float = 2.0


class Squares(Reproduction[Settings, Run]):
    """Batches of two numbers; 7 is never ready."""

    paper, title = "Nobody 2020", "Squares"
    name, scales = Run, {"cpu": range(1, 8), "smoke": range(1, 3)}

    def runs(self) -> Iterator[list[Run]]:
        return ([Run(x) for x in batch] for batch in flow.cut(self.scale, 2))

    def compute(self, batch: Sequence[Run]) -> list[Result] | None:
        self.status(f"squaring {batch[0].number}")
        return None if batch[0].number == 7 else [{"square": run.number**2} for run in batch]

    def report(self) -> Report:
        total = sum(line["square"] for line in self.lines.where())
        claim = Claim("table 1", "squares add up", "91", str(total), "yes" if total == 91 else "no")
        return Report([claim], f"\n## Sums\n\n{total}\n", {"sums.png": lambda: panels(1, 1)[0]})


def squares(out: Path, **others: Any) -> Squares:
    return Squares(Settings(out=out, **others))


def test_runs_are_made_once_in_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    squares(tmp_path).run()
    assert "6 of 7 runs are there" in capsys.readouterr().out
    file = tmp_path / "runs.jsonl"
    origin, *lines = map(json.loads, file.read_text().splitlines())
    assert lines == [{"scale": "cpu", "number": x, "power": 2.0, "square": x * x} for x in range(1, 7)]
    assert list(origin["origin"]) == ["command", "commit", "date", "machine"]
    file.write_text("".join(json.dumps(line) + "\n" for line in (origin, *lines[:3], *lines[4:])) + '{"torn')
    made: list[int] = []
    compute = Squares.compute

    def noted(self: Squares, batch: Sequence[Run]) -> Any:
        made.extend(run.number for run in batch)
        return compute(self, batch)

    monkeypatch.setattr(Squares, "compute", noted)
    squares(tmp_path).run()
    assert made == [3, 4, 7]
    assert [line["number"] for line in Lines(file, ["number"]).where()] == [1, 2, 3, 5, 6, 4]
    before = file.read_bytes()
    squares(tmp_path).run()
    assert file.read_bytes() == before, "a command that adds nothing leaves no trace"


def test_a_page_begins_with_what_made_it_and_the_claims(tmp_path: Path) -> None:
    squares(tmp_path).run()
    commit = Lines(tmp_path / "runs.jsonl", ["number"]).origins[0]
    head, claims, text = (tmp_path / "results.md").read_text().split("\n## ")
    assert head.startswith("# Squares (Nobody 2020)\n\nMade by `python reproductions/test_flow.py --scale cpu`")
    assert f"| {commit['commit']} | {commit['date']} | {machine()} |" in head
    assert "not recorded" not in head
    assert claims.splitlines()[2:] == [
        "| paper | claim | published | ours | holds |",
        "| --- | --- | --- | --- | --- |",
        "| table 1 | squares add up | 91 | 91 | yes |",
    ]
    assert text == "Sums\n\n91\n"
    assert matplotlib.image.imread(tmp_path / "sums.png").std() > 0


def test_results_are_found_under_the_keys_that_they_are_written_with(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs.jsonl", ["rate", "seed"])
    keys: list[Result] = [{"rate": math.inf, "seed": 0}, {"rate": np.float32(0.1), "seed": np.int64(1)}]
    for key in keys:
        assert key not in lines
        lines.add(key | {"loss": 2.0})
    for there in (lines, Lines(lines.path, ["rate", "seed"])):
        assert all(key in there and len(there.where(**key)) == 1 for key in keys)
        assert {"rate": 0.5, "seed": 0} not in there


def test_lines_without_a_session_say_so(tmp_path: Path) -> None:
    squares(tmp_path, scale="smoke").run()
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "origin" not in line))
    squares(tmp_path, scale="smoke").draw()
    page = (tmp_path / "results.md").read_text()
    assert "| unknown | unknown | not recorded |" in page, "it is in no commit"
    committed = flow.committed(Path(flow.__file__).parent / "results" / "micaelli2021" / "runs.jsonl")
    assert committed == ("unknown", "unknown") or len(committed[1]) == 10


def test_time_that_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """No batch begins after it; nothing of it is lost, and results are drawn."""
    now = [0.0]
    monkeypatch.setattr(flow, "time", SimpleNamespace(monotonic=lambda: now[0]))
    compute = Squares.compute

    def slow(self: Squares, batch: Sequence[Run]) -> Any:
        now[0] += 10
        return compute(self, batch)

    monkeypatch.setattr(Squares, "compute", slow)
    squares(tmp_path, seconds=15).run()
    assert "4 of 7 runs are there after 20 s" in capsys.readouterr().out
    assert "| 30 | no |" in (tmp_path / "results.md").read_text()
    (tmp_path / "results.md").unlink()
    squares(tmp_path, seconds=0).run()
    assert now == [20]
    assert "| 30 | no |" in (tmp_path / "results.md").read_text()


class Searches(Squares):
    """A training in every batch."""

    scales = {"cpu": range(1, 2)}

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        settings = FDSSettings(
            task="noisy-quadratic", out=self.out / "search", budget=8, method="random", outer_steps=3, trainees=2,
            eval_every=1, eval_seeds=1, device="cpu",
        )  # fmt: skip
        file = self.controller_of(schedule_training, settings)
        return [{"square": len((file.parent / "progress.csv").read_text().splitlines())}]


def test_time_that_is_up_stops_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Between two iterations; the next origin goes on from there, and an interruption is one."""
    now, kind = [0.0], type(schedule_training(FDSSettings(method="random")))
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(flow, "time", clock)
    monkeypatch.setattr(outer_training, "time", clock)
    iterate, done = kind.iterate, []

    def slow(self: Any) -> dict[str, float]:
        now[0] += 10
        done.append(self.iteration)
        return iterate(self)

    monkeypatch.setattr(kind, "iterate", slow)
    run = partial(Searches, Settings(out=tmp_path, seconds=15))
    run().run()
    assert done == [0, 1]
    assert "0 of 1 runs are there" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(Searches, "compute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt("somebody's")))
        with pytest.raises(KeyboardInterrupt, match="somebody's"):
            run().run()
    run().run()
    assert done == [0, 1, 2]
    (line,) = Lines(tmp_path / "runs.jsonl", ["number"]).where()
    assert line["square"] == 4
    for kept in ("checkpoint.safetensors", "nothing"):
        (tmp_path / "runs.jsonl").unlink()
        (tmp_path / "search" / kept).unlink(missing_ok=True)
        run().run()
        assert done == [0, 1, 2], "the outcome of a training that has ended is taken as it is"


def test_what_can_not_be_meant(tmp_path: Path) -> None:
    squares(tmp_path, scale="smoke").run()
    with pytest.raises(ValueError, match="holds results of --scale smoke; choose another --out"):
        squares(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        squares(tmp_path / "file")
    lines = (tmp_path / "runs.jsonl").read_text().splitlines(True)
    (tmp_path / "runs.jsonl").write_text("".join([lines[0], "damage\n", lines[1]]))
    with pytest.raises(ValueError, match=r"runs.jsonl is damaged at line 2"):
        squares(tmp_path)


def test_a_folder_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"scale": "cpu", "other": 1}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl holds results of another program: choose another --out"):
        squares(tmp_path)
