"""Trainings on tasks of one's own: what files record, and what resuming asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.outer.settings import own_specs
from lrenv.agents.outer.training import train
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.controllers import controller_file

TASK = "from lrenv import make_task\nmine = make_task('noisy-quadratic', budget=6, interval=3)\n"
DATA_TASK = """
import numpy as np
from lrenv import make_task
from lrenv.data import from_arrays

def data():
    inputs = np.load("inputs.npy")
    targets = (inputs[:, 0] > 0).astype(np.int64)
    parts = {"train": slice(40), "val": slice(40, 50), "test": slice(50, 60)}
    return from_arrays(
        **{f"{name}_inputs": inputs[rows] for name, rows in parts.items()},
        **{f"{name}_targets": targets[rows] for name, rows in parts.items()},
    )

mine = make_task("digits-mlp", data=data, budget=6, interval=3, batch_size=8)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PPOSettings:
    """Those of a short training on a task of one's own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("my_tasks.py").write_text(TASK)
    return PPOSettings(
        task="my_tasks.py:mine", out=Path("out"), envs=2, episodes=4, eval_seeds=1, eval_every=1, device="cpu"
    )


def test_files_record_what_was_trained_on(settings: PPOSettings) -> None:
    path = train(PPOTraining, settings)
    assert controller_file.read_metadata(path)["settings"]["task"] == "my_tasks.py:mine"
    assert controller_file.read_metadata(path.with_name("checkpoint.safetensors"))["files"].keys() == {
        "my_tasks.py:mine"
    }


def test_resuming_runs_no_code_that_is_not_asked_for(settings: PPOSettings, tmp_path: Path) -> None:
    train(PPOTraining, settings)
    longer: Any = {"episodes": 6, "resume": True}
    Path("my_tasks.py").write_text(f"{TASK}open('ran', 'w')\n")
    with pytest.raises(ValueError, match="the training ran code of your own.*: add --task my_tasks.py:mine"):
        train(PPOTraining, replace(settings, task="digits-mlp", **longer))
    with pytest.raises(ValueError, match="the file of my_tasks.py:mine has changed since the training began"):
        train(PPOTraining, replace(settings, **longer))
    assert not Path("ran").exists()
    Path("my_tasks.py").write_text(TASK)
    train(PPOTraining, replace(settings, **longer))
    assert controller_file.read_metadata(Path("out/checkpoint.safetensors"))["iteration"] == 3
    Path("my_tasks.py").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file my_tasks.py"):
        train(PPOTraining, replace(settings, **longer))


def test_resuming_with_other_data_is_refused(settings: PPOSettings) -> None:
    np.save("inputs.npy", np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32))
    Path("my_tasks.py").write_text(DATA_TASK)
    train(PPOTraining, settings)
    longer: Any = {"episodes": 6, "resume": True}
    kept = Path("inputs.npy").read_bytes()
    np.save("inputs.npy", np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="the data or the network of my_tasks.py:mine have changed since"):
        train(PPOTraining, replace(settings, **longer))
    assert controller_file.read_metadata(Path("out/checkpoint.safetensors"))["iteration"] == 2
    Path("inputs.npy").write_bytes(kept)
    train(PPOTraining, replace(settings, **longer))
    assert controller_file.read_metadata(Path("out/checkpoint.safetensors"))["iteration"] == 3


def test_several_tasks_of_one_command(settings: PPOSettings) -> None:
    several = LearnedOptimizerSettings(tasks="my_tasks.py:mine:batch_size=4,two-minima", first_unroll=2)
    assert [(task.name, task.batch_size) for task in several.each_task()] == [
        ("my_tasks.py:mine", 4), ("two-minima", 1)
    ]  # fmt: skip
    assert own_specs(vars(several)) == {"tasks": ["my_tasks.py:mine:batch_size=4"]}
    assert several.files().keys() == {"my_tasks.py:mine:batch_size=4"}
