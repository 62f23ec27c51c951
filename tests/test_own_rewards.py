"""Rewards and observations of one's own that commands name by their files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import lrenv
from lrenv import cli
from lrenv.controllers import controller_file
from lrenv.envs.observations import OBSERVATIONS, register_observation
from lrenv.envs.own import observation_name, reward_name
from lrenv.envs.rewards import REWARDS, register_reward
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.dynamics import Dynamics

MINE = """
import torch
from lrenv.envs.observations import Signal

def fall(dynamics, diverged):
    return torch.where(diverged, -10.0, dynamics.inner_step)

losses = {"loss": Signal(-9, 9, lambda d: d.train_loss), "step": Signal(0, 99, lambda d: d.inner_step)}
def val_loss(dynamics, diverged): return dynamics.val_loss
number = 3
"""
TRAIN = ("train", "ppo", "--task", "noisy-quadratic:budget=6:interval=3", "--envs", "2", "--episodes", "2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a file of one's own; what it registers is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    yield tmp_path
    for table, name in ((REWARDS, "fall"), (OBSERVATIONS, "losses")):
        table.pop(name, None)  # type: ignore[attr-defined]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lrenv", *arguments])
    return cli.main()


def test_names_are_registered_once(folder: Path) -> None:
    assert reward_name("val_loss") == "val_loss"
    assert reward_name("mine.py:fall") == reward_name(f"{folder}/mine.py:fall") == "fall"
    assert observation_name("mine.py:losses") == "losses"
    envs = LearningRateVectorEnv(
        2, "noisy-quadratic:budget=6:interval=3", observe="losses", reward="fall", device="cpu"
    )
    assert envs.single_observation_space.shape == (2,)
    envs.reset(seed=0)
    observation, reward, *_ = envs.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(reward, 3)
    np.testing.assert_array_equal(observation[:, 1], 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py:fal", "unknown name in mine.py 'fal': did you mean 'fall'"),
        ("their.py:fall", "there is no file their.py"),
        ("mine.py:number", "a reward is .*a function .*, not an int"),
        ("mine.py:val_loss", "reward 'val_loss' is lrenv's own; choose another name"),
        ("mine.py:fall:rate=3", "a reward takes no settings, but 'mine.py:fall:rate=3' gives rate"),
    ],
)
def test_what_is_no_reward_is_told(folder: Path, spec: str, message: str) -> None:
    before = dict(REWARDS)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        reward_name(spec)
    assert before == REWARDS


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        (reward_name, "mine.py:alone", r"a reward is called with \(dynamics, diverged\), which alone\(d\) doesn't"),
        (
            observation_name,
            "mine.py:fall",
            r"an observation is called with \(dynamics\), which fall\(dynamics, diverged\)",
        ),
    ],
)
def test_functions_that_take_other_arguments_are_told(
    folder: Path, name: Callable[[str], str], spec: str, message: str
) -> None:
    Path("mine.py").write_text(MINE + "def alone(d): return -d.val_loss\n")
    before = dict(REWARDS), dict(OBSERVATIONS)
    with pytest.raises(TypeError, match=message):
        name(spec)
    assert before == (REWARDS, OBSERVATIONS)


def test_two_of_one_name_are_told(folder: Path) -> None:
    Path("other.py").write_text(MINE)
    reward_name("mine.py:fall")
    with pytest.raises(ValueError, match=r"^reward 'fall' is that of .*/mine.py already; give that of .*/other.py"):
        reward_name("other.py:fall")
    register_observation("losses", lambda d: d.val_loss[:, None])
    with pytest.raises(ValueError, match=r"^observation 'losses' is registered already; give that of .*mine.py"):
        observation_name("mine.py:losses")


def test_names_of_rewards_and_of_observations_are_apart(folder: Path) -> None:
    """A reward of one's own may have the name of an observation, and is kept like any other."""
    register_reward("clock", lambda d, diverged: -d.val_loss)
    Path("other.py").write_text(MINE.replace("def fall", "def clock"))
    try:
        with pytest.raises(ValueError, match="reward 'clock' is registered already; give that of .*other.py"):
            reward_name("other.py:clock")
    finally:
        REWARDS.pop("clock")  # type: ignore[attr-defined]
    register_reward("mine", lambda d, diverged: -d.val_loss)
    snapshots = []
    try:
        for scale in (1.0, 2.0):
            register_observation("mine", partial(scaled, scale), replace_existing=scale == 2)
            envs = LearningRateVectorEnv(2, "noisy-quadratic", observe="mine", reward="mine", device="cpu")
            envs.reset(seed=0)
            snapshots.append(envs.snapshot())
        with pytest.raises(ValueError, match="observe mine"):
            envs.restore(snapshots[0])
    finally:
        REWARDS.pop("mine")  # type: ignore[attr-defined]
        OBSERVATIONS.pop("mine")


def scaled(times: float, d: Dynamics) -> torch.Tensor:
    return times * d.val_loss[:, None]


def test_a_file_that_was_edited_replaces_what_it_registered(folder: Path) -> None:
    reward_name("mine.py:fall")
    observation_name("mine.py:losses")
    Path("mine.py").write_text(MINE.replace("-10.0", "-20.0").replace('"step"', '"steps"'))
    assert reward_name("mine.py:fall") == "fall"
    assert observation_name("mine.py:losses") == "losses"
    d = Dynamics(*(torch.ones(1) for _ in Dynamics._fields))
    assert REWARDS["fall"](d, torch.tensor([True])) == -20
    assert set(OBSERVATIONS["losses"]) == {"loss", "steps"}  # type: ignore[arg-type]
    Path("mine.py").write_text(MINE.replace("def fall", "def rise"))
    with pytest.raises(ValueError, match="unknown name in mine.py 'fall'"):
        reward_name("mine.py:fall")
    assert REWARDS["fall"](d, torch.tensor([True])) == -20


def test_training_and_comparing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A controller file records the names; where nobody has registered the observation, it says what is missing."""
    small = ("--eval-seeds", "1", "--device", "cpu", "--out", "out")
    own = ("--reward", "mine.py:fall", "--observe", "mine.py:losses")
    assert call(monkeypatch, *TRAIN, *small, *own) == 0
    path = Path("out/controller.safetensors")
    metadata = controller_file.read_metadata(path)
    assert metadata["view"]["observe"] == "losses"
    assert [metadata["settings"][name] for name in ("reward", "observe")] == ["mine.py:fall", "mine.py:losses"]
    files = controller_file.read_metadata(path.with_name("checkpoint.safetensors"))["files"]
    assert files.keys() == {"mine.py:fall", "mine.py:losses"}

    REWARDS.pop("fall")
    OBSERVATIONS.pop("losses")
    with pytest.raises(controller_file.ControllerFileError, match="unknown observation .losses.: .*--observations"):
        lrenv.make_agent(path)
    compare = ("compare", "--task", "noisy-quadratic:budget=6:interval=3", "--seeds", "1", "--agents", str(path))
    assert call(monkeypatch, *compare, "--initial-lr", "0.1") == 2
    assert "unknown observation 'losses'" in capsys.readouterr().err
    compare = (*compare, "--initial-lr", "0.1", "--observations", "mine.py:losses", "--out", "compared")
    assert call(monkeypatch, *compare) == 0
    Path("mine.py").write_text(MINE + "# changed\n")
    OBSERVATIONS.pop("losses")
    assert call(monkeypatch, *compare) == 2
    assert "files's mine.py:losses" in capsys.readouterr().err

    assert call(monkeypatch, *TRAIN, *small, "--resume", "--episodes", "4") == 2
    assert "the training ran code of your own" in capsys.readouterr().err
    assert call(monkeypatch, *TRAIN, *small, *own, "--resume", "--episodes", "4") == 2
    assert "the file of mine.py:losses, mine.py:fall has changed" in capsys.readouterr().err
