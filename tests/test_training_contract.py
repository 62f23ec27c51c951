"""What holds for every training: interrupted anywhere it ends as one that was not, and nothing is lost on the way."""

from __future__ import annotations

import csv
import importlib
import inspect
import itertools
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import kill_minus_nine
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lrenv.agents.outer.folder
import lrenv.agents.outer.log
import xu2019_training
from lrenv.agents import make_agent
from lrenv.agents.fds.random_search import schedule_training
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.fds.training import ScheduleTraining
from lrenv.agents.learned_optimizer import training as learned_optimizer_training
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining
from lrenv.agents.noh import training as noh_training
from lrenv.agents.noh.agent import NOH, DMopt
from lrenv.agents.noh.evolution import lstm_training
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.noh.training import NOHTraining
from lrenv.agents.outer import training as outer_training
from lrenv.agents.outer.log import CSVLog, EventLog
from lrenv.agents.outer.settings import OuterSettings
from lrenv.agents.outer.training import Training, train
from lrenv.agents.ppo.multi_task import ppo_training
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PolicyTraining, PPOTraining
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.controller_file import ControllerFileError
from lrenv.randomness.seeds import RANGES, TRAINING, seeds_for
from lrenv.runtime.process import SIGNALS, interruptible, status_of
from lrenv.training.trainee import Trainee

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"eval_every": 2, "eval_seeds": 2, "device": "cpu"}
PPO: dict[str, Any] = SMALL | {
    "task": "noisy-quadratic", "envs": 4, "episodes": 16, "budget": 12, "interval": 3, "hidden": 8, "epochs": 2,
    "minibatch": 8,
}  # fmt: skip
LSTMS: dict[str, Any] = SMALL | {
    "task": "digits-logreg", "envs": 2, "budget": 9, "unroll": 3, "meta_iterations": 3, "hidden": 4, "layers": 2,
}  # fmt: skip
POPULATIONS: dict[str, Any] = SMALL | {
    "task": "digits-logreg", "pairs": 2, "budget": 9, "interval": 2, "meta_iterations": 3, "hidden": 4, "layers": 2,
}  # fmt: skip
LEARNED: dict[str, Any] = SMALL | {
    "task": "digits-mlp", "budget": 12, "interval": 3, "first_unroll": 3, "curriculum": 4, "updates": 5, "workers": 2,
    "pairs": 2, "hidden": 4, "val_examples": 50, "network": "mlp", "widths": "3,5", "classes": 4, "problems": 2,
    "held_out": 1,
}  # fmt: skip
SCHEDULES: dict[str, Any] = SMALL | {
    "task": "digits-mlp", "budget": 12, "interval": 3, "val_examples": 20, "segments": 3, "trainees": 2,
    "outer_steps": 4,
}  # fmt: skip

DRAWN: dict[str, Any] = SMALL | {
    "updates": 4, "tasks": 1, "pairs": 2, "hidden": 4, "eval_tasks": 1, "limit": 5e8, "seed": 277,
}  # fmt: skip
"""The tasks that this seed draws first have 800 inner steps in all, fewer than those of any other below 400."""


class Case(NamedTuple):
    """A kind of training, at a size of a fraction of a second."""

    kind: Callable[[Any], Training[Any]]
    settings: Callable[..., OuterSettings]

    def train(self, out: Path, **others: Any) -> Path:
        return train(self.kind, self.settings(out=out, **others))


CASES = {
    "ppo": Case(PPOTraining, partial(PPOSettings, **PPO)),
    "ppo, discrete": Case(PPOTraining, partial(PPOSettings, **PPO, control="discrete")),
    "ppo, LSTM": Case(PPOTraining, partial(PPOSettings, **PPO, lstm=True)),
    "ppo, LSTM, out of step": Case(
        PPOTraining, partial(PPOSettings, **PPO | {"budget": 120, "interval": 30}, control="set", lstm=True)
    ),
    "ppo, tasks": Case(
        ppo_training,
        partial(
            PPOSettings,
            **{name: x for name, x in PPO.items() if name not in ("task", "budget", "interval")},
            groups=2,
            rollout=3,
            tasks="noisy-quadratic:budget=12:interval=3,noisy-quadratic:budget=10:interval=2",
        ),
    ),
    "ppo, xu2019": Case(xu2019_training.Timed, partial(PPOSettings, **PPO, **xu2019_training.SETTINGS["ours"])),
    "noh": Case(partial(NOHTraining, NOH), partial(NOHSettings, **LSTMS, interval=2)),
    "dmopt": Case(partial(NOHTraining, DMopt), partial(DMoptSettings, **LSTMS, interval=1)),
    "noh, ES": Case(partial(lstm_training, NOH), partial(NOHSettings, **POPULATIONS, estimator="es", per="layer")),
    "noh, PES": Case(partial(lstm_training, NOH), partial(NOHSettings, **POPULATIONS, estimator="pes", unroll=3)),
    "merged": Case(LearnedOptimizerTraining, partial(LearnedOptimizerSettings, **LEARNED)),
    "pes": Case(
        LearnedOptimizerTraining, partial(LearnedOptimizerSettings, **LEARNED, estimator="pes", objective="valid")
    ),
    "universal": Case(UniversalTraining, partial(UniversalSettings, **DRAWN)),
} | {
    method: Case(schedule_training, partial(FDSSettings, **SCHEDULES | own, method=method))
    for method, own in {"fds": {}, "greedy": {}, "truncated": {"window": 5}, "random": {}}.items()
}
ONE_OF_EACH = ("ppo", "noh", "merged", "fds", "random")


def kinds(base: type[Training[Any]] = Training) -> set[type[Training[Any]]]:
    """All kinds of training that there are, those of reproductions among them."""
    below = {kind for kind in base.__subclasses__() if kind.__module__.split(".")[0] != __name__}
    return {kind for kind in below if not inspect.isabstract(kind)}.union(*map(kinds, below))


def test_every_kind_of_training_has_a_case(tmp_path: Path) -> None:
    for module in (ROOT / "agents").rglob("training.py"):
        importlib.import_module(".".join(("lrenv", *module.relative_to(ROOT).with_suffix("").parts)))
    for script in (ROOT / "reproductions").glob("*.py"):
        importlib.import_module(script.stem)
    assert kinds() == {type(case.kind(case.settings(out=tmp_path))) for case in CASES.values()}


class Run(NamedTuple):
    """A training that was not disturbed."""

    out: Path
    batches: int
    """How often batches were drawn."""


def counted(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None]) -> None:
    """Does something whenever batches are drawn, which all trainings do all the time; hands over how often."""
    draw, calls = Trainee.batch_indices, itertools.count(1)

    def counting(self: Trainee, *arguments: Any) -> Any:
        then(next(calls))
        return draw(self, *arguments)

    monkeypatch.setattr(Trainee, "batch_indices", counting)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A function that gives the whole run of a case."""
    runs: dict[str, Run] = {}

    def whole(name: str) -> Run:
        if name not in runs:
            out, batches = tmp_path_factory.mktemp("whole") / "run", []
            with pytest.MonkeyPatch.context() as patched:
                counted(patched, batches.append)
                CASES[name].train(out)
            runs[name] = Run(out, len(batches))
        return runs[name]

    return whole


def log(out: Path) -> list[dict[str, str]]:
    with (out / "progress.csv").open() as file:
        return [{name: x for name, x in row.items() if "time" not in name} for row in csv.DictReader(file)]


def assert_same(one: Path, other: Path) -> None:
    """Files and logs of two trainings, to the last bit, but for the name of the folder."""
    for name in ("controller.safetensors", "checkpoint.safetensors"):
        (a, first), (b, second) = (controller_file.read(out / name) for out in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].numpy().tobytes() == b[key].numpy().tobytes(), f"{name}: {key}"
        apart = ("checksum",)
        for metadata in (first, second):
            metadata["settings"].pop("out", None)
        assert {k: v for k, v in first.items() if k not in apart} == {k: v for k, v in second.items() if k not in apart}
    assert log(one) == log(other)
    ours, theirs = (sorted(p.name for p in out.iterdir() if "tfevents" not in p.name) for out in (one, other))
    assert ours == theirs == ["checkpoint.safetensors", "controller.safetensors", "progress.csv"]


def again(case: Case, out: Path) -> None:
    """As whoever was interrupted goes on."""
    torch.manual_seed(99)  # what others leave in the global random states must not matter
    np.random.seed(99)  # noqa: NPY002
    case.train(out, resume=(out / "checkpoint.safetensors").exists())


class Killed(BaseException):
    """Ends a training as kill -9 does: nothing is written on the way out."""


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(name, share, marks=[pytest.mark.slow] * (name not in ONE_OF_EACH and share != 0.45))
        for name in CASES for share in (0.02, 0.45, 0.9)
    ],
)  # fmt: skip
def test_interrupted_anywhere_it_ends_as_one_that_was_not(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    """In the middle of an iteration, in the middle of a validation, before the first and after the last."""
    whole, case = undisturbed(name), CASES[name]
    at = max(2, round(share * whole.batches))

    def interrupt(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        counted(patched, interrupt)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            case.train(tmp_path / "run")
    assert "are saved; --resume" in str(interrupted.value) or not (tmp_path / "run").exists()
    again(case, tmp_path / "run")
    assert_same(whole.out, tmp_path / "run")


WRITES = (
    (controller_file, "write"), (lrenv.agents.outer.log, "replace_file"), (lrenv.agents.outer.log, "append_line"),
    (os, "replace"), (Path, "unlink"),
)  # fmt: skip
"""All that changes the files of a training."""


def killed_before(monkeypatch: pytest.MonkeyPatch, write: int) -> list[str]:
    """Kills before the `write`th change of a file, and lets nothing be changed from there on; gives the changes."""
    made: list[str] = []

    def deadly(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **settings: Any) -> Any:
            made.append(name)
            if len(made) >= write:
                raise Killed
            return original(*arguments, **settings)

        return wrapped

    for owner, name in WRITES:
        monkeypatch.setattr(owner, name, deadly(name, getattr(owner, name)))
    return made


@pytest.mark.parametrize("name", ["random", pytest.param("ppo", marks=pytest.mark.slow)])
def test_killed_between_any_two_writes(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, case = undisturbed(name), CASES[name]
    for write in itertools.count(1):
        out = tmp_path / str(write)
        with monkeypatch.context() as patched:
            killed_before(patched, write)
            try:
                case.train(out)
            except Killed:
                pass
            else:
                break
        assert not (out / "controller.safetensors").exists() or (out / "checkpoint.safetensors").exists()
        again(case, out)
        assert_same(whole.out, out)
    assert write > 12


def test_killed_while_another_training_is_overwritten(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has found so far must not be taken for the new training's."""
    whole, case = undisturbed("random"), CASES["random"]
    other = tmp_path / "other"
    case.train(other, seed=7, outer_steps=6)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    for write in range(1, 9):
        out = tmp_path / str(write)
        shutil.copytree(other, out)
        with monkeypatch.context() as patched:
            killed_before(patched, write)
            with pytest.raises(Killed):
                case.train(out, overwrite=True)
        if write <= 2:  # the new training's first checkpoint was not in its place yet
            assert before.items() <= {path.name: path.read_bytes() for path in out.iterdir()}.items()
            continue
        again(case, out)
        assert_same(whole.out, out)


@pytest.mark.parametrize("torn", ["half a row", "a whole row more", "no header"])
def test_a_torn_log_costs_nothing_but_the_row(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    whole, case, out = undisturbed("random"), CASES["random"], tmp_path / "run"
    with monkeypatch.context() as patched:
        counted(patched, lambda number: stop() if number > 0.8 * whole.batches else None)

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            case.train(out)
    path = out / "progress.csv"
    text = path.read_text()
    done = controller_file.read_metadata(out / "checkpoint.safetensors")["iteration"]
    rows = text.splitlines(keepends=True)
    assert len(rows) in (done + 1, done + 2)
    if torn == "no header":
        path.write_text(rows[0][:20])
    else:
        path.write_text(text + (rows[-1].replace(str(done), "99")[:30] if torn == "half a row" else rows[-1]))
    again(case, out)
    if torn == "no header":
        assert [row["iteration"] for row in log(out)] == [row["iteration"] for row in log(whole.out)][done:]
    elif torn == "half a row":
        assert_same(whole.out, out)


def test_rows_are_appended_and_never_written_again(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    table, seen = CSVLog(path, 0), []
    for i in range(1, 5):
        table.write({"iteration": i, "x": 0.1 * i} | ({"late": 1} if i == 3 else {}), {})
        seen.append((path.stat().st_ino, path.read_text()))
    assert seen[1][0] == seen[0][0] != seen[2][0] == seen[3][0], "a new column alone writes the table anew, aside"
    assert seen[1][1].startswith(seen[0][1])
    assert seen[3][1].splitlines()[0] == "iteration,x,late"
    assert [row.count(",") for row in seen[3][1].splitlines()] == [2] * 5
    CSVLog(path, 2)
    assert path.read_text().splitlines() == seen[3][1].splitlines()[:3]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no log of a training: move it away"):
        CSVLog(path, 2)


def test_tensorboard_shows_each_iteration_once(tmp_path: Path) -> None:
    """A command that goes on after iteration 2 takes the place of what was logged beyond it."""
    for done, sign in ((0, 1), (2, -1)):
        events = EventLog(tmp_path, done)
        for i in range(done + 1, done + 4):
            events.write({"x/y": 0.5 * sign * i, "iteration": i}, {}, i)
        events.close()
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("x/y")] == [
        (1, 0.5), (2, 1.0), (3, -1.5), (4, -2.0), (5, -2.5),
    ]  # fmt: skip


def test_nothing_is_overwritten_unasked(undisturbed: Callable[[str], Run], tmp_path: Path) -> None:
    whole, case = undisturbed("random"), CASES["random"]
    for kept in ("controller.safetensors", "progress.csv", "checkpoint.safetensors"):
        out = tmp_path / kept
        out.mkdir()
        shutil.copy(whole.out / kept, out / kept)
        before = (out / kept).read_bytes()
        with pytest.raises(FileExistsError, match="--resume, --overwrite"):
            case.train(out)
        assert [path.name for path in out.iterdir()] == [kept]
        assert (out / kept).read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"nothing to resume.*leave --resume out"):
        case.train(tmp_path / "controller.safetensors", resume=True)
    case.train(tmp_path / "controller.safetensors", overwrite=True)
    assert_same(whole.out, tmp_path / "controller.safetensors")


def test_a_controller_of_another_checkpoint(undisturbed: Callable[[str], Run], tmp_path: Path) -> None:
    case, out = CASES["random"], tmp_path / "run"
    shutil.copytree(undisturbed("random").out, out)
    path = out / "controller.safetensors"
    tensors, metadata = controller_file.read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="put it back"):
        case.train(out, resume=True)
    controller_file.write(path, tensors, metadata | {"iteration": 99})
    with pytest.raises(FileNotFoundError, match="put it back"):
        case.train(out, resume=True)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_checkpoint_of_another_training_is_told_by_what_differs(
    undisturbed: Callable[[str], Run], tmp_path: Path, name: str
) -> None:
    case, out = CASES[name], tmp_path / "run"
    shutil.copytree(undisturbed(name).out, out)
    path = out / "checkpoint.safetensors"
    tensors, metadata = controller_file.read(path)
    first = sorted(tensors)[0]
    changes: dict[str, dict[str, torch.Tensor]] = {
        f"lacks '{first}'": {key: x for key, x in tensors.items() if key != first},
        "holds 'more'": tensors | {"more": torch.zeros(1)},
        f"as '{first}', where": tensors | {first: torch.zeros(5, 4, 3)},
    }
    for message, changed in changes.items():
        controller_file.write(path, changed, metadata)
        with pytest.raises(ControllerFileError, match=f"{message}.*another version of lrenv"):
            case.train(out, resume=True)
    kept = {key: value for key, value in metadata.items() if key != "values"}
    controller_file.write(path, tensors, kept)
    with pytest.raises(ControllerFileError, match=r"lacks 'values'.*another version of lrenv"):
        case.train(out, resume=True)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_outcome_is_marked_and_says_what_it_cost(undisturbed: Callable[[str], Run], name: str) -> None:
    whole = undisturbed(name)
    controller, checkpoint = (
        controller_file.read_metadata(whole.out / f"{kind}.safetensors") for kind in ("controller", "checkpoint")
    )
    each = 4 if name == "merged" else 2  # on each of two held-out problems
    assert controller["finished"] is checkpoint["finished"] is True
    rows = log(whole.out)
    validations = [float(row["eval/val_loss"]) for row in rows if row["eval/val_loss"]]
    assert controller["runs"] == {"training": int(rows[-1]["episodes"]), "selection": each * len(validations)}
    assert controller["val_loss"] == pytest.approx(min(validations), rel=1e-6)
    assert controller["episodes"] <= controller["runs"]["training"]
    assert make_agent(whole.out / "controller.safetensors").view


def test_a_training_under_way_is_not_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(lrenv.agents.outer.folder.Folder, "finish", lambda self, runs: pytest.fail("it has not ended"))
        step, calls = Training.validate, itertools.count(1)

        def validate(self: Training[Any]) -> dict[str, float]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return step(self)

        patched.setattr(Training, "validate", validate)
        with pytest.raises(KeyboardInterrupt):
            CASES["random"].train(tmp_path)
    for kind in ("controller", "checkpoint"):
        assert controller_file.read_metadata(tmp_path / f"{kind}.safetensors")["finished"] is False


@pytest.mark.parametrize("losses", [[math.nan, 2.0, 1.0], [math.inf, 2.0, 1.0], [3.0, math.nan, 1.0], [math.nan] * 3])
def test_a_loss_that_is_no_number_is_never_the_best_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float]
) -> None:
    order = iter(losses)
    monkeypatch.setattr(outer_training.Training, "held_out_loss", lambda self, controller: next(order))
    CASES["random"].train(tmp_path, eval_every=1, outer_steps=3)
    held = controller_file.read_metadata(tmp_path / "controller.safetensors")
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert held["val_loss"] == (min(finite) if finite else None)
    assert held["iteration"] == (losses.index(min(finite)) + 1 if finite else 1)
    CASES["random"].train(tmp_path, eval_every=1, outer_steps=3, resume=True)
    assert held == controller_file.read_metadata(tmp_path / "controller.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_every_iteration_trains_on_seeds_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """New ones in each iteration, of the training's own range; validation has its own, the same each time."""
    begun: list[set[int]] = []
    init = Trainee.init

    def noted(self: Trainee, seeds: Any) -> Any:
        begun[-1] |= set(map(int, seeds))
        return init(self, seeds)

    monkeypatch.setattr(Trainee, "init", noted)
    kind, settings = CASES[name].kind, CASES[name].settings(out=tmp_path)
    seen = {}
    for seed in (0, 3):
        chosen = CASES[name].settings(out=tmp_path, seed=seed)
        begun = [set()]
        training = kind(chosen)
        if isinstance(training, PolicyTraining):
            training.model.set_logger(Logger(None, []))
        for _ in range(6 if isinstance(training, NOHTraining) else 3):
            begun.append(set())
            training.iterate()
            training.iteration += 1
        own = [seeds for seeds in begun if seeds]
        assert len(own) >= 2 or name == "merged"
        used = set().union(*own)
        # Further episodes of an environment hash its seed into a number of 62 bits.
        ledger = range(TRAINING * (seed + 1), TRAINING * (seed + 2))
        assert {x for x in used if x < 2**40} <= set(ledger)
        assert min(used) == ledger[0]
        assert not used & {x for purpose in RANGES.values() for x in purpose}
        if name == "random":
            assert own == [{ledger[0]}] * 3, "schedules are all that differs"
        elif "out of step" not in name:  # there, episodes are prepared that may begin later
            assert sum(map(len, own)) == len(used), "no seed is used twice"
        seen[seed] = used
        begun.append(set())
        training.held_out_loss(training.controller())
        tasks = 2 if name == "ppo, tasks" else 1  # each has seeds of its own
        assert begun[-1] == set(seeds_for("validation", settings.eval_seeds * tasks))
    assert not seen[0] & seen[3]


def test_the_seeds_of_a_training_are_counted_from_0() -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        CASES["ppo"].settings(seed=-1)
    with pytest.raises(ValueError, match="there are 10000 seeds for validation"):
        CASES["ppo"].settings(eval_seeds=10_001)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_what_is_done(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Five at once, and two more while the last checkpoint is written."""
    whole, case = undisturbed("random"), CASES["random"]
    monkeypatch.setattr(outer_training, "CHECKPOINT_SECONDS", math.inf)
    write = controller_file.write
    before = {each: signal.signal(each, signal.default_int_handler) for each in SIGNALS}
    burst = False

    def signals(drawn: int) -> None:
        nonlocal burst
        if drawn == round(0.55 * whole.batches):
            burst = True
            for _ in range(5):
                signal.raise_signal(number)

    def disturbed(path: Path, *arguments: Any) -> None:
        if burst:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)
        write(path, *arguments)

    try:
        with monkeypatch.context() as patched:
            counted(patched, signals)
            patched.setattr(controller_file, "write", disturbed)
            with pytest.raises(KeyboardInterrupt), interruptible():
                case.train(tmp_path / "run", eval_every=4)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert controller_file.read_metadata(tmp_path / "run" / "checkpoint.safetensors")["iteration"] >= 2
    case.train(tmp_path / "run", eval_every=4, resume=True)
    case.train(tmp_path / "whole", eval_every=4)
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_deadline_stops_between_iterations(
    undisturbed: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each command has time for one iteration more, and what they make is what was never stopped."""
    whole, case, out = undisturbed(name), CASES[name], tmp_path / "run"
    kind = type(case.kind(case.settings(out=out)))
    iterate, clock, done = kind.iterate, [0.0], []

    def slow(self: Any) -> dict[str, float]:
        clock[0] += 10
        done.append(self.iteration)
        return iterate(self)

    monkeypatch.setattr(kind, "iterate", slow)
    monkeypatch.setattr(outer_training, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for turn in itertools.count():
        settings = case.settings(out=out, resume=turn > 0)
        try:
            train(case.kind, settings, deadline=clock[0] + 10 * min(turn, 1))
        except KeyboardInterrupt:
            assert len(done) == turn
        else:
            break
    assert done == list(range(len(log(whole.out)))), "no iteration was made twice"
    assert_same(whole.out, out)


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/none"])
def test_where_nothing_can_be_written_no_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "a file").write_text("kept")
    out = {"a file": tmp_path / "a file", "below a file": tmp_path / "a file" / "x"}.get(place, Path(place))
    monkeypatch.setattr(ScheduleTraining, "iterate", lambda self: pytest.fail("work"))
    assert status_of(lambda: CASES["random"].train(out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: can't write {out}")
    assert "make room there, or choose another place" in said
    assert said.count("\n") == 1
    assert (tmp_path / "a file").read_text() == "kept"


@pytest.mark.parametrize("name", ["ppo", "random"])
@pytest.mark.parametrize("full", ["checkpoint", "controller", "progress", "events", "controller-after"])
def test_a_full_disk_costs_nothing_that_was_done(
    undisturbed: Callable[[str], Run], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, full: str
) -> None:
    """No file may grow beyond the size of one of them less a byte, which is refused with all that are as large."""
    resource = pytest.importorskip("resource")
    whole, case, out = undisturbed(name), CASES[name], tmp_path / "run"
    sizes = [path.stat().st_size for path in whole.out.iterdir() if path.name.startswith(full.removesuffix("-after"))]
    room = max(sizes) - (400 if full == "controller-after" else 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        status = status_of(lambda: case.train(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert status == 2
    (error,) = (line for line in said.splitlines() if "can't write" in line)
    assert error.startswith("error: can't write ")
    assert not list(out.glob("*.partial"))
    again(case, out)
    assert_same(whole.out, out)


@pytest.mark.parametrize("name", ["ppo", "noh", "noh, ES", "merged", "fds", "random"])
def test_a_controller_with_which_a_run_died_is_infinitely_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """However low its loss was before."""
    training = CASES[name].kind(CASES[name].settings(out=tmp_path))
    assert math.isfinite(training.held_out_loss(training.controller()))

    def died(*arguments: Any, **settings: Any) -> Any:
        result = evaluate(*arguments, **settings)
        return replace(result, diverged=np.arange(len(result.seeds)) == 1)

    for module in (outer_training, noh_training, learned_optimizer_training):
        monkeypatch.setattr(module, "evaluate", died)
    assert training.held_out_loss(training.controller()) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("command", list(kill_minus_nine.COMMANDS))
def test_killed_at_random_moments_it_ends_as_one_that_was_not(command: str) -> None:
    """The short form of `kill_minus_nine.py`, each process started afresh."""
    outcome = kill_minus_nine.tried(command, kills=2, seed=1, spawn=True)
    assert outcome.differences == []
    assert (outcome.equal, outcome.halves) == (outcome.kills, 0)
