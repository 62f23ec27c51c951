"""The command line: exit statuses, messages that help, and files where they were asked for."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import lrenv
import lrenv.agents
from lrenv import cli, listing
from lrenv.agents import View
from lrenv.controllers.agent import agent_factory
from lrenv.data.types import DataCorrupt
from lrenv.envs.actions import KINDS
from lrenv.envs.observations import OBSERVATIONS
from lrenv.envs.rewards import REWARDS
from lrenv.runtime.process import SIGNALS
from lrenv.runtime.progress import progress
from lrenv.training.optimizers import OPTIMIZERS
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def lrenv_command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lrenv", *arguments])
        return cli.main()

    return lrenv_command


@dataclass(frozen=True)
class Settings:
    """Settings of a made-up command."""

    rate: float = 0.1
    """A rate."""


@dataclass(frozen=True)
class Others:
    """Settings of another."""


def run(monkeypatch: pytest.MonkeyPatch, function: Callable[[Settings], Any], *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["program", "made-up", *arguments])
    return cli.run({"made-up": (Settings, function), "other": (Others, lambda _: None)}, "A made-up program.")


def test_run_hands_over_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Settings] = []
    assert run(monkeypatch, got.append, "--rate", "0.5") == 0
    assert run(monkeypatch, got.append) == 0
    assert got == [Settings(0.5), Settings(0.1)]


@pytest.mark.parametrize(
    "kind",
    [
        ValueError, TypeError, OSError, FileNotFoundError, ModuleNotFoundError, MemoryError, OverflowError,
        gym.error.NameNotFound, torch.OutOfMemoryError,
    ],
)  # fmt: skip
def test_errors_of_the_user_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    def fail(_: Settings) -> None:
        raise kind("do that\n instead")

    assert run(monkeypatch, fail) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: do that instead\n"


def test_an_error_that_says_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Settings) -> None:
        raise MemoryError

    assert run(monkeypatch, fail) == 2
    assert capsys.readouterr().err == "error: MemoryError\n"


def test_our_own_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Settings) -> None:
        raise AssertionError("a defect")

    with pytest.raises(AssertionError, match="a defect"):
        run(monkeypatch, fail)


@pytest.mark.parametrize("signal_number", SIGNALS)
def test_interruptions_end_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signal_number: signal.Signals
) -> None:
    cleaned: list[bool] = []
    # What a process in the background, or below nohup, was told to ignore, it goes on to ignore.
    before = signal.signal(signal_number, signal.default_int_handler)

    def interrupted(_: Settings) -> None:
        try:
            os.kill(os.getpid(), signal_number)
            for _number in range(10_000_000):  # the handler runs between two bytecodes
                pass
        finally:
            cleaned.append(True)

    try:
        assert run(monkeypatch, interrupted) == 128 + signal_number
        assert signal.getsignal(signal_number) is signal.default_int_handler
    finally:
        signal.signal(signal_number, before)
    assert cleaned == [True]
    assert capsys.readouterr().err == "interrupted\n"


def test_memory_is_predicted_for_the_data_that_is_there(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(listing, "tasks", lambda: ("two-minima", "digits-mlp", "folder-lenet"))
    assert call("tasks", "--memory", "--envs", "1000") == 0
    text = capsys.readouterr().out
    assert "folder-lenet" not in text
    memory = Trainee(make_task("digits-mlp")).memory
    line = next(line for line in text.splitlines() if "digits-mlp" in line)
    assert [cell.strip() for cell in line.split("│")][2] == f"{memory.data / 2**20:,.1f}"
    assert call("tasks", "--memory", "--envs", "0") == 2


def test_a_broken_task_is_told_in_its_row(monkeypatch: Any, toy: Callable[..., Task]) -> None:
    def damaged() -> Any:
        raise DataCorrupt("x.gz is truncated; fetch it again")

    def broken(name: str) -> Task:
        if name == "broken":
            raise ZeroDivisionError("of its package")
        return replace(toy(), data=damaged) if name == "damaged" else make_task(name)

    monkeypatch.setattr(listing, "tasks", lambda: ("damaged", "broken", "two-minima"))
    monkeypatch.setattr(listing, "make_task", broken)
    for table, number in ((listing.memory(3), 2), (listing.tasks_table(), 1)):
        names, told = ([str(cell) for cell in column.cells] for column in table.columns[:2])
        assert names == ["damaged", "broken", "two-minima"]
        assert "ZeroDivisionError: of its package" in told[1]
        assert ("x.gz is truncated" in told[0]) is (number == 2), "data are read for the memory alone"
        assert told[2][0].isdigit() is (number == 2)


def test_tasks_are_listed(call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call("tasks") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in lrenv.tasks():
        task = lrenv.make_task(name)
        row = next(line for line in lines if [cell.strip() for cell in line.split("│")][1:2] == [name])
        assert task.summary in row
        assert str(task.budget) in row


def test_agents_are_listed(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("agents") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2:2]] == list(lrenv.agents.agents()), "two lines for each"
    said = {name: second.strip() for name, second in zip(lrenv.agents.agents(), lines[1::2], strict=False)}
    assert said["cosine"] == (
        "settings: peak, floor=0.0, warmup=0, fan_in=None, weight_decay=None; lrenv compare tunes peak, warmup if "
        "nothing is set"
    )
    assert said["ppo"] == "the path of a controller file of `lrenv train ppo` instead of the name"
    assert said["fds"].startswith("settings: lr, momentum=(), weight_decay=(), optimizer='momentum'; the path of")
    assert said["metz2019-cpu"] == "no settings"


def test_agents_that_are_tuned_say_what_can_be_set() -> None:
    lines = listing.agents_lines(())
    for name, second in zip(lrenv.agents.agents(), lines[1::2], strict=False):
        settings, _, rest = second.strip().removeprefix("settings: ").partition("; ")
        grid = getattr(agent_factory(name), "grid", {})
        assert set(grid) <= {setting.partition("=")[0] for setting in settings.split(", ")}, name
        assert not grid or rest == f"lrenv compare tunes {', '.join(grid)} if nothing is set"


def test_the_version(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"lrenv {version('lrenv')}\n"


def test_compare_writes_a_report(call: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "compare"
    arguments = ("--task", "noisy-quadratic", "--budget", "20", "--seeds", "2", "--device", "cpu", "--out", str(out))
    assert call("compare", "--agents", "constant:peak=0.1, cosine:peak=0.1:warmup=10", *arguments) == 0
    printed = capsys.readouterr().out
    assert f"report: {out / 'report.html'}" in printed.replace("\n", "")
    assert "noisy-quadratic: 20 steps of batch 8, 2 seeds" in printed
    runs = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(run["agent"], run["seed"]) for run in runs] == [(a, s) for a in ("constant", "cosine") for s in (0, 1)]
    assert "lrenv compare" in (out / "report.html").read_text()


def halving(observation: Any) -> Any:
    return np.full((len(observation), 1), -1.0, np.float32)


class Failing:
    """An agent that forgets its memory."""

    view = View(control="scale", observe="clock")

    def predict(self, observation: Any, *_: Any, **__: Any) -> Any:
        return halving(observation)


SHORT = ("--task", "noisy-quadratic:budget=20", "--seeds", "2", "--device", "cpu")


def test_an_agent_that_fails_is_told_at_the_end(
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    advertise: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    advertise("failing", f"{__name__}:Failing")
    asked = ("compare", *SHORT, "--out", str(tmp_path))
    assert call(*asked, "--agents", "failing,constant:peak=0.1", "--initial-lr", "0.1") == 2
    out, err = capsys.readouterr()
    assert "failing from 0.1 (failed)" in " ".join(out.split())
    told = "failing from 0.1 failed: agent 'failing from 0.1' on task 'noisy-quadratic', decision 1"
    assert told in " ".join(out.split())
    assert "constant" in out
    last = err.splitlines()[-1]
    assert last == (
        "error: failing from 0.1 failed, as the table says; the same command tries again, and keeps what has run"
    )
    assert (tmp_path / "report.html").exists()


def test_the_same_command_goes_on_and_another_is_refused(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ("compare", *SHORT, "--out", str(tmp_path), "--agents")
    assert call(*asked, "constant:peak=0.1") == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["cells.jsonl", "comparison.png", "report.html", "results.jsonl", "summary.json"]
    shown = capsys.readouterr().out
    assert call(*asked, "constant:peak=0.1") == 0
    assert capsys.readouterr().out == shown
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first, "seconds too: nothing ran"
    assert call(*asked, "constant:peak=0.2") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert 'agents ["constant:peak=0.1"], now ["constant:peak=0.2"]' in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert call(*asked, "constant:peak=0.2", "--overwrite") == 0


def test_paths_and_tuples_are_named_in_commands(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ["runs/2026-11-26T12:21:20", "runs/lr=0.1,seed=0", "C:\\runs\\x"]
    source = Path(lrenv.__file__).parents[1] / "agents" / "learned_optimizer" / "metz2019-cpu.safetensors"
    for folder in folders:
        Path(folder).mkdir(parents=True)
        shutil.copy(source, Path(folder) / "controller.safetensors")
    names = ",".join([*(f"{folder}/controller.safetensors" for folder in folders), "fds:lr=(0.1,):optimizer=None"])
    assert call("compare", "--task", "digits-logreg:budget=10", "--seeds", "1", "--agents", names) == 0
    runs = [json.loads(line) for line in Path("runs/compare/results.jsonl").read_text().splitlines()]
    assert [run["agent"] for run in runs] == ["2026-11-26T12:21:20", "lr=0.1,seed=0", "C:\\runs\\x", "fds"]
    assert len({run["test_loss"] for run in runs}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--task", "digits-mpl"), "unknown task 'digits-mpl': did you mean 'digits-mlp'"),
        (("compare", "--agents", "constnt"), "unknown agent 'constnt': did you mean 'constant'"),
        (("compare", "--agents", ""), "name at least one agent"),
        (
            ("compare", "--agents", "missing.safetensors"),
            "no controller file missing.safetensors; `lrenv train --help` says how to train one",
        ),
        (("compare", "--seeds", "0"), "seeds must be at least 1"),
        (("compare", "--initial-lr", "0.1,fast"), "--initial-lr takes numbers separated by commas"),
        (("compare", "--initial-lr", "-1"), "initial_lr must be at least 0"),
        (("compare", "--budget", "0"), "budget must be at least 1"),
        (("compare", "--device", "abacus", "--agents", "constant:peak=0.1"), "device='abacus' can't be used here"),
        (("compare", "--out", "/dev/null/x", "--agents", "constant:peak=0.1"), "can't write /dev/null/x/cells.jsonl ("),
        (("compare", "--agents", "constant:peak=(0.1"), "lacks a closing )"),
        (("compare", "--agents", "runs/lr=0.1/controller"), "neither name:key=value:key=value, nor my_file.py:name"),
        (("compare", "--agents", "runs/lr=0.1,seed=0/controller.safetensors"), "'runs/lr=0.1' is neither"),
        (
            ("compare", "--task", "digits-mlp,mnist1d-mlp"),
            "compare takes one task, not 2; `lrenv benchmark --tasks digits-mlp,mnist1d-mlp` takes several",
        ),
        (("compare", "--task", "a b"), "'a b' is neither name:key=value:key=value"),
        (("compare", "--task", "digits-mlp:bugdet=5"), "unknown setting of a task 'bugdet': did you mean 'budget'"),
        (("download", "fashion-mnistt"), "fashion-mnist"),
    ],
)
def test_bad_input_is_told(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compair",), "compare"),
        (("compare", "--seed", "3"), "--seeds"),
        (("compare", "--seeds", "three"), "--seeds"),
        ((), "compare"),
    ],
)
def test_bad_usage_ends_with_2(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_explains_every_setting(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call("compare", "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The task: a name from `lrenv tasks`, name:setting=value, or my_tasks.py:name" in text
    assert "How many runs each agent makes." in text


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [(("compare",), ("task", "agents")), (("train", "ppo"), ("task", "optimizer", "control", "observe", "reward"))],
)
def test_help_lists_the_choices(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    names = {
        "task": lrenv.tasks(), "agents": lrenv.agents.agents(), "optimizer": tuple(OPTIMIZERS),
        "control": tuple(KINDS), "observe": tuple(OBSERVATIONS), "reward": tuple(REWARDS),
    }  # fmt: skip
    with pytest.raises(SystemExit):
        call(*arguments, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for setting, known in names.items():
        assert (f"--{setting}: {', '.join(known)}" in text) == (setting in settings), setting


def test_the_script_of_the_checkout_is_the_command(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[1] / "train_controller.py"
    shown = []
    for program in (("train_controller.py", "fds", "--help"), ("lrenv", "train", "fds", "--help")):
        monkeypatch.setattr(sys, "argv", list(program))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__") if program[0].endswith(".py") else cli.main()
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out.replace("train_controller.py fds", "lrenv train fds"))
    assert shown[0] == shown[1]
    assert "--outer-steps" in shown[0]


def test_every_training_is_a_command(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "--help")
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in ("ppo", "fds", "noh", "dmopt", "learned-optimizer"))
    with pytest.raises(SystemExit) as ended:
        call("train", "pop")
    assert ended.value.code == 2
    assert "ppo" in capsys.readouterr().err


@dataclass(frozen=True)
class ForeignSettings:
    """Settings of a training of another package."""

    rate: float = 0.1
    """A rate."""


TRAINED: list[ForeignSettings] = []


def foreign_training(settings: ForeignSettings) -> None:
    TRAINED.append(settings)


def test_trainings_of_other_packages_are_commands(call: Callable[..., int], advertise: Callable[..., None]) -> None:
    TRAINED.clear()
    advertise("foreign", f"{__name__}:foreign_training", "lrenv.trainings")
    assert call("train", "foreign", "--rate", "0.5") == 0
    assert [settings.rate for settings in TRAINED] == [0.5]


@pytest.mark.parametrize("command", [("compare",), ("train", "ppo"), ("train", "noh")])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_refused(
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    empty: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("--out", empty), (f"--out={empty}",)):
        with pytest.raises(SystemExit) as ended:
            call(*command, *arguments)
        assert ended.value.code == 2
        assert "an empty path would be the current folder" in " ".join(
            capsys.readouterr().err.replace("│", " ").split()
        )
    assert list(tmp_path.iterdir()) == []


def test_a_training_from_the_command_line(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def command(*arguments: str) -> int:
        small = ("--task", "noisy-quadratic", "--budget", "6", "--interval", "3", "--envs", "2", "--eval-seeds", "1")
        return call("train", "ppo", "--out", str(tmp_path), "--device", "cpu", *small, *arguments)

    assert command("--episodes", "4") == 0
    assert (tmp_path / "controller.safetensors").exists()
    capsys.readouterr()
    assert command("--episodes", "4") == 2
    assert "--resume, --overwrite" in capsys.readouterr().err
    assert command("--episodes", "8", "--resume") == 0
    told = capsys.readouterr()
    assert told.out == f"controller: {tmp_path / 'controller.safetensors'}\n"
    assert "finished" not in told.err
    assert command("--resume") == 0
    again = capsys.readouterr()
    assert again.out == told.out
    assert again.err.startswith("8/8 episodes, 0 s  it was finished; a larger --episodes goes further  held-out best ")
    assert command("--observe", "dynamic", "--overwrite") == 2
    assert "did you mean 'dynamics'" in capsys.readouterr().err


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "things") as report:
        for done in range(1, 4):
            report(done, f"at {done}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1/3 things, 0 s  at 1", "3/3 things, 0 s  at 3"], "the first, the last, and few between"


def test_progress_in_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress(4, "things", done=1) as report:
        report(4, "finished")
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "finished" in shown


@pytest.mark.parametrize(
    ("columns", "status", "bar"), [(80, "a" * 20, True), (80, "a" * 60, False), (120, "a" * 90, False), (60, "", True)]
)
def test_progress_keeps_count_and_time_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, status: str, bar: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress(1024, "episodes", done=1) as report:
        report(512, status)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err.rsplit("\n", 2)[-2]).rsplit("\r", 1)[-1]
    told = re.fullmatch(r"(━*[╸╺]?━*) *512/1024 episodes \d:\d\d:\d\d < [-:0-9]+ (a*)(…?) *", last)
    assert told, last
    assert bool(told[1]) is bar
    assert (told[2], told[3]) == (status, "") if bar else len(last) == columns and told[3]


def test_progress_within_progress_shares_its_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    for _ in range(2):
        with progress(2, "trainings") as outer:
            outer(1, "the first")
            with progress(7, "updates") as inner:
                inner(3, "going on")
            outer(2, "the second")
        last = capsys.readouterr().err.rsplit("\n", 2)[-2]
        assert "2/2" in last
        assert "the second" in last
