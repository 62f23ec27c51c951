"""Losses of every kind: training side by side is training in plain PyTorch, and metrics are those of scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor
from torch.func import functional_call

from lrenv import Task, networks
from lrenv.data import Data, from_arrays
from lrenv.envs.rewards import REWARDS
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.losses import LOSSES, check_outputs, make_loss
from lrenv.training.trainee import Trainee

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
IDS = RNG.integers(0, 7, size=(60, 6))
TARGETS: dict[str, Any] = {
    "classes": np.arange(60) % 3,
    "sequences": np.where(RNG.random((60, 6)) < 0.5, IDS, (IDS + 1) % 7),
    "numbers": 3 * X[:, 0] + 2,
    "vectors": 5 * X[:, :2] - 1,
    "shares": 1 / (1 + np.exp(-X[:, 0])),
    "counts": RNG.poisson(np.exp(X[:, 0])).astype(float),
}


def data_of(kind: str) -> Data:
    x, y = (IDS if kind == "sequences" else X), TARGETS[kind]
    return from_arrays(x[:40], y[:40], x[40:50], y[40:50], x[50:], y[50:])


def task_of(loss: Any, kind: str, **settings: Any) -> Task:
    network = networks.transformer(8, 2) if kind == "sequences" else networks.mlp(6, activation=torch.nn.Tanh)
    own = {"network": network, "optimizer": "sgd", "batch_size": 8, "budget": 6, "interval": 3, "initial_lr": 0.05}
    return Task("toy", lambda: data_of(kind), loss=loss, **(own | settings))


def huber_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    e = (outputs.reshape(targets.shape) - targets).abs()
    return torch.where(e < 1, e**2 / 2, e - 0.5).reshape(len(e), -1).mean(1)


def poisson_by_scipy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -torch.distributions.Poisson(outputs.reshape(targets.shape).exp()).log_prob(targets)


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda o, t: F.cross_entropy(o.flatten(0, -2), t.flatten()),
    "mse": lambda o, t: F.mse_loss(o.reshape(t.shape), t),
    "huber": lambda o, t: huber_by_hand(o, t).mean(),
    "bce": lambda o, t: F.binary_cross_entropy(o.reshape(t.shape).sigmoid(), t),
    "poisson": lambda o, t: poisson_by_scipy(o, t).mean(),
}
PAIRS = [
    ("cross_entropy", "classes"), ("cross_entropy", "sequences"), ("mse", "numbers"), ("mse", "vectors"),
    ("huber", "numbers"), ("huber", "vectors"), ("bce", "shares"), ("poisson", "counts"),
]  # fmt: skip


def test_every_loss_is_compared_with_plain_pytorch() -> None:
    assert {name for name, _ in PAIRS} | {"given"} == set(LOSSES)


@pytest.mark.parametrize(("loss", "kind"), PAIRS, ids="-".join)
def test_training_side_by_side_is_training_in_plain_pytorch(loss: str, kind: str) -> None:
    task = task_of(loss, kind)
    trainee, data = Trainee(task, dtype=torch.float64), data_of(kind)
    start = trainee.init([0, 1])
    state, losses = trainee.unroll(start, torch.full((2, 1), 0.05, dtype=torch.float64), {}, 6)[:2]
    measured = trainee.evaluate(state.params, state.buffers, trainee.val)
    indices = trainee.batch_indices(start, 6)
    for i in range(2):
        module = task.module().double()
        own = {name: w[i].clone().requires_grad_() for name, w in trainee.network.named(start.params).items()}

        def outputs(inputs: Tensor, module: torch.nn.Module = module, own: dict[str, Tensor] = own) -> Tensor:
            x = inputs if data.tokens else (inputs.double() - data.mean) / data.std
            result: Tensor = functional_call(module, own, (x,))
            return result

        def targets(rows: Tensor) -> Tensor:
            return rows.double() if rows.is_floating_point() else rows

        for step, batch in enumerate(indices[i]):
            value = PLAIN[loss](outputs(data.train.inputs[batch]), targets(data.train.targets[batch]))
            torch.testing.assert_close(losses[i, step], value)
            for weight, g in zip(own.values(), torch.autograd.grad(value, list(own.values())), strict=True):
                weight.data -= 0.05 * g
        value = PLAIN[loss](outputs(data.val.inputs), targets(data.val.targets))
        torch.testing.assert_close(measured.loss[i], value)


def measured(loss: Any, kind: str) -> tuple[Tensor, Tensor, Trainee]:
    """Outputs on the validation split, and the metric, of one trainee."""
    trainee = Trainee(task_of(loss, kind), dtype=torch.float64)
    state = trainee.init([0])
    outputs = trainee.network(state.params, state.buffers, trainee.val.inputs[None], False)[0][0]
    return outputs.squeeze(-1), trainee.evaluate(state.params, state.buffers, trainee.val).metric[0], trainee


@pytest.mark.parametrize("kind", ["numbers", "vectors"])
def test_r_squared_is_that_of_scikit_learn(kind: str) -> None:
    outputs, metric, trainee = measured("mse", kind)
    expected = metrics.r2_score(trainee.val.targets, outputs.detach(), multioutput="variance_weighted")
    assert float(metric) == pytest.approx(expected)


def test_deviance_explained_is_that_of_scikit_learn() -> None:
    outputs, metric, trainee = measured("poisson", "counts")
    assert float(metric) == pytest.approx(metrics.d2_tweedie_score(trainee.val.targets, outputs.exp(), power=1))


def test_accuracies_and_bits() -> None:
    outputs, metric, trainee = measured("cross_entropy", "classes")
    assert float(metric) == pytest.approx(metrics.accuracy_score(trainee.val.targets, outputs.argmax(1)))
    outputs, metric, trainee = measured("bce", "shares")
    assert float(metric) == pytest.approx(metrics.accuracy_score(trainee.val.targets > 0.5, outputs > 0))
    outputs, metric, trainee = measured("cross_entropy", "sequences")
    nats = F.cross_entropy(outputs.flatten(0, 1), trainee.val.targets.flatten())
    assert float(metric) == pytest.approx(float(nats) / math.log(2))
    assert trainee.metric == "bits_per_character"


@pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
def test_predictions_do_not_change_with_the_unit_of_targets(factor: float) -> None:
    loss, std = LOSSES["mse"], data_of("vectors").target_std
    outputs = torch.randn(3, 10, 2)
    torch.testing.assert_close(
        loss.predictions(factor * outputs, factor * std), loss.predictions(outputs, std), rtol=1e-5, atol=0
    )


def test_probabilities_are_compared_whatever_their_place() -> None:
    scores = torch.randn(2, 5, 6, 7)
    found = LOSSES["cross_entropy"].predictions(scores, torch.tensor(1.0))
    assert found.shape == (2, 7, 30)
    torch.testing.assert_close(found[:, :, 8], scores[:, 1, 2].softmax(-1))


def test_a_loss_of_ones_own_trains_as_the_one_it_equals() -> None:
    def mine(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.squeeze(1) - targets) ** 2).where(targets < 1e9, 0.0)

    runs = []
    for loss in ("mse", mine):
        trainee = Trainee(task_of(loss, "numbers"), dtype=torch.float64)
        runs.append(trainee.unroll(trainee.init([3]), torch.full((1, 1), 0.05, dtype=torch.float64), {}, 6)[0].params)
    torch.testing.assert_close(runs[0], runs[1])


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        ("cross_entropy", "numbers", "are numbers: give integer targets"),
        ("mse", "classes", "are classes: give float targets"),
        ("bce", "numbers", "targets from 0 to 1"),
        ("poisson", "numbers", "targets of 0 or more"),
        (lambda o, t: (o.squeeze(1) - t).square().mean(), "numbers", r"a loss per example, \(4,\), not a tensor \(\)"),
        (lambda o, t: o - t[:, 0], "numbers", "can't take outputs"),
        (lambda o, t: t, "numbers", "numbers without a gradient"),
        (lambda o, t: (o.squeeze(1) - t).square().detach(), "numbers", "numbers without a gradient"),
        (lambda o, t: (o.squeeze(1) - t).square().half(), "numbers", "numbers of type torch.float16"),
    ],
)
def test_losses_that_do_not_fit(loss: Any, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainee(task_of(loss, kind))


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 6, 7\): a number for each of 7 classes"):
        Trainee(task_of("cross_entropy", "sequences", network=networks.context_mlp(4, 2)))
    with pytest.raises(ValueError, match=r"needs \(4, 2\): as many numbers as a target has"):
        Trainee(task_of("mse", "vectors", network=lambda shape, outputs: torch.nn.Linear(5, 3)))


def test_a_given_loss_is_one_number_per_example() -> None:
    data, given = data_of("classes"), LOSSES["given"]
    check_outputs("own", given, torch.Size((4, 1)), data)
    for shape in ((4, 3), (4, 2, 1), (4,)):
        with pytest.raises(ValueError, match=r"loss 'given' needs \(4, 1\)"):
            check_outputs("own", given, torch.Size(shape), data)


@pytest.mark.parametrize("name", ["mse", "huber", "poisson"])
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3)])
@pytest.mark.parametrize("value", [0.0, 0.1, 3.0])
def test_nothing_is_explained_where_targets_do_not_vary(name: str, shape: tuple[int, ...], value: float) -> None:
    targets, outputs = torch.full(shape, value), torch.linspace(-1, 1, 30).reshape(2, 5, 3)[..., : math.prod(shape[2:])]
    loss = LOSSES[name]
    assert loss.measure is not None
    targets[1, 0] += 1
    found = loss.measure(outputs, targets, torch.zeros(2, 5))
    assert found.isnan().tolist() == [True, False]


def test_names_of_losses() -> None:
    with pytest.raises(ValueError, match="mse"):
        task_of("msee", "numbers")
    with pytest.raises(TypeError, match="a name or a function"):
        task_of(3, "numbers")
    assert make_loss("cross_entropy", data_of("classes")).metric == "accuracy"


@pytest.mark.parametrize("part", ["val", "test"])
def test_tokens_beyond_the_vocabulary_are_refused_whichever_split_holds_them(part: str) -> None:
    given = {f"{name}_{what}": IDS[:10] for name in ("train", "val", "test") for what in ("inputs", "targets")}
    data = from_arrays(**given | {f"{part}_inputs": np.where(np.arange(10)[:, None] == 7, 50, IDS[:10])}, classes=7)
    with pytest.raises(ValueError, match="IndexError"):
        Trainee(Task("toy", lambda: data, networks.transformer(8, 2), batch_size=2))


def test_a_loss_that_is_no_number_ends_its_episodes_with_finite_rewards() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets) * math.nan

    for reward in REWARDS:
        envs = LearningRateVectorEnv(2, task_of(broken, "numbers"), reward=reward, device="cpu")
        envs.reset(seed=0)
        _, rewards, terminated, *_ = envs.step(envs.action_space.sample())
        assert np.isfinite(rewards).all()
        assert terminated.all()


class Squeezed(torch.nn.Module):
    """A linear network whose outputs are (b,)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(-1)


@pytest.mark.parametrize(("loss", "kind"), [("mse", "numbers"), ("huber", "numbers"), ("poisson", "counts")])
def test_outputs_without_an_axis_of_their_own_are_those_with_one(loss: str, kind: str) -> None:
    found = []
    for network in (lambda shape, outputs: Squeezed(), lambda shape, outputs: torch.nn.Linear(5, 1)):
        envs = LearningRateVectorEnv(2, task_of(loss, kind, network=network), dtype="float64", device="cpu")
        envs.reset(seed=0)
        found.append(envs.step(np.zeros((2, 1)))[0])
    np.testing.assert_array_equal(*found)


def test_predictions_that_are_no_targets_have_one_unit() -> None:
    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return (log_std + (targets - mean) ** 2 * torch.exp(-2 * log_std) / 2).mean(-1)

    task = task_of(likelihood, "vectors", network=lambda shape, outputs: torch.nn.Linear(5, 2 * outputs))
    trainee = Trainee(task, dtype=torch.float64)
    state = trainee.init([0])
    with torch.no_grad():
        found = trainee.evaluate(state.params, state.buffers, trainee.val).predictions
        outputs = trainee.network(state.params, state.buffers, trainee.val.inputs[None], False)[0]
    unit = data_of("vectors").target_std.double().square().mean().sqrt()
    torch.testing.assert_close(found, outputs.transpose(1, 2) / unit)


def test_deviance_is_explained_where_one_of_several_counts_is_always_0() -> None:
    rng = np.random.default_rng(1)
    targets = torch.tensor(np.stack([rng.poisson(2.0, 30), np.zeros(30)], 1))
    log_rates = torch.tensor(rng.normal(size=(30, 2)))
    measure = LOSSES["poisson"].measure
    assert measure is not None
    (found,) = measure(log_rates[None], targets[None], torch.zeros(1, 30))
    rates, mean = log_rates.exp(), targets[:, 0].mean()

    def deviance(t: Tensor, r: Tensor) -> float:
        return float((torch.xlogy(t, t / r) - t + r).sum())

    # Where a count is always 0, its mean explains it.
    expected = 1 - (deviance(targets[:, 0], rates[:, 0]) + float(rates[:, 1].sum())) / deviance(targets[:, 0], mean)
    assert float(found) == pytest.approx(expected)


def test_a_loss_of_ones_own_is_tried_whatever_it_is_called() -> None:
    def huber(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(-1) - targets).abs().mean()

    with pytest.raises(ValueError, match="huber must give a loss per example"):
        Trainee(task_of(huber, "numbers"))
