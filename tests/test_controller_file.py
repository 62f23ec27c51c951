"""Controller files: what was written comes back, what can't be used says why, and a write is whole or nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_controller_files import Parts, base_files, pack, unpack
from safetensors.torch import save_file

from lrenv.agents import View, make_agent
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.controllers import controller_file
from lrenv.controllers.controller_file import LARGEST_HEADER, ControllerFileError

DISCRETE = {(): "scale", (3,): "discrete", (3, 3): "discrete/layer"}


def controller(observation: int = 8, lstm: bool = False, choices: tuple[int, ...] = ()) -> PPOController:
    architecture = Architecture(observation, 0 if choices else 1, choices, hidden=4, lstm=lstm)
    torch.manual_seed(0)
    policy = architecture.build()
    for weight in policy.parameters():
        torch.nn.init.normal_(weight)
    policy.set_training_mode(False)
    mean, std = np.linspace(-1, 1, observation), np.linspace(1, 2, observation)
    return PPOController(policy, mean, std, View(DISCRETE[choices], ("dynamics",), 5), architecture)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "controller.safetensors"
    controller().save(path, {"command": "made for a test"})
    return path


def rewrite(path: Path, change: Callable[[Parts], Any]) -> None:
    """The file with other tensors or metadata, and checksums that fit them."""
    parts = unpack(path.read_bytes())
    change(parts)
    path.write_bytes(pack(parts))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.safetensors"
    tensors = {"weights": torch.arange(6.0).reshape(2, 3).T, "count": torch.tensor(3), "flags": torch.tensor([True])}
    shared = torch.zeros(4)
    tensors |= {"none": torch.zeros(0, 2), "one": shared, "other": shared[1:], "half": torch.ones(3).bfloat16()}
    controller_file.write(path, tensors, {"agent": "x", "list": [1, None, "ü"]})
    found, metadata = controller_file.read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert metadata["agent"] == "x"
    assert metadata["kind"] == "controller"
    assert metadata["list"] == [1, None, "ü"]
    assert metadata["versions"]["torch"] in torch.__version__
    assert controller_file.read_metadata(path) == metadata
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"], "nothing is left behind"


def test_what_is_read_is_aligned(tmp_path: Path) -> None:
    """Wherever the header ends; it is padded to a multiple of 8 bytes."""
    path, tensors = tmp_path / "x.safetensors", {"a": torch.ones(3), "b": torch.ones(5, 2), "c": torch.tensor(True)}
    for length in range(0, 128, 4):
        controller_file.write(path, tensors, {"agent": "x", "command": "x" * length})
        found, _ = controller_file.read(path)
        assert {x.data_ptr() % 64 for x in found.values()} == {0}


def test_the_format_is_as_described(saved: Path) -> None:
    """Checksums by a second implementation are the same."""
    parts = unpack(saved.read_bytes())
    assert unpack(pack(parts)).metadata == parts.metadata
    rewrite(saved, lambda parts: parts.metadata.pop("sha256"))
    with pytest.raises(ControllerFileError, match="lacks sha256"):
        controller_file.read(saved)


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
    with pytest.raises(ValueError, match=r"length 8 .*not \(2, 7\)"):
        agent.predict(np.zeros((2, 7)))


@pytest.mark.parametrize("read", [controller_file.read, controller_file.read_metadata, make_agent, PPOController.load])
class TestUnusableFiles:
    @pytest.mark.parametrize("name", ["x.safetensors", "controller.safetensors/x.safetensors"])
    def test_missing(self, read: Callable[[Path], Any], saved: Path, name: str) -> None:
        with pytest.raises(FileNotFoundError, match=r"x\.safetensors; `lrenv train --help` says how"):
            read(saved.parent / name)

    @pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
    def test_truncated(self, read: Callable[[Path], Any], saved: Path, kept: int) -> None:
        saved.write_bytes(saved.read_bytes()[:kept])
        with pytest.raises(ControllerFileError, match=r"damaged or no safetensors file.*again"):
            read(saved)

    @pytest.mark.parametrize("data", [b"no controller at all, just text that goes on\n" * 20, b"\xff\xfe\x00" * 500])
    def test_text(self, read: Callable[[Path], Any], saved: Path, data: bytes) -> None:
        saved.write_bytes(data)
        with pytest.raises(ControllerFileError, match="no safetensors file"):
            read(saved)

    @pytest.mark.parametrize("metadata", [None, {"lrenv": "{}"}, {"lrenv": "null"}, {"lrenv": "[]"}, {"other": "x"}])
    def test_foreign(self, read: Callable[[Path], Any], saved: Path, metadata: dict[str, str] | None) -> None:
        save_file({"w": torch.zeros(3)}, saved, metadata)
        with pytest.raises(ControllerFileError, match="not one of lrenv's controllers"):
            read(saved)

    @pytest.mark.parametrize("text", ["{not json", "", "[" * 100_000, '{"a":' * 50_000, "9" * 5000, "\x00"])
    def test_unreadable_metadata(self, read: Callable[[Path], Any], saved: Path, text: str) -> None:
        saved.write_bytes(pack(unpack(saved.read_bytes()), text))
        with pytest.raises(ControllerFileError, match="damaged|characters, too many"):
            read(saved)

    @pytest.mark.parametrize("version", [1, 99, None, "2", [], True])
    def test_another_version(self, read: Callable[[Path], Any], saved: Path, version: Any) -> None:
        rewrite(saved, lambda parts: parts.metadata.update(version=version))
        with pytest.raises(ControllerFileError, match=r"has format version .*, this lrenv reads 2; train again"):
            read(saved)

    def test_without_a_version(self, read: Callable[[Path], Any], saved: Path) -> None:
        rewrite(saved, lambda parts: parts.metadata.pop("version"))
        with pytest.raises(ControllerFileError, match="has format version None"):
            read(saved)

    def test_a_header_that_would_take_long(self, read: Callable[[Path], Any], saved: Path) -> None:
        data = saved.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for longer in (LARGEST_HEADER + 8, 2**63, 2**64 - 1):
            header = data[8 : 8 + size].ljust(min(longer, 2**20))
            saved.write_bytes(longer.to_bytes(8, "little") + header + data[8 + size :])
            with pytest.raises(ControllerFileError, match=f"a header of {longer} bytes"):
                read(saved)

    def test_no_regular_file(self, read: Callable[[Path], Any], tmp_path: Path) -> None:
        """None of these is opened: a FIFO, whose other end nobody holds, would never answer."""
        fifo = tmp_path / "fifo.safetensors"
        os.mkfifo(fifo)
        for path, what in ((tmp_path, "a folder"), (fifo, "no regular file"), (Path("/dev/zero"), "no regular file")):
            with pytest.raises(ControllerFileError, match=f"is {what}; name the file of a controller"):
                read(path)

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
    def test_unreadable(self, read: Callable[[Path], Any], tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").symlink_to("/proc/self/mem")
        (tmp_path / "y.safetensors").symlink_to("y.safetensors")
        for name in ("x.safetensors", "y.safetensors", "z\0.safetensors", "z" * 5000):
            with pytest.raises(ControllerFileError, match="again"):
                read(tmp_path / name)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_forbidden(self, read: Callable[[Path], Any], saved: Path) -> None:
        saved.chmod(0)
        with pytest.raises(ControllerFileError, match="may not be read; ask its owner"):
            read(saved)


def test_metadata_that_would_take_long(saved: Path) -> None:
    saved.write_bytes(pack(unpack(saved.read_bytes()), "[" + "[]," * 50_000 + "[]]"))
    with pytest.raises(ControllerFileError, match="metadata of 150004 characters, too many"):
        make_agent(saved)


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(tmp_path: Path, bits: int) -> None:
    """One of each byte, in turn; all of them in the slow test."""
    path = tmp_path / "x.safetensors"
    data = base_files()["fds"]
    for i in range(len(data)):
        for bit in [(i + i // 8 + k) % 8 for k in range(bits)]:
            flipped = bytearray(data)
            flipped[i] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ControllerFileError):
                controller_file.read(path)


def test_metadata_on_the_tensors_of_another_file(saved: Path) -> None:
    """The same shapes, each checksum right in itself."""
    parts = unpack(saved.read_bytes())
    other = unpack(base_files()["ppo"])
    assert {name: x[:2] for name, x in parts.tensors.items()} == {name: x[:2] for name, x in other.tensors.items()}
    saved.write_bytes(pack(Parts(other.tensors, parts.metadata), json.dumps(parts.metadata)))
    with pytest.raises(ControllerFileError, match="checksum is another"):
        make_agent(saved)


def test_a_checkpoint_is_no_agent(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    facts = {"runs": {"training": 3, "selection": 0}, "finished": False, "best_val_loss": float("inf")}
    controller_file.write(path, {"last_obs": torch.full((3,), torch.nan)}, {"settings": {}, "iteration": 3, **facts})
    with pytest.raises(ControllerFileError, match="state of a training; take the controller beside it"):
        make_agent(path)
    with pytest.raises(ControllerFileError, match="holds the state of a training, not the agent 'ppo'"):
        PPOController.load(path)
    assert controller_file.read(path)[0]["last_obs"].isnan().all(), "trainees that diverged are part of a state"
    rewrite(path, lambda parts: parts.metadata.update(agent="ppo"))
    with pytest.raises(ControllerFileError, match="checkpoint that names an agent"):
        make_agent(path)
    controller_file.write(path, {}, {"settings": {}, "iteration": 0})
    assert controller_file.read(path)[0] == {}, "before it begins, a training has no state"


def test_a_controller_file_takes_no_settings(saved: Path) -> None:
    with pytest.raises(ValueError, match="takes no settings, but got peak"):
        make_agent(str(saved), peak=0.1)


@pytest.mark.parametrize("where", ["save", "replace"])
def test_an_interrupted_write_leaves_the_old_file(saved: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    def broken(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    if where == "save":
        monkeypatch.setattr(os, "fsync", interrupted)
    else:
        monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt if where == "save" else OSError):
        controller(lstm=True).save(saved, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved], "nothing half is left"
    monkeypatch.undo()
    controller(lstm=True).save(saved, {})
    loaded = make_agent(saved)
    assert isinstance(loaded, PPOController)
    assert loaded.architecture.lstm


def test_a_full_disk(saved: Path) -> None:
    """As a limit on the size of files, which fails in the middle of a write as well."""
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"can't write .*\(.*too large.*\): make room there, or choose another place"
        ) as error:
            controller_file.write(saved, {"x": torch.zeros(10**5)}, {"agent": "x"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_can_not_be_written(saved: Path) -> None:
    for path in (saved / "x.safetensors", Path("/proc/lrenv/x.safetensors")):
        with pytest.raises(OSError, match=r"can't write .*choose another place"):
            controller().save(path, {})
    assert make_agent(saved).view == controller().view


def test_metadata_that_could_not_be_read_are_not_written(saved: Path) -> None:
    before = saved.read_bytes()
    for metadata in ({"iteration": 3}, {"agent": ""}, {"agent": "x", "episodes": -1}, {"agent": "x", "y": "y" * 2**17}):
        with pytest.raises(ValueError, match=r"metadata|agent|episodes"):
            controller_file.write(saved, {"x": torch.zeros(3)}, metadata)
    many = dict.fromkeys((f"{'x' * 100}{i}" for i in range(LARGEST_HEADER // 100)), torch.zeros(1))
    with pytest.raises(ValueError, match="too many tensors"):
        controller_file.write(saved, many, {"agent": "x"})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_killed_write(saved: Path) -> None:
    """Killed in the middle, a write leaves the old file and its own beginning, which the next write replaces."""
    before = saved.read_bytes()
    code = (
        "import os, sys, torch\nfrom pathlib import Path\nfrom lrenv.controllers import controller_file\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "controller_file.write(Path(sys.argv[1]), {'x': torch.zeros(3)}, {'agent': 'x'})\n"
    )
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    assert subprocess.run([sys.executable, "-c", code, str(saved)], env=environment).returncode == -9
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2
    controller(lstm=True).save(saved, {})
    assert list(saved.parent.iterdir()) == [saved]
    assert repr(make_agent(saved)) == "ppo-lstm"


def test_a_write_is_on_the_disk_before_it_takes_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, noted)
    controller().save(saved, {})
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, and the folder"


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    """The library keeps metadata in an order that changes from write to write."""
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, 2)}
    metadata = {"settings": {}, "iteration": 1}
    files = []
    for i in range(12):
        controller_file.write(tmp_path / f"{i}.safetensors", tensors, metadata)
        files.append((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(set(files)) == 1
