"""Episodes: exact step counts, actions that apply at once, divergence that stays alone, and honest tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lrenv import networks
from lrenv.data import Data
from lrenv.envs.actions import BOUNDS
from lrenv.envs.episode import Episode, EpisodeState, TimeStep
from lrenv.envs.rewards import REWARDS
from lrenv.randomness import draws
from lrenv.training.tasks import LogUniform, Task, make_task

F64 = torch.float64


def episode(task: Task, **settings: Any) -> Episode:
    defaults: dict[str, Any] = {"control": "set-raw", "dtype": F64}
    return Episode(task, **(defaults | settings))


def rates(n: int, *values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None].expand(n, 1)


@torch.no_grad()
def play(e: Episode, seeds: list[int], action: Tensor, decisions: int | None = None) -> list[EpisodeState]:
    """The states of a run in which every decision is `action`, that of the reset first; their time steps are theirs."""
    state, time_step = e.reset(seeds)
    states = [state]
    for _ in range(e.decisions if decisions is None else decisions):
        assert_same(time_step, e.time_step(state))
        state, time_step = e.step(state, action)
        states.append(state)
    assert_same(time_step, e.time_step(state))
    return states


def assert_same(one: TimeStep, other: TimeStep) -> None:
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_reset_trains_nothing(toy: Callable[..., Task]) -> None:
    e = episode(toy())
    state, time_step = e.reset([3, 4])
    untrained = e.trainee.init([3, 4])
    assert torch.equal(state.trainee.params, untrained.params)
    assert state.trainee.step.tolist() == [0, 0]
    first, _ = e.trainee.loss(untrained.params, untrained, e.trainee.batch_indices(untrained, 1)[:, 0])
    assert torch.equal(time_step.info["train_loss"], first)
    measured = e.trainee.evaluate(untrained.params, untrained.buffers, e.trainee.val)
    assert torch.equal(time_step.info["val_loss"], measured.loss)
    assert torch.equal(time_step.info["val_accuracy"], measured.metric)
    assert time_step.info["lr"].tolist() == [0.1, 0.1]
    assert not time_step.terminated.any()


@pytest.mark.parametrize(("budget", "interval"), [(12, 4), (10, 4), (3, 7), (5, 1), (7, 7)])
def test_an_episode_trains_exactly_its_budget(toy: Callable[..., Task], budget: int, interval: int) -> None:
    e = episode(toy(budget=budget, interval=interval, optimizer="adam"))
    states = play(e, [0, 1], rates(2, 0.05))
    assert e.decisions == math.ceil(budget / interval) == len(states) - 1
    steps = [int(e.time_step(s).info["inner_step"][0]) for s in states]
    assert steps == [min(k * interval, budget) for k in range(len(states))]
    ends = [e.time_step(s).terminated.tolist() for s in states]
    assert ends == [[False, False]] * e.decisions + [[True, True]]
    straight, losses = e.trainee.unroll(e.trainee.init([0, 1]), rates(2, 0.05), e.trainee.hyper(2), budget)
    torch.testing.assert_close(states[-1].trainee.params, straight.params, rtol=1e-12, atol=1e-12)
    for k, state in enumerate(states[1:]):
        window = losses[:, k * interval : (k + 1) * interval]
        torch.testing.assert_close(state.dynamics.train_loss, window.mean(1))
        torch.testing.assert_close(state.dynamics.loss_spread, window.std(1, correction=0), rtol=1e-9, atol=1e-12)


def test_the_first_action_already_applies(toy: Callable[..., Task]) -> None:
    e = episode(toy())
    states = play(e, [0, 1], rates(2, 0.3, 0.0), decisions=1)
    expected, _ = e.trainee.unroll(e.trainee.init([0, 1]), rates(2, 0.3, 0.0), e.trainee.hyper(2), 4)
    assert torch.equal(states[1].trainee.params, expected.params)
    assert torch.equal(states[1].trainee.params[1], states[0].trainee.params[1])
    assert e.time_step(states[1]).info["lr"].tolist() == [0.3, 0.0]


def test_controlled_momentum_and_weight_decay_apply_and_stay(toy: Callable[..., Task]) -> None:
    e = episode(toy(optimizer="momentum"), control=("set-raw", "momentum", "weight_decay"))
    action = torch.tensor([[0.05, 0.0, 1.0]], dtype=F64)
    state = play(e, [0], action, decisions=2)[-1]
    hyper = {"momentum": torch.tensor([[1 - 10**-1.5]], dtype=F64), "weight_decay": torch.tensor([[0.1]], dtype=F64)}
    expected, _ = e.trainee.unroll(e.trainee.init([0]), rates(1, 0.05), hyper, 8)
    torch.testing.assert_close(state.trainee.params, expected.params)


def test_what_a_decision_measures(toy: Callable[..., Task]) -> None:
    """Every quantity of `Dynamics` that is not a loss, from the networks before and after."""
    e = episode(toy(), control="set-raw/layer", observe=("dynamics", "scale-free"))
    lr = torch.tensor([[0.3, 0.1], [0.02, 0.5]], dtype=F64)
    before, middle, after = play(e, [0, 1], lr, decisions=2)
    network, d = e.trainee.network, after.dynamics
    states = (middle.trainee, after.trainee)
    predictions = [e.trainee.evaluate(s.params, s.buffers, e.trainee.val).predictions for s in states]
    change = predictions[1] - predictions[0]
    for i in range(2):
        assert d.prediction_variance[i] == pytest.approx(float(predictions[1][i].var(correction=0)))
        assert d.prediction_change[i] == pytest.approx(float(change[i].var(correction=0)))
        last = network.named(after.trainee.params)["3.weight"][i]
        assert d.weight_mean[i] == pytest.approx(float(last.mean()))
        assert d.weight_variance[i] == pytest.approx(float(last.var(correction=0)))
        assert d.lr[i] == pytest.approx(math.sqrt(float(lr[i].prod())))
        motions = (("1.weight", d.first_update, d.first_cosine), ("3.weight", d.last_update, d.last_cosine))
        for name, update, cosine in motions:
            w = [network.named(s.trainee.params)[name][i].flatten() for s in (before, middle, after)]
            new, old = w[2] - w[1], w[1] - w[0]
            assert update[i] == pytest.approx(float(new.norm() / w[2].norm()))
            assert cosine[i] == pytest.approx(float(torch.dot(new, old) / new.norm() / old.norm()))
    assert torch.equal(d.previous_val_loss, middle.dynamics.val_loss)
    assert torch.equal(d.previous_train_loss, middle.dynamics.train_loss)
    assert torch.equal(d.initial_val_loss, before.dynamics.val_loss)


def conv_net(shape: networks.Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, classes),
    )  # fmt: skip


def leaves(e: Episode, state: EpisodeState) -> dict[str, Tensor]:
    time_step = e.time_step(state)
    named = {"observation": time_step.observation, "reward": time_step.reward, "terminated": time_step.terminated}
    tested = e.test(state, torch.arange(len(time_step.reward)))
    return named | time_step.info | tested | {"params": state.trainee.params, "best": state.best.params}


KINDS = ["mlp", "conv"]


def make_kind(kind: str, toy: Callable[..., Task], make_blobs: Callable[..., Data], **settings: Any) -> Task:
    if kind == "mlp":
        return toy(optimizer="adam", **settings)
    return toy(make_blobs((2, 6, 6)), network=conv_net, optimizer="momentum", augment="crop-flip", **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_n_is_n_alone(kind: str, toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    e = episode(make_kind(kind, toy, make_blobs, budget=10))
    seeds, lr = [5, 1, 8], rates(3, 0.1, 0.01, 0.3)
    together = [leaves(e, s) for s in play(e, seeds, lr)]
    for i, seed in enumerate(seeds):
        for all_envs, alone in zip(together, play(e, [seed], lr[i : i + 1]), strict=True):
            for name, leaf in leaves(e, alone).items():
                torch.testing.assert_close(all_envs[name][i], leaf[0], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("observe", ["dynamics", "scale-free", "paper"])
@pytest.mark.parametrize(("budget", "interval"), [(5, 2), (4, 1)])
def test_observations_of_a_single_step_have_derivatives(observe: str, budget: int, interval: int) -> None:
    """Its losses don't scatter, and the derivative of their standard deviation is that of a root at 0."""
    task = make_task("noisy-quadratic", budget=budget, interval=interval, initial_lr=0.1)
    e = Episode(task, observe=observe)
    action = torch.full((2, 1), 0.1, requires_grad=True)
    state, time_step = e.reset([0, 1])
    for _ in range(e.decisions):
        state, time_step = e.step(state, action)
    assert state.dynamics.loss_spread.tolist() == [0, 0]
    assert isinstance(time_step.observation, Tensor)
    (slope,) = torch.autograd.grad(time_step.observation.sum(), action)
    assert slope.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("observe", ["dynamics", "scale-free", "paper"])
def test_a_diverged_env_ends_alone(
    kind: str, reward: str, observe: str, toy: Callable[..., Task], make_blobs: Callable[..., Data]
) -> None:
    e = episode(make_kind(kind, toy, make_blobs), reward=reward, observe=observe)
    seeds, sane = [0, 1, 2], rates(3, 0.1, 0.1, 0.02)
    wild = sane.clone()
    wild[1] = 1e308
    healthy, sick = play(e, seeds, sane), play(e, seeds, wild)
    for a, b in zip(healthy, sick, strict=True):
        x, y = leaves(e, a), leaves(e, b)
        for name in x:
            assert torch.equal(x[name][::2], y[name][::2]), name
        assert y["observation"].isfinite().all()
        assert y["reward"].isfinite().all()
        assert all(e.observer.space.contains(row) for row in y["observation"].numpy())
        assert y["test_loss"].isfinite().all(), "the best checkpoint is one from before the divergence"
    died = [bool(e.time_step(s).terminated[1]) for s in sick]
    assert died == [False, True, True, True]
    assert [e.time_step(s).info["diverged"].tolist() for s in sick[1:]] == [[False, True, False]] * 3
    assert torch.equal(sick[-1].best.params[1], sick[0].trainee.params[1])
    finals = e.test(sick[-1], torch.arange(3))["final_test_loss"]
    assert finals.isposinf().tolist() == [False, True, False], "a run that diverged ends infinitely bad"


def test_one_nan_weight_ends_one_env(toy: Callable[..., Task]) -> None:
    """A weight behind a dead input: no loss shows it, the weights do."""
    e = episode(toy(optimizer="sgd"))
    clean, _ = e.reset([0, 1])
    params = clean.trainee.params.clone()
    params[1, 0] = math.nan
    state = clean._replace(trainee=clean.trainee._replace(params=params))
    with torch.no_grad():
        expected, got = (e.step(before, rates(2, 0.1))[1] for before in (clean, state))
    assert got.terminated.tolist() == [False, True]
    assert torch.equal(got.observation[0], expected.observation[0])
    assert got.reward[0] == expected.reward[0]
    assert got.observation.isfinite().all()
    assert got.reward.isfinite().all()


def test_a_dead_weight_that_no_loss_sees_is_found(make_blobs: Callable[..., Data], toy: Callable[..., Task]) -> None:
    class Unused(nn.Module):
        """One weight that counts and one that does not."""

        def __init__(self, classes: int) -> None:
            super().__init__()
            self.used = nn.Linear(6, classes)
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    e = episode(toy(network=lambda shape, classes: Unused(classes)))
    state, _ = e.reset([0, 1])
    params = state.trainee.params.clone()
    # `named_parameters` lists a module's own parameters before those of its children.
    params[1, 0] = math.inf
    _, time_step = e.step(state._replace(trainee=state.trainee._replace(params=params)), rates(2, 0.1))
    assert time_step.info["val_loss"].isfinite().all()
    assert time_step.info["diverged"].tolist() == [False, True]


def test_the_best_checkpoint_is_tested(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    """The rate is small first and far too large later, so that the best networks are those in the middle."""
    e = episode(toy(make_blobs((2, 6, 6)), network=conv_net, budget=24))
    state, _ = e.reset([0, 1])
    states = [state]
    with torch.no_grad():
        for rate in (0.1, 0.1, 0.05, 8.0, 8.0, 8.0):
            states.append(e.step(states[-1], rates(2, rate))[0])
    losses = torch.stack([s.dynamics.val_loss for s in states])
    lowest = losses.argmin(0)
    assert (lowest > 0).all()
    assert (lowest < 6).all()
    final = states[-1]
    assert torch.equal(final.best.val_loss, losses.min(0).values)
    tested = e.test(final, torch.tensor([1, 0]))
    for row, i in enumerate((1, 0)):
        best = states[int(lowest[i])].trainee
        assert torch.equal(final.best.params[i], best.params[i])
        assert all(torch.equal(final.best.buffers[name][i], best.buffers[name][i]) for name in best.buffers)
        expected = e.trainee.evaluate(best.params, best.buffers, e.trainee.test)
        torch.testing.assert_close(tested["test_loss"][row], expected.loss[i])
        torch.testing.assert_close(tested["test_accuracy"][row], expected.metric[i])
        last = e.trainee.evaluate(final.trainee.params, final.trainee.buffers, e.trainee.test)
        torch.testing.assert_close(tested["final_test_loss"][row], last.loss[i])
        torch.testing.assert_close(tested["final_test_accuracy"][row], last.metric[i])
        assert tested["final_test_loss"][row] != tested["test_loss"][row]


def test_initial_rates_are_drawn_from_the_seed(toy: Callable[..., Task]) -> None:
    choices = (0.5, 0.25, 0.125)
    e = Episode(toy(initial_lr=choices), dtype=F64)
    drawn = e.reset(range(600))[0].lr[:, 0]
    counts = [int((drawn == rate).sum()) for rate in choices]
    assert sum(counts) == 600
    assert all(abs(count - 200) < 5 * (600 * 2 / 9) ** 0.5 for count in counts)
    assert e.reset([17])[0].lr[0, 0] == drawn[17]
    ranged = e.reset(range(600), LogUniform(1e-4, 1e-1))[0].lr[:, 0].log10()
    assert ranged.min() >= -4
    assert ranged.max() <= -1
    assert abs(ranged.mean() + 2.5) < 5 * math.sqrt(9 / 12 / 600)
    assert e.reset([0], 0.7)[0].lr.tolist() == [[0.7]]


def test_initial_rates_have_a_stream_of_their_own(toy: Callable[..., Task]) -> None:
    """By hand from the seed, so that no other draw of the episode tells which rate it began with."""
    choices, seeds = (0.5, 0.25, 0.125), torch.arange(40)
    chance = draws.uniform(draws.fold(seeds, draws.INITIAL_LR), dtype=F64)
    e = Episode(toy(initial_lr=choices), dtype=F64)
    assert e.reset(seeds.tolist())[0].lr[:, 0].tolist() == [choices[int(3 * x)] for x in chance]
    ranged = e.reset(seeds.tolist(), LogUniform(1e-4, 1e-1))[0].lr[:, 0]
    torch.testing.assert_close(ranged, 10 ** (3 * chance - 4))


def test_scale_starts_from_the_initial_rate(toy: Callable[..., Task]) -> None:
    e = Episode(toy(initial_lr=0.04), control="scale/layer", dtype=F64)
    state, _ = e.reset([0])
    assert state.lr.tolist() == [[0.04, 0.04]]
    lr = e.step(state, torch.tensor([[1.0, -1.0]], dtype=F64))[0].lr
    torch.testing.assert_close(lr, torch.tensor([[0.08, 0.02]], dtype=F64))
    for _ in range(12):
        state, _ = e.step(state, torch.tensor([[1.0, -1.0]], dtype=F64))
    assert BOUNDS[0] <= float(state.lr.min())
    assert float(state.lr.max()) == BOUNDS[1]


def test_tasks_without_classes_report_no_accuracy(toy: Callable[..., Task]) -> None:
    from lrenv.training.tasks import make_task

    e = episode(make_task("noisy-quadratic"))
    state, _ = e.reset([0])
    assert "val_accuracy" not in e.time_step(state).info
    assert set(e.test(state, torch.tensor([0]))) == {"test_loss", "final_test_loss"}


@pytest.mark.parametrize("reward", REWARDS)
def test_rewards_are_those_of_the_dynamics(toy: Callable[..., Task], reward: str) -> None:
    e = episode(toy(), reward=reward)
    states = play(e, [0, 1], rates(2, 0.1))
    losses = torch.stack([s.dynamics.val_loss for s in states])
    got = torch.stack([e.time_step(s).reward for s in states[1:]])
    expected = {
        "val_loss": -losses[1:],
        "log_val_loss": -losses[1:].log(),
        "improvement": losses[:-1].log() - losses[1:].log(),
        "final": torch.cat([torch.zeros(2, 2, dtype=F64), -losses[-1:]]),
    }[reward]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_change_no_number(toy: Callable[..., Task], chunk_size: int) -> None:
    whole, grouped = (Episode(toy(optimizer="adam"), dtype=torch.float64) for _ in range(2))
    grouped.trainee.chunk_size = chunk_size
    action = torch.tensor([[0.5], [0.0], [-0.5]], dtype=torch.float64)
    states = []
    for episode in (whole, grouped):
        with torch.no_grad():
            state, _ = episode.step(episode.reset([5, 6, 7])[0], action)
            state, time_step = episode.step(state, action)
            states.append((time_step, episode.test(state, torch.tensor([2, 0, 1]))))
    torch.testing.assert_close(states[1], states[0], rtol=1e-12, atol=1e-12)
