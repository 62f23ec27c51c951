"""Agents of gradients against their recurrences in plain NumPy: networks, gradients and optimizers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import hypergradient_descent, optimizers
from reference.gala import Gala
from reference.hypergradient_descent import Rule, additive, in_loop, multiplicative
from reference.osgm import OSGM

from lrenv.agents import Agent, make_agent
from lrenv.agents.hypergradient.descent import adam_hd, nesterov_hd, sgd_hd
from lrenv.agents.hypergradient.gala import gala
from lrenv.agents.hypergradient.osgm import osgm
from lrenv.benchmark import evaluate
from lrenv.data import Data
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.architectures import logistic_regression
from lrenv.training.tasks import Task

Array = NDArray[np.float64]
SHAPES = ((5, 6), (5,), (3, 5), (3,))
"""The tensors of the toy task's 6-5-3 perceptron, in its order."""
PARTS = [slice(0, 30), slice(30, 35), slice(35, 50), slice(50, 53)]
LAYERS = [slice(0, 35), slice(35, 53)]
DECAY = 0.01
FACTORIES = {"sgd": sgd_hd, "nesterov": nesterov_hd, "adam": adam_hd}
BETAS = {"sgd": 0.02, "nesterov": 2e-3, "adam": 1e-4}


class Run(NamedTuple):
    """What n trainees did; the step axis first."""

    rates: Array  # (T, n, K)
    losses: Array  # (T, n)


def environment(task: Task, agent: Agent, n: int, **settings: Any) -> LearningRateVectorEnv:
    return LearningRateVectorEnv(n, task, **agent.view.settings(), dtype="float64", device="cpu", **settings)


def trained(task: Task, agent: Agent, seeds: Iterable[int]) -> Run:
    """The agent on the real environment, until the budget is spent."""
    seeds = list(seeds)
    envs = environment(task, agent, len(seeds))
    observation, _ = envs.reset(seed=seeds)
    state, start = None, np.ones(len(seeds), dtype=bool)
    rates, losses = [], []
    for _ in range(task.budget):
        action, state = agent.predict(observation, state, start, deterministic=True)
        observation, _, start, _, info = envs.step(action)
        rates.append(action)
        losses.append(info["train_loss"])
    assert start.all()
    return Run(np.stack(rates), np.stack(losses))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class Perceptron:
    """Cross-entropy of a tanh perceptron and its gradient with an L2 penalty, written out."""

    def __init__(self, envs: LearningRateVectorEnv, seed: int) -> None:
        trainee = envs.episode.trainee
        self.start = trainee.init([seed])
        self.inputs, self.targets = trainee.train.inputs.numpy(), trainee.train.targets.numpy()
        self.rows = trainee.batch_indices(self.start, envs.task.budget)[0].numpy()

    def __call__(self, params: Array, step: int) -> tuple[float, Array]:
        """Loss and gradient on the batch of a step."""
        x, y = self.inputs[self.rows[step]], self.targets[self.rows[step]]
        first, first_bias, second, second_bias = (params[p].reshape(s) for p, s in zip(PARTS, SHAPES, strict=True))
        hidden = np.tanh(x @ first.T + first_bias)
        probabilities = softmax(hidden @ second.T + second_bias)
        error = (probabilities - np.eye(3)[y]) / len(y)
        back = error @ second * (1 - hidden**2)
        grads = (back.T @ x, back.sum(0), error.T @ hidden, error.sum(0))
        loss = -np.log(probabilities[np.arange(len(y)), y]).mean()
        return float(loss), np.concatenate([g.ravel() for g in grads]) + DECAY * params


DIRECTIONS = {"sgd": optimizers.SGD, "nesterov": optimizers.Nesterov, "adam": optimizers.Adam}


def recurred(task: Task, agent: Agent, seed: int, rule: Rule, pieces: list[slice], initial_lr: float) -> Run:
    """The method's loop in NumPy."""
    model = Perceptron(environment(task, agent, 1), seed)
    direct, start = DIRECTIONS[str(task.optimizer)](), model.start.params[0].numpy()
    run = hypergradient_descent.train(model, start, direct, rule, initial_lr, task.budget, pieces)
    return Run(run.rates[:, None], run.losses[:, None])


def assert_same(ours: Run, reference: Run) -> None:
    np.testing.assert_allclose(ours.rates, reference.rates, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.losses, reference.losses, rtol=1e-9, atol=1e-12)
    assert np.ptp(reference.rates) > 1e-3, "a rate that stands still would agree with any rule"


@pytest.fixture
def long(toy: Callable[..., Task]) -> Callable[..., Task]:
    """The toy task with weight decay, for 100 steps."""
    return lambda **settings: toy(**({"budget": 100, "interval": 1, "weight_decay": DECAY} | settings))


WHOLE = [slice(None)]
GRANULARITIES = {"": WHOLE, "layer": LAYERS, "tensor": PARTS}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("optimizer", FACTORIES)
def test_additive_is_the_papers_recurrence(long: Callable[..., Task], optimizer: str, granularity: str) -> None:
    pieces, beta = GRANULARITIES[granularity], BETAS[optimizer]
    agent = FACTORIES[optimizer](initial_lr=0.01, beta=beta, granularity=granularity)
    task = long(optimizer=optimizer, budget=200)
    reference = recurred(task, agent, 3, additive(beta), pieces, 0.01)
    assert_same(trained(task, agent, [3]), reference)
    assert reference.losses[-20:].mean() < 0.8 * reference.losses[:20].mean()


@pytest.mark.parametrize("granularity", ["", "layer"])
@pytest.mark.parametrize("optimizer", FACTORIES)
def test_multiplicative_moves_by_the_cosine(long: Callable[..., Task], optimizer: str, granularity: str) -> None:
    pieces = GRANULARITIES[granularity]
    agent = FACTORIES[optimizer](initial_lr=0.01, beta=0.1, rule="multiplicative", granularity=granularity)

    task = long(optimizer=optimizer)
    assert_same(trained(task, agent, [3]), recurred(task, agent, 3, multiplicative(0.1), pieces, 0.01))


def test_in_loop_each_tensor_moves_the_rate_in_turn(long: Callable[..., Task]) -> None:
    agent = adam_hd(initial_lr=0.01, beta=1e-3, in_loop=True)

    task = long(optimizer="adam")
    ours = trained(task, agent, [3])
    assert_same(ours, recurred(task, agent, 3, in_loop(1e-3), PARTS, 0.01))
    plain = trained(task, adam_hd(initial_lr=0.01, beta=1e-3), [3])
    assert np.abs(plain.losses - ours.losses).max() > 1e-3, "the quirk changes training"


@pytest.mark.parametrize("optimizer", FACTORIES)
def test_a_batch_of_initial_rates_is_as_many_single_runs(long: Callable[..., Task], optimizer: str) -> None:
    initial, betas = np.geomspace(1e-6, 0.1, 16), BETAS[optimizer] * np.linspace(0.5, 1, 16)
    factory, task = FACTORIES[optimizer], long(optimizer=optimizer, budget=30)
    together = trained(task, factory(initial_lr=initial, beta=betas), range(16))
    for i in (0, 6, 11, 15):
        alone = trained(task, factory(initial_lr=initial[i], beta=betas[i]), [i])
        np.testing.assert_allclose(together.rates[:, i], alone.rates[:, 0], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(together.losses[:, i], alone.losses[:, 0], rtol=1e-9)


def test_a_rate_of_zero_gets_going(long: Callable[..., Task]) -> None:
    run = trained(long(), sgd_hd(initial_lr=0.0, beta=0.02), range(4))
    assert (run.rates[0] == 0).all()
    assert (run.rates[-1] > 0.01).all()
    assert (run.losses[-20:].mean(0) < 0.8 * run.losses[:20].mean(0)).all()


def test_rates_are_clamped_and_go_on_from_the_bound() -> None:
    agent = sgd_hd(initial_lr=[0.1, 0.2], beta=1.0, low=[0.05, 0.0], high=[0.15, 1.0])
    state, rates = None, []
    for h in (0.0, -1.0, 0.02, 9.0):
        action, state = agent.predict({"hypergradient": np.full((2, 1), h)}, state)
        rates.append(action[:, 0])
    np.testing.assert_allclose(rates, [[0.1, 0.2], [0.15, 1.0], [0.13, 0.98], [0.05, 0.0]])


def test_episodes_start_with_the_first_rate() -> None:
    agent = sgd_hd(initial_lr=0.1, beta=1.0)
    _, state = agent.predict({"hypergradient": np.full((2, 3), -1.0)})
    action, _ = agent.predict({"hypergradient": np.array([[0.0] * 3, [-1.0] * 3])}, state, np.array([True, False]))
    np.testing.assert_allclose(action, [[0.1] * 3, [2.1] * 3])


def test_overflow_ends_as_divergence_beside_others_that_train_on(long: Callable[..., Task]) -> None:
    """The rate stays a number: the environment refuses others, and would stop the whole batch."""
    task, agent = long(), sgd_hd(initial_lr=0.1, beta=[1e-3, 1e30])
    envs = LearningRateVectorEnv(2, task, **agent.view.settings(), device="cpu", autoreset_mode="Disabled")
    observation, _ = envs.reset(seed=0)
    state, ended, steps = None, np.zeros(2, dtype=bool), np.zeros(2, dtype=int)
    while not ended.all():
        action, state = agent.predict(observation, state)
        assert np.isfinite(action).all()
        steps += ~ended
        observation, _, ended, _, info = envs.step(action)
    np.testing.assert_array_equal(info["diverged"], [False, True])
    assert steps[0] == 100
    assert steps[1] < 20


def test_a_rate_holds_where_the_hypergradient_is_no_number() -> None:
    agent = sgd_hd(initial_lr=0.1, beta=1.0)
    for dtype in (np.float32, np.float64):
        seen = np.array([[np.nan], [np.inf], [-np.inf], [-1.0]], dtype)
        action, _ = agent.predict({"hypergradient": seen})
        assert action.dtype == dtype
        largest = np.finfo(dtype).max
        np.testing.assert_allclose(action[:, 0], [0.1, -largest, largest, 1.1], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_gala_follows_the_leader(long: Callable[..., Task], optimizer: str, delta: float) -> None:
    agent, rule = gala(initial_lr=0.05, delta=delta, low=1e-3, high=0.2), Gala(0.05, delta, 1e-3, 0.2)
    task = long(optimizer=optimizer)
    ours, reference = trained(task, agent, [3]), recurred(task, agent, 3, rule, WHOLE, 0.05)
    np.testing.assert_allclose(ours.rates, reference.rates, rtol=1e-7)
    np.testing.assert_allclose(ours.losses, reference.losses, rtol=1e-7)
    assert np.ptp(reference.rates) > 1e-3


def test_gala_finds_half_the_inverse_curvature_of_a_quadratic() -> None:
    """With a curvature of c in every direction L = c, and the leader eta = (1 - eta c) / c comes to 1 / (2 c)."""
    c, w, agent = 4.0, np.array([[1.0, -2.0, 0.5]]), gala(initial_lr=1e-3)
    seen, state = {name: np.zeros((1, 1)) for name in agent.view.observe}, None
    for _ in range(30):
        rate, state = agent.predict(seen, state)
        after = w - rate * c * w
        seen = {
            "hypergradient": -(c * after * c * w).sum(1, keepdims=True),
            "direction_square": ((c * w) ** 2).sum(1, keepdims=True),
            "gradient_change_square": ((c * after - c * w) ** 2).sum(1, keepdims=True),
        }
        w = after
    assert rate == pytest.approx(1 / (2 * c), rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch_size", [8, 24])
def test_gala_forgets_the_first_rate(long: Callable[..., Task], optimizer: str, batch_size: int) -> None:
    task, first = long(optimizer=optimizer, batch_size=batch_size), np.geomspace(1e-4, 0.1, 4)
    ends = trained(task, gala(initial_lr=first), [0] * 4).losses[-1]
    fixed = trained(task, FACTORIES[optimizer](initial_lr=first, beta=0.0), [0] * 4).losses[-1]
    assert ends.max() < 1.1 * ends.min(), "wherever it starts"
    assert ends.max() < 1.05 * fixed.min(), "it does as well as the best of these rates"
    assert fixed.max() > 3 * fixed.min(), "which make a difference"


@pytest.mark.parametrize("granularity", ["", "tensor", "parameter"])
def test_osgm_is_adagrad_on_normalised_hypergradients(long: Callable[..., Task], granularity: str) -> None:
    pieces = {**GRANULARITIES, "parameter": [slice(i, i + 1) for i in range(53)]}[granularity]
    agent = osgm(initial_lr=0.01, adagrad_lr=0.05, granularity=granularity, low=None)
    task = long(batch_size=24)
    assert_same(trained(task, agent, [3]), recurred(task, agent, 3, OSGM(0.05), pieces, 0.01))


@pytest.mark.parametrize("granularity", ["", "parameter"])
def test_osgm_solves_a_convex_problem_where_a_small_rate_does_not(long: Callable[..., Task], granularity: str) -> None:
    task = long(batch_size=24, network=logistic_regression)
    learned = trained(task, osgm(granularity=granularity), [0]).losses[-1, 0]
    fixed = trained(task, sgd_hd(initial_lr=0.01, beta=0.0), [0]).losses[-1, 0]
    well = trained(task, sgd_hd(initial_lr=0.5, beta=0.0), [0]).losses[-1, 0]
    assert learned < 1.02 * well
    assert fixed > 1.2 * well


@pytest.mark.parametrize("name", ["sgd-hd", "nesterov-hd", "adam-hd", "gala", "osgm"])
def test_agents_are_installed_and_evaluated(toy: Callable[..., Task], name: str) -> None:
    result = evaluate(name, toy(), seeds=range(3), device="cpu")
    assert not result.diverged.any()
    assert len(result.curves["lr"]) == 13, "they act at every inner step"
    assert repr(make_agent(name)).startswith(f"{name}(initial_lr=")


@pytest.mark.parametrize(("agent", "seen", "missing"), [
    (sgd_hd(), {"clock": np.zeros((1, 5))}, "sgd-hd reads hypergradient, which"),
    (adam_hd(rule="multiplicative"), {"hypergradient": np.zeros((1, 1))}, "gradient_square, direction_square"),
    (gala(), {"hypergradient": np.zeros((1, 1))}, "direction_square, gradient_change_square"),
    (osgm(), np.zeros((1, 8)), "hypergradient, direction_square.*observe="),
])  # fmt: skip
def test_what_is_missing_of_an_observation_is_named(agent: Agent, seen: Any, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        agent.predict(seen)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: sgd_hd(initial_lr=-1.0), "initial_lr must be a learning rate, 0 or more"),
    (lambda: sgd_hd(beta=[1e-3, -1e-3]), "beta must be 0 or more"),
    (lambda: sgd_hd(beta=np.nan), "beta must be"),
    (lambda: sgd_hd(rule="additve"), "did you mean 'additive'"),
    (lambda: sgd_hd(granularity="layers"), "did you mean 'layer'"),
    (lambda: sgd_hd(initial_lr=0.1, high=0.01), "initial_lr=0.1 is above high=0.01"),
    (lambda: gala(low=1.0, high=0.1), "low=1.0 is above high=0.1"),
    (lambda: adam_hd(in_loop=True, rule="multiplicative"), "leave rule and granularity out"),
    (lambda: adam_hd(in_loop=True, granularity="layer"), "leave rule and granularity out"),
    (lambda: osgm(adagrad_lr=0.0), "adagrad_lr must be positive"),
    (lambda: osgm(granularity="row"), "unknown granularity"),
])  # fmt: skip
def test_unfit_settings_are_refused(make: Callable[[], Agent], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_of_another_size_are_refused() -> None:
    agent = sgd_hd(initial_lr=[0.1, 0.2])
    with pytest.raises(ValueError, match="initial_lr has 2 values"):
        agent.predict({"hypergradient": np.zeros((3, 1))})
    _, state = sgd_hd().predict({"hypergradient": np.zeros((3, 1))})
    with pytest.raises(ValueError, match=r"state is that of another batch or agent: .*\(3,.*; pass None to restart"):
        sgd_hd().predict({"hypergradient": np.zeros((2, 1))}, state)


def test_more_blobs_are_no_other_recurrence(long: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    """Epochs of another length, so that batches of the last and the next one meet in a hypergradient."""
    task, agent = long(data=make_blobs(train=31)), sgd_hd(initial_lr=0.01, beta=0.02)
    reference = recurred(task, agent, 5, additive(0.02), WHOLE, 0.01)
    assert_same(trained(task, agent, [5]), reference)
