"""Controller files: what was written comes back, what can't be used says why, and a write is whole or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agents import View, make_agent
from agents.ppo import Architecture, PPOController
from lrenv.benchmark import controller_file
from lrenv.benchmark.controller_file import ControllerFileError


def controller(observation: int = 8, lstm: bool = False, choices: tuple[int, ...] = ()) -> PPOController:
    architecture = Architecture(observation, 0 if choices else 1, choices, hidden=4, lstm=lstm)
    torch.manual_seed(0)
    policy = architecture.build()
    for weight in policy.parameters():
        torch.nn.init.normal_(weight)
    policy.set_training_mode(False)
    mean, std = np.linspace(-1, 1, observation), np.linspace(1, 2, observation)
    return PPOController(policy, mean, std, View("scale", ("dynamics",), 5), architecture)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "controller.safetensors"
    controller().save(path, {"command": "made for a test"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with other metadata."""
    tensors, metadata = controller_file.read(path)
    change(metadata)
    save_file(tensors, path, {"lrenv": json.dumps(metadata)})


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.safetensors"
    tensors = {"weights": torch.arange(6.0).reshape(2, 3).T, "count": torch.tensor(3), "flags": torch.tensor([True])}
    controller_file.write(path, tensors, {"agent": "x", "list": [1, None, "ü"]})
    found, metadata = controller_file.read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert metadata["agent"] == "x"
    assert metadata["list"] == [1, None, "ü"]
    assert metadata["versions"]["torch"] in torch.__version__
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"], "nothing is left behind"


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("choices", [(), (3,), (3, 3)])
def test_a_loaded_controller_acts_as_the_saved_one(tmp_path: Path, lstm: bool, choices: tuple[int, ...]) -> None:
    one, path = controller(lstm=lstm, choices=choices), tmp_path / "controller.safetensors"
    one.save(path, {})
    other = make_agent(path)
    assert isinstance(other, PPOController)
    assert (other.view, other.architecture, repr(other)) == (one.view, one.architecture, repr(one))
    rng, memory, memories = np.random.default_rng(0), None, None
    start = np.array([True, True, True])
    for _ in range(4):
        observation = rng.normal(0, 3, (3, 8)).astype(np.float32)
        a, memory = one.predict(observation, memory, start, deterministic=True)
        b, memories = other.predict(observation, memories, start, deterministic=True)
        np.testing.assert_array_equal(a, b)
        start = np.array([False, True, False])
    assert a.shape == {(): (3, 1), (3,): (3,), (3, 3): (3, 2)}[choices]


def test_rebuilding_leaves_the_random_numbers_alone(saved: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make_agent(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_observations_are_normalised_and_clipped() -> None:
    agent = controller()
    observation = np.random.default_rng(0).normal(0, 100, (2, 8))
    seen = np.clip((observation - agent.mean) / agent.std, -10, 10).astype(np.float32)
    expected, _ = agent.policy.predict(seen, deterministic=True)
    np.testing.assert_array_equal(agent.predict(observation, deterministic=True)[0], expected)
    with pytest.raises(ValueError, match=r"length 8 .*not 7"):
        agent.predict(np.zeros((2, 7)))


@pytest.mark.parametrize("read", [controller_file.read, controller_file.read_metadata, make_agent, PPOController.load])
class TestUnusableFiles:
    def test_missing(self, read: Callable[[Path], Any], tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"x\.safetensors; train one with"):
            read(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("kept", [0, 7, 100, -1])
    def test_truncated(self, read: Callable[[Path], Any], saved: Path, kept: int) -> None:
        saved.write_bytes(saved.read_bytes()[:kept])
        with pytest.raises(ControllerFileError, match=r"damaged or no safetensors file.*again"):
            read(saved)

    def test_text(self, read: Callable[[Path], Any], saved: Path) -> None:
        saved.write_text("no controller at all, just text that goes on for a while\n" * 20)
        with pytest.raises(ControllerFileError, match="no safetensors file"):
            read(saved)

    @pytest.mark.parametrize("metadata", [None, {"lrenv": "{}"}, {"other": "x"}])
    def test_foreign(self, read: Callable[[Path], Any], saved: Path, metadata: dict[str, str] | None) -> None:
        save_file({"w": torch.zeros(3)}, saved, metadata)
        with pytest.raises(ControllerFileError, match="not one of lrenv's controllers"):
            read(saved)

    def test_unreadable_metadata(self, read: Callable[[Path], Any], saved: Path) -> None:
        save_file({"w": torch.zeros(3)}, saved, {"lrenv": "{not json"})
        with pytest.raises(ControllerFileError, match="damaged"):
            read(saved)

    def test_another_version(self, read: Callable[[Path], Any], saved: Path) -> None:
        rewrite(saved, lambda metadata: metadata.update(version=99))
        with pytest.raises(ControllerFileError, match=r"version 99, this lrenv reads 1.*written by lrenv .* again"):
            read(saved)


def test_a_checkpoint_is_no_agent(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    controller_file.write(path, {"last_obs": torch.zeros(3)}, {"settings": {}, "iteration": 3})
    with pytest.raises(ValueError, match="state of a training; take the controller beside it"):
        make_agent(path)
    with pytest.raises(ControllerFileError, match="holds the state of a training, not the agent 'ppo'"):
        PPOController.load(path)


def test_a_file_of_an_unknown_agent(saved: Path) -> None:
    rewrite(saved, lambda metadata: metadata.update(agent="pppo"))
    with pytest.raises(ValueError, match=r"unknown agent 'pppo'.*did you mean 'ppo'"):
        make_agent(saved)


@pytest.mark.parametrize("missing", ["view", "architecture"])
def test_missing_metadata(saved: Path, missing: str) -> None:
    rewrite(saved, lambda metadata: metadata.pop(missing))
    with pytest.raises(ControllerFileError, match=f"no PPO controller: .*{missing}"):
        make_agent(saved)


@pytest.mark.parametrize("change", [{"hidden": 5}, {"observation": 9}, {"lstm": True}, {"action": 2}])
def test_weights_of_another_shape(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, lambda metadata: metadata["architecture"].update(change))
    with pytest.raises(ControllerFileError, match="doesn't hold the weights that its metadata promises"):
        make_agent(saved)


def test_a_controller_file_takes_no_settings(saved: Path) -> None:
    with pytest.raises(ValueError, match="takes no settings, but got peak"):
        make_agent(str(saved), peak=0.1)


@pytest.mark.parametrize("where", ["save", "replace"])
def test_an_interrupted_write_leaves_the_old_file(saved: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupted(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    def broken(source: Path, target: Path) -> None:
        raise OSError("no space left")

    if where == "save":
        monkeypatch.setattr(controller_file, "save_file", interrupted)
    else:
        monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt if where == "save" else OSError):
        controller(lstm=True).save(saved, {})
    assert saved.read_bytes() == before
    monkeypatch.undo()
    controller(lstm=True).save(saved, {})
    loaded = make_agent(saved)
    assert isinstance(loaded, PPOController)
    assert loaded.architecture.lstm


def test_architectures_follow_spaces() -> None:
    observations = gym.spaces.Box(-1, 1, (8,), np.float32)
    box = gym.spaces.Box(-1, 1, (3,), np.float32)
    assert Architecture.of(observations, box, 32, False) == Architecture(8, 3)
    assert Architecture.of(observations, gym.spaces.Discrete(3), 16, True) == Architecture(8, 0, (3,), 16, True)
    several = gym.spaces.MultiDiscrete([3, 3])
    assert Architecture.of(observations, several, 32, False) == Architecture(8, 0, (3, 3))
    for architecture in (Architecture(8, 3), Architecture(8, 0, (3,), 16, True), Architecture(8, 0, (3, 3))):
        policy = architecture.build()
        rebuilt = Architecture.of(policy.observation_space, policy.action_space, architecture.hidden, architecture.lstm)
        assert rebuilt == architecture
