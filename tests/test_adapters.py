"""The adapters only call the core: one trajectory through all of them, snapshots, both libraries' checkers."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch.utils._pytree import tree_flatten

import lrenv
from lrenv.envs.env import LearningRateEnv
from lrenv.envs.episode import Episode
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness import draws
from lrenv.training.dynamics import Dynamics
from lrenv.training.tasks import Task, make_task

Array = NDArray[Any]
SEEDS, EPISODES = (11, 12, 13), 3
SETTINGS: dict[str, Any] = {"dtype": "float64", "device": "cpu"}
EMBEDDED = (
    "noisy-quadratic", "power-law-hard", "two-minima", "digits-logreg", "digits-mlp", "mnist1d-mlp", "digits-conv",
    "mnist1d-residual",
    "text-mlp", "text-transformer", "shuttle-mlp", "doctor-visits-mlp", "co2-mlp", "photo-mlp",
)  # fmt: skip
INFO = ("train_loss", "val_loss", "val_accuracy", "lr", "inner_step", "diverged")

Trajectory = list[list[dict[str, Array]]]
"""Episode, then decision (the reset first) -> name -> (n, ...)."""


def action(episode: int, decision: int, n: int) -> Array:
    """Any fixed numbers in [-1, 1] that differ between envs, decisions and episodes."""
    return np.array([[math.sin(1 + 7 * i + 3 * episode + 1.3 * decision)] for i in range(n)])


def through_core(task: Task, n: int) -> Trajectory:
    core = Episode(task, dtype=torch.float64)
    trajectory: Trajectory = []
    for episode in range(EPISODES):
        with torch.no_grad():
            state, first = core.reset(draws.episode_seeds(np.array(SEEDS[:n]), np.full(n, episode)).tolist())
            time_steps = [first]
            for k in range(core.decisions):
                state, time_step = core.step(state, torch.from_numpy(action(episode, k, n)))
                time_steps.append(time_step)
            tested = core.test(state, torch.arange(n))
        rows = [
            {"observation": t.observation, "reward": t.reward, "terminated": t.terminated} | t.info for t in time_steps
        ]
        rows[-1] |= tested
        trajectory.append([{name: np.asarray(x) for name, x in row.items()} for row in rows])
    return trajectory


def record(observation: Array, info: dict[str, Any], **rest: Array) -> dict[str, Array]:
    kept = {name: np.array(x) for name, x in info.items() if name in INFO or name.startswith("test_")}
    return {"observation": observation.copy(), **kept, **rest}


def through_vector_env(task: Task, n: int) -> Trajectory:
    envs = LearningRateVectorEnv(n, task, **SETTINGS)
    trajectory = [[record(*envs.reset(seed=SEEDS[0]))]]
    while True:
        k = len(trajectory[-1]) - 1
        observation, reward, terminated, truncated, info = envs.step(action(len(trajectory) - 1, k, n))
        trajectory[-1].append(record(observation, info, reward=reward, terminated=terminated))
        assert not truncated.any()
        if terminated.all():
            if len(trajectory) == EPISODES:
                return trajectory
            # NEXT_STEP: the actions of this step are ignored, what it answers is the reset.
            observation, reward, terminated, _, info = envs.step(np.zeros((n, 1)))
            assert reward.tolist() == [0.0] * n
            assert not terminated.any()
            trajectory.append([record(observation, info)])


def through_sb3(task: Task, n: int) -> Trajectory:
    envs = LearningRateVecEnv(n, task, **SETTINGS)
    envs.seed(SEEDS[0])
    trajectory = [[record(envs.reset(), envs.info)]]
    while len(trajectory) <= EPISODES:
        k = len(trajectory[-1]) - 1
        observation: Any
        observation, reward, done, infos = envs.step(action(len(trajectory) - 1, k, n))
        if not done.any():
            assert infos == [{}] * n
            trajectory[-1].append(record(observation, envs.info, reward=reward, terminated=done))
            continue
        assert done.all()
        assert not any(info["TimeLimit.truncated"] for info in infos)
        last = np.stack([info["terminal_observation"] for info in infos])
        final = {name: np.array([info[name] for info in infos]) for name in infos[0] if name in INFO or "test" in name}
        trajectory[-1].append(record(last, final, reward=reward, terminated=done))
        trajectory.append([record(observation, envs.info)])
    return trajectory[:EPISODES]


def through_env(task: Task, n: int) -> Trajectory:
    env = LearningRateEnv(task, **SETTINGS)
    alone: list[Trajectory] = []
    for i, seed in enumerate(SEEDS[:n]):
        trajectory: Trajectory = []
        for episode in range(EPISODES):
            observation, info = env.reset(seed=seed if episode == 0 else None)
            trajectory.append([record(observation, info)])
            terminated = False
            while not terminated:
                k = len(trajectory[-1]) - 1
                observation, reward, terminated, truncated, info = env.step(action(episode, k, n)[i])
                assert not truncated
                assert isinstance(reward, float)
                trajectory[-1].append(
                    record(observation, info, reward=np.array(reward), terminated=np.array(terminated))
                )
        alone.append(trajectory)
    return [
        [{name: np.stack([a[e][k][name] for a in alone]) for name in alone[0][e][k]} for k in range(len(alone[0][e]))]
        for e in range(EPISODES)
    ]


def assert_same(expected: Trajectory, got: Trajectory, tolerance: float) -> None:
    assert len(expected) == len(got)
    for episode, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
        for k, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            assert set(b) <= set(a)
            for name, x in b.items():
                # Stable-Baselines3 pays in float32.
                wanted = a[name].astype(x.dtype) if name == "reward" else a[name]
                where = f"{name} of decision {k} of episode {episode}"
                np.testing.assert_allclose(x, wanted, rtol=tolerance, atol=tolerance, err_msg=where)


@pytest.fixture
def task(toy: Callable[..., Task]) -> Task:
    return toy(budget=10, optimizer="adam", initial_lr=(0.1, 0.01))


@pytest.mark.parametrize("adapter", [through_vector_env, through_sb3, through_env])
@pytest.mark.parametrize("n", [1, 3])
def test_one_trajectory_through_every_adapter(task: Task, adapter: Callable[[Task, int], Trajectory], n: int) -> None:
    core, adapted = through_core(task, n), adapter(task, n)
    # Three envs alone against a batch of three: the same draws, sums in another order.
    assert_same(core, adapted, 1e-10 if adapter is through_env and n > 1 else 0.0)
    assert set(adapted[0][-1]) >= {"observation", "reward", "terminated", "test_loss", "test_accuracy", *INFO}
    first, second = adapted[0][0]["val_loss"], adapted[1][0]["val_loss"]
    assert (first != second).all(), "a later episode starts from other weights"


def test_a_batch_is_its_envs_alone(task: Task) -> None:
    assert_same(through_vector_env(task, 3), through_env(task, 3), 1e-10)


def test_gymnasium_makes_the_native_envs() -> None:
    env = gym.make("lrenv/noisy-quadratic-v0", budget=20, device="cpu")
    assert isinstance(env.unwrapped, LearningRateEnv)
    assert env.unwrapped.task == lrenv.make_task("noisy-quadratic", budget=20)
    envs = gym.make_vec("lrenv/noisy-quadratic-v0", num_envs=3, control="discrete", device="cpu")
    assert isinstance(envs.unwrapped, LearningRateVectorEnv)
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    assert envs.num_envs == 3
    assert {f"lrenv/{name}-v0" for name in lrenv.tasks()} <= set(gym.registry)


def random_actions(space: gym.Space[Any], decisions: int) -> list[Array]:
    space.seed(0)
    return [space.sample() for _ in range(decisions)]


def flat(answer: tuple[Any, ...]) -> list[Array]:
    leaves = tree_flatten(answer)[0]
    # `final_obs` is an array of arrays.
    leaves = tree_flatten([x.tolist() if isinstance(x, np.ndarray) and x.dtype == object else x for x in leaves])[0]
    return [np.asarray(leaf) for leaf in leaves]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("control", ["scale", "discrete", "set/layer"])
def test_a_snapshot_continues_bit_for_bit(task: Task, mode: str, control: str) -> None:
    envs = LearningRateVectorEnv(3, task, control=control, autoreset_mode=mode, device="cpu")
    actions = random_actions(envs.action_space, 20)
    envs.reset(seed=4)

    def play(actions: list[Array]) -> list[list[Array]]:
        answers = []
        for chosen in actions:
            *answer, info = envs.step(chosen)
            if mode == "Disabled" and answer[2].any():
                *_, info = envs.reset(options={"reset_mask": answer[2]})
            answers.append(flat((*answer, sorted(info.items(), key=lambda item: item[0]))))
        return answers

    play(actions[:5])
    snapshot = envs.snapshot()
    kept = [leaf.clone() for leaf in tree_flatten(snapshot.state)[0]]
    first = play(actions[5:])
    assert all(torch.equal(a, b) for a, b in zip(kept, tree_flatten(snapshot.state)[0], strict=True))
    for _ in range(2):
        envs.restore(snapshot)
        for a, b in zip(first, play(actions[5:]), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_snapshot_moves_to_another_env_of_the_same_settings(task: Task) -> None:
    one, other = LearningRateEnv(task, **SETTINGS), LearningRateEnv(task, **SETTINGS)
    one.reset(seed=1)
    one.step(np.array([0.5]))
    other.restore(one.snapshot())
    for k in range(2):
        chosen = action(0, k, 1)[0]
        for x, y in zip(flat(one.step(chosen)), flat(other.step(chosen)), strict=True):
            np.testing.assert_array_equal(x, y)
    other.reset(seed=3)
    other.restore(one.snapshot())
    with pytest.raises(gym.error.ResetNeeded, match="ended"):
        other.step(np.array([0.0]))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("make", [LearningRateEnv, lambda task, **settings: LearningRateVectorEnv(2, task, **settings)])
def test_environments_are_not_copied(task: Task, make: Callable[..., Any], copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"can't be copied or pickled.*what snapshot\(\) gives by restore\(\)"):
        copied(make(task, **SETTINGS))


def test_gymnasium_runs_environments_in_processes() -> None:
    """It pickles what makes them."""
    settings: dict[str, Any] = {"budget": 4, "interval": 2, **SETTINGS}
    made = [lambda: gym.make("lrenv/noisy-quadratic-v0", **settings)] * 2
    alone, apart = gym.vector.SyncVectorEnv(made), gym.vector.AsyncVectorEnv(made)
    try:
        for envs in (alone, apart):
            envs.reset(seed=3)
        for x, y in zip(*(envs.step(np.ones((2, 1)))[:2] for envs in (alone, apart)), strict=True):
            np.testing.assert_array_equal(x, y)
    finally:
        apart.close()


def test_the_seed_of_an_episode_is_told(task: Task) -> None:
    """Also one that was drawn, while others than s, s + 1, ... are told as none."""
    env = LearningRateEnv(task, **SETTINGS)
    observation, _ = env.reset()
    seed = env.np_random_seed
    assert seed is not None
    assert 0 <= seed < 2**63
    env.reset()
    assert env.np_random_seed == seed, "of the first one"
    np.testing.assert_array_equal(LearningRateEnv(task, **SETTINGS).reset(seed=seed)[0], observation)
    with pytest.raises(ValueError, match="seeds must be"):
        env.reset(seed=-1)
    assert env.np_random_seed == seed
    env.reset(seed=7)
    assert env.np_random_seed == 7
    envs = LearningRateVectorEnv(2, task, **SETTINGS)
    told = []
    for given in (7, None, [5, 6], None, 7):
        envs.reset(seed=given)
        told.append(envs.np_random_seed)
    assert told == [7, 7, -1, -1, 7]


def test_a_snapshot_of_other_settings_is_refused(task: Task) -> None:
    three, two = LearningRateVectorEnv(3, task, **SETTINGS), LearningRateVectorEnv(2, task, **SETTINGS)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        three.snapshot()
    three.reset(seed=0)
    with pytest.raises(ValueError, match=r"num_envs 3 \(here 2\)"):
        two.restore(three.snapshot())


def complaints(env: gym.Env[Any, Any], render: bool) -> list[str]:
    """What both libraries' checkers warn of; what they refuse, they raise.

    Python warns of a file that nobody closed wherever it happens to collect it, and so of what other tests left.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        check_env(env, skip_render_check=not render)
        sb3_check_env(env)
    return [str(warning.message) for warning in caught]


def test_what_others_left_is_no_complaint(tmp_path: Path) -> None:
    """And what the environment itself says is one."""

    class Collecting(LearningRateEnv):
        said = ""

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            left: list[Any] = [(tmp_path / "x").open("w")]
            left.append(left)
            del left
            gc.collect()
            if self.said:
                warnings.warn(self.said, UserWarning, stacklevel=1)
            return super().reset(seed=seed, options=options)

    env = Collecting("noisy-quadratic", budget=20, device="cpu")
    assert complaints(env, render=False) == []
    env.said = "something is odd"
    assert set(complaints(env, render=False)) == {env.said}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_checkers_accept_every_embedded_task(name: str) -> None:
    assert complaints(gym.make(f"lrenv/{name}-v0", budget=20, device="cpu").unwrapped, render=True) == []


@pytest.mark.parametrize(
    ("control", "observe"),
    [
        ("set", "paper"), ("discrete", "scale-free"), ("scale/layer", ("dynamics", "clock")),
        ("discrete/layer", "paper"), (("scale", "momentum"), "scale-free"),
    ],
)  # fmt: skip
def test_the_checkers_accept_every_space(control: Any, observe: Any) -> None:
    settings = {"control": control, "observe": observe, "optimizer": "momentum", "budget": 20}
    assert complaints(gym.make("lrenv/digits-mlp-v0", device="cpu", **settings).unwrapped, render=False) == []


def test_options_that_differ_are_refused() -> None:
    envs = LearningRateVecEnv(2, make_task("noisy-quadratic", budget=4, interval=2), device="cpu")
    envs.set_options([{"initial_lr": 0.1}, {"initial_lr": 0.01}])
    with pytest.raises(ValueError, match="options hold for all environments of a reset"):
        envs.reset()
    envs.set_options({"initial_lr": 0.1})
    envs.reset()
    assert envs.info["lr"].tolist() == pytest.approx([0.1, 0.1])


def test_what_is_no_action_is_told() -> None:
    env = LearningRateEnv("noisy-quadratic", budget=4, interval=2, device="cpu")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="a gradient doesn't pass through here, so detach the tensor"):
        env.step(torch.zeros(1, requires_grad=True))  # type: ignore[arg-type]
    env.step(torch.zeros(1))  # type: ignore[arg-type]


def test_nothing_is_drawn_before_a_reset() -> None:
    envs = LearningRateVectorEnv(2, "noisy-quadratic", render_mode="rgb_array", device="cpu")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before render\(\)"):
        envs.render()


@dataclass
class Fall:
    """A reward that can't be hashed."""

    times: float

    def __call__(self, dynamics: Dynamics, diverged: torch.Tensor) -> torch.Tensor:
        return torch.where(diverged, -10.0, -self.times * dynamics.val_loss)


def test_a_reward_may_be_any_object_that_is_called() -> None:
    envs = LearningRateVectorEnv(2, "noisy-quadratic", budget=4, interval=2, reward=Fall(2.0), device="cpu")
    envs.reset(seed=0)
    _, reward, _, _, info = envs.step(np.zeros((2, 1)))
    np.testing.assert_allclose(reward, -2 * info["val_loss"], rtol=1e-6)
