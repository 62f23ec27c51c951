"""Evaluation weights: an average of the iterates, by its closed form, and what is measured by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.agents import make_agent
from lrenv.benchmark import evaluate
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.hypergradients import forward, reverse, validation_loss
from lrenv.training.optimizers import ema, make_optimizer, sgd
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee, TraineeState

F64 = torch.float64


def iterates(trainee: Trainee, decays: torch.Tensor, steps: int) -> list[TraineeState]:
    """The states of some steps at a rate of 0.05."""
    states = [trainee.init(range(len(decays)))]
    lr = torch.full((len(decays), 1), 0.05, dtype=F64)
    hyper = trainee.hyper(len(decays)) | {"ema": decays[:, None]}
    with torch.no_grad():
        for _ in range(steps):
            states.append(trainee.unroll(states[-1], lr, hyper, 1)[0])
    return states


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_average_has_its_closed_form(toy: Callable[..., Task], optimizer: str) -> None:
    decays = torch.tensor([0.0, 0.5, 0.9, 0.999], dtype=F64)
    trainee = Trainee(toy(optimizer=f"{optimizer}+ema"), dtype=F64)
    states = iterates(trainee, decays, 12)
    weights = torch.stack([state.params for state in states])  # (13, n, P)
    for t, state in enumerate(states):
        found = trainee.optimizer.evaluated(state.params, state.opt)
        shares = decays ** torch.arange(t, -1, -1, dtype=F64)[:, None]  # (t + 1, n)
        expected = (weights[: t + 1] * (shares / shares.sum(0))[:, :, None]).sum(0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(found[0], state.params[0]), "without memory, it is the iterate"
    first = states[0]
    assert torch.equal(trainee.optimizer.evaluated(first.params, first.opt), first.params)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_the_iterates_are_those_of_the_optimizer(toy: Callable[..., Task], optimizer: str) -> None:
    averaged, plain = (Trainee(toy(optimizer=name)) for name in (f"{optimizer}+ema", optimizer))
    lr = torch.full((2, 1), 0.05)
    with torch.no_grad():
        one = averaged.unroll(averaged.init([0, 1]), lr, averaged.hyper(2), 10)
        other = plain.unroll(plain.init([0, 1]), lr, plain.hyper(2), 10)
    assert torch.equal(one[0].params, other[0].params)
    assert torch.equal(one[1], other[1])


def test_the_average_is_measured_kept_and_tested(toy: Callable[..., Task]) -> None:
    task = toy(optimizer="sgd+ema", budget=12, interval=4)
    envs = LearningRateVectorEnv(2, task, control=("set-raw", "ema"), dtype="float64", device="cpu")
    envs.reset(seed=0)
    trainee, best = envs.episode.trainee, np.full(2, np.inf)
    kept = torch.zeros(2, trainee.network.size, dtype=F64)
    for _ in range(3):
        info = envs.step(np.tile([0.3, 1 / 3], (2, 1)))[4]  # a decay of 0.99
        state = envs.snapshot().state
        average = trainee.optimizer.evaluated(state.trainee.params, state.trainee.opt)
        assert not torch.equal(average, state.trainee.params)
        measured = trainee.evaluate(average, state.trainee.buffers, trainee.val).loss.numpy()
        np.testing.assert_allclose(info["val_loss"], measured, rtol=1e-12)
        kept[torch.from_numpy(measured < best)] = average[torch.from_numpy(measured < best)]
        best = np.minimum(best, measured)
    torch.testing.assert_close(state.best.params, kept)
    np.testing.assert_allclose(state.trainee.opt["ema_decay"], 0.99)
    for name, weights in (("test_loss", kept), ("final_test_loss", average)):
        tested = trainee.evaluate(weights, state.trainee.buffers, trainee.test).loss
        np.testing.assert_allclose(info[name], tested, rtol=1e-12)


def test_a_snapshot_goes_on_to_the_last_bit(toy: Callable[..., Task]) -> None:
    agent = make_agent("constant-ema", peak=0.1, ema=0.9)
    envs = LearningRateVectorEnv(2, toy(budget=40, interval=5), **agent.view.settings(), device="cpu")
    seen, _ = envs.reset(seed=3)
    seen, *_ = envs.step(agent.predict(seen)[0])
    snapshot = envs.snapshot()
    first = envs.step(agent.predict(seen)[0])[0]
    envs.restore(snapshot)
    np.testing.assert_array_equal(envs.step(agent.predict(seen)[0])[0], first)
    plain = LearningRateVectorEnv(2, toy(budget=40, interval=5), control="set-raw", observe="clock", device="cpu")
    with pytest.raises(ValueError, match="optimizer sgd|optimizer adam|optimizer momentum"):
        plain.restore(snapshot)


def test_without_memory_it_is_the_constant_rate_to_the_last_bit() -> None:
    task = make_task("digits-mlp", budget=20, interval=4)
    averaged, plain = (
        evaluate(make_agent(name, peak=0.02, **setting), task, [0, 1], device="cpu")
        for name, setting in (("constant-ema", {"ema": 0}), ("constant", {}))
    )
    np.testing.assert_array_equal(averaged.test_loss, plain.test_loss)
    np.testing.assert_array_equal(averaged.curves["val_loss"], plain.curves["val_loss"])


def test_envs_have_decays_of_their_own() -> None:
    task = make_task("noisy-quadratic", budget=20, interval=5)
    decays = [0.0, 0.5, 0.99]
    together = evaluate(make_agent("constant-ema", peak=0.3, ema=decays), task, [4, 4, 4], device="cpu")
    for i, decay in enumerate(decays):
        alone = evaluate(make_agent("constant-ema", peak=0.3, ema=decay), task, [4], device="cpu")
        np.testing.assert_allclose(together.test_loss[i], alone.test_loss[0], rtol=1e-6)
    assert len(set(together.test_loss.tolist())) == 3


def test_it_wraps_the_optimizer_of_the_task(toy: Callable[..., Task]) -> None:
    assert make_task("digits-mlp", optimizer="+ema").optimizer == "adam+ema"
    of_an_object = make_task(toy(optimizer=sgd()), optimizer="+ema")
    assert of_an_object.hyper == {"weight_decay": 0.0, "ema": 0.99}
    of_a_factory = make_task(toy(optimizer=lambda sizes: sgd()), optimizer="+ema")
    assert of_a_factory.hyper == {"weight_decay": 0.0, "ema": 0.99}
    one, other = (Trainee(task) for task in (of_an_object, toy(optimizer="sgd+ema")))
    lr = torch.full((1, 1), 0.1)
    with torch.no_grad():
        ends = [x.unroll(x.init([0]), lr, x.hyper(1), 3)[0] for x in (one, other)]
    assert torch.equal(ends[0].opt["ema"], ends[1].opt["ema"])
    assert make_optimizer("adamw+ema").decoupled


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adam+em", "unknown wrapper of an optimizer 'em': did you mean 'ema'"),
        ("adm+ema", "unknown optimizer 'adm'"),
        ("adam+ema+ema", "has evaluation weights already: leave out one"),
    ],
)
def test_unknown_wrappers_and_two_averages_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(name)
    with pytest.raises(ValueError, match=message):
        make_task("digits-mlp", optimizer=name)


def test_hypergradients_are_those_of_the_average(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer=ema(sgd(), 0.7)), dtype=F64)
    start, rates = trainee.init([0, 1]), torch.tensor([[0.3, 0.1], [0.2, 0.2]], dtype=F64)

    def loss(rates: torch.Tensor) -> torch.Tensor:
        state = start
        hyper = trainee.hyper(2)
        with torch.no_grad():
            for segment in range(2):
                state = trainee.unroll(state, rates[:, segment, None], hyper, 3)[0]
            return validation_loss(trainee, state)

    found: Any = [each(trainee, start, {"lr": rates}, steps=6).gradient["lr"] for each in (forward, reverse)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    for segment in range(2):
        step = torch.zeros_like(rates)
        step[:, segment] = 1e-5
        expected = (loss(rates + step) - loss(rates - step)) / 2e-5
        torch.testing.assert_close(found[0][:, segment], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_compiled_it_is_the_same_average(toy: Callable[..., Task]) -> None:
    agent, losses = make_agent("constant-ema", peak=0.1, ema=0.9), []
    for compiled in (False, True):
        envs = LearningRateVectorEnv(
            2, toy(budget=10, interval=5), **agent.view.settings(), dtype="float64", device="cpu", compile=compiled
        )
        seen, _ = envs.reset(seed=0)
        for _ in range(2):
            seen, *_, info = envs.step(agent.predict(seen)[0])
        losses.append(info["test_loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
