"""Tasks: settings that cannot be meant are refused, overrides reach their field, names are unique."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from lrenv import data, networks, specs
from lrenv.data import Data, Split
from lrenv.envs.episode import Episode
from lrenv.training.losses import check_outputs, make_loss
from lrenv.training.optimizers import OPTIMIZERS, adam
from lrenv.training.tasks import LogUniform, Task, initial_rates, make_task, register_task, tasks
from lrenv.training.trainee import Trainee

# As an attribute of the package, `tasks` is the function.
tasks_module = importlib.import_module("lrenv.training.tasks")

EMBEDDED = (
    "noisy-quadratic", "power-law-easy", "power-law-hard",
    "two-minima", "digits-logreg", "digits-mlp", "digits-conv", "digits-noisy-mlp", "mnist1d-residual",
    "text-mlp", "text-transformer", "shuttle-mlp", "doctor-visits-mlp", "co2-mlp", "photo-mlp",
)  # fmt: skip


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks that a test registers are gone afterwards."""
    monkeypatch.setattr(tasks_module, "_TASKS", dict(tasks_module._TASKS))
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


@pytest.mark.parametrize("name", ["batch_size", "budget", "interval"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "at least 1, not 0"),
        (-3, ValueError, "at least 1, not -3"),
        (2.0, TypeError, "must be an integer, not 2.0"),
        ("8", TypeError, "must be an integer"),
        (True, TypeError, "must be an integer, not True"),
    ],
)
def test_counts_must_count(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{name}.*{message}"):
        make_task("digits-mlp", **{name: value})


def test_counts_may_be_those_of_numpy(toy: Callable[..., Task]) -> None:
    """They become Python's, which torch takes for sizes, and which don't overflow."""
    names = ("batch_size", "budget", "interval", "val_examples", "measure_interval")
    plain = toy(**dict.fromkeys(names, 4))
    task = make_task(plain, **dict.fromkeys(names, np.uint8(4)))
    assert [type(getattr(task, name)) for name in names] == [int] * 5
    assert task == plain
    long = toy(budget=np.uint16(65535), interval=np.int64(5))
    episode = Episode(long)
    assert episode.decisions == 13107
    state, _ = episode.reset([0])
    assert episode.step(state, torch.zeros(1, 1))[1].info["inner_step"].tolist() == [5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adan"}, "unknown optimizer 'adan'.*'adam'"),
        ({"loss": "cross-entropy"}, "unknown loss 'cross-entropy'.*'cross_entropy'"),
        ({"augment": "crop_flip"}, "unknown augmentation 'crop_flip'.*'crop-flip'"),
        ({"bugdet": 5}, "unknown setting of a task 'bugdet'.*'budget'"),
        ({"path": "images"}, "unknown setting of a task 'path'"),
        ({"optimizer": "sgd", "momentum": 0.9}, "momentum=0.9, but optimizer 'sgd' has no momentum"),
        ({"optimizer": "rmsprop", "momentum": 0.0}, "has no momentum"),
        ({"momentum": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"momentum": -0.1}, "at least 0 and below 1"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, not"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, not nan"),
        ({"initial_lr": 1e300}, "at least 0 and at most 1e.38, not 1e.300"),
        ({"initial_lr": -1.0}, "at least 0 and at most 1e.38, not -1.0"),
        ({"initial_lr": (0.1, math.nan)}, "at least 0 and at most 1e.38, not nan"),
        ({"initial_lr": math.inf}, "at least 0 and at most 1e.38, not inf"),
        ({"initial_lr": ()}, "initial_lr is empty"),
        ({"initial_lr": LogUniform(0.0, 1.0)}, "0 < low <= high"),
        ({"initial_lr": LogUniform(1.0, 0.1)}, "0 < low <= high"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("digits-mlp", **settings)


def test_unknown_tasks_name_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'digit-mlp': did you mean 'digits-mlp'"):
        make_task("digit-mlp")


@pytest.mark.parametrize("size", [25, 1000])
def test_a_batch_larger_than_the_data_is_refused(toy: Callable[..., Task], size: int) -> None:
    task = toy(batch_size=size)
    with pytest.raises(ValueError, match=f"task 'toy': batch_size={size} is larger than the 24 training examples"):
        task.load()
    assert make_task(task, replacement=True).load().classes == 3
    assert make_task(task, batch_size=24).load().classes == 3


def test_overrides_change_their_field_alone() -> None:
    base = make_task("digits-mlp")
    changed = make_task("digits-mlp", budget=7, optimizer="momentum", momentum=0.5)
    assert (changed.budget, changed.optimizer, changed.momentum) == (7, "momentum", 0.5)
    assert (changed.network, changed.data, changed.batch_size) == (base.network, base.data, base.batch_size)
    assert make_task(changed) == changed
    assert make_task(changed, interval=2).budget == 7
    assert make_task("digits-mlp") == base


def test_options_of_the_data_reach_the_data(monkeypatch: pytest.MonkeyPatch, make_blobs: Callable[..., Data]) -> None:
    seen: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Data:
        seen.update(options, name=name)
        return make_blobs((3, 32, 32))

    monkeypatch.setattr(tasks_module, "load", load)
    task = make_task("folder-lenet", path="images", size=32, batch_size=4, data_options={"channels": 3})
    assert dict(task.data_options) == {"path": "images", "size": 32, "channels": 3}
    make_task(task, size=28).load()
    assert seen == {"name": "folder", "path": "images", "size": 28, "channels": 3}
    assert make_task("mnist-mlp", data_options={"whole_train": True}).data_options == {"whole_train": True}


def test_hyperparameters_are_the_tasks_own_or_the_optimizers() -> None:
    assert make_task("digits-mlp").hyper == {"momentum": 0.9, "weight_decay": 0.0}
    assert make_task("digits-mlp", optimizer="adamw").hyper == {"momentum": 0.9, "weight_decay": 0.01}
    assert make_task("digits-mlp", momentum=0.0, weight_decay=0.1).hyper == {"momentum": 0.0, "weight_decay": 0.1}
    assert make_task("digits-mlp", optimizer="sgd").hyper == {"weight_decay": 0.0}
    assert make_task("digits-mlp", optimizer=adam(decoupled=True), momentum=0.3).hyper["momentum"] == 0.3


@pytest.mark.parametrize(
    ("initial_lr", "rates"), [(0.1, (0.1,)), (1, (1.0,)), ((1e-2, 0.0), (1e-2, 0.0)), (LogUniform(1e-3, 1), (1e-3, 1))]
)
def test_initial_rates(initial_lr: Any, rates: tuple[float, ...]) -> None:
    assert initial_rates(initial_lr) == rates


def test_a_name_is_taken_once(registry: None, toy: Callable[..., Task]) -> None:
    task = register_task(toy())
    assert "toy" in tasks()
    assert make_task("toy") is not None
    with pytest.raises(ValueError, match=r"a task 'toy' exists.*replace_existing"):
        register_task(toy(budget=3))
    assert make_task("toy").budget == task.budget
    register_task(toy(budget=3), replace_existing=True)
    assert make_task("toy").budget == 3


@pytest.mark.parametrize("replace_existing", [False, True])
def test_nothing_replaces_a_task_of_the_package(
    registry: None, toy: Callable[..., Task], replace_existing: bool
) -> None:
    mine = replace(toy(), name="digits-mlp")
    with pytest.raises(ValueError, match="task 'digits-mlp' is lrenv's own; choose another name"):
        register_task(mine, replace_existing)
    assert make_task("digits-mlp") != mine


def test_every_task_is_a_gymnasium_id(registry: None, toy: Callable[..., Task]) -> None:
    register_task(toy())
    assert {f"lrenv/{name}-v0" for name in tasks()} == {name for name in gym.registry if name.startswith("lrenv/")}
    assert gym.make("lrenv/toy-v0", device="cpu").unwrapped.task == make_task("toy")  # type: ignore[attr-defined]
    register_task(toy(budget=3), replace_existing=True)
    assert gym.make("lrenv/toy-v0", device="cpu").unwrapped.task.budget == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a b", "", "a:b", "a,b", "a=b", "../a", "a/b", "-a", "\u00e9t\u00e9", "a\n", None, 3])
def test_a_task_of_an_impossible_name_leaves_no_trace(registry: None, toy: Callable[..., Task], name: Any) -> None:
    before = (tasks(), dict(gym.registry))
    with pytest.raises(ValueError, match="a task can't be named"):
        register_task(replace(toy(), name=name))
    assert (tasks(), dict(gym.registry)) == before


def test_what_gymnasium_refuses_leaves_no_trace(registry: None, toy: Callable[..., Task]) -> None:
    """It holds an id without a version, beside which none with one can stand; or a task that was to be replaced."""
    gym.register("lrenv/toy", entry_point="lrenv.envs.env:LearningRateEnv")
    before = (tasks(), dict(gym.registry))
    with pytest.raises(gym.error.Error, match="toy"):
        register_task(toy())
    assert (tasks(), dict(gym.registry)) == before
    del gym.registry["lrenv/toy"]
    first = register_task(toy())
    gym.registry["lrenv/toy"] = gym.spec("lrenv/digits-mlp-v0")
    spec = gym.spec("lrenv/toy-v0")
    gym.registry["lrenv/toy"] = replace(spec, id="lrenv/toy")
    with pytest.raises(gym.error.Error, match="toy"):
        register_task(toy(budget=3), replace_existing=True)
    assert make_task("toy") == first
    assert gym.registry["lrenv/toy-v0"] is spec


def test_only_tasks_are_registered(registry: None) -> None:
    with pytest.raises(TypeError, match="register_task takes a lrenv.Task, not a str"):
        register_task("digits-mlp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a task is a name or a lrenv.Task, not the class Task"):
        make_task(Task)  # type: ignore[arg-type]


def test_specs_name_tasks() -> None:
    assert make_task("digits-mlp:budget=7:initial_lr=(0.1, 0.01)") == make_task(
        "digits-mlp", budget=7, initial_lr=(0.1, 0.01)
    )
    assert make_task("digits-mlp:budget=7", budget=8).budget == 8
    assert make_task("folder-lenet:path=a:b,c").data_options == {"path": "a:b,c"}


def test_data_that_are_none(toy: Callable[..., Task]) -> None:
    with pytest.raises(TypeError, match=r"task 'toy': its data function must give a lrenv.data.Data, not a tuple of 6"):
        replace(toy(), data=lambda: (1, 2, 3, 4, 5, 6)).load()  # type: ignore[arg-type, return-value]


def split_in_three() -> Any:
    return np.split(np.ones(10), 3)


def of_images(shape: Any, outputs: int) -> Any:
    return shape[1]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"data": split_in_three},
            ValueError,
            r"data function raised ValueError: .*equal .* \(test_tasks.py:\d+\)$",
        ),
        ({"data": lambda: np.load("/none/x.npy")}, FileNotFoundError, "/none/x.npy"),
        (
            {"network": of_images},
            ValueError,
            r"its network function, called with \(shape, outputs\) = \(torch.Size\(\[6\]\), 3\), raised IndexError: "
            r"tuple index out of range \(test_tasks.py:\d+\)$",
        ),
        (
            {"network": lambda shape: None},
            TypeError,
            r"task 'toy': its network function, .* TypeError: <lambda>",
        ),
    ],
)
def test_errors_of_ones_own_functions_say_whose_they_are(
    toy: Callable[..., Task], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Trainee(replace(toy(), **settings))


def test_networks_with_too_few_outputs(toy: Callable[..., Task]) -> None:
    held = toy().load()
    loss = make_loss("cross_entropy", held)
    check_outputs("toy", loss, torch.Size([2, 3]), held)
    with pytest.raises(ValueError, match=r"task 'toy': for 2 examples its network gives \(2, 2\).*needs \(2, 3\)"):
        check_outputs("toy", loss, torch.Size([2, 2]), held)
    with pytest.raises(ValueError, match=r"gives \(2,\), but loss 'cross_entropy'"):
        check_outputs("toy", loss, torch.Size([2]), held)


def test_the_table_of_tasks_is_sound() -> None:
    known = data.datasets()
    for name in tasks():
        task = make_task(name)
        assert specs.parse(task.name).name == name
        assert task.summary
        assert callable(task.data) or task.data in known
        assert task.optimizer in OPTIMIZERS
        assert task.budget % task.interval == 0


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_need_no_files(name: str) -> None:
    task = make_task(name)
    module = task.module()
    data = task.load()
    inputs = data.train.inputs[:2] if data.tokens else data.train.inputs[:2].float()
    places = data.train.targets.shape[1:] if data.classes else ()
    assert module(inputs).shape == (len(inputs), *places, max(data.outputs, 1))


def test_modules_fit_the_data(toy: Callable[..., Task]) -> None:
    assert toy(network=networks.logistic_regression).module()(torch.zeros(2, 6)).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement": "false"}, "replacement must be True or False, not 'false'"),
        ({"momentum": "high", "optimizer": "momentum"}, "momentum must be a number, not 'high'"),
        ({"weight_decay": "low"}, "weight_decay must be a number, not 'low'"),
        ({"initial_lr": LogUniform("a", 1)}, "LogUniform takes two rates, not 'a'"),  # type: ignore[arg-type]
        ({"optimizer": lambda sizes: 3}, "optimizer must make a .*Optimizer, not an int"),
        ({"optimizer": lambda lr: adam(lr < 0.1)}, "number of columns .* it raised TypeError: .*'<' not supp"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_task("digits-mlp", **settings)


def test_a_name_that_a_package_advertises_is_taken() -> None:
    with pytest.raises(ValueError, match="task 'drawn' is that of .*; choose another name"):
        register_task(replace(make_task("digits-mlp"), name="drawn"))
    assert make_task("drawn:number=1000000").name.startswith("drawn")


def test_what_a_package_advertises_does_not_keep_lrenv_from_its_own(
    registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "_BUILT_IN", set())  # as while lrenv is imported
    assert register_task(replace(make_task("digits-mlp"), name="drawn")).name == "drawn"


def test_the_options_of_a_folder_go_with_a_folder() -> None:
    assert make_task("digits-mlp", data="folder", path="images").data_options == {"path": "images"}
    with pytest.raises(ValueError, match="unknown setting of a task 'path'"):
        make_task("digits-mlp", path="images")


def broken(data: Data, **parts: Any) -> Data:
    return data._replace(**{name: Split(*part) for name, part in parts.items()})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), ValueError, "its validation split has no examples"),
        (lambda x, y: (x, y + 3), ValueError, "its validation targets hold 3 to 5, and classes are 0 to 2"),
        (lambda x, y: (x, y - 1), ValueError, "its validation targets hold -1 to 1, and classes are 0 to 2"),
        (lambda x, y: (x, y.int()), TypeError, "its validation targets are torch.int32: make labels int64"),
    ],
)
def test_data_made_by_hand_are_checked(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], change: Any, error: type[Exception], message: str
) -> None:
    data = make_blobs()
    with pytest.raises(error, match=message):
        toy(broken(data, val=change(*data.val))).load()


def test_only_images_are_augmented() -> None:
    with pytest.raises(ValueError, match="augment='crop' is for images, and examples are \\(40,\\)"):
        Trainee(make_task("mnist1d-mlp", augment="crop"))
