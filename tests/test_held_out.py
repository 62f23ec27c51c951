"""The held-out list: frozen, and apart from everything that can be drawn."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import get_args

import pytest
import torch
from torch import nn

from lrenv import data, tasks
from lrenv.benchmark.held_out import DATA, HELD_OUT, INITIAL_LRS, HeldOut, check_data, data_digest, data_of, held_out
from lrenv.data import Split, from_arrays
from lrenv.data.generated import Generated, Resampled
from lrenv.data.published import CLASSES, SOURCES
from lrenv.envs.episode import Episode
from lrenv.networks.families import ACTIVATIONS, Family, Perceptron, ResidualPerceptron, Transformer
from lrenv.training.drawn import TaskDistribution, parts
from lrenv.training.tasks import Task, make_task

FILES = {source.name: source for source in SOURCES}
EMBEDDED = [each for each in HELD_OUT if each.task().data not in FILES]


def module_of(each: HeldOut) -> nn.Module:
    task = each.task()
    assert isinstance(task.data, str)
    return task.network(FILES[task.data].shape, CLASSES) if task.data in FILES else task.module()


def kinds(module: nn.Module) -> set[str]:
    return {type(part).__name__ for part in module.modules()}


def drawn_kinds() -> set[str]:
    """The kinds of modules of all networks that can be drawn."""
    found: set[str] = set()
    for activation in ACTIVATIONS:
        for family in (Perceptron((3,), activation), Perceptron((3,), activation, True), Perceptron()):
            found |= kinds(family((4,), 2))
        found |= kinds(ResidualPerceptron(3, 1, activation)((4,), 2))
    return found | kinds(Transformer(4, 1, 1)((4,), 2))


def test_the_list_is_frozen() -> None:
    """It must not change: whoever needs another list gives it another name."""
    told = repr([(each.name, each.modules, each.weights, sorted(each.settings.items())) for each in HELD_OUT])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "ff50d5ac76e05f1c"
    for each in HELD_OUT:
        assert sum(p.numel() for p in module_of(each).parameters()) == each.weights, each.name


def test_data_are_frozen() -> None:
    assert set(DATA) == {data_of(task) for task in held_out()}
    for each in EMBEDDED:
        check_data(each.task())


def test_other_data_are_refused() -> None:
    """One pixel, one target, or two targets that change places."""
    task = HeldOut("co2-gru", "", (), 0, {"data": "co2"}).task()
    whole = task.load()
    inputs, targets = (part.clone() for part in whole.test)
    inputs[0, 0] += 0.01
    for test in (Split(inputs, whole.test.targets), Split(whole.test.inputs, targets.flip(0))):
        assert data_digest(whole._replace(test=test)) != DATA["co2"]
    changed = make_task(task, data=lambda: whole._replace(test=Split(inputs, targets)))
    with pytest.raises(ValueError, match="are others than those of the held-out list"):
        check_data(changed)


def test_there_are_enough_and_they_are_tasks() -> None:
    assert len(HELD_OUT) >= 10
    assert len({each.name for each in HELD_OUT}) == len(HELD_OUT)
    for each, task in zip(HELD_OUT, held_out(), strict=True):
        assert task.name == f"held-out:name={each.name}"
        assert make_task(task.name) == task
        assert each.name in tasks()
        assert task.initial_lr == INITIAL_LRS
        assert task.budget % task.interval == 0
        assert each.differs
    assert {"mnist", "fashion-mnist", "cifar10-jpeg", "text", "shuttle", "doctor-visits", "co2", "photo"} == {
        task.data for task in held_out()
    }
    assert max(each.weights for each in HELD_OUT) > 1_000_000


def test_settings_are_written_out() -> None:
    """Whatever becomes of the catalogue, what is measured stays: all that a spec can change is in the list."""
    of_the_network = {"name", "data_options", "network", "summary", "initial_lr"}
    defaults = {"augment": None, "replacement": False, "measure_interval": None}
    for each in HELD_OUT:
        rest = {f.name for f in fields(Task)} - of_the_network - set(each.settings)
        assert rest == set(defaults), each.name
        assert {name: getattr(each.task(), name) for name in rest} == defaults
        assert dict(each.task().data_options) == each.settings.get("data_options", {})


def test_no_data_set_is_drawn() -> None:
    drawn_sets = set(Resampled.SHAPES)
    assert drawn_sets < set(data.datasets())
    for task in held_out():
        assert task.data in data.datasets()
        assert task.data not in drawn_sets
    for i in range(500):
        drawn, _ = parts(TaskDistribution().task(i))
        assert type(drawn).__module__ == Generated.__module__
        assert not isinstance(drawn, Resampled) or drawn.source in drawn_sets


@pytest.mark.parametrize("each", HELD_OUT, ids=lambda each: each.name)
def test_no_network_is_drawn(each: HeldOut) -> None:
    assert each.modules
    assert set(each.modules) <= kinds(module_of(each))
    assert not set(each.modules) & drawn_kinds()


def test_drawn_networks_have_no_other_modules() -> None:
    assert set(get_args(Family)) == {Perceptron, ResidualPerceptron, Transformer}
    known = drawn_kinds()
    assert "BatchNorm1d" not in known
    for i in range(300):
        drawn, network = parts(TaskDistribution().task(i))
        assert kinds(network(drawn.shape, drawn.outputs)) <= known


def test_no_held_out_loss_but_these_is_drawn() -> None:
    losses = {TaskDistribution().task(i).loss for i in range(300)}
    assert losses == {"cross_entropy", "mse", "huber", "bce"}
    assert "poisson" not in losses


def play(task: Task) -> torch.Tensor:
    episode = Episode(make_task(task, budget=20, interval=10, initial_lr=3e-3))
    with torch.no_grad():
        state, time_step = episode.reset([0, 1])
        losses = [time_step.info["val_loss"]]
        for _ in range(2):
            state, time_step = episode.step(state, torch.zeros(2, 1))
            losses.append(time_step.info["val_loss"])
    return torch.stack(losses)


@pytest.mark.parametrize("each", EMBEDDED, ids=lambda each: each.name)
def test_those_that_need_no_files_learn(each: HeldOut) -> None:
    losses = play(make_task(each.task(), val_examples=100, batch_size=16))
    assert losses.isfinite().all()
    assert (losses[-1] < losses[0]).all()


@pytest.mark.parametrize("name", ["mnist-lenet", "mnist-maxout", "fashion-mnist-conv3", "cifar10-jpeg-wrn10-1"])
def test_those_of_images_take_images(name: str) -> None:
    """On images of noise in the shape of theirs: what they learn needs the files."""
    each = next(each for each in HELD_OUT if each.name == name)
    shape = FILES[str(each.task().data)].shape
    images = torch.randint(0, 256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(20) % 10)
    held = from_arrays(*split, *split, *split)
    settings = {"budget": 1, "interval": 1, "batch_size": 4}
    task = make_task(each.task(), data=lambda: held, initial_lr=1e-3, **settings)
    episode = Episode(task)
    with torch.no_grad():
        state, _ = episode.reset([0])
        _, time_step = episode.step(state, torch.zeros(1, 1))
    assert time_step.info["train_loss"].isfinite().all()
