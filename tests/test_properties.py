"""What holds for every view, budget, action, seed and moment, on examples that Hypothesis draws.

The same examples are drawn each time, so that a failure is a change of the code. `LRENV_EXAMPLES=1000` draws others,
that many a property.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from random_cases import CALM, MODES, TASKS, Case
from torch.utils._pytree import tree_leaves

from lrenv.envs.actions import KINDS
from lrenv.envs.episode import Episode
from lrenv.envs.observations import OBSERVATIONS, WHITE_BOX
from lrenv.envs.rewards import REWARDS
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness import draws
from lrenv.runtime.transfer import to_host
from lrenv.training.optimizers import OPTIMIZERS
from lrenv.training.tasks import Task, make_task

Array = NDArray[Any]
MORE = os.environ.get("LRENV_EXAMPLES")
property_test = settings(
    max_examples=int(MORE or 20), derandomize=MORE is None, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@st.composite
def cases(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = tuple(KINDS),
    tasks: tuple[Task, ...] = TASKS,
    most: int = 3,
    white: bool = True,
) -> Case:
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    kind = draw(st.sampled_from(kinds))
    control = kind + draw(st.sampled_from(("", "/layer", "/tensor", "/parameter")))
    known = make_task("digits-mlp", optimizer=optimizer).hyper
    beside = draw(st.sets(st.sampled_from(sorted(known))).map(sorted)) if known and kind != "discrete" else ()
    names = [*OBSERVATIONS, *(WHITE_BOX if white else ())]
    observe = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
    interval = draw(st.integers(1, 5))
    multiple = draw(st.sampled_from((None, 1, 2, 3)))
    task = draw(st.sampled_from(tasks))
    task = make_task(
        task,
        budget=draw(st.integers(1, 8)),
        interval=interval,
        measure_interval=None if multiple is None else multiple * interval,
        optimizer=optimizer,
        initial_lr=draw(st.sampled_from((0.02, (0.05, 0.01, 0.0), 1e-12))),
        batch_size=1 if task.name == "two-minima" else 4,
        val_examples=draw(st.sampled_from((None, 3))),
    )
    view = {"control": (control, *beside) if beside else control, "observe": observe}
    view["reward"] = draw(st.sampled_from(sorted(REWARDS)))
    return Case(task, view, draw(st.integers(1, most)), draw(st.integers(0, 2**62)), draw(st.integers(0, 2**32)))


def parts(answer: tuple[Any, ...]) -> dict[str, Array]:
    """Everything that `reset` or `step` answered, as arrays by name; NaN where a mask says that there is nothing."""
    *arrays, info = answer
    names = ("observation", "reward", "terminated", "truncated")
    found: dict[str, Array] = {}
    for name, value in {**dict(zip(names, arrays, strict=False)), **info}.items():
        if isinstance(value, dict):
            found |= {f"{name}/{key}": x for key, x in value.items()}
        elif value.dtype == object:
            found[name] = np.concatenate([np.ravel(x) for row in value if row is not None for x in tree_leaves(row)])
        else:
            found[name] = value
    return found


def assert_same(a: tuple[Any, ...], b: tuple[Any, ...], where: str, envs: Any = slice(None)) -> None:
    """To the last bit, in the given envs."""
    one, other = parts(a), parts(b)
    assert set(one) == set(other), where
    for name, x in one.items():
        chosen = slice(None) if name in ("final_obs",) else envs
        np.testing.assert_array_equal(x[chosen], other[name][chosen], err_msg=f"{name}, {where}")


def assert_close(a: dict[str, Array], b: dict[str, Array], where: str) -> None:
    """Up to rounding: losses tightly, signals that are logs of small differences less so."""
    for name, x in b.items():
        tolerance = 1e-5 if name.startswith("observation") or name == "reward" else 1e-8
        tolerance = 1e-3 if x.dtype == np.float32 else tolerance
        np.testing.assert_allclose(a[name], x, rtol=tolerance, atol=tolerance, err_msg=f"{name}, {where}")


def inside(envs: LearningRateVectorEnv, observation: Any) -> bool:
    return envs.observation_space.contains(observation)


@property_test
@given(cases(tasks=CALM), st.sampled_from(("float32", "float64")))
def test_env_i_of_a_batch_is_that_env_alone(case: Case, dtype: str) -> None:
    """The seeds are s + i, episode after episode; in float32 the losses are as near as its roundings allow."""
    batch = case.envs(autoreset_mode="Disabled", dtype=dtype)
    actions = case.actions(batch, 2 * case.decisions, odd=False)
    answers = [batch.reset(seed=case.seed)]
    for k, action in enumerate(actions):
        if k == case.decisions:
            answers.append(batch.reset())
        answers.append(batch.step(action))
    for i in range(case.n):
        env = case.alone(dtype)
        alone: list[tuple[Any, ...]] = [env.reset(seed=case.seed + i)]
        for k, action in enumerate(actions):
            if k == case.decisions:
                alone.append(env.reset())
            alone.append(env.step(action[i]))
        for k, (together, single) in enumerate(zip(answers, alone, strict=True)):
            mine = {name: x[i] for name, x in parts(together).items()}
            info = {name: np.asarray(x) for name, x in single[-1].items()}
            names = ("observation", "reward", "terminated", "truncated")
            theirs = parts((*map(np.asarray, single[1:-1]), {}))
            theirs = dict(zip(names[1:], theirs.values(), strict=False)) | info
            seen = single[0] if isinstance(single[0], dict) else {"": single[0]}
            theirs |= {f"observation/{key}".rstrip("/"): x for key, x in seen.items()}
            assert set(theirs) <= set(mine)
            if dtype == "float32":
                theirs = {name: x for name, x in theirs.items() if name.endswith("loss") or x.dtype.kind in "bi"}
            assert_close(mine, theirs, f"env {i}, answer {k}")


@property_test
@given(cases(white=False), st.sampled_from(("float32", "float64")))
def test_adapters_answer_what_the_core_does(case: Case, dtype: str) -> None:
    """To the last bit, whatever the actions, and across the ends of episodes."""
    core = case.envs(dtype=dtype, autoreset_mode="Disabled")
    envs, sb3 = case.envs(dtype=dtype), case.envs(kind=LearningRateVecEnv, dtype=dtype)
    episode = Episode(
        case.task, case.view["control"], case.view["observe"], case.view["reward"], "cpu", getattr(torch, dtype)
    )
    actions = case.actions(core, case.decisions, deaths=0.1)
    sb3.seed(case.seed)
    first, _ = envs.reset(seed=case.seed)
    np.testing.assert_array_equal(sb3.reset(), first)
    with torch.no_grad():
        state, time_step = episode.reset([case.seed + i for i in range(case.n)])
        np.testing.assert_array_equal(time_step.observation, first)
        steps, ended = np.zeros(case.n, np.int64), np.zeros(case.n, bool)
        for action in actions:
            due = episode.measurement_due(steps, ended)
            state, time_step = episode.step(state, torch.from_numpy(episode.control.check(action, case.n)), due)
            wanted = to_host(time_step)
            observation, reward, terminated, truncated, info = envs.step(action)
            theirs, paid, dones, infos = sb3.step(action)
            assert not truncated.any()
            np.testing.assert_array_equal(wanted.observation, observation)
            np.testing.assert_array_equal(wanted.reward, reward)
            np.testing.assert_array_equal(wanted.terminated, terminated)
            np.testing.assert_array_equal(paid, reward.astype(np.float32))
            np.testing.assert_array_equal(dones, terminated)
            for name in ("val_loss", "train_loss", "lr", "inner_step", "diverged"):
                np.testing.assert_array_equal(wanted.info[name], info[name])
            for i in range(case.n):
                shown = infos[i]["terminal_observation"] if dones[i] else theirs[i]
                np.testing.assert_array_equal(shown, observation[i])
            if terminated.any():  # from here on their episodes are out of step
                break
            steps, ended = wanted.info["inner_step"], terminated


@property_test
@given(cases(kinds=("set", "set-raw"), tasks=CALM))
def test_an_interval_is_that_many_steps_of_the_same_action(case: Case) -> None:
    """Exactly the budget is trained, in ceil(T / N) decisions."""
    task, n = case.task, case.task.interval
    whole = case.envs()
    steps = replace(case, task=make_task(task, interval=1, measure_interval=None)).envs()
    whole.reset(seed=case.seed)
    steps.reset(seed=case.seed)
    for k, action in enumerate(case.actions(whole, case.decisions, odd=False)):
        *_, terminated, _, info = whole.step(action)
        done = min((k + 1) * n, task.budget)
        for _ in range(k * n, done):
            *_, ended, _, single = steps.step(action)
        assert info["inner_step"].tolist() == single["inner_step"].tolist() == [done] * case.n
        assert terminated.tolist() == ended.tolist() == [done == task.budget] * case.n
    np.testing.assert_allclose(info["val_loss"], single["val_loss"], rtol=1e-10)
    whole_params, params = (envs.snapshot().state.trainee.params for envs in (whole, steps))
    torch.testing.assert_close(whole_params, params, rtol=1e-10, atol=1e-12)


@property_test
@given(cases(kinds=("set", "set-raw")))
def test_measurements_end_where_they_are_due(case: Case) -> None:
    """Measured as often as said, and at the end of the budget in any case; in between the last one stands."""
    rare, always = case.envs(), replace(case, task=make_task(case.task, measure_interval=None)).envs()
    every = rare.task.measure_interval or rare.task.interval
    last = rare.reset(seed=case.seed)[1]["val_loss"]
    always.reset(seed=case.seed)
    for k, action in enumerate(case.actions(rare, case.decisions, odd=False)):
        *_, info = rare.step(action)
        *_, wanted = always.step(action)
        done = min((k + 1) * case.task.interval, case.task.budget)
        due = done % every == 0 or done == case.task.budget
        np.testing.assert_array_equal(info["val_loss"], wanted["val_loss"] if due else last)
        np.testing.assert_array_equal(info["train_loss"], wanted["train_loss"])
        last = info["val_loss"]
    assert ("test_loss" in info) == ("test_loss" in wanted)


@property_test
@given(
    cases(kinds=("set-raw", "set-raw", "scale", "discrete")),
    st.sampled_from(MODES),
    st.sampled_from(("float32", "float64")),
)
def test_observations_and_rewards_are_numbers_inside_their_bounds(case: Case, mode: str, dtype: str) -> None:
    """Whatever the actions, also when trainees die, and for as long as the environment is stepped."""
    envs = case.envs(autoreset_mode=mode, dtype=dtype)
    assert inside(envs, envs.reset(seed=case.seed)[0])
    waiting = np.zeros(case.n, bool)
    for action in case.actions(envs, 2 * case.decisions + 2, deaths=0.3):
        observation, reward, terminated, truncated, info = envs.step(action)
        assert inside(envs, observation)
        assert reward.dtype == np.float64
        assert np.isfinite(reward).all()
        assert not truncated.any()
        assert (reward[waiting] == 0).all()
        final = info.get("final_info", info)
        ending = terminated & ~waiting
        assert (final["diverged"] | (final["inner_step"] == case.task.budget))[ending].all()
        assert np.isfinite(info.get("test_loss", final.get("test_loss", np.zeros(case.n)))[ending]).all()
        if mode != "SameStep":
            waiting = terminated


@property_test
@given(cases(kinds=("set-raw",), most=2), st.integers(0, 7), st.sampled_from(sorted(REWARDS)))
def test_dying_pays_less_than_any_living_on(case: Case, moment: int, reward: str) -> None:
    """Two runs of one seed with the same past: one dies, the other goes on with whatever rates it survives."""
    moment %= case.decisions
    one = replace(case, n=2, view=case.view | {"reward": reward})
    envs = one.envs(autoreset_mode="Disabled")
    envs.reset(seed=[case.seed, case.seed])
    returns, dead = np.zeros(2), np.zeros(2, bool)
    for k, action in enumerate(one.actions(envs, case.decisions)):
        if k <= moment:
            action[1] = action[0]
        if k == moment:
            action[1, : envs.episode.control.rates] = 1e308
        _, paid, _, _, info = envs.step(action)
        returns, dead = returns + paid, info["diverged"]
    assume(not dead[0] and dead[1])  # some optimizers and tasks survive the rate
    assert returns[1] < returns[0]


Program = list[tuple[str, int, bool]]
"""Steps and masked resets: ("step", number of its action, unused) or ("reset", bits of a mask, whether with seeds)."""


@st.composite
def programs(draw: st.DrawFn, longest: int = 8) -> Program:
    step = st.tuples(st.just("step"), st.integers(0, 31), st.booleans())
    reset = st.tuples(st.just("reset"), st.integers(1, 7), st.booleans())
    return draw(st.lists(st.one_of(step, step, step, reset), min_size=1, max_size=longest))


def run(envs: LearningRateVectorEnv, program: Program, actions: list[Array]) -> list[Any]:
    answers: list[Any] = []
    for what, number, seeded in program:
        if what == "step":
            answers.append(envs.step(actions[number % len(actions)]))
            continue
        mask = np.array([bool(number >> i & 1) for i in range(envs.num_envs)])
        mask[0] |= not mask.any()
        seeds = [number * 100 + i if seeded else None for i in range(envs.num_envs)]
        answers.append(envs.reset(seed=seeds, options={"reset_mask": mask}))
    return answers


@property_test
@given(cases(), st.sampled_from(MODES), programs(), programs())
def test_a_snapshot_goes_on_to_the_last_bit(case: Case, mode: str, before: Program, after: Program) -> None:
    """At any moment, in the same environment and in another one, through a pickle, whatever has happened since."""
    envs, twin = (case.envs(autoreset_mode=mode) for _ in range(2))
    actions = case.actions(envs, 4, deaths=0.2)
    envs.reset(seed=case.seed)
    run(envs, before, actions)
    snapshot = envs.snapshot()
    kept = pickle.dumps(snapshot)
    first = run(envs, after, actions)
    assert all(
        np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)
        for x, y in zip(tree_leaves(snapshot.state), tree_leaves(pickle.loads(kept).state), strict=True)
    )
    twin.restore(pickle.loads(kept))
    envs.restore(snapshot)
    for again in (run(twin, after, actions), run(envs, after, actions)):
        for k, (wanted, got) in enumerate(zip(first, again, strict=True)):
            assert_same(wanted, got, f"{after[k][0]} {k}")


@property_test
@given(cases(), st.sampled_from(MODES), programs(), programs(), st.integers(1, 6), st.booleans())
def test_a_masked_reset_touches_only_the_masked(
    case: Case,
    mode: str,
    before: Program,
    after: Program,
    bits: int,
    seeded: bool,
) -> None:
    """The others go on as if nothing had happened, at any moment; the masked begin their next episodes."""
    case = replace(case, n=3)
    envs, calm = (case.envs(autoreset_mode=mode) for _ in range(2))
    actions = case.actions(envs, 4, deaths=0.2)
    mask = np.array([bool(bits >> i & 1) for i in range(3)])
    for made in (envs, calm):
        made.reset(seed=case.seed)
        run(made, before, actions)
    episodes, seeds = calm.snapshot().episodes, calm.snapshot().env_seeds
    given = [7 + i if seeded else None for i in range(3)]
    observation, info = envs.reset(seed=given, options={"reset_mask": mask})
    assert (info["inner_step"][mask] == 0).all()
    begun = draws.episode_seeds(*((np.arange(3) + 7, np.zeros(3, np.int64)) if seeded else (seeds, episodes + 1)))
    for i in np.flatnonzero(mask):
        first, told = case.alone().reset(seed=int(begun[i]))
        np.testing.assert_allclose(info["val_loss"][i], told["val_loss"], rtol=1e-10)
        np.testing.assert_array_equal(info["lr"][i], told["lr"])
        for x, y in zip(tree_leaves(observation), tree_leaves(first), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-5)
    for what, number, _ in after:
        if what == "step":
            chosen = actions[number % len(actions)]
            a, b = envs.step(chosen), calm.step(chosen)
            for name in ("val_loss", "train_loss", "lr", "inner_step", "diverged"):
                np.testing.assert_array_equal(a[4][name][~mask], b[4][name][~mask], err_msg=name)
            for x, y in zip(tree_leaves(a[:3]), tree_leaves(b[:3]), strict=True):
                np.testing.assert_array_equal(x[~mask], y[~mask])


@property_test
@given(cases(white=False), hnp.arrays(np.int64, 3, elements=st.integers(0, 2**63 - 1)))
def test_a_list_of_seeds_is_taken_as_it_stands(case: Case, seeds: Array) -> None:
    case = replace(case, n=3)
    envs = case.envs()
    observation, info = envs.reset(seed=seeds.tolist())
    order = np.array([2, 0, 1])
    other, again = envs.reset(seed=seeds[order])
    np.testing.assert_allclose(other, observation[order], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(again["lr"], info["lr"][order])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_properties_see_deaths(mode: str) -> None:
    """Without this the tests above might never meet one."""
    view = {"control": "set-raw", "observe": "dynamics", "reward": "val_loss"}
    case = Case(make_task(TASKS[0], budget=6, interval=2, batch_size=4, optimizer="sgd"), view, 3, 0, 0)
    envs, died = case.envs(autoreset_mode=mode), 0
    envs.reset(seed=0)
    for action in case.actions(envs, 30, deaths=0.2):
        *_, info = envs.step(action)
        died += int(info.get("final_info", info)["diverged"].sum())
    assert died > 5
