"""The path to an accelerator without one: every task runs on a fake device that refuses mixing and waiting.

Tensors of `FakeTensorMode` have a shape and a device but no numbers. Computing with two devices raises, and so does
whatever would have to wait for a number. Renaming the private backend holds for a process, hence the child process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import importlib

import numpy as np
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from lrenv.data import Data, Split
from lrenv.episode import Episode
from lrenv import initialisation
from lrenv.stacked import Network
from lrenv.tasks import make_task, tasks

torch.set_num_threads(1)
# Single numbers would otherwise be followed on the CPU, and moved to a device that cannot hold them.
fake_tensor.CONSTANT_NUMEL_LIMIT = 0
_setup_privateuseone_for_python_backend(rename="gpu")

SHAPES = {
    "digits": (1, 8, 8), "mnist1d": (40,), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32), "cifar10-jpeg": (3, 32, 32), "svhn": (3, 32, 32), "folder": (3, 32, 32),
}

def load(name, **options):
    shape = SHAPES[name]
    dtype = torch.uint8 if len(shape) == 3 else torch.float32
    statistics = (shape[0], 1, 1) if len(shape) == 3 else ()
    def split(count):
        return Split(torch.zeros(count, *shape, dtype=dtype), torch.zeros(count, dtype=torch.int64))
    return Data(split(12), split(6), split(6), torch.zeros(statistics), torch.ones(statistics), 10)

# There are no numbers that could be compared.
initialisation.Initialiser._replays = initialisation._same = lambda one, other: True
Network.rehearse = lambda self, x, dtype: (len(x), 10)
# As an attribute of the package, `tasks` is the function.
importlib.import_module("lrenv.tasks").load = load

def play(task, **settings):
    data = task.load()
    with FakeTensorMode() as mode:
        held = tree_map_only(torch.Tensor, mode.from_tensor, data)
        episode = Episode(make_task(task, data=lambda: held), device="gpu", **settings)
        state = episode.reset([0, 1])
        columns = episode.control.rates + len(episode.control.beside)
        with torch.no_grad():
            for due in (None, np.array([True, False]), np.array([False, False])):
                state = episode.step(state, torch.zeros(2, columns, device="gpu"), due)
        outcome = episode.outcome(state)
        tested = episode.test(state, torch.zeros(1, dtype=torch.int64, device="gpu"))
        for name, tensor in (outcome.parts | tested).items():
            assert tensor.device.type == "gpu", name
        assert outcome.reward.shape == (2,)
"""

LEAVE = "\nimport os\nos._exit(0)\n"


def errors(body: str) -> str:
    """The end of what a script, run in a child process, raised; nothing if it got to its end.

    It leaves without tidying up: the autograd thread of the fake device may otherwise abort the process.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + body + LEAVE], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr[-3000:]}"


@pytest.mark.parametrize("depth", ["shallow", pytest.param("deep", marks=pytest.mark.slow)])
def test_every_task_trains_on_an_accelerator(depth: str) -> None:
    found = errors(
        f"""
deep = ("resnet18", "vgg16", "wrn16-1")
for name in tasks():
    if name.endswith(deep) != ({depth!r} == "deep"):
        continue
    batch_size = 1 if name == "two-minima" else 4
    try:
        play(make_task(name, batch_size=batch_size, budget=4, interval=2))
    except Exception as error:
        raise AssertionError(name) from error
"""
    )
    assert found == ""


def test_every_setting_runs_on_an_accelerator() -> None:
    found = errors(
        """
from torch import nn
from lrenv.controls import KINDS
from lrenv.optimizers import OPTIMIZERS, adam
from lrenv.rewards import REWARDS
from lrenv.signals import OBSERVATIONS, WHITE_BOX
from lrenv.tasks import LogUniform
from lrenv.trainee import Trainee

def dropout(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, classes))

base = make_task("digits-mlp", batch_size=4, budget=3, interval=2)
for optimizer in OPTIMIZERS:
    play(make_task(base, optimizer=optimizer))
for kind in KINDS:
    for granularity in ("", "/layer", "/parameter"):
        play(base, control=kind + granularity)
for granularity in ("", "/tensor", "/parameter"):
    play(base, control="set-raw" + granularity, observe=tuple(WHITE_BOX))
for observe in OBSERVATIONS:
    play(base, observe=observe)
for reward in REWARDS:
    play(base, reward=reward)
play(make_task(base, network=dropout, augment="crop-flip", replacement=True, initial_lr=LogUniform(1e-3, 1e-1)),
     control=("set", "momentum", "weight_decay"))

data = base.load()
with FakeTensorMode() as mode:
    held = tree_map_only(torch.Tensor, mode.from_tensor, data)
    trainee = Trainee(make_task(base, data=lambda: held, optimizer=adam(eps_root=1e-8)), device="gpu")
    lr = torch.ones(2, 1, device="gpu", requires_grad=True)
    state, losses = trainee.unroll(trainee.init([0, 1]), lr, trainee.hyper(2), 3)
    (slope,) = torch.autograd.grad(losses.sum(), lr)
    assert slope.device.type == "gpu" and slope.shape == (2, 1)
"""
    )
    assert found == ""


def test_the_guard_sees_waiting_and_mixing() -> None:
    """Without this the tests above could not fail.

    Which errors it raises differs between versions of PyTorch: waiting depends on data, and mixing names both devices.
    """
    found = errors(
        """
deeds = (
    (lambda x: x.sum().item(), ["DataDependent"]),
    (lambda x: bool((x > 0).all()), ["DataDependent"]),
    (lambda x: x + torch.ones(2, 2), ["devices", "gpu:0", "cpu"]),
    (lambda x: x @ torch.ones(2, 2), ["devices", "gpu:0", "cpu"]),
)
with FakeTensorMode():
    for number, (deed, words) in enumerate(deeds):
        try:
            deed(torch.ones(2, 2, device="gpu"))
        except Exception as caught:
            said = f"{type(caught).__name__}: {caught}"
            assert all(word in said for word in words), (number, said)
        else:
            raise AssertionError(f"deed {number} passed")
"""
    )
    assert found == ""
