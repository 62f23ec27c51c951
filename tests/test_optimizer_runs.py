"""Runs of torch's own optimizers: those of stacked trainees, and those of a loop over one module, number for number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lrenv import networks
from lrenv.agents import OptimizerAgent, View
from lrenv.benchmark import compare, evaluate
from lrenv.benchmark.optimizer_runs import REFRESHED, Runs, run_optimizers
from lrenv.controllers.agent import AgentError
from lrenv.envs.episode import Episode
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.initialisation import build
from lrenv.runtime.transfer import to_host
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

SEEDS = [3, 4, 11]
Made = Callable[..., Any]
Rate = Callable[[float], float]


class Mine(OptimizerAgent):
    """An optimizer of torch, at a rate that is a function of the part of the budget that has passed."""

    def __init__(self, make: Made, rate: Rate = lambda progress: 0.1) -> None:
        self.make, self.scheduled = make, rate

    def optimizer(self, parameters: list[nn.Parameter], task: Task) -> Any:
        return self.make(parameters, lr=self.scheduled(0.0))

    def step(self, optimizer: Any, loss: Tensor, progress: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.scheduled(progress)
        optimizer.step()


def normalised(task: Callable[..., Task], **settings: Any) -> Task:
    """A perceptron with batch norm, whose statistics are buffers."""
    return task(network=networks.batch_norm_mlp(5), **settings)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def stacked(task: Task, rate: Rate) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], NDArray[Any]]:
    """Curves, tests and best validation losses of stacked trainees, in float64."""
    episode = Episode(task, control="set-raw", observe="clock", dtype=torch.float64)
    with torch.no_grad():
        state, time_step = episode.reset(SEEDS)
        infos = [to_host(time_step.info)]
        for decision in range(episode.decisions):
            action = torch.full((len(SEEDS), 1), rate(decision * task.interval / task.budget), dtype=torch.float64)
            state, time_step = episode.step(state, action)
            infos.append(to_host(time_step.info))
        tested = to_host(episode.test(state, torch.arange(len(SEEDS))))
    curves = {name: np.stack([info[name] for info in infos]) for name in ("inner_step", "train_loss", "val_loss", "lr")}
    return curves, tested, to_host(state.best.val_loss)


OPTIMIZERS: dict[str, tuple[str, dict[str, Any], Made, float]] = {
    "sgd": ("sgd", {}, torch.optim.SGD, 0.3),
    "sgd, decay": ("sgd", {"weight_decay": 0.1}, lambda p, lr: torch.optim.SGD(p, lr, weight_decay=0.1), 0.3),
    "momentum": (
        "momentum", {"weight_decay": 0.02}, lambda p, lr: torch.optim.SGD(p, lr, 0.9, weight_decay=0.02), 0.05
    ),
    "adam": ("adam", {}, torch.optim.Adam, 0.03),
    "adamw": ("adamw", {"weight_decay": 0.3}, lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.3), 0.03),
}  # fmt: skip


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_that_of_a_stacked_trainee(name: str, decays: bool, toy: Callable[..., Task]) -> None:
    """A whole run, whose last interval is short, of a network with buffers."""
    optimizer, settings, make, peak = OPTIMIZERS[name]
    task = normalised(toy, optimizer=optimizer, budget=42, interval=4, **settings)

    def rate(progress: float) -> float:
        """Linear decay that holds for an interval."""
        decision = np.floor(progress * task.budget / task.interval + 1e-9)
        return peak * (1 - decays * decision * task.interval / task.budget)

    runs = run_optimizers(Mine(make, rate), name, task, SEEDS, dtype=torch.float64)
    curves, tested, best = stacked(task, rate)
    for key in ("inner_step", "train_loss", "val_loss"):
        close(runs.curves[key], curves[key])
    close(runs.curves["lr"][1:], curves["lr"][1:])
    close(runs.arrays["val_loss"], best)
    close(runs.arrays["final_val_loss"], curves["val_loss"][-1])
    for when in ("", "final_"):
        close(runs.arrays[f"{when}test_loss"], tested[f"{when}test_loss"])
        close(runs.arrays[f"{when}test_metric"], tested[f"{when}test_accuracy"])
    assert runs.metric == "accuracy"
    assert not runs.arrays["diverged"].any()
    assert (runs.curves["val_loss"][-1] < 0.9 * runs.curves["val_loss"][0]).all(), "it learns"


class ByHand(NamedTuple):
    """A run of one module in plain PyTorch."""

    train_loss: list[float]
    val_loss: list[float]
    test_loss: list[float]


def by_hand(task: Task, seed: int, make: Made, measured: Callable[[nn.Module, int], nn.Module]) -> ByHand:
    """A module, its optimizer and a loop; `measured` gives the module that is evaluated after so many steps."""
    trainee = Trainee(task, dtype=torch.float64)
    inputs, targets = trainee.train
    batches = trainee.batch_indices(trainee.init([seed]), task.budget)[0]
    module = build(task.module, seed).double()
    optimizer = make(module.parameters())
    run, losses = ByHand([], [], []), []

    def measure(step: int) -> None:
        copy = measured(module, step).eval()
        with torch.no_grad():
            for held, split in ((run.val_loss, trainee.val), (run.test_loss, trainee.test)):
                held.append(float(F.cross_entropy(copy(split.inputs), split.targets)))

    measure(0)
    for step, batch in enumerate(batches, 1):
        module.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(module(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % task.interval == 0:
            measure(step)
            run.train_loss.append(float(np.mean(losses[-task.interval :])))
    return run


def the_same(runs: Runs, i: int, hand: ByHand) -> None:
    close(runs.curves["train_loss"][1:, i], hand.train_loss)
    close(runs.curves["val_loss"][:, i], hand.val_loss)
    close(runs.arrays["final_test_loss"][i], hand.test_loss[-1])
    best = int(np.argmin(hand.val_loss))
    close(runs.arrays["val_loss"][i], hand.val_loss[best])
    close(runs.arrays["test_loss"][i], hand.test_loss[best])


def test_a_run_is_a_loop_over_a_module(toy: Callable[..., Task]) -> None:
    task = normalised(toy, budget=40)
    runs = run_optimizers(Mine(torch.optim.RMSprop, lambda _: 0.02), "", task, SEEDS, dtype=torch.float64)
    for i, seed in enumerate(SEEDS):
        hand = by_hand(task, seed, lambda p: torch.optim.RMSprop(p, lr=0.02), lambda module, _: _copy(task, module))
        the_same(runs, i, hand)


def _copy(task: Task, module: nn.Module) -> nn.Module:
    copy = build(task.module, 0).double()
    copy.load_state_dict(module.state_dict())
    return copy


class Averaging(torch.optim.SGD):
    """SGD whose network is measured at the mean of its iterates, the initial one included."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.held = self.param_groups[0]["params"]
        self.iterates = [[p.detach().clone() for p in self.held]]
        self.back: list[Tensor] = []

    def step(self, *_: Any) -> None:  # type: ignore[override]
        super().step()
        self.iterates.append([p.detach().clone() for p in self.held])

    def mean(self) -> list[Tensor]:
        return [torch.stack(each).mean(0) for each in zip(*self.iterates, strict=True)]

    def _put(self, weights: list[Tensor]) -> None:
        for p, w in zip(self.held, weights, strict=False):
            p.data = w.clone()  # other memory than before

    def eval(self) -> None:
        self.back = self.iterates[-1]
        self._put(self.mean())

    def train(self) -> None:
        self._put(self.back)


@pytest.mark.parametrize("buffers", [False, True])
def test_weights_of_their_own_are_measured_and_training_goes_on(buffers: bool, toy: Callable[..., Task]) -> None:
    """At the mean of the iterates; running statistics are those of 50 batches there."""
    task = normalised(toy, budget=24) if buffers else toy(budget=24)
    trainee = Trainee(task, dtype=torch.float64)
    runs = run_optimizers(Mine(Averaging), "", task, SEEDS, dtype=torch.float64)
    for i, seed in enumerate(SEEDS):
        made: list[Averaging] = []
        batches = trainee.batch_indices(trainee.init([seed]), task.budget + REFRESHED)[0]

        def make(parameters: Any, made: list[Averaging] = made) -> Averaging:
            made.append(Averaging(parameters, 0.1))
            return made[0]

        def at_the_mean(
            module: nn.Module, step: int, made: list[Averaging] = made, batches: Tensor = batches
        ) -> nn.Module:
            copy = _copy(task, module)
            with torch.no_grad():
                for parameter, mean in zip(copy.parameters(), made[0].mean(), strict=True):
                    parameter.copy_(mean)
                for batch in batches[step : step + REFRESHED] if step else ():
                    copy.train()(trainee.train.inputs[batch])
            return copy

        the_same(runs, i, by_hand(task, seed, make, at_the_mean))


def test_how_many_run_together_is_irrelevant(toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    task, agent = toy(budget=10), Mine(torch.optim.Adam)
    together = evaluate(agent, task, SEEDS, device="cpu")
    monkeypatch.setattr(Trainee, "chunks", lambda self, n: [1] * n)
    apart = evaluate(agent, task, SEEDS, device="cpu")
    assert together.curves["inner_step"][:, 0].tolist() == [0, 4, 8, 10]
    for key, curve in together.curves.items():
        np.testing.assert_allclose(apart.curves[key], curve, rtol=1e-5)
    for key, numbers in together.numbers().items():
        np.testing.assert_allclose(apart.numbers()[key], numbers, rtol=1e-5)


def test_measurements_are_as_rare_as_the_task_says(toy: Callable[..., Task]) -> None:
    task = toy(budget=24, measure_interval=8)
    runs = run_optimizers(Mine(torch.optim.SGD), "", task, SEEDS, dtype=torch.float64)
    every = run_optimizers(Mine(torch.optim.SGD), "", toy(budget=24), SEEDS, dtype=torch.float64)
    np.testing.assert_array_equal(runs.curves["train_loss"], every.curves["train_loss"])
    np.testing.assert_array_equal(runs.curves["val_loss"], every.curves["val_loss"][[0, 0, 2, 2, 4, 4, 6]])


class Refusing(torch.optim.SGD):
    """Raises where gradients are not finite, as some optimizers do."""

    def step(self, *_: Any) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            assert p.grad.isfinite().all()
        super().step()


def test_a_diverging_run_ends_alone(toy: Callable[..., Task]) -> None:
    """The second of three dies in the midst of an interval; the others are what they are without it."""

    class Second(OptimizerAgent):
        made = 0

        def optimizer(self, parameters: list[nn.Parameter], task: Task) -> Any:
            self.made += 1
            return Refusing(parameters, lr=1e38 if self.made == 2 else 0.1)

    mixed = evaluate(Second(), toy(budget=40), SEEDS, name="mixed", device="cpu")
    calm = evaluate(Mine(torch.optim.SGD), toy(budget=40), SEEDS, device="cpu")
    assert mixed.diverged.tolist() == [False, True, False]
    for name in ("inner_step", "train_loss", "val_loss", "lr"):
        np.testing.assert_array_equal(mixed.curves[name][:, ::2], calm.curves[name][:, ::2])
        assert np.isnan(mixed.curves[name][2:, 1]).all()
    np.testing.assert_array_equal(mixed.test_loss[::2], calm.test_loss[::2])
    assert mixed.val_loss[1] == mixed.curves["val_loss"][0, 1], "the checkpoint is the untrained network"
    assert np.isfinite(mixed.test_loss).all()
    assert np.isinf([mixed.final_val_loss[1], mixed.final_test_loss[1]]).all()
    assert np.isnan(mixed.final_test_metric[1])
    dead = evaluate(Mine(Refusing, lambda _: 1e38), toy(budget=40), SEEDS, device="cpu")
    assert dead.diverged.all()
    assert len(dead.curves["lr"]) == 2, "nothing is shown of the time after all have ended"


def test_a_gradient_that_is_not_finite_is_a_divergence(toy: Callable[..., Task]) -> None:
    """The root of 0 has a finite loss, and no derivative."""

    def root(outputs: Tensor, targets: Tensor) -> Tensor:
        return (0 * outputs.sum(-1)).sqrt()

    result = evaluate(Mine(Refusing), toy(loss=root), SEEDS, device="cpu")
    assert result.diverged.all()
    assert result.val_loss.tolist() == [0, 0, 0]
    assert np.isinf(result.final_val_loss).all()
    assert np.isinf(result.final_test_loss).all()


def test_a_result_says_how_it_came_about(toy: Callable[..., Task]) -> None:
    result = evaluate(Mine(torch.optim.SGD), toy(), SEEDS, device="cpu")
    assert result.agent == "Mine"
    assert result.view == {"optimizer": f"torch {torch.__version__}", "loop": "one per run, not stacked"}
    assert result.seeds.tolist() == SEEDS
    linear = evaluate("linear:peak=0.1:floor=0.1", toy(), SEEDS, device="cpu")
    for name in ("train_loss", "val_loss"):
        np.testing.assert_array_equal(result.curves[name][0], linear.curves[name][0])
    np.testing.assert_allclose(result.curves["train_loss"], linear.curves["train_loss"], rtol=1e-5)


def test_what_cannot_be_run_is_told(toy: Callable[..., Task]) -> None:
    class Raising(torch.optim.SGD):
        steps = 0

        def step(self, *_: Any) -> None:  # type: ignore[override]
            self.steps += 1
            if self.steps == 6:
                raise RuntimeError("no more")

    with pytest.raises(AgentError, match=r"agent 'Mine' on task 'toy', seed 3, inner step 5: RuntimeError: no more"):
        evaluate(Mine(Raising), toy(), SEEDS, device="cpu")
    with pytest.raises(AgentError, match=r"must give a torch.optim.Optimizer, .*; it gave a list of 0"):
        evaluate(Mine(lambda parameters, lr: []), toy(), SEEDS, device="cpu")
    envs = LearningRateVectorEnv(2, toy(), control="set-raw", observe="clock", device="cpu")
    observation, _ = envs.reset(seed=0)
    with pytest.raises(AgentError, match="'Mine' is an optimizer and sets no learning rates in an environment"):
        Mine(torch.optim.SGD).predict(observation)
    compared = compare(toy(), {"mine": Mine(Raising), "step": "constant:peak=0.1"}, 2, device="cpu")
    assert [row.label for row in compared.failed] == ["mine"]
    assert "no more" in compared.failed[0].failure
    assert Mine(torch.optim.SGD).view == View(control="set-raw", observe="clock", horizon=False)
