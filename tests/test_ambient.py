"""torch's settings around lrenv change no number, inside nothing of them is left, and outside all of it is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, blobs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lrenv.agents.outer.training import train
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.benchmark.evaluation import evaluate
from lrenv.envs.episode import Episode
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks import linears
from lrenv.runtime import ambient
from lrenv.runtime.ambient import with_own_settings, without_gradients
from lrenv.runtime.files import locked_folder
from lrenv.training.hypergradients import forward, reverse
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64


class Factory(nn.Module):
    """Makes tensors on its way, as modules do."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.linspace(0, 1, x.shape[-1]) @ torch.eye(x.shape[-1])


def network(shape: Any, classes: int) -> nn.Module:
    first = nn.Linear(6, 8)
    nn.init.orthogonal_(first.weight)  # can't be replayed: the constructor runs for each copy
    middle = parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(first, nn.Dropout(0.2), Factory(), middle, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def plain(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, classes))


def task(make: Callable[..., nn.Module] = network, **settings: Any) -> Task:
    defaults: dict[str, Any] = {"optimizer": "adam", "batch_size": 4, "budget": 6, "interval": 2, "initial_lr": 0.01}
    return Task("ambient", **({"data": blobs, "network": make} | defaults | settings))


def made(dtype: str = "float32", **settings: Any) -> LearningRateVectorEnv:
    return LearningRateVectorEnv(2, task(**settings), device="cpu", observe=("dynamics", "hypergradient"), dtype=dtype)


def played(envs: LearningRateVectorEnv, decisions: int = 4) -> list[Any]:
    """Everything that comes out, over the end of an episode."""
    observation, info = envs.reset(seed=3)
    seen = [*observation.values(), *info.values()]
    for decision in range(decisions):
        observation, *rest, info = envs.step(np.full((2, 1), 0.1 * decision, np.float32))
        seen += [*observation.values(), *rest, *info.values()]
    return seen


@contextmanager
def changed(read: Callable[[], Any], make: Callable[[Any], object], value: Any) -> Iterator[None]:
    before = read()
    make(value)
    try:
        yield
    finally:
        assert read() == value, "what a program has set is left as it was"
        make(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
        assert torch.get_default_device() == torch.device(device)
    finally:
        torch.set_default_device(None)


@contextmanager
def cached() -> Iterator[None]:
    with parametrize.cached():
        yield
        assert parametrize._cache_enabled == 1


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        yield
        assert torch.equal(torch.get_rng_state(), before)


def deterministic() -> AbstractContextManager[None]:
    return changed(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "half as default dtype": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "seed": seeded,
    "deterministic kernels": deterministic,
    "matrix products in less": lambda: changed(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "cached parametrisations": cached,
    "hooks on saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: 2 * x, lambda x: 2 * x),
}


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    return played(made())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_around_change_no_number(name: str, undisturbed: list[Any]) -> None:
    with SETTINGS[name]():
        envs = made()
        inside = played(envs)
        again = played(envs)
    then = played(envs)
    for seen in (inside, again, then):
        assert_equal(seen, undisturbed)
    envs = made()
    with SETTINGS[name]():
        later = played(envs)
    assert_equal(later, undisturbed)


class Products:
    """An object that asks for rounded products, or not, and tells what it sees inside."""

    def __init__(self, rounds_products: bool) -> None:
        self.rounds_products = rounds_products

    def seen(self) -> tuple[str, bool, str]:
        precision = linears._constants(torch.zeros(2, 3, 4), torch.zeros(2, 5, 3), True)["PRECISION"]
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, precision

    @with_own_settings
    def shows(self, inner: Products | None = None) -> Any:
        return self.seen() if inner is None else (self.seen(), inner.shows(), self.seen())

    @without_gradients
    def fails(self) -> None:
        assert self.seen()[0] == "high"
        raise KeyError


@pytest.mark.parametrize("around", ["highest", "medium"])
def test_products_are_rounded_for_who_asks_and_for_nobody_else(around: str) -> None:
    full, rounded = Products(False), Products(True)
    exact, coarse = ("highest", False, "ieee"), ("high", True, "tf32")
    with changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, around):
        before = full.seen()
        assert full.shows(rounded) == (exact, coarse, exact)
        assert rounded.shows(rounded) == (coarse, coarse, coarse)
        with pytest.raises(KeyError):
            rounded.fails()
        assert rounded.shows() == coarse
        assert full.shows() == exact
        assert full.seen() == before


@pytest.mark.parametrize("others", [(True, True), (True, False), (False, True)])
def test_threads_that_round_leave_the_process_as_it_was(others: tuple[bool, bool]) -> None:
    """The second enters while the first is inside, and leaves after it."""
    barrier = threading.Barrier(2, timeout=20)
    seen: dict[int, list[str]] = {0: [], 1: []}

    class Slow(Products):
        @with_own_settings
        def first(self) -> None:
            barrier.wait()  # the second may enter
            barrier.wait()  # it has
            seen[0].append(self.seen()[0])

        @with_own_settings
        def second(self) -> None:
            barrier.wait()
            barrier.wait()  # the first has left
            seen[1].append(self.seen()[0])

    def run_first() -> None:
        Slow(others[0]).first()
        barrier.wait()

    def run_second() -> None:
        barrier.wait()
        Slow(others[1]).second()

    before = Products(False).seen()
    threads = [threading.Thread(target=run) for run in (run_first, run_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Products(False).seen() == before
    assert seen[0] == ["high"]  # one of them rounds
    assert seen[1] == ["high" if others[1] else "highest"]


BACKENDS = {
    "products": ("torch.backends.cuda.matmul.fp32_precision", "tf32"),
    "everything in TF32": ("torch.backends.fp32_precision", "tf32"),
    "everything exact": ("torch.backends.fp32_precision", "ieee"),
    "convolutions in TF32": ("torch.backends.cudnn.fp32_precision", "tf32"),
    "convolutions exact": ("torch.backends.cudnn.conv.fp32_precision", "ieee"),
}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch sets no precision by backend")
@pytest.mark.parametrize("name", BACKENDS)
def test_a_precision_set_backend_by_backend_harms_nothing(name: str) -> None:
    """In a process of its own, since a precision that is set in both ways can't be set back."""
    setting, value = BACKENDS[name]
    code = f"""
import torch
from lrenv.runtime.ambient import own_settings
{setting} = {value!r}
for rounded in (False, True, False):
    with own_settings(rounded), own_settings(True):
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic
    assert {setting} == {value!r}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_program_sets_while_a_thread_is_inside_stays() -> None:
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        with ambient.own_settings():
            torch.set_default_dtype(torch.float64)
            torch.set_float32_matmul_precision("medium")
        assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.float64, "medium")
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])


def assert_equal(seen: list[Any], expected: list[Any]) -> None:
    for a, b in zip(seen, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_transforms_around_an_environment_change_no_number(undisturbed: list[Any]) -> None:
    seen: list[Any] = []

    def play(x: Tensor) -> Tensor:
        seen.append(played(made()))
        return x.sum()

    torch.func.grad(play)(torch.ones(3))
    torch.func.vmap(play)(torch.ones(2, 3))
    torch.func.jvp(play, (torch.ones(3),), (torch.ones(3),))
    for each in seen:
        assert_equal(each, undisturbed)


# Whoever differentiates through the core says how its tensors are saved.
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "hooks on saved tensors"])
def test_the_core_gives_the_same_numbers_and_derivatives(name: str) -> None:
    def core() -> list[Tensor]:
        trainee = Trainee(task(plain, optimizer="sgd"), dtype=F64)
        start = trainee.init([0, 1])
        schedule = {"lr": torch.full((2, 2), 0.1, dtype=F64, device="cpu")}
        back = reverse(trainee, start, schedule, 4)
        ahead = forward(trainee, start, schedule, 4)
        episode = Episode(task(plain), dtype=F64)
        state, _ = episode.step(episode.reset([0, 1])[0], torch.full((2, 1), 0.3, dtype=F64, device="cpu"))
        tested = episode.test(state, torch.tensor([0, 1], device="cpu"))
        values = [back.objective, back.gradient["lr"], ahead.gradient["lr"], state.trainee.params, *tested.values()]
        return [value.detach() for value in values]

    expected = core()
    with SETTINGS[name]():
        seen = core()
    for a, b in zip(seen, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_data_made_in_inference_mode_can_be_trained_on(undisturbed: list[Any]) -> None:
    with torch.inference_mode():
        data = blobs()
        data = data._replace(train=data.train._replace(inputs=data.train.inputs * 1))
    assert data.train.inputs.is_inference()
    assert_equal(played(made(data=lambda: data)), undisturbed)


def test_the_number_of_threads_changes_numbers_by_rounding_alone() -> None:
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append(played(made("float64", network=plain)))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*seen, strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-6, atol=1e-6)


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """What functions give that run in threads of their own, started together."""
    results: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(i: int) -> None:
        start.wait()
        try:
            results[i] = functions[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_disturb_each_other(dtype: torch.dtype, undisturbed: list[Any]) -> None:
    def drawing() -> Tensor:
        generator_draws = [torch.rand(3, dtype=F64) for _ in range(3000)]
        return torch.stack(generator_draws)

    with torch.random.fork_rng(devices=[]), changed(torch.get_default_dtype, torch.set_default_dtype, dtype):
        torch.manual_seed(1)
        expected = drawing()
        torch.manual_seed(1)
        *seen, drawn = at_once(*[lambda: played(made())] * 3, drawing)
    for each in seen:
        assert_equal(each, undisturbed)
    assert torch.equal(drawn, expected)


def test_threads_may_share_an_episode() -> None:
    """Training in one, measuring in the other: each changes the module that both run."""
    trainee = Trainee(task(), dtype=F64)
    start = trainee.init([0, 1])

    def train() -> Tensor:
        with torch.no_grad():
            return trainee.unroll(start, torch.full((2, 1), 0.01, dtype=F64), trainee.hyper(2), 40)[0].params

    def measure() -> Tensor:
        with torch.no_grad():
            return torch.stack([trainee.evaluate(start.params, start.buffers, trainee.val).loss for _ in range(60)])

    expected = [train(), measure()]
    for a, b in zip(at_once(train, measure), expected, strict=True):
        assert torch.equal(a, b)


def test_settings_of_the_process_are_put_back_by_the_last_to_leave() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> torch.dtype:
        with ambient.own_settings():
            entered.set()
            leave.wait()
            return torch.get_default_dtype()

    def visit() -> torch.dtype:
        entered.wait()
        with ambient.own_settings():
            pass
        still = torch.get_default_dtype()
        leave.set()
        return still

    with changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64):
        assert at_once(stay, visit) == [torch.float32, torch.float32]


def test_errors_put_settings_back_too() -> None:
    @ambient.without_gradients
    def fail() -> None:
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_grad_enabled()
        raise KeyError

    with changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64):
        for _ in range(2):
            with pytest.raises(KeyError):
                fail()
            assert torch.get_default_dtype() == torch.float64
            assert torch.is_grad_enabled()


def test_a_network_in_bfloat16_is_one_below_foreign_autocast_too() -> None:
    def run() -> Tensor:
        trainee = Trainee(task(plain), precision="bf16")
        with torch.no_grad():
            return trainee.unroll(trainee.init([0, 1]), torch.full((2, 1), 0.01), trainee.hyper(2), 4)[0].params

    expected = run()
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(run(), expected)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device": lambda: torch.device("meta"),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trained(out: Path) -> list[float]:
    """What a small training leads to, by its file."""
    settings = PPOSettings(
        task="digits-logreg", budget=20, interval=5, envs=2, episodes=4, epochs=1, eval_seeds=2, out=out, device="cpu"
    )
    result = evaluate(train(PPOTraining, settings), "digits-logreg", range(2), device="cpu")
    losses: list[float] = result.val_loss.tolist()
    return losses


def test_nothing_around_a_training_changes_its_numbers(tmp_path: Path) -> None:
    expected = trained(tmp_path / "plain")
    for name, around in AROUND.items():
        with around():
            assert trained(tmp_path / name) == expected, name


def test_a_training_has_its_folder_for_itself(tmp_path: Path) -> None:
    with locked_folder(tmp_path), pytest.raises(OSError, match=r"another process writes .*; wait for it"):
        trained(tmp_path)
    trained(tmp_path)
