"""Comparisons that are cut off: whatever happens, what has run is kept, and the end is that of an undisturbed run."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from lrenv import networks
from lrenv.agents import BaseAgent, View
from lrenv.agents.learned_optimizer.agent import Architecture, LearnedOptimizer
from lrenv.benchmark import Comparison, cells, compare, comparison, evaluate, tuning
from lrenv.benchmark.cells import Cells, decoded, encoded
from lrenv.benchmark.evaluation import ARRAYS, Result, joined
from lrenv.benchmark.report import save_report
from lrenv.benchmark.rows import FILES
from lrenv.controllers import controller_file
from lrenv.runtime.files import append_line, writing
from lrenv.training.optimizers import adam
from lrenv.training.tasks import LogUniform, make_task

NOISY = make_task("noisy-quadratic", budget=20, interval=5)
AGENTS = ("constant", "linear:peak=0.1", "learned")
SEEDS = 5


class Learned:
    """An agent that scales the rate, so that it has a row from each start."""

    view = View(control="scale", observe="clock")

    def __repr__(self) -> str:
        return "learned"

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
        return np.where(observation[:, 4:] > 1, 0.5, -0.5), state


class Broken(Learned):
    """One that fails in the midst of training."""

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
        if observation[0, 0] > 7:
            raise KeyError("what it needs")
        return super().predict(observation, state)


@pytest.fixture(autouse=True)
def _learned(advertise: Callable[[str, str], None]) -> None:
    advertise("learned", f"{__name__}:Learned")
    advertise("broken", f"{__name__}:Broken")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of seeds, two parts of a tuning."""
    monkeypatch.setattr(comparison, "GROUP", 3)
    monkeypatch.setattr(comparison, "AT_ONCE", 20)


def run(out: Path | None, **settings: Any) -> Comparison:
    asked: dict[str, Any] = {"task": NOISY, "agents": AGENTS, "seeds": SEEDS, "initial_lrs": (0.1, 0.01)}
    return compare(**(asked | settings), device="cpu", out=out)


def reported(out: Path, **settings: Any) -> Comparison:
    """A run, and what is made of it."""
    found = run(out, **settings)
    save_report(found, out)
    return found


def made(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def kept(out: Path) -> list[Any]:
    """The cells of the file, without the seconds that they took."""
    entries = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    for entry in entries[1:]:
        entry["result"].pop("seconds")
    return entries


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"out": tmp_path_factory.mktemp("undisturbed") / "out"}


@pytest.fixture
def reference(undisturbed: dict[str, Any]) -> tuple[dict[str, bytes], list[Any]]:
    """What an undisturbed run leaves."""
    if not undisturbed["out"].exists():
        reported(undisturbed["out"])
    return made(undisturbed["out"]), kept(undisturbed["out"])


def counted(
    monkeypatch: pytest.MonkeyPatch, stop: int | None = None, kind: type[BaseException] = KeyboardInterrupt
) -> list[str]:
    """The names of the runs that begin; the one after `stop` of them is cut off."""
    begun: list[str] = []

    def counting(agent: Any, task: Any, seeds: Any, **settings: Any) -> Result:
        if len(begun) == stop:
            raise KeyboardInterrupt
        begun.append(settings["name"])
        return evaluate(agent, task, seeds, **settings)

    monkeypatch.setattr(comparison, "evaluate", counting)
    monkeypatch.setattr(tuning, "evaluate", counting)
    return begun


def test_a_result_comes_back_bit_for_bit() -> None:
    result = evaluate("constant:peak=[0.1, 1e38, 0.1]", NOISY, [5, 2**40, 0], device="cpu")
    odd = np.array([-0.0, 5e-324, np.nan, np.inf, -np.inf, 0.1], np.float64)
    result.curves["odd"] = np.stack([odd, odd[::-1]], 1)
    back = decoded(json.loads(json.dumps(encoded(result), allow_nan=False)))
    for name in ARRAYS:
        before, after = getattr(result, name), getattr(back, name)
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes(), name
    for name, curve in result.curves.items():
        assert curve.dtype == back.curves[name].dtype
        np.testing.assert_array_equal(curve, back.curves[name])
        assert np.array_equal(np.signbit(curve[np.isfinite(curve)]), np.signbit(back.curves[name][np.isfinite(curve)]))
    assert (back.agent, back.task, back.seconds, back.view) == (result.agent, result.task, result.seconds, result.view)


def test_views_come_back() -> None:
    result = evaluate("fds:lr=(0.1,):optimizer='sgd':weight_decay=(0.01,)", NOISY, [0], device="cpu")
    assert result.view["control"] == ("set-raw", "weight_decay")
    assert decoded(json.loads(json.dumps(encoded(result)))).view == result.view
    json.dumps(evaluate("metz2019-cpu", "digits-mlp:budget=10", [0], device="cpu").view)


def test_groups_are_parts_of_the_whole(reference: tuple[dict[str, bytes], list[Any]]) -> None:
    """Two cells for each row, each the run that it is alone; put together they are the row."""
    names = [(entry["cell"].get("agent"), entry["cell"].get("first_seed")) for entry in reference[1][1:]]
    rows = ["constant", "linear:peak=0.1", "learned", "learned"]
    assert names == [(None, None)] * 4 + [(row, first) for row in rows for first in (0, 3)]
    parts = [evaluate("linear:peak=0.1", NOISY, seeds, device="cpu") for seeds in (range(3), range(3, 5))]
    row = run(None).rows[1].result
    assert row is not None
    assert row.seeds.tolist() == list(range(SEEDS))
    np.testing.assert_array_equal(row.test_loss, np.concatenate([part.test_loss for part in parts]))
    np.testing.assert_array_equal(row.curves["lr"], np.concatenate([part.curves["lr"] for part in parts], 1))


def test_curves_of_runs_that_end_early_are_filled_up() -> None:
    whole = evaluate("constant:peak=[0.1, 1e38]", NOISY, [0, 1], device="cpu")
    parts = [evaluate(f"constant:peak={peak}", NOISY, [i], device="cpu") for i, peak in enumerate((0.1, 1e38))]
    assert len(parts[1].curves["lr"]) < len(parts[0].curves["lr"])
    for name, curve in joined(parts).curves.items():
        np.testing.assert_allclose(curve, whole.curves[name], rtol=1e-5)
    assert joined(parts).diverged.tolist() == [False, True]


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 9])
def test_interrupted_anywhere_it_ends_as_undisturbed(
    reference: tuple[dict[str, bytes], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    with monkeypatch.context() as patched:
        counted(patched, stop)
        with pytest.raises(
            KeyboardInterrupt, match=rf"{stop} finished cells are saved in .*cells.jsonl; the same command"
        ):
            run(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells.jsonl"]
    begun = counted(monkeypatch)
    reported(tmp_path / "out")
    assert len(begun) == 12 - stop, "nothing runs twice"
    assert (made(tmp_path / "out"), kept(tmp_path / "out")) == reference
    run(tmp_path / "out")
    assert len(begun) == 12 - stop
    assert made(tmp_path / "out") == reference[0]


def test_a_torn_end_is_cut_off(reference: tuple[dict[str, bytes], list[Any]], tmp_path: Path) -> None:
    """At every kind of place: in the header, after it, in a cell, at a line's end, and behind what the disk lost."""
    run(tmp_path)
    whole = (tmp_path / "cells.jsonl").read_bytes()
    header = whole.index(b"\n")
    middle, end = len(whole) // 2, len(whole)
    for place, rest in (
        (0, b""), (header, b""), (header + 1, b""), (header + 50, b""), (middle, b""), (middle, b"\0\0\n"),
        (end - 1, b""), (end, b"\0" * 9),
    ):  # fmt: skip
        (tmp_path / "cells.jsonl").write_bytes(whole[:place] + rest)
        run(tmp_path)
        assert kept(tmp_path) == reference[1], (place, rest)


@pytest.mark.parametrize("call", [1, 2, 6])
def test_a_full_disk_costs_nothing_that_was_done(
    reference: tuple[dict[str, bytes], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Half a line is written when the disk is full; the first call writes the header, before anything runs."""
    calls = 0

    def filling(path: Path, line: str) -> None:
        nonlocal calls
        calls += 1
        if calls < call:
            return append_line(path, line)
        with writing(path), path.open("a") as file:
            file.write(line[: len(line) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        begun = counted(patched)
        patched.setattr(cells, "append_line", filling)
        with pytest.raises(OSError, match=r"can't write .*cells.jsonl \(No space left on device\): make room"):
            run(tmp_path)
        assert len(begun) == call - 1
    reported(tmp_path)
    assert (made(tmp_path), kept(tmp_path)) == reference


def test_a_full_disk_leaves_the_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reported(tmp_path)
    before = made(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="can't write .*make room"):
        save_report(found, tmp_path)
    assert made(tmp_path) == before


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"seeds": 4}, "seeds 5, now 4"),
    ({"task": make_task(NOISY, budget=25)}, "task's budget 20, now 25"),
    (
        {"task": make_task(NOISY, initial_lr=LogUniform(0.1, 1.0)), "initial_lrs": ()},
        "task's initial_lr.*; initial_lr ",
    ),
    ({"agents": AGENTS[:2]}, 'agents .*"learned".*, now '),
    ({"agents": (AGENTS[0], *AGENTS[:0:-1])}, "agents "),
    ({"initial_lrs": (0.1,)}, "initial_lr "),
    ({"tuning_seeds": (10_001, 10_002)}, "tuning_seeds"),
    ({"baseline": "learned"}, 'baseline "constant", now "learned"'),
]


@pytest.mark.parametrize(("settings", "message"), OTHERS)
def test_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        begun = counted(patched)
        with pytest.raises(FileExistsError, match=f"holds a comparison with other settings: {message}.*--overwrite"):
            run(tmp_path, **settings)
        assert begun == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(tmp_path, **settings, overwrite=True)
    run(tmp_path / "other", **settings)
    assert kept(tmp_path) == kept(tmp_path / "other")


def widened(width: int) -> networks.NetworkFactory:
    return networks.mlp(width)


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        ({"network": widened(2)}, {"network": widened(3)}, "network"),
        ({"network": lambda _, k: nn.Linear(4, 3)}, {"network": lambda _, k: nn.Linear(4, 5)}, "network"),
        ({"optimizer": adam(eps_root=1e-8)}, {"optimizer": adam(eps_root=1e-4)}, "optimizer"),
        (
            {"optimizer": LearnedOptimizer(torch.zeros(Architecture().size))},
            {"optimizer": LearnedOptimizer(torch.ones(Architecture().size))},
            "optimizer",
        ),
    ],
)
def test_functions_of_one_name_are_told_apart_by_what_they_hold(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], what: str
) -> None:
    """Else a comparison would go on with the results of another network or optimizer, without a word."""
    one, same, other = (comparison.described_setting(make_task(NOISY, **each)) for each in (before, before, now))
    with Cells(tmp_path / "cells.jsonl", {"task": one}, {}):
        pass
    with Cells(tmp_path / "cells.jsonl", {"task": same}, {}):
        pass
    with pytest.raises(FileExistsError, match=f"with other settings: task's {what}"):
        Cells(tmp_path / "cells.jsonl", {"task": other}, {})


def test_another_machine_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(comparison.torch, "get_num_threads", lambda: 3)
    with pytest.raises(FileExistsError, match="threads 1, now 3"):
        run(tmp_path)


def test_a_controller_that_was_trained_again_is_another(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    bytes_ = (Path(__file__).parents[1] / "agents" / "learned_optimizer" / "metz2019-cpu.safetensors").read_bytes()
    path.write_bytes(bytes_)
    task = make_task("digits-logreg", budget=10)
    run(tmp_path / "out", task=task, agents=[path], seeds=1)
    tensors, metadata = controller_file.read(path)
    controller_file.write(path, {name: 2 * tensor for name, tensor in tensors.items()}, metadata)
    with pytest.raises(FileExistsError, match="files's .*c.safetensors"):
        run(tmp_path / "out", task=task, agents=[path], seeds=1)


def test_nothing_foreign_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds summary.json of another program.*--overwrite"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    (tmp_path / "cells.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match="is no comparison of lrenv's"):
        run(tmp_path)
    assert (tmp_path / "summary.json").read_text() == "mine"
    reported(tmp_path, overwrite=True)
    assert (tmp_path / "summary.json").read_text() != "mine"


@pytest.mark.parametrize("damage", [b"x", b'{"cell": 1', b"[]"])
def test_damage_in_the_midst_is_told(tmp_path: Path, damage: bytes) -> None:
    run(tmp_path)
    lines = (tmp_path / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_bytes(b"".join([*lines[:3], damage + b"\n", *lines[4:]]))
    with pytest.raises(ValueError, match=r"cells.jsonl is damaged at line 4; --overwrite starts anew"):
        run(tmp_path)
    lines[3] = lines[3].replace(b'"seeds"', b'"sends"')
    (tmp_path / "cells.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"cells.jsonl is damaged at line 4 .*'seeds'.*--overwrite"):
        run(tmp_path)


def test_a_folder_that_cannot_be_made_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = counted(monkeypatch)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"can't write .*file/out/cells.jsonl \(Not a directory\): .*another place"):
        run(tmp_path / "file" / "out")
    (tmp_path / "taken" / "cells.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"can't write .*taken/cells.jsonl \(Is a directory\)"):
        run(tmp_path / "taken")
    assert begun == []


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Cells(tmp_path / "cells.jsonl", {}, {}),
        pytest.raises(OSError, match=r"another process writes .*cells.jsonl; wait for it, or choose another --out"),
    ):
        Cells(tmp_path / "cells.jsonl", {}, {})
    with Cells(tmp_path / "cells.jsonl", {}, {}) as again:
        assert len(again) == 0


@pytest.mark.parametrize("where", ["first", "last"])
def test_an_agent_that_fails_has_a_row_and_the_rest_goes_on(tmp_path: Path, where: str) -> None:
    agents = ["broken", *AGENTS] if where == "first" else [*AGENTS, "broken"]
    found = reported(tmp_path / "out", agents=agents)
    rows = {row.label: row for row in found.rows}
    failing, others = (
        ["broken from 0.1", "broken from 0.01"],
        ["constant", "linear", "learned from 0.1", "learned from 0.01"],
    )
    assert list(rows) == [*failing, *others] if where == "first" else [*others, *failing]
    broken = rows["broken from 0.01"]
    assert [row.label for row in found.failed] == ["broken from 0.1", "broken from 0.01"]
    assert broken.failure.startswith(
        "agent 'broken from 0.01' on task 'noisy-quadratic', decision 3 (inner step 10), environments 0, 1, 2 "
        "(seeds 0, 1, 2): predict raised KeyError: 'what it needs' (test_cells.py:"
    )
    without = {row.label: row for row in run(None).rows}
    for label, row in without.items():
        result = rows[label].result
        assert row.result is not None
        assert result is not None
        np.testing.assert_array_equal(result.test_loss, row.result.test_loss)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td colspan=6 class=failed>failed: agent &#x27;broken from 0.01&#x27; on task" in page
    assert ("for the baseline, broken from 0.1, failed." in page) == (where == "first")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["agent"] for entry in summary if "failure" in entry] == ["broken from 0.1", "broken from 0.01"]
    assert all(row.paired is None for row in found.rows) == (where == "first")


def test_everybody_may_fail(tmp_path: Path) -> None:
    found = reported(tmp_path, agents=["broken"])
    assert len(found.failed) == 2
    assert found.best == []
    assert "failed: agent" in (tmp_path / "report.html").read_text()


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Learned, "view", {"control": "scale"})
        found = run(tmp_path)
        assert [row.label for row in found.failed] == ["learned"]
        assert "must have a `view`" in found.failed[0].failure
        assert "it has a dict" in found.failed[0].failure
    begun = counted(monkeypatch)
    assert run(tmp_path).failed == []
    assert set(begun) == {"learned from 0.1", "learned from 0.01"}


def test_a_grid_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "grid_of", lambda name: {"peak": (1e37, 1e38)})
    found = run(None)
    assert "runs diverge with all 2 settings of its grid (peak)" in found.rows[0].failure
    assert [row.result is None for row in found.rows] == [True, False, False, False]


KILLED = """
import sys
from lrenv import cli
sys.argv = ["lrenv", "compare", *sys.argv[1:]]
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_undisturbed(tmp_path: Path) -> None:
    """Kill -9, the first second among the moments, until an attempt gets to the end; twice over."""
    rng = random.Random(0)
    agents = "constant,cosine:peak=0.01,sgd-hd:initial_lr=0.1:beta=1e-3"
    command = [sys.executable, "-c", KILLED, "--task", "digits-mlp", "--agents", agents, "--out"]

    def attempt(out: Path, seconds: float | None) -> int:
        with subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
            try:
                return child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                return child.wait()

    begin = time.monotonic()
    assert attempt(tmp_path / "whole", None) == 0
    whole = time.monotonic() - begin
    for number in range(2):
        out = tmp_path / str(number)
        codes = [attempt(out, rng.uniform(0, 1))]
        while codes[-1]:
            codes.append(attempt(out, rng.uniform(0.3, 1.3) * whole))
        assert codes[0] == -signal.SIGKILL
        for name in FILES[:3]:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        page = (out / "report.html").read_text()
        assert page == (tmp_path / "whole" / "report.html").read_text().replace(str(tmp_path / "whole"), str(out))


class Versioned(BaseAgent[tuple[()]]):
    """An agent with a grid, of which there are two versions."""

    version = 1
    view = View(control="set-raw", observe="clock")
    grid: ClassVar[Any] = {"peak": (0.1, 0.2)}

    def __init__(self, peak: Any) -> None:
        self.peak = peak

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return np.broadcast_to(self.peak * self.version, len(observation))[:, None], carry


def test_another_version_of_an_agent_is_tuned_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advertise: Callable[[str, str], None]
) -> None:
    advertise("versioned", f"{__name__}:Versioned")
    made = {}
    for version, folder in ((1, "same"), (8, "same"), (8, "fresh")):
        monkeypatch.setattr(Versioned, "version", version)
        row = compare(NOISY, ["versioned"], 2, device="cpu", out=tmp_path / folder).rows[0]
        made[version, folder] = row.settings
    assert made[8, "same"] == made[8, "fresh"] != made[1, "same"]
