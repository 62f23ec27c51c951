"""Things of one's own in a Python file, and what packages advertise: found, told apart, and refused with a sentence."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import lrenv
from lrenv import sources
from lrenv.controllers import controller_file
from lrenv.controllers.agent import agent_factory, make_agent
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.specs import Own, split
from lrenv.training.tasks import Task, make_task, tasks

TASKS = """
import helper_of_mine
from lrenv import Task, make_task
from lrenv.networks import mlp

BUDGET = helper_of_mine.BUDGET
mine = make_task("noisy-quadratic", budget=BUDGET)

def spirals(width: int, budget: int = 7, *, depth: int = 1) -> Task:
    return Task("spirals", "digits", mlp(*[width] * depth), budget=budget)

def wrong(): return 3
"""
AGENTS = """
from lrenv.agents import make_agent as made

def Constant(peak: float = 0.1): return made("constant", peak=peak)
def Tuned(peak): return made("constant", peak=peak)
Tuned.grid = {"peak": (0.1, 0.2)}
ready = made("constant", peak=0.3)
def nothing(): return None
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, which is the current one."""
    (tmp_path / "my_tasks.py").write_text(TASKS)
    (tmp_path / "helper_of_mine.py").write_text("BUDGET = 11")
    (tmp_path / "my_agents.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helper_of_mine", raising=False)
    return tmp_path


def test_a_task_in_a_file(folder: Path) -> None:
    path = list(sys.path)
    assert make_task("my_tasks.py:mine").budget == 11
    assert sys.path == path
    assert make_task("my_tasks.py:mine:budget=5", batch_size=2) == lrenv.make_task(
        "noisy-quadratic", budget=5, batch_size=2, name="my_tasks.py:mine"
    )
    assert make_task(f"{folder}/my_tasks.py:mine").budget == 11
    assert LearningRateVectorEnv(2, "my_tasks.py:mine:budget=4", device="cpu").task.budget == 4


def test_a_task_under_the_name_of_another_is_told_apart(folder: Path, advertise: Callable[..., None]) -> None:
    """Where it is the same, and where it has a name of its own, it is called as it calls itself."""
    (folder / "other.py").write_text(f"{TASKS}same = make_task('noisy-quadratic')\n")
    for spec in ("other.py:mine", f"{folder}/other.py:mine", "other.py:mine:budget=3"):
        assert make_task(spec).name == "other.py:mine"
    assert make_task("other.py:same") == make_task("noisy-quadratic")
    assert make_task("other.py:spirals:width=3").name == "spirals"
    sys.modules["other"] = sources._module("other.py")
    try:
        advertise("theirs", "other:mine", "lrenv.tasks")
        assert make_task("theirs:budget=3").name == "theirs"
    finally:
        del sys.modules["other"]


def test_a_function_takes_the_settings_that_it_names(folder: Path) -> None:
    """And the task that it gives takes the others."""
    task = make_task("my_tasks.py:spirals:width=3:batch_size=5", depth=2)
    assert (task.name, task.budget, task.batch_size) == ("spirals", 7, 5)
    assert [tuple(weight.shape) for weight in task.module().parameters()][::2] == [(3, 64), (3, 3), (10, 3)]
    assert make_task("my_tasks.py:spirals:width=3", budget=9).budget == 9
    with pytest.raises(ValueError, match=r"task 'my_tasks.py:spirals': missing a required argument: 'width', as in"):
        make_task("my_tasks.py:spirals")
    with pytest.raises(ValueError, match="unknown setting of a task 'with'"):
        make_task("my_tasks.py:mine:with=3")
    with pytest.raises(ValueError, match="unknown setting of a task 'dept': did you mean 'depth'"):
        make_task("my_tasks.py:spirals:width=3:dept=2")
    with pytest.raises(ValueError, match="unknown setting of a task 'widht': did you mean 'width'"):
        make_task("my_tasks.py:spirals:widht=3")


def test_agents_in_a_file(folder: Path) -> None:
    clock = np.array([[0, 10, 5, 1.0, 1.0]])
    for spec, rate in (
        ("my_agents.py:Constant", 0.1),
        ("my_agents.py:Constant:peak=0.2", 0.2),
        (f"{folder}/my_agents.py:Constant:peak=0.2", 0.2),
        ("my_agents.py:ready", 0.3),
    ):
        assert make_agent(spec).predict(clock)[0] == pytest.approx(rate)
    assert agent_factory("my_agents.py:Tuned").grid == {"peak": (0.1, 0.2)}  # type: ignore[attr-defined]


def test_a_file_runs_once_until_it_changes(folder: Path) -> None:
    path = folder / "counting.py"
    path.write_text("import pathlib\nwith open('runs', 'a') as f: f.write('x')\nclass A: pass\nnumber = 1")
    a = sources.load_own(Own("counting.py", "A"))
    assert sources.load_own(Own(str(path), "A")) is a
    assert Path("runs").read_text() == "x"
    assert type(pickle.loads(pickle.dumps(a()))) is a
    path.write_text(path.read_text().replace("number = 1", "number = 2"))
    assert sources.load_own(Own("counting.py", "number")) == 2
    assert Path("runs").read_text() == "xx"


def test_files_of_one_name_are_two(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "my_tasks.py").write_text("class B: pass")
    b, mine = sources.load_own(Own("other/my_tasks.py", "B")), sources.load_own(Own("my_tasks.py", "mine"))
    assert b.__module__ != sources.load_own(Own("my_tasks.py", "spirals")).__module__
    assert (sys.modules[b.__module__].B, mine.budget) == (b, 11)


@pytest.mark.parametrize("name", ["lr=0.1,seed=0", "a (b", "it's", "\u00e9 \u4e16", "a:b"])
def test_folders_of_any_name(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    path = folder / name / "own.py"
    path.write_text(AGENTS)
    spec = f"{path}:Constant:peak=0.2"
    assert split(f"cosine,{spec},{path}:ready, step") == ["cosine", spec, f"{path}:ready", "step"]
    assert make_agent(spec)
    quote = '"' if "'" in name else "'"
    assert make_agent(f"{quote}{path}{quote}:ready")


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (make_task, "my_task.py:mine", "there is no file my_task.py in "),
        (make_agent, "my_agent.py:Mine", "there is no file my_agent.py in "),
        (make_task, "my_tasks.py", "names a file, but nothing in it: write my_tasks.py:NAME"),
        (make_task, "my_tasks.py:mien", "unknown name in my_tasks.py 'mien': did you mean 'mine'.*: BUDGET, mine, s"),
        (make_agent, "my_agents.py:Other", "unknown name in my_agents.py 'Other'.*Known: Constant, Tuned, nothing"),
        (make_task, "my_tasks.py:wrong", "must be a lrenv.Task, or a function that gives one, not an int"),
        (make_task, "my_tasks.py:BUDGET", "my_tasks.py:BUDGET must be a lrenv.Task, or .*, not an int"),
        (make_agent, "my_agents.py:number", "must be an agent, its class or a function that gives one, not an int"),
        (make_agent, "my_agents.py:nothing", "must have a method `predict`, but it is None"),
        (make_agent, "my_agents.py:Constant:peek=1", "peek"),
        (make_agent, "my_agents.py:ready:peak=1", "peak"),
        (make_task, "raises.py:x", r"raises.py can't be used, since running it raises ZeroDiv.* \(raises.py:2\)"),
        (make_task, "syntax.py:x", r"syntax.py can't be used, .* SyntaxError: .*\(syntax.py, line 1\)"),
        (make_task, "deep.py:x", r"deep.py can't be used, .* ValueError: math domain error \(deep.py:3\)"),
        (make_task, "quits.py:x", r"quits.py can't be used, .* SystemExit: 3 \(quits.py:2\)"),
        (make_task, "beside.py:x", r"beside.py can't be used, .* ZeroDivisionError: division by zero \(beside.py:1\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(folder: Path, make: Callable[[str], Any], spec: str, message: str) -> None:
    files = {
        "raises.py": "x = 1\ny = 1 / 0\n", "syntax.py": "x = = 2", "quits.py": "import sys\nsys.exit(3)",
        "deep.py": "import math\nx = 1\nmath.sqrt(-x)", "beside.py": "import raises",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    modules, path = set(sys.modules), list(sys.path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(spec)
    assert sys.path == path
    broken = {f"own_{name.removesuffix('.py')}" for name in files}
    assert not (set(sys.modules) - modules) & broken, "a file that raised has left no module"


def test_a_file_of_data_makes_no_code_run(folder: Path) -> None:
    """A controller file names its agent; only packages that are installed are looked through for it."""
    (folder / "evil.py").write_text("open('ran', 'w')\nclass X:\n    @staticmethod\n    def load(path): return None")
    for name in ("evil.py:X", "./evil.py:X"):
        controller_file.write(folder / "x.safetensors", {}, {"agent": name})
        with pytest.raises(controller_file.ControllerFileError, match="holds an agent that isn't installed"):
            make_agent(folder / "x.safetensors")
    assert not (folder / "ran").exists()


ADVERTISED = Task("advertised", "digits", lambda shape, classes: None, budget=17)  # type: ignore[arg-type, return-value]


def advertised_function(budget: int) -> Task:
    return make_task(ADVERTISED, budget=budget)


def test_tasks_of_packages(advertise: Callable[..., None]) -> None:
    advertise("theirs", f"{__name__}:ADVERTISED", "lrenv.tasks")
    advertise("made", f"{__name__}:advertised_function", "lrenv.tasks")
    assert {"theirs", "made", "digits-mlp"} <= set(tasks())
    assert make_task("theirs") == ADVERTISED
    assert make_task("theirs:budget=3").budget == make_task("made:budget=3").budget == 3
    with pytest.raises(ValueError, match="unknown task 'their': did you mean 'theirs'"):
        make_task("their")


@pytest.mark.parametrize("group", ["lrenv.tasks", "lrenv.agents"])
def test_two_packages_of_one_name_are_told(advertise: Callable[..., None], group: str) -> None:
    make: Callable[[str], Any] = make_task if group == "lrenv.tasks" else make_agent
    advertise("both", f"{__name__}:ADVERTISED", group)
    advertise("both", f"{__name__}:advertised_function", group)
    with pytest.raises(
        ValueError, match=rf"two of \w+ 'both': {__name__}:ADVERTISED and {__name__}:advertised_function"
    ):
        make("both")


def test_a_package_beside_a_task_that_is_registered(advertise: Callable[..., None]) -> None:
    advertise("digits-mlp", f"{__name__}:ADVERTISED", "lrenv.tasks")
    with pytest.raises(
        ValueError, match=rf"two of task 'digits-mlp': .*tasks.py:\d+ registers one, and {__name__}:ADV"
    ):
        make_task("digits-mlp")
    assert make_task("digits-logreg")


def test_a_broken_package_is_told(advertise: Callable[..., None], folder: Path, monkeypatch: Any) -> None:
    (folder / "broken_package.py").write_text("x = 1\ny = x / 0")
    monkeypatch.syspath_prepend(str(folder))
    advertise("broken", "broken_package:x", "lrenv.tasks")
    with pytest.raises(
        ValueError, match=r"advertised as broken_package:x, which can't be loaded \(ZeroDivisionError: "
    ):
        make_task("broken")


def test_tasks_of_packages_are_environments(tmp_path: Path) -> None:
    """With real metadata, in a process of their own: importing lrenv registers them without importing the package."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lrenv.tasks]\ntheirs = their_tasks:mine\n")
    (tmp_path / "their_tasks.py").write_text("import lrenv\nmine = lrenv.make_task('noisy-quadratic', budget=13)\n")
    code = (
        "import sys, gymnasium as gym, lrenv; assert 'their_tasks' not in sys.modules;"
        "print(gym.make('lrenv/theirs-v0').unwrapped.task.budget)"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(lrenv.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "13\n"
    assert "lrenv/theirs-v0" not in gym.registry
