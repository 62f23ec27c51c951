"""The vector environment against Gymnasium's own over single envs, under its wrappers, and at its edges."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as wrappers
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lrenv.data import Data, Split, load
from lrenv.envs.env import LearningRateEnv
from lrenv.envs.rewards import REWARDS
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.snapshots import contents_of
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness import draws
from lrenv.training.optimizers import adam, momentum
from lrenv.training.tasks import LogUniform, Task, make_task

Array = NDArray[Any]
EXACT: dict[str, Any] = {"device": "cpu", "dtype": "float64"}
TINY: dict[str, Any] = {"task": "noisy-quadratic", "budget": 20, "interval": 5, "device": "cpu"}
WILD = 1e308
"""A rate that no training survives."""


def rates(n: int, decision: int, wild: dict[int, int]) -> Array:
    """(n, 1) actions for `set-raw`; env i gets the wild rate at decision wild[i]."""
    values = [WILD if wild.get(i) == decision else 0.02 * (1 + i + decision % 3) for i in range(n)]
    return np.array(values)[:, None]


def assert_infos_agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every number that Gymnasium's envs report, where its mask says that they do."""
    for name in theirs:
        if name.startswith("_"):
            continue
        mask = theirs[f"_{name}"]
        np.testing.assert_array_equal(ours.get(f"_{name}", np.ones_like(mask)), mask, err_msg=name)
        if name == "final_info":
            assert_infos_agree(ours[name], theirs[name])
            continue
        for i in np.flatnonzero(mask):
            np.testing.assert_allclose(ours[name][i], theirs[name][i], rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_it_behaves_as_gymnasiums_over_single_envs(toy: Callable[..., Task], mode: AutoresetMode) -> None:
    """Over several episodes that divergence sets out of step with each other."""
    task, n, wild = toy(budget=10, optimizer="adam"), 3, {1: 1, 2: 6}
    settings: dict[str, Any] = {"control": "set-raw", **EXACT}
    ours = LearningRateVectorEnv(n, task, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: LearningRateEnv(task, **settings)] * n, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    (a, info_a), (b, info_b) = ours.reset(seed=5), theirs.reset(seed=5)
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert_infos_agree(info_a, info_b)
    endings: set[tuple[bool, ...]] = set()
    for decision in range(12):
        chosen = rates(n, decision, wild)
        (*got, info_a), (*wanted, info_b) = ours.step(chosen), theirs.step(chosen)
        for name, x, y in zip(("observation", "reward", "terminated", "truncated"), got, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10, err_msg=f"{name} of decision {decision}")
        assert_infos_agree(info_a, info_b)
        endings.add(tuple(got[2].tolist()))
        if mode == AutoresetMode.DISABLED and got[2].any():
            options = {"reset_mask": got[2].copy()}
            (a, info_a), (b, info_b) = ours.reset(options=options), theirs.reset(options=options)
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert len(endings) > 2, "the episodes ended at different times"


def test_disabled_an_ended_episode_stands_still(toy: Callable[..., Task]) -> None:
    """Env 1 dies at once, waits while the others go on, and is started again without disturbing them."""
    settings: dict[str, Any] = {"control": "set-raw", "autoreset_mode": "Disabled", **EXACT}
    envs = LearningRateVectorEnv(3, toy(budget=40), **settings)
    calm = LearningRateVectorEnv(3, toy(budget=40), **settings)
    envs.reset(seed=0)
    calm.reset(seed=0)
    wild = {1: 0}
    *first, info = envs.step(rates(3, 0, wild))
    calm.step(rates(3, 0, {}))
    assert first[2].tolist() == [False, True, False]
    assert info["_test_loss"].tolist() == [False, True, False]
    for decision in (1, 2):
        observation, reward, terminated, _, info = envs.step(rates(3, decision, wild))
        expected, wanted, *_ = calm.step(rates(3, decision, {}))
        np.testing.assert_array_equal(observation[1], first[0][1])
        np.testing.assert_array_equal(observation[::2], expected[::2])
        assert reward.tolist() == [wanted[0], 0.0, wanted[2]]
        assert terminated.tolist() == [False, True, False]
        assert info["inner_step"].tolist() == [4 * decision + 4, 4, 4 * decision + 4]
        assert "test_loss" not in info, "the test split is read once"
    observation, info = envs.reset(seed=[None, 9, None], options={"reset_mask": np.array([False, True, False])})
    assert info["inner_step"].tolist() == [12, 0, 12]
    np.testing.assert_array_equal(observation[::2], expected[::2])
    alone = LearningRateVectorEnv(1, toy(budget=40), **settings)
    np.testing.assert_allclose(observation[1], alone.reset(seed=9)[0][0], rtol=1e-10)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("reward", REWARDS)
def test_a_diverged_env_ends_alone(mode: str, reward: str) -> None:
    settings: dict[str, Any] = {"control": "set-raw", "reward": reward, "autoreset_mode": mode, **TINY}
    envs, calm = (LearningRateVectorEnv(3, **settings) for _ in range(2))
    start = envs.reset(seed=0)[1]["val_loss"]
    calm.reset(seed=0)
    wild = np.array([[0.1], [1e30], [0.1]], np.float32)
    for decision in range(3):
        observation, paid, terminated, _, info = envs.step(wild if decision == 0 else np.full_like(wild, 0.1))
        *expected, _ = calm.step(np.full_like(wild, 0.1))
        np.testing.assert_array_equal(observation[::2], expected[0][::2])
        np.testing.assert_array_equal(paid[::2], expected[1][::2])
        np.testing.assert_array_equal(terminated[::2], expected[2][::2])
        assert np.isfinite(observation).all()
        assert np.isfinite(paid).all()
        assert envs.single_observation_space.contains(observation[1])
        if decision == 0:
            final = info["final_info"] if mode == "SameStep" else info
            assert terminated.tolist() == [False, True, False]
            assert final["diverged"].tolist() == [False, True, False]
            assert np.isfinite(final["test_loss"][1]), "the checkpoint is the untrained network"
            assert paid[1] < paid[0]
            if reward == "val_loss":
                assert paid[1] < -3 * start[1], "less than three decisions that learn nothing"


def test_test_losses_come_at_the_end_alone(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(2, toy(budget=10, interval=4), device="cpu")
    _, info = envs.reset(seed=0)
    assert not any(name.startswith(("test", "_test")) for name in info)
    steps = []
    for decision in range(3):
        *_, info = envs.step(np.zeros((2, 1), np.float32))
        steps.append(int(info["inner_step"][0]))
        assert ("test_loss" in info) == ("test_accuracy" in info) == (decision == 2)
    assert steps == [4, 8, 10], "the last interval is shorter"
    assert info["_test_loss"].all()
    assert np.isfinite(info["test_loss"]).all()
    assert ((info["test_accuracy"] >= 0) & (info["test_accuracy"] <= 1)).all()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_test_loss_is_masked_where_an_episode_goes_on(toy: Callable[..., Task], mode: str) -> None:
    envs = LearningRateVectorEnv(2, toy(), control="set-raw", autoreset_mode=mode, **EXACT)
    envs.reset(seed=0)
    *_, info = envs.step(np.array([[0.1], [WILD]]))
    info = info["final_info"] if mode == "SameStep" else info
    assert info["_test_loss"].tolist() == info["_test_accuracy"].tolist() == [False, True]
    assert np.isnan(info["test_loss"]).tolist() == np.isnan(info["test_accuracy"]).tolist() == [True, False]


def test_tasks_without_classes_have_no_accuracies() -> None:
    envs = LearningRateVectorEnv(2, **TINY)
    _, info = envs.reset(seed=0)
    assert "val_accuracy" not in info
    for _ in range(4):
        *_, info = envs.step(np.zeros((2, 1), np.float32))
    assert "test_loss" in info
    assert not any("accuracy" in name for name in info)


def test_initial_rates_can_be_chosen_at_reset(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(50, toy(initial_lr=0.5), **EXACT)
    assert set(envs.reset(seed=0)[1]["lr"].tolist()) == {0.5}
    assert set(envs.reset(seed=0, options={"initial_lr": 0.25})[1]["lr"].tolist()) == {0.25}
    assert set(envs.reset(seed=0, options={"initial_lr": (0.1, 0.2)})[1]["lr"].tolist()) == {0.1, 0.2}
    drawn = envs.reset(seed=0, options={"initial_lr": LogUniform(1e-3, 1e-1)})[1]["lr"]
    assert drawn.min() >= 1e-3
    assert drawn.max() <= 1e-1
    assert len(set(drawn.tolist())) == 50
    assert set(envs.reset(seed=0)[1]["lr"].tolist()) == {0.5}, "an option holds for one reset"
    envs = LearningRateVectorEnv(2, toy(), initial_lr=0.125, **EXACT)
    assert envs.reset(seed=0)[1]["lr"].tolist() == [0.125, 0.125]


def test_seeds_name_runs(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(3, toy(), **EXACT)
    first, _ = envs.reset(seed=7)
    np.testing.assert_array_equal(envs.reset(seed=[7, 8, 9])[0], first)
    np.testing.assert_array_equal(envs.reset(seed=[9, 8, 7])[0], first[::-1])
    following, _ = envs.reset()
    assert (following != first).any(1).all()
    # None goes on to an env's next episode, whatever the others do.
    mixed, _ = envs.reset(seed=[9, None, 7])
    np.testing.assert_array_equal(mixed[::2], first[::-2])
    assert (mixed[1] != following[1]).any()
    other = LearningRateVectorEnv(3, toy(), **EXACT)
    assert not np.array_equal(other.reset()[0], LearningRateVectorEnv(3, toy(), **EXACT).reset()[0])


def test_environments_without_a_seed_draw_one_each(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(3, toy(), **EXACT)
    first, _ = envs.reset(seed=[None, 4, None])
    assert len(np.unique(first, axis=0)) == 3
    np.testing.assert_allclose(first[1], LearningRateVectorEnv(1, toy(), **EXACT).reset(seed=4)[0][0], rtol=1e-10)
    assert not np.array_equal(first[0], LearningRateVectorEnv(1, toy(), **EXACT).reset(seed=0)[0][0])


def test_metadata_and_arrays_are_not_shared(toy: Callable[..., Task]) -> None:
    one, other = (
        LearningRateVectorEnv(2, toy(), autoreset_mode=mode, device="cpu") for mode in ("NextStep", "SameStep")
    )
    assert one.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert other.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert "autoreset_mode" not in LearningRateVectorEnv.metadata
    observation, info = one.reset(seed=0)
    held = [(observation, info)] + [(a, i) for a, *_, i in (one.step(np.zeros((2, 1), np.float32)) for _ in range(2))]
    copies = [(a.copy(), {name: x.copy() for name, x in i.items()}) for a, i in held]
    one.step(np.ones((2, 1), np.float32))
    for (a, i), (b, j) in zip(held, copies, strict=True):
        np.testing.assert_array_equal(a, b)
        for name in i:
            np.testing.assert_array_equal(i[name], j[name])
    untouched, *_ = LearningRateVectorEnv(2, toy(), device="cpu").reset(seed=0)
    held[0][0][:] = 99.0
    for x in held[0][1].values():
        x[:] = 1
    np.testing.assert_array_equal(one.reset(seed=0)[0], untouched)


def bad_actions() -> list[Any]:
    nan, above = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    nan[1], above[1] = math.nan, 1.5
    return [
        pytest.param(np.zeros((3, 1)), r"shape \(2, 1\).*not \(3, 1\)", id="envs"),
        pytest.param(np.zeros(2), r"shape \(2, 1\)", id="flat"),
        pytest.param(nan, r"environments \[1\] are NaN", id="nan"),
        pytest.param(nan.astype(object), "dtype object", id="object"),
        pytest.param(above, r"environments \[1\] lie outside", id="bounds"),
        pytest.param(np.full((2, 1), "a"), "must be numbers", id="text"),
        pytest.param([[0.0], [0.0, 0.0]], "must be an array", id="ragged"),
        pytest.param(torch.zeros(2, 1, requires_grad=True), "must be an array", id="gradient"),
    ]


@pytest.mark.parametrize(("actions", "message"), bad_actions())
def test_bad_actions_are_refused(actions: Any, message: str) -> None:
    envs = LearningRateVectorEnv(2, **TINY)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    # The refusal left nothing behind.
    *answer, _ = envs.step(np.zeros((2, 1), np.float32))
    twin = LearningRateVectorEnv(2, **TINY)
    twin.reset(seed=0)
    np.testing.assert_array_equal(answer[0], twin.step(np.zeros((2, 1), np.float32))[0])


@pytest.mark.parametrize(("actions", "message"), [([0.0, 1.0], "integers"), ([0, 3], r"\[1\] lie outside Discrete")])
def test_bad_discrete_actions_are_refused(actions: Any, message: str) -> None:
    envs = LearningRateVectorEnv(2, control="discrete", **TINY)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(np.array(actions))


def test_steps_need_an_episode() -> None:
    envs, env = LearningRateVectorEnv(2, **TINY), LearningRateEnv(**TINY)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        envs.step(np.zeros((2, 1), np.float32))
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))
    env.reset(seed=0)
    for _ in range(4):
        *_, terminated, _, _ = env.step(np.zeros(1, np.float32))
    assert terminated
    with pytest.raises(gym.error.ResetNeeded, match="ended"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("action", [np.zeros(2, np.float32), np.zeros((1, 1), np.float32), 0.0, [[0.0]]])
def test_one_env_says_which_shape_its_action_has(action: Any) -> None:
    env = LearningRateEnv(**TINY)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"must have shape \(1,\), not \("):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1]}, "2 integers of at least 0"),
        ({"seed": [1, -2]}, "at least 0"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63 - 1}, "below 2[*][*]63"),
        ({"seed": [0, 2**63]}, "below 2[*][*]63"),
        ({"seed": 1.0}, "integers"),
        ({"seed": [0, 1.5]}, "integers"),
        ({"seed": "ab"}, "integers"),
        ({"options": {"initial_rate": 1}}, "initial_rate.*known: initial_lr, reset_mask"),
        ({"options": {"initial_lr": ()}}, "empty"),
        ({"options": {"initial_lr": -0.1}}, "at least 0 and at most 1e.38, not -0.1"),
        ({"options": {"initial_lr": (0.1, math.nan)}}, "at least 0 and at most 1e.38, not nan"),
        ({"options": {"initial_lr": LogUniform(0.1, math.inf)}}, "low <= high <= 1e.38"),
        ({"options": {"reset_mask": np.array([True])}}, "2 booleans"),
        ({"options": {"reset_mask": np.array([1, 0])}}, "2 booleans"),
        ({"options": {"reset_mask": np.array([False, False])}}, "at least one"),
        ({"options": {"reset_mask": np.array([True, False])}}, "first reset must start every"),
    ],
)
def test_bad_resets_are_refused(arguments: dict[str, Any], message: str) -> None:
    envs, twin = (LearningRateVectorEnv(2, **TINY) for _ in range(2))
    with pytest.raises(ValueError, match=message):
        envs.reset(**arguments)
    # The refusal left nothing behind, neither now nor for the episodes to come.
    envs.reset(seed=3)
    twin.reset(seed=3)
    if "first reset" not in message:
        with pytest.raises(ValueError, match=message):
            envs.reset(**arguments)
    np.testing.assert_array_equal(envs.reset()[0], twin.reset()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"task": "noisy-quadratik"}, "did you mean 'noisy-quadratic'"),
        ({"device": "nonsense"}, "device='nonsense' can't be used here.*try 'cpu'"),
        ({"dtype": "float16"}, "did you mean 'float"),
        ({"render_mode": "humann"}, "did you mean 'human'"),
        ({"autoreset_mode": "next"}, "AutoresetMode"),
        ({"control": "scael"}, "did you mean 'scale'"),
        ({"observe": "dynamic"}, "did you mean 'dynamics'"),
        ({"reward": "val-loss"}, "did you mean 'val_loss'"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRateVectorEnv(**{"num_envs": 1, **TINY, **settings})


def test_counts_must_be_integers() -> None:
    with pytest.raises(TypeError, match="num_envs must be an integer"):
        LearningRateVectorEnv(**{"num_envs": 2.0, **TINY})


def test_images_show_every_env() -> None:
    envs = LearningRateVectorEnv(2, render_mode="rgb_array", **TINY)
    envs.reset(seed=0)
    envs.step(np.zeros((2, 1), np.float32))
    images = envs.render()
    assert len(images) == 2
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert len(np.unique(image)) > 10, "something is drawn"
    assert (images[0] != images[1]).any()
    env = LearningRateEnv(render_mode="rgb_array", **TINY)
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    np.testing.assert_array_equal(env.render(), images[0])
    sb3 = LearningRateVecEnv(2, render_mode="rgb_array", **TINY)
    sb3.seed(0)
    sb3.reset()
    sb3.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(sb3.get_images()[1], images[1])


def test_batches_of_any_size_have_an_image_per_env() -> None:
    """Those beyond the 16 that are drawn are white."""
    envs = LearningRateVectorEnv(18, render_mode="rgb_array", **TINY)
    envs.reset(seed=0)
    images = envs.render()
    assert len(images) == 18
    assert len({image.shape for image in images}) == 1
    assert [image.min() == 255 for image in images] == [False] * 16 + [True] * 2
    sb3 = LearningRateVecEnv(18, render_mode="rgb_array", **TINY)
    sb3.reset()
    assert len(sb3.get_images()) == 18
    assert sb3.render() is not None


def test_human_rendering_tells_the_end_of_an_episode_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the next one begins within the step; and an env that goes on has one point of its curve per decision."""
    envs = LearningRateVecEnv(2, render_mode="human", control="set-raw", **TINY)
    envs.reset()
    assert envs.render() is None
    for wild in (0.1, 1e30, 0.1):
        envs.step(np.array([[0.1], [wild]], np.float32))
        assert envs.render() is None
    lines = capsys.readouterr().out.splitlines()
    steps = (0, 5, 10, 10)  # at last, the mean of 15 and 5
    assert [line.split(" | ")[0] for line in lines] == [f"noisy-quadratic step {step}/20" for step in steps]
    assert [line[-12:] for line in lines] == [f"diverged {number}/2" for number in (0, 0, 1, 0)]
    history = envs.envs._history
    assert history is not None
    assert [[point[0] for point in row] for row in history._rows] == [[0, 5, 10, 15], [0, 5]]


def test_human_rendering_goes_with_evaluate_policy(capsys: pytest.CaptureFixture[str]) -> None:
    envs = LearningRateVecEnv(1, render_mode="human", **TINY)
    model = PPO("MlpPolicy", envs, n_steps=4, batch_size=4, device="cpu")
    evaluate_policy(model, envs, n_eval_episodes=1, render=True, warn=False)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4


def test_human_rendering_prints_a_line_a_decision(capsys: pytest.CaptureFixture[str]) -> None:
    envs = LearningRateVectorEnv(2, render_mode="human", **TINY)
    _, info = envs.reset(seed=0)
    envs.step(np.zeros((2, 1), np.float32))
    assert envs.render() is None
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("noisy-quadratic step 0/20 | train loss ")
    assert f"val loss {info['val_loss'].mean():.4g} " in first
    assert second.startswith("noisy-quadratic step 5/20")
    assert "diverged 0/2" in second


def test_rendering_needs_a_mode() -> None:
    envs = LearningRateVectorEnv(1, **TINY)
    with pytest.warns(UserWarning, match="render_mode"):
        assert envs.render() is None


def rollout(envs: VectorEnv[Array, Array, Array], steps: int) -> list[tuple[Any, ...]]:
    envs.action_space.seed(0)
    envs.reset(seed=0)
    return [envs.step(envs.action_space.sample()) for _ in range(steps)]


def test_episode_statistics_are_sums_of_rewards() -> None:
    plain = rollout(LearningRateVectorEnv(3, **TINY), 5)
    wrapped = rollout(wrappers.RecordEpisodeStatistics(LearningRateVectorEnv(3, **TINY)), 5)
    rewards = np.stack([answer[1] for answer in plain])
    episode = wrapped[3][-1]["episode"]
    np.testing.assert_allclose(episode["r"], rewards[:4].sum(0), rtol=1e-5)
    assert episode["l"].tolist() == [4, 4, 4]
    assert "episode" not in wrapped[4][-1], "the step of the reset ends nothing"


def test_observations_are_normalised() -> None:
    plain = rollout(LearningRateVectorEnv(3, **TINY), 9)
    envs = wrappers.NormalizeObservation(LearningRateVectorEnv(3, **TINY))
    wrapped = rollout(envs, 9)
    first, _ = LearningRateVectorEnv(3, **TINY).reset(seed=0)
    seen = np.concatenate([first] + [answer[0] for answer in plain])
    expected = (plain[-1][0] - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)
    np.testing.assert_allclose(wrapped[-1][0], expected, rtol=1e-2, atol=1e-2)  # the wrapper starts at a count of 1e-4


def test_rewards_are_normalised() -> None:
    plain = rollout(LearningRateVectorEnv(3, **TINY), 8)
    envs = wrappers.NormalizeReward(LearningRateVectorEnv(3, **TINY))
    wrapped = rollout(envs, 8)
    scale = np.sqrt(envs.return_rms.var + envs.epsilon)
    np.testing.assert_allclose(wrapped[-1][1] * scale, plain[-1][1], rtol=1e-6)


def learn(envs: VectorEnv[Array, Array, Array], steps: int, iterations: int) -> list[float]:
    """A little PPO for any vector environment that resets on the next step; mean episode returns by iteration."""
    torch.manual_seed(0)
    inputs, outputs = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]  # type: ignore[index]
    actor, critic = (nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, k)) for k in (outputs, 1))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=2e-2)
    to = torch.as_tensor
    observation, _ = envs.reset(seed=0)
    before, history = np.zeros(envs.num_envs, dtype=bool), []
    for _ in range(iterations):
        rows = []
        for _ in range(steps):
            with torch.no_grad():
                chosen = torch.distributions.Normal(actor(to(observation)), 0.5).sample()
            following, reward, terminated, _, _ = envs.step(chosen.clamp(-1, 1).numpy())
            rows.append((observation, chosen, reward, terminated, ~before))
            observation, before = following, terminated
        seen, actions = torch.stack([to(r[0]) for r in rows]), torch.stack([r[1] for r in rows])
        rewards, dones, valid = (torch.stack([to(r[k]).float() for r in rows]) for k in (2, 3, 4))
        history.append(float(rewards.sum() / dones.sum()))
        returns, future = torch.zeros_like(rewards), critic(to(observation)).squeeze(-1).detach()
        for t in reversed(range(steps)):
            future = rewards[t] + 0.99 * future * (1 - dones[t])
            returns[t] = future
        advantage = (returns - critic(seen).squeeze(-1)).detach()
        advantage = (advantage - advantage.mean()) / advantage.std()
        old = torch.distributions.Normal(actor(seen), 0.5).log_prob(actions).sum(-1).detach()
        for _ in range(4):
            ratio = (torch.distributions.Normal(actor(seen), 0.5).log_prob(actions).sum(-1) - old).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            loss = -(gain * valid).mean() + 0.5 * ((critic(seen).squeeze(-1) - returns) ** 2 * valid).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return history


def test_a_foreign_ppo_learns() -> None:
    """The rate starts far too small, so that raising it is what pays."""
    task = make_task("noisy-quadratic", budget=30, interval=5, initial_lr=0.01)
    envs = gym.make_vec("lrenv/noisy-quadratic-v0", num_envs=32, task=task, reward="improvement", device="cpu")
    normalised = wrappers.NormalizeObservation(wrappers.RecordEpisodeStatistics(envs))
    history = learn(normalised, steps=7, iterations=12)
    untrained, trained = float(np.mean(history[:2])), float(np.mean(history[-3:]))
    assert trained > untrained + 0.05


class Other(nn.Module):
    """As many parameters of the same shapes as a 64-32-32-10 perceptron, another function."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


DIGITS = make_task("digits-mlp", budget=30, optimizer="momentum")


def images_negated() -> Data:
    """The digits with other pixels and the same labels."""
    data = load("digits")
    return data._replace(train=Split(16 - data.train.inputs, data.train.targets))


@pytest.mark.parametrize(
    ("other", "named"),
    [({"task": make_task("digits-mlp", budget=30, optimizer="nesterov")}, "optimizer momentum .here nesterov."),
     ({"optimizer": momentum(nesterov=True)}, "optimizer momentum"),
     ({"task": make_task(DIGITS, momentum=0.8)}, r"momentum 0.9 \(here 0.8\)"),
     ({"task": make_task(DIGITS, weight_decay=0.1)}, "weight_decay"), ({"task": make_task(DIGITS, name="x")}, "task"),
     ({"task": make_task(DIGITS, network=lambda shape, classes: Other())}, "network Sequential"),
     ({"task": make_task(DIGITS, data=images_negated)}, r"data digits\(\)"),
     ({"task": make_task(DIGITS, replacement=True)}, "replacement"), ({"batch_size": 32}, "batch_size"),
     ({"budget": 20}, "budget"), ({"interval": 5}, "interval"), ({"initial_lr": 0.1}, "initial_lr"),
     ({"val_examples": 20}, "val_examples"), ({"measure_interval": 20}, "measure_interval"),
     ({"control": "scale/layer"}, r"control scale \(here scale/layer\)"),
     ({"control": ("scale", "momentum")}, r"control scale \(here scale, momentum\)"),
     ({"observe": "paper"}, "observe"), ({"reward": "improvement"}, r"reward val_loss \(here improvement\)"),
     ({"dtype": "float64"}, "dtype"), ({"precision": "bf16"}, "precision"), ({"num_envs": 3}, "num_envs"),
     ({"autoreset_mode": "SameStep"}, "autoreset_mode")],
)  # fmt: skip
def test_a_snapshot_of_another_environment_is_refused(other: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {"num_envs": 2, "task": DIGITS, "device": "cpu"}
    envs, same, different = (LearningRateVectorEnv(**settings | more) for more in ({}, {}, other))
    observations = [made.reset(seed=0)[0] for made in (envs, same, different)]
    with pytest.raises(ValueError, match=f"of an environment with .*{named}"):
        different.restore(envs.snapshot())
    same.restore(envs.snapshot())
    actions = np.zeros(different.action_space.shape or (), different.action_space.dtype)
    twin = LearningRateVectorEnv(**settings | other)
    np.testing.assert_array_equal(twin.reset(seed=0)[0], observations[2])
    np.testing.assert_array_equal(different.step(actions)[0], twin.step(actions)[0], "the refusal left nothing behind")


def test_data_of_functions_are_told_apart_by_their_contents() -> None:
    """Of two functions of one name and size."""

    def shifted(by: int) -> Task:
        data = load("digits")
        test = Split(data.test.inputs + by, data.test.targets)
        return make_task(DIGITS, data=lambda: data._replace(test=test))

    envs, same, other = (LearningRateVectorEnv(1, shifted(by), device="cpu") for by in (0, 0, 1))
    envs.reset(seed=0)
    same.restore(envs.snapshot())
    with pytest.raises(ValueError, match=r"data 1200 training examples \[\w+\] \(here 1200 training examples"):
        other.restore(envs.snapshot())


class OfAnother(nn.Module):
    """A network that differs from others of its class in what torch prints nothing of."""

    def __init__(self, shape: Any, classes: int, scale: float = 1.0, act: Any = torch.relu, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(math.prod(shape), 4), nn.Linear(4, classes)
        self.scale, self.act = scale, act
        with torch.no_grad():
            self.last.weight.mul_(gain)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.last(self.act(self.first(x.flatten(1)))))


class Halved(OfAnother):
    __qualname__ = "OfAnother"

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale / 2


Halved.__name__ = "OfAnother"


@pytest.mark.parametrize(
    ("kind", "change"),
    [(OfAnother, {"scale": 2.0}), (OfAnother, {"act": torch.tanh}), (OfAnother, {"gain": 3.0}), (Halved, {})],
)
def test_networks_are_told_apart_by_what_they_hold_and_do(kind: Any, change: dict[str, Any]) -> None:
    envs, same, other = (
        LearningRateVectorEnv(1, make_task(DIGITS, network=partial(kind, **more)), device="cpu")
        for kind, more in ((OfAnother, {}), (OfAnother, {}), (kind, change))
    )
    envs.reset(seed=0)
    same.restore(envs.snapshot())
    with pytest.raises(ValueError, match="network OfAnother"):
        other.restore(envs.snapshot())
    assert contents_of(envs.task) == contents_of(same.task) != contents_of(other.task)


@pytest.mark.parametrize("change", [{"eps_root": 1e-6}, {"eps": 1e-6}])
def test_optimizers_are_told_apart_by_what_they_enclose(change: dict[str, float]) -> None:
    envs, same, other = (
        LearningRateVectorEnv(1, DIGITS, optimizer=adam(**more), device="cpu") for more in ({}, {}, change)
    )
    envs.reset(seed=0)
    same.restore(envs.snapshot())
    with pytest.raises(ValueError, match="optimizer"):
        other.restore(envs.snapshot())


def test_names_that_mean_the_same_are_the_same() -> None:
    envs = LearningRateVectorEnv(1, DIGITS, device="cpu")
    same = LearningRateVectorEnv(1, DIGITS, control=("scale",), observe=("dynamics",), val_examples=297, device="cpu")
    envs.reset(seed=0)
    same.restore(envs.snapshot())


def test_a_snapshot_can_be_pickled(toy: Callable[..., Task]) -> None:
    task = toy(network=lambda shape, classes: nn.Linear(shape[0], classes))  # which itself can't
    envs, other = (LearningRateVectorEnv(2, task, device="cpu") for _ in range(2))
    envs.reset(seed=0)
    envs.step(np.ones((2, 1), np.float32))
    other.restore(pickle.loads(pickle.dumps(envs.snapshot())))
    for _ in range(4):  # the last begins the next episodes
        for x, y in zip(envs.step(np.zeros((2, 1)))[:3], other.step(np.zeros((2, 1)))[:3], strict=True):
            np.testing.assert_array_equal(x, y)


def test_only_snapshots_are_restored() -> None:
    envs = LearningRateVectorEnv(1, **TINY)
    with pytest.raises(TypeError, match=r"what snapshot\(\) gave, not a dict"):
        envs.restore({})  # type: ignore[arg-type]


def test_a_restored_environment_draws_what_it_went_on_from() -> None:
    env = LearningRateEnv(render_mode="rgb_array", **TINY)
    env.reset(seed=0)
    snapshot, image = env.snapshot(), env.render()
    env.step(np.ones(1, np.float32))
    env.restore(snapshot)
    np.testing.assert_array_equal(env.render(), image)


@pytest.mark.parametrize("interval", [7, 8, 10**12])
@pytest.mark.parametrize("measure", [1, 2])
def test_an_interval_beyond_the_budget_is_the_budget(toy: Callable[..., Task], interval: int, measure: int) -> None:
    """It trains as long, costs as much, and looks the same to the agent."""
    answers = []
    for settings in ({"interval": 7}, {"interval": interval, "measure_interval": measure * interval}):
        envs = LearningRateVectorEnv(2, toy(budget=7, **settings), observe=("clock", "scale-free"), **EXACT)
        observation, _ = envs.reset(seed=0)
        answers.append([observation, *envs.step(np.zeros((2, 1)))])
    for mine, wanted in zip(answers[1][:4], answers[0][:4], strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert answers[1][3].all()
    assert answers[1][5]["inner_step"].tolist() == [7, 7]
    np.testing.assert_array_equal(answers[1][5]["test_loss"], answers[0][5]["test_loss"])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_envs": 10**12}, {"num_envs": 10**40}, {"budget": 10**14, "interval": 10**13}, {"batch_size": 10**13},
        {"num_envs": 10**12, "control": "scale/parameter", "observe": "parameters"},
    ],
)  # fmt: skip
def test_what_no_memory_holds_is_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need [0-9,]+ GiB, and cpu has [0-9]+: about [0-9]+ fit"):
        LearningRateVectorEnv(**{"num_envs": 1, **TINY, **settings})


def test_long_episodes_cost_nothing_in_advance() -> None:
    envs = LearningRateVectorEnv(2, **TINY | {"budget": 10**12, "val_examples": 10**12})
    envs.reset(seed=0)
    *_, terminated, _, info = envs.step(np.zeros((2, 1), np.float32))
    assert info["inner_step"].tolist() == [5, 5]
    assert not terminated.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"network": lambda shape, classes: nn.Linear(shape[0], classes - 1)},
            ValueError,
            r"gives \(4, 2\).*3 classes",
        ),
        (
            {"network": lambda shape, classes: nn.LSTM(shape[0], classes)},
            ValueError,
            "gives a tuple of 2, but it must give one tensor",
        ),
        ({"data": lambda: (np.zeros((4, 2)), np.zeros(4, int))}, TypeError, "'toy'.*not a tuple of 2.*from_arrays"),
    ],
)
def test_tasks_that_can_not_be_trained_are_refused_when_made(
    toy: Callable[..., Task], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        LearningRateVectorEnv(2, make_task(toy(), **change), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_actions_may_be_views_of_any_stride() -> None:
    envs = LearningRateVectorEnv(2, "digits-logreg", budget=20, device="cpu")
    envs.reset(seed=0)
    _, _, _, _, info = envs.step(np.array([[1.0], [-1.0]], np.float32)[::-1])
    assert info["lr"].shape == (2,)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_restarts_leave_snapshots_and_actions_alone(toy: Callable[..., Task], mode: str) -> None:
    """Rows of episodes that begin are written in place, but not into what others hold."""
    envs = LearningRateVectorEnv(3, toy(), control="set-raw", autoreset_mode=mode, device="cpu")
    envs.reset(seed=0)
    envs.step(np.full((3, 1), 0.1, np.float32))
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    for _ in range(6):
        snapshot = envs.snapshot()
        held = [leaf.clone() for leaf in tree_leaves(snapshot.state)]
        action = np.array([[0.1], [0.2], [0.3]], np.float32)
        envs.step(action)
        assert action[:, 0].tolist() == np.array([0.1, 0.2, 0.3], np.float32).tolist()
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(snapshot.state), held, strict=True))


def test_staggered_episodes_are_begun_together(toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four envs out of step: one call prepares everyone's next episode, and each gets the one that is its own."""
    task = toy(budget=20)
    envs, alone = (LearningRateVectorEnv(4, task, autoreset_mode="SameStep", **EXACT) for _ in range(2))
    action = np.zeros((4, 1))
    envs.reset(seed=0)
    for i in range(4):
        envs.reset(options={"reset_mask": np.arange(4) == i})
        envs.step(action)
    begun: list[int] = []
    reset = envs.episode.reset
    monkeypatch.setattr(envs.episode, "reset", lambda seeds, *rest: begun.append(len(seeds)) or reset(seeds, *rest))
    firsts = []
    for _ in range(4):
        observation, _, terminated, _, _ = envs.step(action)
        assert terminated.sum() == 1
        firsts.append(observation[terminated][0])
    assert sum(begun) <= 2 * 4
    assert len(begun) <= 2
    seeds = draws.episode_seeds(np.arange(4), np.full(4, 2))
    expected, _ = alone.reset(seed=seeds.tolist())
    np.testing.assert_allclose(np.stack(firsts), expected, rtol=1e-10, atol=1e-10)


def test_an_env_that_was_seeded_anew_begins_its_own_next_episode(toy: Callable[..., Task]) -> None:
    """Episodes prepared for the seeds of before are not taken for it, though those of the others still hold."""
    envs = LearningRateVectorEnv(3, toy(budget=12), autoreset_mode="SameStep", **EXACT)
    action = np.zeros((3, 1))
    envs.reset(seed=0)
    for i in (0, 1):  # out of step: env 0 is behind env 1, and both are behind env 2
        envs.step(action)
        envs.reset(options={"reset_mask": np.arange(3) <= 1 - i})
    ended = [False] * 3
    while not ended[2]:  # the first to end, for whom everyone's next episodes are prepared
        *_, terminated, _, _ = envs.step(action)
        ended = terminated.tolist()
    envs.reset(seed=[50, None, None], options={"reset_mask": np.array([True, False, False])})
    ended = [False] * 3
    while not ended[0]:
        observation, _, terminated, _, _ = envs.step(action)
        ended = terminated.tolist()
    alone = LearningRateVectorEnv(1, toy(budget=12), **EXACT)
    wanted, _ = alone.reset(seed=draws.episode_seeds(np.array([50]), np.array([1])).tolist())
    np.testing.assert_allclose(observation[0], wanted[0], rtol=1e-10, atol=1e-10)


def test_sets_are_described_alike_in_every_process() -> None:
    """Their order depends on the hashes of strings, which are others in each process."""
    code = "from lrenv.envs.snapshots import described; print(described({'x': {'first', 'second', 'third', 'fourth'}}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(3)
    }
    assert found == {"{x: {first, fourth, second, third}}\n"}
