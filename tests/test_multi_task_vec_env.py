"""Several tasks side by side: each group is its task's own environment, and what comes next is a function of place."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from torch.utils._pytree import tree_leaves

from lrenv import networks
from lrenv.envs.multi_task_vec_env import MultiTaskSnapshot, MultiTaskVecEnv
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.training.tasks import LogUniform, Task

TRAINEES = 3
BROKEN = 1e308
"""A rate with which networks diverge within an interval."""


def seeds(place: int) -> list[int]:
    return [100 * place + 7 * i for i in range(TRAINEES)]


@pytest.fixture
def pair(toy: Callable[..., Task]) -> list[Task]:
    """Tasks of 3 and of 5 decisions, whose networks differ."""
    rates = LogUniform(1e-3, 1e-1)
    short = toy(budget=12, interval=4, initial_lr=rates)
    long = toy(budget=9, interval=2, network=networks.mlp(4, 4), optimizer="adam", initial_lr=rates)
    return [replace(short, name="short"), replace(long, name="long")]


@pytest.fixture
def make(pair: list[Task]) -> Callable[..., MultiTaskVecEnv]:
    def made(groups: int = 2, **settings: Any) -> MultiTaskVecEnv:
        view = {"control": "set-raw", "reward": "improvement", "device": "cpu", "dtype": "float64"}
        return MultiTaskVecEnv(groups, TRAINEES, lambda place: pair[place % 2], seeds, **view | settings)

    return made


def play(envs: MultiTaskVecEnv, actions: list[np.ndarray]) -> list[tuple[Any, ...]]:
    """What each decision gives, and in which cohorts it was made."""
    found = []
    for action in actions:
        observation, reward, done, infos = envs.step(action)
        found.append((observation, reward, done, infos, envs.places.copy(), envs.rates.copy()))
    return found


def actions_of(decisions: int, n: int, broken: tuple[tuple[int, int], ...] = ()) -> list[np.ndarray]:
    """Rates for each decision and environment; `broken` ones make a network diverge."""
    rates = 10 ** np.random.default_rng(0).uniform(-4, -1, (decisions, n, 1))
    for decision, env in broken:
        rates[decision, env] = BROKEN
    return list(rates)


@pytest.mark.parametrize("broken", [(), ((1, 1), (2, 2), (4, 5), (8, 3))])
def test_each_group_is_its_tasks_own_environment(
    make: Callable[..., MultiTaskVecEnv], pair: list[Task], broken: tuple[tuple[int, int], ...]
) -> None:
    """The same actions in `LearningRateVecEnv`, cohort by cohort, where trainees that diverge restart, too."""
    envs = make()
    begin, actions = envs.reset(), actions_of(11, envs.num_envs, broken)
    played = play(envs, actions)
    cohorts: dict[int, list[tuple[int, slice]]] = defaultdict(list)
    for decision, (*_, places, _) in enumerate(played):
        for group in range(2):
            own = slice(group * TRAINEES, (group + 1) * TRAINEES)
            assert len(set(places[own])) == 1
            cohorts[int(places[own][0])].append((decision, own))
    assert len(cohorts) == 7
    for place, decisions in cohorts.items():
        alone = LearningRateVecEnv(
            TRAINEES, pair[place % 2], control="set-raw", reward="improvement", device="cpu", dtype="float64"
        )
        alone._seeds = list(seeds(place))
        first, own = decisions[0]
        before = begin if first == 0 else played[first - 1][0]
        np.testing.assert_allclose(before[own], alone.reset(), rtol=1e-9)
        restarted = np.zeros(TRAINEES, dtype=bool)
        length = alone.envs.episode.decisions
        for i, (decision, _) in enumerate(decisions):
            observation, reward, done, infos, _, rates = (x[own] for x in played[decision])
            theirs, wanted, ended, told = alone.step(actions[decision][own])
            np.testing.assert_allclose(reward, wanted, rtol=1e-6)
            np.testing.assert_array_equal(rates, alone.rates)
            if i + 1 < length:
                np.testing.assert_array_equal(done, ended)
                np.testing.assert_allclose(observation, theirs, rtol=1e-9)
            else:
                assert done.all()
                np.testing.assert_array_equal(ended, ~restarted | (rates == BROKEN))
                np.testing.assert_array_equal([info["TimeLimit.truncated"] for info in infos], ~ended)
            for env in np.flatnonzero(done):
                last = told[env]["terminal_observation"] if ended[env] else theirs[env]
                np.testing.assert_allclose(infos[env]["terminal_observation"], last, rtol=1e-9)
                loss = told[env]["val_loss"] if ended[env] else alone.info["val_loss"][env]
                assert infos[env]["val_loss"] == pytest.approx(loss, rel=1e-9, nan_ok=True)
            restarted |= ended
    cut_off = sum(info["TimeLimit.truncated"] for _, _, _, infos, *_ in played for info in infos if info)
    assert cut_off == (2 if broken else 0)


def test_what_comes_next_depends_on_neither_actions_nor_divergence(make: Callable[..., MultiTaskVecEnv]) -> None:
    runs = []
    for broken in ((), ((0, 0), (3, 4))):
        envs = make(groups=3)
        envs.reset()
        runs.append([tuple(places[::TRAINEES]) for *_, places, _ in play(envs, actions_of(12, envs.num_envs, broken))])
    assert runs[0] == runs[1]
    # Even cohorts have 3 decisions, odd ones 5.
    groups = list(zip(*runs[0], strict=True))
    assert groups[0] == (0,) * 3 + (3,) * 5 + (7,) * 4
    assert groups[1] == (1,) * 5 + (5,) * 5 + (9,) * 2
    assert groups[2] == (2,) * 3 + (4,) * 3 + (6,) * 3 + (8,) * 3


def test_trainees_are_counted_as_they_begin(make: Callable[..., MultiTaskVecEnv]) -> None:
    envs = make()
    assert envs.begun == 0
    envs.reset()
    assert envs.begun == 6
    ended = sum(int(done.sum()) for _, _, done, *_ in play(envs, actions_of(9, 6, ((1, 1), (2, 5)))))
    assert envs.begun == 6 + ended


def test_a_second_reset_goes_on_with_the_next_cohorts(make: Callable[..., MultiTaskVecEnv]) -> None:
    envs = make()
    envs.reset()
    envs.seed(0)
    envs.reset()
    assert set(play(envs, actions_of(1, 6))[0][4]) == {2, 3}


def test_a_snapshot_continues_exactly(make: Callable[..., MultiTaskVecEnv]) -> None:
    envs, actions = make(), actions_of(14, 6, ((1, 1), (6, 4)))
    envs.reset()
    play(envs, actions[:4])
    held = envs.snapshot()
    other = make()
    other.restore(held)
    assert [task.name for task in other.at_work] == [task.name for task in envs.at_work] == ["short", "long"]
    for one, two in zip(play(envs, actions[4:]), play(other, actions[4:]), strict=True):
        for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True):
            np.testing.assert_array_equal(a, b)
    assert envs.begun == other.begun
    assert all(a.place == b.place for a, b in zip(envs.snapshot().groups, other.snapshot().groups, strict=True))


def test_a_snapshot_of_other_settings_is_refused_and_changes_nothing(make: Callable[..., MultiTaskVecEnv]) -> None:
    envs, other = make(), make(reward="val_loss")
    envs.reset()
    other.reset()
    before = other.snapshot()
    with pytest.raises(ValueError, match="reward"):
        other.restore(envs.snapshot())
    for a, b in zip(tree_leaves(before.groups), tree_leaves(other.snapshot().groups), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="2 groups, so give 2 places, not 1"):
        other.begin_at([3])
    assert isinstance(before, MultiTaskSnapshot)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"control": "scale/layer"}, r"'short' and 'long'.*actions differ: Box\(-1.0, 1.0, \(2,\).*one rate per"),
        ({"observe": "parameters"}, r"'short' and 'long'.*observations differ.*observe no gradients and parameters"),
    ],
)
def test_tasks_that_differ_in_what_agents_see_or_do_are_refused(
    make: Callable[..., MultiTaskVecEnv], pair: list[Task], view: dict[str, Any], message: str
) -> None:
    envs = make(**view)
    with pytest.raises(ValueError, match=message):
        envs.check(pair[1])
    with pytest.raises(ValueError, match=message):
        envs.reset()


def test_ended_cohorts_leave_nothing_in_memory(
    make: Callable[..., MultiTaskVecEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    made = LearningRateVecEnv.__init__

    def noted(self: LearningRateVecEnv, *arguments: Any, **settings: Any) -> None:
        made(self, *arguments, **settings)
        alive.extend(map(weakref.ref, (self, self.envs, self.envs.episode, self.envs.episode.trainee)))

    monkeypatch.setattr(LearningRateVecEnv, "__init__", noted)
    envs = make()
    envs.reset()
    play(envs, actions_of(14, 6, ((3, 1),)))
    gc.collect()
    assert len(alive) > 4 * 7
    assert sum(ref() is not None for ref in alive) == 4 * 2


def test_a_snapshot_of_other_groups_is_refused(make: Callable[..., MultiTaskVecEnv]) -> None:
    three, two = make(3), make(2)
    three.reset()
    two.reset()
    before = two.at_work
    with pytest.raises(ValueError, match="the snapshot is of 3 groups, and here are 2"):
        two.restore(three.snapshot())
    assert two.at_work == before


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((2 * TRAINEES, 1), [[0.1]] * (2 * TRAINEES - 1) + [[np.nan]]), r"environments \[5\] are NaN"),
        (np.full((3, 1), 0.1), r"actions must have shape \(6, 1\)"),
    ],
)
def test_a_refused_action_moves_nobody(make: Callable[..., MultiTaskVecEnv], actions: Any, message: str) -> None:
    envs = make()
    envs.reset()
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert [group.decisions for group in envs.snapshot().groups] == [0, 0]


def test_a_reset_comes_first(make: Callable[..., MultiTaskVecEnv]) -> None:
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before step\(\)"):
        make().step(np.full((2 * TRAINEES, 1), 0.1))
