"""Observing gradients changes no number of a run, and sums up what its definition says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrenv import networks
from lrenv.data import Data
from lrenv.envs.env import LearningRateEnv
from lrenv.envs.episode import Episode
from lrenv.envs.observations import WHITE_BOX
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Observed, Trainee

F64 = torch.float64
GRANULARITIES = ("trainee", "layer", "tensor", "parameter")
EVERYTHING = tuple(WHITE_BOX)
CHEAP = ("hypergradient", "gradient_square", "gradient_absolute", "direction_square")
"""Products that take no gradient more."""


def conv_net(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, classes)
    )  # fmt: skip


def by_hand(trainee: Trainee, lr: Tensor, steps: int) -> list[tuple[Tensor, ...]]:
    """(w_t, g_t, d_t, g'_t) of each step, g'_t on the next batch; from the optimizer alone, with the L2 penalty."""
    state, hyper, history = trainee.init([0, 1, 2]), trainee.hyper(3), []
    for _ in range(steps):
        batches = trainee.batch_indices(state, 2).unbind(1)
        own, following = (
            trainee.gradient(state, batch).grads + hyper["weight_decay"] * state.params for batch in batches
        )
        after, _ = trainee.unroll(state, lr, hyper, 1)
        history.append((state.params, own, (state.params - after.params) / lr, following))
        state = after
    return history


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_sums_are_what_they_say(toy: Callable[..., Task], optimizer: str, granularity: str) -> None:
    task = toy(optimizer=optimizer, weight_decay=0.1)
    e = Episode(task, f"set-raw/{granularity}", EVERYTHING, dtype=F64)
    pieces = e.trainee.network.pieces.get(granularity, [1] * e.trainee.network.size)
    lr = torch.tensor([[0.1], [0.02], [0.3]], dtype=F64)
    with torch.no_grad():
        history = by_hand(e.trainee, lr, 9)
        state, time_step = e.reset([0, 1, 2])
        for decision in range(3):
            observation = time_step.observation
            assert isinstance(observation, dict)
            products = dict.fromkeys(CHEAP, torch.zeros(()))
            change, seen = torch.zeros(()), []
            for t in range(4 * decision - 4, 4 * decision) if decision else ():
                (_, _, d, before), (_, after, _, _) = history[t], history[t + 1]
                products["hypergradient"] = products["hypergradient"] - after * d
                products["gradient_square"] = products["gradient_square"] + after**2
                products["gradient_absolute"] = products["gradient_absolute"] + after.abs()
                products["direction_square"] = products["direction_square"] + d**2
                change = change + (after - before) ** 2
                seen.append(after)
            if not decision:
                seen = [history[0][1]]
                products["gradient_square"] = seen[0] ** 2
                products["gradient_absolute"] = seen[0].abs()
            for name, product in {**products, "gradient_change_square": change}.items():
                columns = product.expand(3, e.trainee.network.size).split(pieces, 1)
                expected = torch.stack([column.sum(1) for column in columns], 1)
                torch.testing.assert_close(observation[name], expected.to(F64), rtol=1e-7, atol=1e-12)
            torch.testing.assert_close(observation["mean_gradient"], torch.stack(seen).mean(0))
            torch.testing.assert_close(observation["parameters"], history[4 * decision][0])
            if decision < 2:
                state, time_step = e.step(state, lr.expand(3, len(pieces)))


def test_decoupled_decay_is_no_part_of_the_gradient(toy: Callable[..., Task]) -> None:
    observed = []
    for decay in (0.0, 0.5):
        e = Episode(toy(optimizer="adamw", weight_decay=decay), "set-raw", "mean_gradient", dtype=F64)
        observation = e.reset([0])[1].observation
        assert isinstance(observation, dict)
        observed.append(observation["mean_gradient"])
    assert torch.equal(*observed)


def dropping(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Dropout(0.5), nn.Linear(8, classes))


@pytest.mark.parametrize("settings", [{"network": dropping}, {"network": conv_net, "augment": "crop-flip"}])
def test_where_weights_stand_still_gradients_do_not_change(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], settings: dict[str, Any]
) -> None:
    """Both gradients of a change see the same masks and the same crops."""
    e = Episode(toy(make_blobs((2, 6, 6)), **settings), "set-raw", "gradient_change_square", dtype=F64)
    with torch.no_grad():
        start, _ = e.reset([0])
        change = [e.step(start, torch.full((1, 1), lr, dtype=F64))[1].observation for lr in (0.0, 0.1)]
    still, moving = (seen["gradient_change_square"] for seen in change if isinstance(seen, dict))
    assert still == 0 < moving


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("budget", [12, 10])
def test_a_run_is_the_same_with_and_without_an_observer(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], network: str, budget: int
) -> None:
    """Bit for bit, running statistics and a last interval that the budget cuts short included."""
    settings = {"optimizer": "adam", "budget": budget}
    task = toy(**settings) if network == "mlp" else toy(make_blobs((2, 6, 6)), network=conv_net, **settings)
    plain, observed = (Episode(task, "set-raw", observe, dtype=F64) for observe in ("dynamics", "hypergradient"))
    action = torch.tensor([[0.1], [0.01]], dtype=F64)
    with torch.no_grad():
        states = [e.reset([5, 6])[0] for e in (plain, observed)]
        for _ in range(plain.decisions):
            states = [e.step(state, action)[0] for e, state in zip((plain, observed), states, strict=True)]
    ours, theirs = states
    assert torch.equal(ours.trainee.params, theirs.trainee.params)
    assert torch.equal(ours.dynamics.train_loss, theirs.dynamics.train_loss)
    assert torch.equal(ours.dynamics.val_loss, theirs.dynamics.val_loss)
    for name, buffer in ours.trainee.buffers.items():
        assert torch.equal(buffer, theirs.trainee.buffers[name]), name


def test_a_cut_interval_sums_its_own_steps(toy: Callable[..., Task]) -> None:
    """Of an interval of 4 steps the budget leaves 2."""
    sums = []
    for interval, decisions in ((4, 3), (2, 5)):
        e = Episode(toy(budget=10, interval=interval), "set-raw", EVERYTHING, dtype=F64)
        with torch.no_grad():
            state, _ = e.reset([0, 1])
            for _ in range(decisions):
                state, _ = e.step(state, torch.full((2, 1), 0.1, dtype=F64))
        assert isinstance(state.observed, Observed)
        sums.append(state.observed.sums)
    for name, expected in sums[1].items():
        assert torch.equal(sums[0][name], expected), name


def test_the_hypergradient_is_the_derivative_of_the_next_loss(toy: Callable[..., Task]) -> None:
    """Baydin et al. 2018, equation 5, against reverse mode through the step itself."""
    trainee = Trainee(toy(optimizer="adam"), dtype=F64)
    e = Episode(toy(optimizer="adam", interval=1), "set-raw", "hypergradient", dtype=F64)
    lr = torch.full((2, 1), 0.05, dtype=F64)
    with torch.no_grad():
        state, _ = e.step(e.reset([0, 1])[0], lr)
        _, time_step = e.step(state, lr)
        start, _ = trainee.unroll(trainee.init([0, 1]), lr, trainee.hyper(2), 1)
    leaf = lr.clone().requires_grad_()
    after, _ = trainee.unroll(start, leaf, trainee.hyper(2), 1)
    loss, _ = trainee.loss(after.params, after, trainee.batch_indices(after, 1)[:, 0])
    (reverse,) = torch.autograd.grad(loss.sum(), leaf)
    observation = time_step.observation
    assert isinstance(observation, dict)
    torch.testing.assert_close(observation["hypergradient"], reverse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_dict_observations_through_the_adapters(toy: Callable[..., Task], mode: str) -> None:
    settings: dict[str, Any] = {"control": "set-raw/layer", "observe": ("clock", "hypergradient", "mean_gradient")}
    envs = LearningRateVectorEnv(3, toy(), autoreset_mode=mode, device="cpu", **settings)
    assert isinstance(envs.observation_space, gym.spaces.Dict)
    observation, _ = envs.reset(seed=0)
    action = np.full((3, 2), 0.1, np.float32)
    for step in range(4):
        assert envs.observation_space.contains(observation)
        assert (observation["clock"][:, 0] == 4 * (step if mode == "NextStep" or step < 3 else 0)).all()
        observation, _, terminated, _, info = envs.step(action)
        assert terminated.all() == (step == 2)
        if "final_obs" in info:
            assert all(envs.single_observation_space.contains(each) for each in info["final_obs"])
            assert info["final_obs"][1]["clock"][0] == 12


def test_dict_observations_of_one_env_and_of_sb3(toy: Callable[..., Task]) -> None:
    settings: dict[str, Any] = {"control": "set-raw", "observe": ("clock", "hypergradient"), "device": "cpu"}
    env, envs = LearningRateEnv(toy(), **settings), LearningRateVecEnv(2, toy(), **settings)
    alone, _ = env.reset(seed=0)
    envs.seed(0)
    together = envs.reset()
    for step in range(3):
        for name, x in together.items():
            np.testing.assert_allclose(x[0], alone[name], rtol=1e-5, err_msg=name)
        alone, *_ = env.step(np.array([0.1], np.float32))
        together, _, dones, infos = envs.step(np.full((2, 1), 0.1, np.float32))
        assert dones.all() == (step == 2)
    np.testing.assert_allclose(infos[0]["terminal_observation"]["hypergradient"], alone["hypergradient"], rtol=1e-5)


def test_a_diverged_trainee_shows_finite_gradients(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(2, toy(), control="set-raw", observe=EVERYTHING, device="cpu")
    envs.reset(seed=0)
    observation, _, terminated, _, _ = envs.step(np.array([[3e38], [0.1]], np.float32))
    assert terminated.tolist() == [True, False]
    assert envs.observation_space.contains(observation)


def test_restoring_restores_the_gradient_that_is_carried(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(2, toy(), control="set-raw", observe="hypergradient", device="cpu")
    envs.reset(seed=0)
    action = np.full((2, 1), 0.1, np.float32)
    envs.step(action)
    snapshot = envs.snapshot()
    first = envs.step(action)[0]["hypergradient"]
    envs.step(action)
    envs.restore(snapshot)
    assert np.array_equal(envs.step(action)[0]["hypergradient"], first)
    for observe in ("dynamics", ("scale-free", "hypergradient")):
        other = LearningRateVectorEnv(2, toy(), control="set-raw", observe=observe, device="cpu")
        with pytest.raises(ValueError, match="observe hypergradient"):
            other.restore(snapshot)


def test_parts_are_named_once() -> None:
    with pytest.raises(ValueError, match="each once"):
        LearningRateVectorEnv(1, "digits-logreg", observe=("clock", "clock"), device="cpu")
    with pytest.raises(ValueError, match="did you mean 'hypergradient'"):
        LearningRateVectorEnv(1, "digits-logreg", observe="hypergradients", device="cpu")


def measured(envs: LearningRateVectorEnv, decisions: int) -> list[Any]:
    losses = [envs.reset(seed=0)[1]["val_loss"]]
    for _ in range(decisions):
        losses.append(envs.step(np.full((envs.num_envs, 1), 0.1, np.float32))[4]["val_loss"])
    return losses


def test_measuring_less_often_changes_only_when_losses_are_known(toy: Callable[..., Task]) -> None:
    """Every second decision, and at the end of the budget."""
    settings: dict[str, Any] = {"control": "set-raw", "device": "cpu", "interval": 2, "budget": 10}
    often = measured(LearningRateVectorEnv(2, toy(), **settings), 5)
    rarely = measured(LearningRateVectorEnv(2, toy(), measure_interval=4, **settings), 5)
    for decision, shown in enumerate((0, 0, 2, 2, 4, 5)):
        assert np.array_equal(rarely[decision], often[shown])


def test_measuring_follows_each_envs_own_clock(toy: Callable[..., Task]) -> None:
    settings: dict[str, Any] = {"control": "set-raw", "device": "cpu", "measure_interval": 8}
    envs = LearningRateVectorEnv(2, toy(budget=24), autoreset_mode="Disabled", **settings)
    together = measured(envs, 1)
    envs.reset(options={"reset_mask": np.array([False, True])})
    together += [envs.step(np.full((2, 1), 0.1, np.float32))[4]["val_loss"] for _ in range(2)]
    alone = measured(LearningRateVectorEnv(1, toy(budget=24), autoreset_mode="Disabled", **settings), 3)
    np.testing.assert_allclose([x[0] for x in together], [x[0] for x in alone], rtol=1e-6)
    assert together[2][1] != together[3][1], "the second env is measured a decision later"


@pytest.mark.parametrize(("measure_interval", "best"), [(None, 2), (4, 0)])
def test_the_best_checkpoint_is_one_that_was_measured(
    toy: Callable[..., Task], measure_interval: int | None, best: int
) -> None:
    """The loss falls at first, and then rises far above that of the untrained network."""
    e = Episode(toy(interval=2, budget=8, measure_interval=measure_interval), "set-raw", dtype=F64)
    with torch.no_grad():
        state, _ = e.reset([0])
        weights = {0: state.trainee.params}
        for decision in range(4):
            steps = np.array([2 * decision])
            rate = 0.5 if decision == 0 else 30.0
            state, _ = e.step(
                state, torch.full((1, 1), rate, dtype=F64), e.measurement_due(steps, np.zeros(1, dtype=bool))
            )
            weights[2 * decision + 2] = state.trainee.params
    found = [step for step, params in weights.items() if torch.equal(params, state.best.params)]
    assert found == [best]


def test_a_dead_trainee_causes_no_measurements(toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    task = toy(interval=1, budget=20, measure_interval=5, network=networks.mlp(5))
    envs = LearningRateVectorEnv(2, task, control="set-raw", autoreset_mode="Disabled", device="cpu")
    envs.reset(seed=0)
    calls = []
    evaluate = Trainee.evaluate
    monkeypatch.setattr(Trainee, "evaluate", lambda *args: calls.append(1) or evaluate(*args))
    died = []
    for step in range(20):
        _, _, terminated, _, _ = envs.step(np.array([[3e38 if 2 <= step < 4 else 0.1], [0.1]], np.float32))
        died.append(bool(terminated[0]))
    assert died[3]
    assert len(calls) == 4 + 2 * 2, "every fifth step, and both test losses of two ends"


def test_whom_to_measure_must_be_said(toy: Callable[..., Task]) -> None:
    e = Episode(toy(measure_interval=8), "set-raw", dtype=F64)
    with pytest.raises(ValueError, match=r"Episode\.measurement_due"):
        e.step(e.reset([0])[0], torch.full((1, 1), 0.1, dtype=F64))


def test_a_measurement_ends_a_decision() -> None:
    with pytest.raises(ValueError, match="multiple of interval=10"):
        make_task("digits-mlp", measure_interval=15)
