"""The path to an accelerator without one: every task runs on a fake device that refuses mixing and waiting.

Tensors of `FakeTensorMode` have a shape and a device but no numbers. Computing with two devices raises, and so does
whatever would have to wait for a number. Renaming the private backend holds for a process, hence the child process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

PRELUDE = """
import importlib

import numpy as np
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import lrenv
from lrenv.data import Data, Split
from lrenv.envs.episode import Episode
from lrenv.networks import initialisation
from lrenv.networks.stacked import Network
from lrenv.training.tasks import make_task, tasks
from lrenv.training.trainee import Trainee

torch.set_num_threads(1)
# Single numbers would otherwise be followed on the CPU, and moved to a device that cannot hold them.
fake_tensor.CONSTANT_NUMEL_LIMIT = 0
_setup_privateuseone_for_python_backend(rename="gpu")

SHAPES = {
    "digits": (1, 8, 8), "mnist1d": (40,), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32), "cifar10-jpeg": (3, 32, 32), "svhn": (3, 32, 32), "folder": (3, 32, 32),
}

def load(name, **options):
    if name not in SHAPES:  # it comes with lrenv
        return lrenv.data.load(name, **options)
    shape = SHAPES[name]
    dtype = torch.uint8 if len(shape) == 3 else torch.float32
    statistics = (shape[0], 1, 1) if len(shape) == 3 else ()
    def split(count):
        return Split(torch.zeros(count, *shape, dtype=dtype), torch.zeros(count, dtype=torch.int64))
    return Data(split(80), split(6), split(6), torch.zeros(statistics), torch.ones(statistics), 10)

# There are no numbers that could be compared.
initialisation.Initialiser._replays = initialisation._same = lambda one, other: True
Network.dry_run = lambda self, x, dtype: torch.Size((len(x), 10))
importlib.import_module("lrenv.training.objective").check_outputs = lambda task, loss, shape, data: None
# As an attribute of the package, `tasks` is the function.
importlib.import_module("lrenv.training.tasks").load = load

class NoTransfer(TorchDispatchMode):
    # Raises where numbers go from one device to another.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if func._schema.name in ("aten::_to_copy", "aten::copy_") and len({x.device.type for x in leaves}) > 1:
            raise AssertionError(f"{func} goes from one device to another within a decision")
        return result

def within(kind, name):
    whole = getattr(kind, name)
    def alone(*args, **kwargs):
        with NoTransfer():
            return whole(*args, **kwargs)
    setattr(kind, name, alone)

within(Episode, "_decided")
within(Trainee, "inner_loop")

WAITS, DONE = [], []
# Transfers to the host, and which envs end in the next decisions.
cpu, numpy, tolist, whole, number, truth = (
    getattr(FakeTensor, name) for name in ("cpu", "numpy", "tolist", "__int__", "__float__", "__bool__")
)

def fetched(x, *args, **kwargs):
    if isinstance(x, FakeTensor) and x.device.type == "gpu":
        WAITS.append(tuple(x.shape))
    return cpu(x, *args, **kwargs)

def on_host(original, stand_in):
    # Numbers that are on the host, made up; others have to be fetched first.
    def read(x, *args, **kwargs):
        if isinstance(x, FakeTensor) and x.device.type == "cpu":
            return stand_in(x)
        return original(x, *args, **kwargs)
    return read

def made_up(x):
    dtype = str(x.dtype).rpartition(".")[2]
    return np.full(tuple(x.shape), not x.dtype.is_floating_point, dtype)

torch.Tensor.cpu = fetched
torch.Tensor.numpy = on_host(numpy, made_up)
FakeTensor.tolist = on_host(tolist, lambda x: made_up(x).tolist())
torch.Tensor.__int__ = on_host(whole, lambda x: 0)
torch.Tensor.__float__ = on_host(number, lambda x: 0.5)
torch.Tensor.__bool__ = on_host(truth, lambda x: False)

adapter = importlib.import_module("lrenv.envs.vector_env")
transfer = adapter.to_host

def ending(tree):
    arrays = tree_map(np.zeros_like, transfer(tree))
    if hasattr(arrays, "terminated"):
        arrays = arrays._replace(observation=tree_map(np.ones_like, arrays.observation))
        if DONE:
            arrays = arrays._replace(terminated=np.array(DONE.pop(0)))
    return arrays

adapter.to_host = ending

def moved(module, device):
    # As `Module.to`, which swaps tensors that a mode keeps hold of.
    for part in module.modules():
        for name, p in part._parameters.items():
            part._parameters[name] = torch.nn.Parameter(p.detach().to(device))
    return module

torch.nn.Module.to = moved

def on_the_device(data, mode):
    return tree_map_only(torch.Tensor, mode.from_tensor, data)

def play(task, **settings):
    data = task.load()
    with FakeTensorMode() as mode:
        held = tree_map_only(torch.Tensor, mode.from_tensor, data)
        episode = Episode(make_task(task, data=lambda: held), device="gpu", **settings)
        state, time_step = episode.reset([0, 1])
        columns = episode.control.rates + len(episode.control.hyperparameters)
        with torch.no_grad():
            for due in (None, np.array([True, False]), np.array([False, False])):
                state, time_step = episode.step(state, torch.zeros(2, columns, device="gpu"), due)
        tested = episode.test(state, torch.zeros(1, dtype=torch.int64, device="gpu"))
        for tensor in tree_leaves((state, time_step, tested)):
            assert tensor.device.type == "gpu", settings
        assert time_step.reward.shape == (2,)
"""

SERVER = """
import json
import os
import sys
import traceback

beginning = dict(globals())
for line in sys.stdin:
    importlib.import_module("lrenv.training.tasks").load = load
    WAITS.clear()
    DONE.clear()
    told = ""
    try:
        exec(json.loads(line), dict(beginning))
    except Exception:
        told = traceback.format_exc()
    print(json.dumps(told), flush=True)
# Without tidying up: the autograd thread of the fake device may otherwise abort the process.
os._exit(0)
"""
"""Runs scripts, JSON texts in lines, each as if it were the first; answers each with what it raised, as JSON."""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A function that runs a script in the child process, and gives what it raised; nothing if it got to its end."""
    log = tmp_path_factory.mktemp("child") / "stderr"
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + SERVER]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        requests, answers = child.stdin, child.stdout

        def run(script: str) -> str:
            try:
                print(json.dumps(script), file=requests, flush=True)
                return str(json.loads(answers.readline()))[-12000:]
            except (BrokenPipeError, json.JSONDecodeError):
                return f"exit status {child.wait()}: {log.read_text()[-12000:]}"

        yield run


@pytest.mark.parametrize("depth", ["first", pytest.param("other", marks=pytest.mark.slow)])
def test_every_task_trains_on_an_accelerator(errors: Callable[[str], str], depth: str) -> None:
    """Those that are deep, or differ from an earlier one in data alone, in the slow test."""
    found = errors(
        f"""
deep, seen = ("resnet18", "vgg16", "wrn16-1"), set()
for name in tasks():
    task = make_task(name)
    kind = (task.network, task.loss, task.optimizer, task.augment)
    other = name.endswith(deep) or kind in seen
    seen.add(kind)
    if other != ({depth!r} == "other"):
        continue
    batch_size = 1 if name == "two-minima" else 4
    try:
        play(make_task(name, batch_size=batch_size, budget=4, interval=2))
    except Exception as error:
        raise AssertionError(name) from error
"""
    )
    assert found == ""


def test_every_setting_runs_on_an_accelerator(errors: Callable[[str], str]) -> None:
    """Once, beside others: optimizers, controls, observations and rewards know nothing of one another."""
    found = errors(
        """
from torch import nn
from lrenv.envs.actions import KINDS
from lrenv.training.optimizers import OPTIMIZERS, adam
from lrenv.envs.rewards import REWARDS
from lrenv.envs.observations import OBSERVATIONS, WHITE_BOX
from lrenv.training.tasks import LogUniform
from lrenv.training.trainee import Trainee

def dropout(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, classes))

base = make_task("digits-mlp", batch_size=4, budget=3, interval=2)
axes = {
    "optimizer": [*OPTIMIZERS, "adam+ema"],
    "control": [kind + granularity for granularity in ("", "/layer", "/parameter") for kind in KINDS],
    "observe": list(OBSERVATIONS),
    "reward": list(REWARDS),
}
for place in range(max(map(len, axes.values()))):
    chosen = {name: values[place % len(values)] for name, values in axes.items()}
    try:
        play(make_task(base, optimizer=chosen.pop("optimizer")), **chosen)
    except Exception as error:
        raise AssertionError(place, chosen) from error
for granularity in ("", "/tensor", "/parameter"):
    play(base, control="set-raw" + granularity, observe=tuple(WHITE_BOX))
play(make_task(base, network=dropout, augment="crop-flip", replacement=True, initial_lr=LogUniform(1e-3, 1e-1)),
     control=("set", "momentum", "weight_decay"))
play(base, precision="tf32")

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


def test_adapters_wait_once_a_decision(errors: Callable[[str], str]) -> None:
    """Once more where episodes end and test losses are read, or others begin within the decision."""
    found = errors(
        """
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv

base = make_task("digits-mlp", batch_size=4, budget=4, interval=2)
data = base.load()
for mode_name in ("NextStep", "SameStep", "Disabled"):
    for observe in ("dynamics", ("clock", "hypergradient", "mean_gradient", "parameters")):
        with FakeTensorMode() as mode:
            held = on_the_device(data, mode)
            envs = LearningRateVectorEnv(
                2, make_task(base, data=lambda: held), device="gpu", observe=observe, autoreset_mode=mode_name
            )
            envs.reset(seed=0)
            for done, waits in (((False, False), 1), ((True, False), 2 + (mode_name == "SameStep")), ((False,) * 2, 1)):
                WAITS.clear()
                DONE[:] = [done]
                envs.step(np.zeros((2, 1), np.float32))
                assert len(WAITS) == waits, (mode_name, observe, done, WAITS)
            snapshot = envs.snapshot()
            envs.restore(snapshot)
with FakeTensorMode() as mode:
    held = on_the_device(data, mode)
    envs = LearningRateVecEnv(2, make_task(base, data=lambda: held), device="gpu")
    envs.reset()
    for done in ((False, False), (False, True), (True, True)):
        DONE[:] = [done]
        assert list(envs.step(np.zeros((2, 1), np.float32))[2]) == list(done)
"""
    )
    assert found == ""


AGENTS = """
from lrenv.agents import make_agent
from lrenv.agents.noh.lstm import Architecture
from lrenv.agents.learned_optimizer.agent import LearnedOptimizer
from lrenv.agents.learned_optimizer.agent import Architecture as Perceptron
from lrenv.agents.noh.agent import NOH, DMopt
from lrenv.agents.universal.agent import UniversalController
from lrenv.agents.universal.policy import Architecture as Universal
from lrenv.agents import agents
from lrenv.benchmark import evaluate

base = make_task("digits-mlp", batch_size=4, budget=4, interval=2)
data = base.load()

def evaluated(make):
    with FakeTensorMode() as mode:
        held = on_the_device(data, mode)
        WAITS.clear()
        DONE[:] = [(False, False)] + [(False, False)] * 3 + [(True, True)] * 20
        agent = make()
        evaluate(agent, make_task(base, data=lambda: held), [0, 1], device="gpu")
        return list(WAITS)
"""


@pytest.mark.slow
def test_every_agent_acts_on_an_accelerator(errors: Callable[[str], str]) -> None:
    found = errors(
        AGENTS
        + """
from lrenv.controllers.agent import agent_factory

trained = {
    "refined": lambda: make_agent("refined", norms=(2.0, 1.0), peak=0.1),
    "noh": lambda: NOH(Architecture(hidden=4), 2, "adam"),
    "dmopt": lambda: DMopt(Architecture(hidden=4), 2, "unit"),
    "learned-optimizer": lambda: LearnedOptimizer(torch.zeros(Perceptron(4).size), Perceptron(4)),
    "universal-policy": lambda: UniversalController(torch.zeros(Universal(True).size), Universal(True)),
    "fds": lambda: make_agent("fds", lr=(0.1, 0.01)),
    "search": lambda: make_agent("search", lr=(0.1,)),
}
def named(name):
    return make_agent(name, **{key: values[0] for key, values in getattr(agent_factory(name), "grid", {}).items()})
for name in agents():
    if name in ("ppo", "metz2019-cpu"):  # acts on the host; is a learned optimizer from a file, which has numbers
        continue
    if ".tuning_free." in agent_factory(name).__module__:  # optimizers of packages that wait for the device
        continue
    try:
        evaluated(trained.get(name, lambda: named(name)))
    except Exception as error:
        raise AssertionError(name) from error
"""
    )
    assert found == ""


def test_a_memory_stays_on_its_device(errors: Callable[[str], str]) -> None:
    """A policy fetches its actions and nothing else; one that is given its memory as arrays brings it back."""
    found = errors(
        AGENTS
        + """
with FakeTensorMode():
    policy = NOH(Architecture(layers=2, hidden=4), 2, "adam")
    there = policy.on_device(torch.device("gpu"))
    assert there.device.type == "gpu" and policy.device.type == "cpu" and there.on_device(torch.device("gpu")) is there
    seen = {"mean_gradient": np.zeros((2, 6), np.float32)}
    _, memory = there.predict(seen)
    assert {x.device.type for x in memory} == {"gpu"}
    WAITS.clear()
    action, after = there.predict(seen, memory, np.array([True, False]))
    assert WAITS == [(2, 6)] and action.shape == (2, 6), WAITS
    there.predict(seen, tuple(np.zeros(x.shape, np.float32) for x in after))
"""
    )
    assert found == ""


def test_every_training_waits_where_it_logs(errors: Callable[[str], str]) -> None:
    """Learned optimizers, and truncated windows, need kernels that the fake device lacks, and numbers."""
    assert errors(TRAININGS) == ""


TRAININGS = """
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining
from lrenv.agents.noh.agent import NOH, DMopt
from lrenv.agents.noh.evolution import lstm_training
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.noh.training import NOHTraining
from lrenv.agents.fds.random_search import schedule_training

small = dict(task="digits-mlp", device="gpu", budget=4, interval=2, eval_seeds=2)
lstm = dict(envs=2, unroll=2, meta_iterations=1, hidden=4, layers=2)
learned = dict(first_unroll=2, curriculum=4, updates=2, workers=2, pairs=2, hidden=4)
def made(kind):
    if kind == "noh":
        return NOHTraining(NOH, NOHSettings(**small, **lstm))
    if kind.startswith("noh, "):
        others = dict(estimator=kind[5:], pairs=2, per="layer", meta_iterations=1, hidden=4, layers=2)
        return lstm_training(NOH, NOHSettings(**small, **others))
    if kind == "dmopt":
        return NOHTraining(DMopt, DMoptSettings(**small | {"interval": 1}, **lstm))
    if kind in ("fds", "greedy", "random"):
        return schedule_training(FDSSettings(**small, segments=2, trainees=2, outer_steps=2, method=kind))
    objective = "valid" if kind == "pes" else "train"
    return LearnedOptimizerTraining(LearnedOptimizerSettings(**small, **learned, estimator=kind, objective=objective))

data = make_task("digits-mlp").load()
for kind in ("noh", "noh, es", "noh, pes", "dmopt", "fds", "greedy", "random"):
    try:
        with FakeTensorMode() as mode:
            held = on_the_device(data, mode)
            importlib.import_module("lrenv.training.tasks").load = lambda name, **options: held
            training = made(kind)
            WAITS.clear()
            # What a search logs is chosen by numbers that are on the host by then.
            try:
                (training.outer_step if kind in ("fds", "greedy", "random") else training.iterate)()
            except ValueError as error:
                if "losses of 0 or less" not in str(error):  # which is what this device's numbers are
                    raise
            allowed = 1
            assert 1 <= len(WAITS) <= allowed, WAITS
    except Exception as error:
        raise AssertionError(kind) from error
"""


def test_the_guard_sees_what_crosses_within_a_decision(errors: Callable[[str], str]) -> None:
    """A constant from the host in an optimizer's direction, and a number that is read before it was fetched."""
    found = errors(
        """
from lrenv.training.optimizers import Optimizer
base = make_task("digits-mlp", batch_size=4, budget=4, interval=2)
deeds = {
    "copy": lambda grads: grads * torch.ones(1).to(grads.device),
    "constant": lambda grads: grads * grads.new_tensor([0.5]),
    "wait": lambda grads: grads * float(grads.sum()),
    "mix": lambda grads: grads * torch.ones(1),
}
for name, deed in deeds.items():
    optimizer = Optimizer(lambda params: {}, lambda grads, state, params, hyper: (deed(grads), state))
    try:
        play(make_task(base, optimizer=optimizer))
    except Exception as error:
        continue
    raise AssertionError(name)
"""
    )
    assert found == ""


def test_the_guard_sees_waiting_and_mixing(errors: Callable[[str], str]) -> None:
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
    assert errors("raise KeyError(7)").endswith("KeyError: 7\n")
