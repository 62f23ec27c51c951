"""What the metadata of controller files may say, and that files hold what their metadata describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fuzz_controller_files import Parts, act, array, base_files, fuzz, held, pack, table, unpack

from lrenv.agents import make_agent
from lrenv.agents.fds.agent import FDS
from lrenv.agents.fds.random_search import Search
from lrenv.agents.learned_optimizer.agent import LearnedOptimizer
from lrenv.agents.noh.agent import NOH, DMopt
from lrenv.agents.noh.lstm import Architecture as Coordinatewise
from lrenv.agents.noh.lstm import CoordinateLSTM
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.agents.universal.agent import UniversalController
from lrenv.controllers.controller_file import ControllerFileError, TensorSpec

LOADERS: dict[str, Any] = {
    "ppo": PPOController, "ppo-lstm": PPOController, "noh": NOH, "dmopt": DMopt, "fds": FDS, "search": Search,
    "learned-optimizer": LearnedOptimizer, "universal-policy": UniversalController,
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a sound PPO controller."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(base_files()["ppo"])
    return path


def put(metadata: dict[str, Any], field: str, value: Any) -> None:
    """Changes a field, "view.interval" for one within another."""
    *above, last = field.split(".")
    for name in above:
        metadata = metadata[name]
    metadata[last] = value


@pytest.mark.parametrize(("agent", "message"), [("pppo", "unknown agent 'pppo'.*'ppo'"), ("cosine", "has no files")])
def test_a_file_of_an_unfit_agent(path: Path, agent: str, message: str) -> None:
    parts = unpack(path.read_bytes())
    path.write_bytes(pack(Parts(parts.tensors, parts.metadata | {"agent": agent})))
    with pytest.raises(ControllerFileError, match=message):
        make_agent(path)


@pytest.mark.parametrize("missing", ["view", "architecture"])
def test_missing_metadata(path: Path, missing: str) -> None:
    parts = unpack(path.read_bytes())
    del parts.metadata[missing]
    path.write_bytes(pack(parts))
    with pytest.raises(ControllerFileError, match=f"metadata lacks {missing}"):
        make_agent(path)


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("ppo", "agent", (None, 3, "", "x" * 101)),
        ("ppo", "kind", ("checkpoint", "model", None)),
        ("ppo", "episodes", (-1, 1.5, True, "3")),
        ("ppo", "val_loss", ("low", [], True)),
        ("ppo", "runs", (3, {}, {"training": 3}, {"training": 3, "selection": -1})),
        ("ppo", "finished", (0, None)),
        ("ppo", "settings", ([], None)),
        ("ppo", "view.interval", (0, -1, 10**9, 2.0, "7", True)),
        ("ppo", "view.control", ("scael", "set-raw", "discrete", "scale/neuron", ["scale", "scale"], [], {})),
        ("ppo", "view.observe", ("paper", "clock", "mean_gradient", ["dynamics", "dynamics"], [], None, "x" * 10**5)),
        ("ppo", "view.optimizer", ("adm", 3, "")),
        ("ppo", "view.horizon", (3,)),
        ("ppo", "architecture.observation", (0, 9, 10**9, 8.0)),
        ("ppo", "architecture.action", (0, 2, 10**9, -1)),
        ("ppo", "architecture.choices", ([3], [10**9], 3, [0])),
        ("ppo", "architecture.hidden", (0, 5, 10**4, 10**9, "4")),
        ("ppo", "architecture.lstm", (True, 0)),
        ("ppo-lstm", "architecture.hidden", (5, 10**9)),
        ("ppo-lstm", "architecture.lstm", (False,)),
        ("noh", "architecture.layers", (0, 1, 3, 10**4, 10**9)),
        ("noh", "architecture.hidden", (5, 10**9)),
        ("noh", "architecture.cut", (0, -1, 1000.0, float("nan"))),
        ("noh", "architecture.scale", (0, -1.0, 1e300, float("inf"))),
        ("noh", "view.interval", (None, 0)),
        ("noh", "view.optimizer", (None, "unit")),
        ("noh", "view.control", ("set-raw", "set/parameter")),
        ("noh", "view.observe", ("mean_gradient", ["mean_gradient", "clock"])),
        ("dmopt", "view.optimizer", (None, "adam")),
        ("noh", "agent", ("dmopt", "ppo", "fds", "learned-optimizer")),
        ("dmopt", "agent", ("noh",)),
        ("fds", "optimizer", ("sgd", "adm", 3, ["adam"])),
        ("learned-optimizer", "architecture.hidden", (0, 5, 10**9)),
        ("learned-optimizer", "architecture.time", (False, 1)),
        ("universal-policy", "architecture.hidden", (0, 5, 10**9)),
        ("universal-policy", "architecture.layers", (True, 0)),
        ("universal-policy", "numbers", ([], ["log_warmup"], 3)),
        ("universal-policy", "policy", (2, 4, None)),
        ("universal-policy", "architecture.horizon", (False, "yes")),
    ],
)  # fmt: skip
def test_metadata_that_can_not_be_meant(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, field: str, values: tuple[Any, ...]
) -> None:
    """Refused before a network is built, although the checksums are right."""

    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("a network is built")

    base_files()
    monkeypatch.setattr(Architecture, "build", build)
    monkeypatch.setattr(CoordinateLSTM, "__init__", build)
    for value in values:
        parts = unpack(base_files()[kind])
        put(parts.metadata, field, value)
        path.write_bytes(pack(parts))
        with pytest.raises(ControllerFileError, match=r"; \w") as error:
            make_agent(path)
        assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("ppo", "std", (0.0, -1.0, float("nan"), float("inf"))),
        ("ppo", "mean", (float("nan"), 1e300)),
        ("ppo", "policy.log_std", (float("inf"), 1e3, -1e3)),
        ("ppo", "policy.action_net.weight", (float("nan"), float("-inf"), 1e30)),
        ("ppo-lstm", "policy.lstm_actor.weight_hh_l0", (float("nan"),)),
        ("ppo", "policy.value_net.bias", (float("nan"),)),
        ("noh", "offset", (float("nan"), 1e4)),
        ("noh", "output", (float("inf"), 1e4)),
        ("dmopt", "weights.1", (float("nan"), 1e30)),
        ("fds", "lr", (float("nan"), float("inf"), -0.1, 1e300)),
        ("fds", "momentum", (1.0, -0.1)),
        ("learned-optimizer", "theta", (float("nan"), float("inf"), 1e30)),
        ("universal-policy", "theta", (float("nan"), float("inf"), 1e30)),
    ],
)
def test_values_that_can_not_be_used(path: Path, kind: str, name: str, values: tuple[float, ...]) -> None:
    for value in values:
        parts = unpack(base_files()[kind])
        x = array(parts.tensors[name])
        x.reshape(-1)[-1] = value
        parts.tensors[name] = held(x)
        path.write_bytes(pack(parts))
        with pytest.raises(ControllerFileError):
            make_agent(path)


@pytest.mark.parametrize("kind", LOADERS)
def test_tensors_that_are_not_those_described(path: Path, kind: str) -> None:
    sound = unpack(base_files()[kind])
    for name in sound.tensors:
        x = array(sound.tensors[name])
        changes: list[dict[str, Any]] = [{name: held(x[None])}, {name: held(x.astype(np.int32))}, {name + "x": held(x)}]
        for change in changes:
            path.write_bytes(pack(Parts(sound.tensors | change, sound.metadata)))
            with pytest.raises(
                ControllerFileError, match=r"doesn't hold the weights that its metadata describe.*again"
            ):
                make_agent(path)
        path.write_bytes(pack(Parts({k: v for k, v in sound.tensors.items() if k != name}, sound.metadata)))
        with pytest.raises(ControllerFileError, match=f"{name} is missing"):
            make_agent(path)


@pytest.mark.parametrize("kind", LOADERS)
def test_another_kind_is_refused(path: Path, kind: str) -> None:
    """Each loader by name, and each relabelled file by its checksum, although some have the same shapes."""
    for other, data in base_files().items():
        path.write_bytes(data)
        if LOADERS.get(other) is not LOADERS[kind]:
            with pytest.raises(ControllerFileError, match=r"holds the (agent|state)"):
                LOADERS[kind].load(path)
            old, new = (f'\\"agent\\": \\"{name}\\"'.encode() for name in (other, kind))
            if old in data and len(old) == len(new):
                path.write_bytes(data.replace(old, new))
                with pytest.raises(ControllerFileError, match="checksum"):
                    make_agent(path)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(8, 3),
        Architecture(7, 1, (), 5, True),
        Architecture(8, 0, (3,), 16, True),
        Architecture(8, 0, (3, 3)),
    ],
)
def test_tensor_specs_are_what_policies_have(architecture: Architecture) -> None:
    held = {f"policy.{name}": TensorSpec(tuple(x.shape)) for name, x in architecture.build().state_dict().items()}
    specs = {name: x._replace(low=TensorSpec.__new__.__defaults__[1], high=TensorSpec.__new__.__defaults__[2])
                for name, x in architecture.tensor_specs().items() if name not in ("mean", "std")}  # fmt: skip
    assert specs == held


@pytest.mark.parametrize("architecture", [Coordinatewise(), Coordinatewise(1, 5), Coordinatewise(4, 1)])
def test_tensor_specs_are_what_coordinatewise_lstms_have(architecture: Coordinatewise) -> None:
    state = CoordinateLSTM(architecture).state_dict()
    assert architecture.tensor_specs() == {name: TensorSpec(tuple(x.shape)) for name, x in state.items()}


@pytest.mark.parametrize("kind", LOADERS)
def test_files_are_read_alike_whatever_the_default_type_is(path: Path, kind: str) -> None:
    path.write_bytes(base_files()[kind])
    torch.set_default_dtype(torch.float64)
    try:
        agent = make_agent(path)
        networks = [x for x in (getattr(agent, name, None) for name in ("policy", "network")) if x is not None]
        assert {weight.dtype for network in networks for weight in network.parameters()} <= {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
    act(agent)


def assert_refused_or_harmless(mutations: int) -> None:
    found = fuzz(mutations)
    assert {result for *_, result, _ in found} == {"refused", "harmless"}, table(found)
    assert len(found) == mutations


def test_mutated_files_are_refused_or_harmless() -> None:
    assert_refused_or_harmless(150)


@pytest.mark.slow
def test_many_mutated_files_are_refused_or_harmless() -> None:
    assert_refused_or_harmless(2000)


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
