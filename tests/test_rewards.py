"""Rewards by hand, the price of dying as a property, and signals against a second rendering in NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.envs.episode import Episode
from lrenv.envs.observations import (
    CLOCK,
    DYNAMICS,
    OBSERVATIONS,
    PAPER,
    SCALE_FREE,
    Observer,
    Signal,
    register_observation,
)
from lrenv.envs.rewards import CAP, REWARDS, make_reward, register_reward
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.dynamics import Dynamics
from lrenv.training.tasks import Task, make_task

F64 = torch.float64


def dynamics(n: int = 1, **values: Any) -> Dynamics:
    """`Dynamics` of n trainees that are 1 everywhere but where told otherwise."""
    leaves = {name: torch.ones(n, dtype=F64) for name in Dynamics._fields}
    leaves |= {name: torch.as_tensor(value, dtype=F64).expand(n) for name, value in values.items()}
    return Dynamics(**leaves)


def pay(reward: str, dead: bool = False, **values: Any) -> float:
    got = make_reward(reward)(dynamics(**values), torch.tensor([dead]))
    assert got.shape == (1,)
    return float(got)


def test_living_rewards_by_hand() -> None:
    seen: dict[str, Any] = {
        "val_loss": 0.5,
        "previous_val_loss": 0.8,
        "initial_val_loss": 2.0,
        "budget": 100,
        "interval": 10,
    }
    assert pay("val_loss", **seen) == -0.5
    assert pay("log_val_loss", **seen) == pytest.approx(-math.log(0.5))
    assert pay("improvement", **seen) == pytest.approx(math.log(0.8 / 0.5))
    assert pay("final", **seen, inner_step=90) == 0
    assert pay("final", **seen, inner_step=100) == -0.5


def test_losses_count_up_to_the_cap() -> None:
    seen: dict[str, Any] = {
        "val_loss": 1e6,
        "previous_val_loss": 1e5,
        "initial_val_loss": 2.0,
        "inner_step": 100,
        "budget": 100,
    }
    cap = CAP * 2
    assert pay("val_loss", **seen) == -cap
    assert pay("log_val_loss", **seen) == pytest.approx(-math.log(cap))
    assert pay("improvement", **seen) == 0
    assert pay("final", **seen) == -cap


def test_prices_of_divergence_by_hand() -> None:
    """Ten decisions of ten steps, dead in the third: eight rewards were left."""
    seen: dict[str, Any] = {"val_loss": math.nan, "previous_val_loss": 0.5, "initial_val_loss": 2.0}
    seen |= {"inner_step": 30, "budget": 100, "interval": 10}
    cap = CAP * 2
    assert pay("val_loss", True, **seen) == -cap * 9
    assert pay("log_val_loss", True, **seen) == pytest.approx(-math.log(cap) * 8 - 1)
    assert pay("log_val_loss", True, **seen | {"initial_val_loss": 0.01}) == -1
    assert pay("improvement", True, **seen) == pytest.approx(math.log(0.5 / cap) - 1)
    assert pay("final", True, **seen) == -2 * cap


def run(reward: str, losses: list[float], initial: float, budget: int, interval: int, death: int | None) -> list[float]:
    """The rewards of a run with these validation losses that dies in decision `death`, or lives."""
    rewards = []
    decisions = -(-budget // interval)
    for k in range(decisions):
        dead = k == death
        rewards.append(
            pay(
                reward, dead, val_loss=math.nan if dead else losses[k], initial_val_loss=initial,
                previous_val_loss=losses[k - 1] if k else initial, inner_step=min((k + 1) * interval, budget),
                budget=budget, interval=interval,
            )
        )  # fmt: skip
        if dead:
            break
    return rewards


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.5])
@pytest.mark.parametrize("reward", REWARDS)
def test_dying_is_worse_than_the_worst_way_to_live_on(reward: str, gamma: float) -> None:
    """Whatever the past, no future losses, however bad, make a run that lives on worse than one that dies now."""

    def discounted(rewards: list[float]) -> float:
        return sum(gamma**k * reward for k, reward in enumerate(rewards))

    generator = np.random.default_rng(0)
    for _ in range(40):
        interval = int(generator.integers(1, 7))
        budget = int(generator.integers(1, 9 * interval))
        decisions = -(-budget // interval)
        initial = float(10 ** generator.uniform(-3, 3))
        losses = [float(x) for x in initial * 10 ** generator.uniform(-6, 6, decisions)]
        for death in range(decisions):
            dying = discounted(run(reward, losses, initial, budget, interval, death))
            for future in (losses[death:], [math.inf] * (decisions - death), [1e30] * (decisions - death)):
                living = discounted(run(reward, losses[:death] + future, initial, budget, interval, None))
                assert dying < living


@pytest.mark.parametrize("reward", REWARDS)
def test_returns_order_runs_by_their_losses(reward: str) -> None:
    good = sum(run(reward, [1.0, 0.5, 0.2], 2.0, 30, 10, None))
    bad = sum(run(reward, [1.1, 0.6, 0.3], 2.0, 30, 10, None))
    assert bad < good
    if reward == "improvement":
        assert good == pytest.approx(math.log(2.0 / 0.2))


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
def test_rewards_are_always_finite(reward: str, bad: float) -> None:
    """Also in decisions after the death, when the previous loss is no number either."""
    for previous in (1.0, bad):
        assert math.isfinite(pay(reward, True, val_loss=bad, previous_val_loss=previous, train_loss=bad))
        assert math.isfinite(pay(reward, True, val_loss=bad, previous_val_loss=previous, initial_val_loss=bad))
    if bad == 0.0:
        assert math.isfinite(pay(reward, val_loss=bad, previous_val_loss=bad))


def test_unknown_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'val_los'.*'val_loss'"):
        make_reward("val_los")


def random_dynamics(n: int) -> Dynamics:
    generator = torch.Generator().manual_seed(0)
    values = {name: 10 ** (6 * torch.rand(n, dtype=F64, generator=generator) - 4) for name in Dynamics._fields}
    for name in ("weight_mean", "first_cosine", "last_cosine"):
        values[name] = 2 * torch.rand(n, dtype=F64, generator=generator) - 1
    values["inner_step"], values["budget"] = torch.arange(n, dtype=F64), torch.full((n,), float(n), dtype=F64)
    return Dynamics(**values)


def rendered(name: str, d: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Each signal of a set once more, in NumPy."""

    def log(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.log(np.maximum(x, 1e-12)) / np.log(10)

    z = d["weight_mean"] * 1000
    progress = d["inner_step"] / d["budget"]
    if name == "dynamics":
        logs = ("train_loss", "val_loss", "prediction_variance", "prediction_change", "weight_variance", "lr")
        values = {key: log(d[key]) for key in logs}
        return values | {"weight_mean": np.sign(z) * np.log(np.abs(z) + np.sqrt(z * z + 1)), "progress": progress}
    if name == "scale-free":
        return {
            "train_fall": log(d["train_loss"] / d["initial_train_loss"]),
            "val_fall": log(d["val_loss"] / d["initial_val_loss"]),
            "train_change": log(d["train_loss"] / d["previous_train_loss"]),
            "val_change": log(d["val_loss"] / d["previous_val_loss"]),
            "gap": log(d["val_loss"] / d["train_loss"]),
            "loss_spread": log(d["loss_spread"] / d["train_loss"]),
            "first_update": log(d["first_update"]),
            "last_update": log(d["last_update"]),
            "first_cosine": d["first_cosine"],
            "last_cosine": d["last_cosine"],
            "progress": progress,
        }
    if name == "setup":
        return {"batch_size": log(d["batch_size"]), "kept": log(1 - d["momentum"])}
    if name == "untrained":
        return {
            "first_loss": log(d["initial_train_loss"]),
            "relative_gradient": log(d["relative_gradient"]),
            "weight_size": log(d["weight_size"]),
            "layers": log(d["layers"]),
        }
    if name == "training":
        return {
            "train_fall": log(d["train_loss"] / d["initial_train_loss"]),
            "train_change": log(d["train_loss"] / d["previous_train_loss"]),
            "loss_spread": log(d["loss_spread"] / d["train_loss"]),
            "first_update": log(d["first_update"]),
            "last_update": log(d["last_update"]),
            "first_cosine": d["first_cosine"],
            "last_cosine": d["last_cosine"],
            "steps": log(d["inner_step"] + 1),
            "steps_per_decision": log(d["interval"]),
            "adaptive": d["adaptive"],
        }
    if name == "horizon":
        return {"progress": progress, "steps_in_all": log(d["budget"])}
    return {key: d[key] for key in OBSERVATIONS[name]}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_signals_against_a_second_rendering(name: str) -> None:
    d = random_dynamics(200)
    observer = Observer(name, F64, {})
    expected = rendered(name, {key: value.numpy() for key, value in d._asdict().items()})
    assert set(expected) == set(observer.names)
    columns = [np.clip(expected[key], *bounds(name, key)) for key in observer.names]
    torch.testing.assert_close(observer.observe(d, {}), torch.from_numpy(np.stack(columns, -1)), rtol=1e-9, atol=1e-9)


def bounds(name: str, key: str) -> tuple[float, float]:
    signal = OBSERVATIONS[name][key]
    return signal.low, signal.high


def test_bounds_leave_room_for_what_training_gives() -> None:
    """On ordinary dynamics no signal but the clock's lower ends is cut."""
    d = random_dynamics(200)
    for name in ("dynamics", "scale-free"):
        observation = Observer(name, F64, {}).observe(d, {})
        space = Observer(name, F64, {}).space
        inside = (observation.numpy() < space.high) & (observation.numpy() > space.low)
        assert inside.mean() > 0.9


def test_the_paper_has_its_order() -> None:
    """Xu et al. 2019, section 2.2: losses, predictions, weights, and the previous learning rate."""
    assert list(PAPER) == [
        "train_loss", "val_loss", "prediction_variance", "prediction_change", "weight_mean", "weight_variance", "lr",
    ]  # fmt: skip
    assert list(DYNAMICS) == [*PAPER, "progress"]
    assert CLOCK == ("inner_step", "budget", "interval", "train_loss", "val_loss")


def test_sets_stand_side_by_side() -> None:
    d = random_dynamics(20)
    both = Observer(("paper", "scale-free"), F64, {})
    assert both.names == (*PAPER, *SCALE_FREE)
    apart: list[Any] = [Observer(name, F64, {}).observe(d, {}) for name in ("paper", "scale-free")]
    assert torch.equal(both.observe(d, {}), torch.cat(apart, 1))
    assert both.space.shape == (len(PAPER) + len(SCALE_FREE),)


def everywhere(n: int, value: float) -> Dynamics:
    return Dynamics(*(torch.full((n,), value) for _ in Dynamics._fields))


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1e30, 1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_observations_are_inside_the_space_whatever_happens(name: str, value: float, dtype: torch.dtype) -> None:
    observer = Observer(name, dtype, {})
    for d in (everywhere(2, value), dynamics(2, train_loss=value, val_loss=value), dynamics(2, lr=value)):
        for row in observer.observe(d, {}).numpy():
            assert isinstance(observer.space, gym.spaces.Box)
            assert observer.space.contains(row)


def test_nan_takes_the_upper_bound() -> None:
    observer = Observer("dynamics", F64, {})
    assert observer.observe(everywhere(1, math.nan), {})[0].tolist() == observer.space.high.tolist()


def test_unknown_observations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown observation 'dynamic'.*'dynamics'"):
        Observer(("paper", "dynamic"), F64, {})


def test_scale_free_ignores_the_rate_and_the_weights() -> None:
    d = random_dynamics(50)
    observer = Observer("scale-free", F64, {})
    other = d._replace(lr=d.lr * 7, weight_mean=d.weight_mean * 3, weight_variance=d.weight_variance * 9)
    assert torch.equal(observer.observe(d, {}), observer.observe(other, {}))
    doubled = {key: 2 * getattr(d, key) for key in ("train_loss", "previous_train_loss", "loss_spread")}
    spread = SCALE_FREE["loss_spread"].value
    torch.testing.assert_close(spread(d), spread(d._replace(**doubled)))


def seven_times(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """An own loss: the squared error, in other units."""
    return 7 * (outputs - targets).square().mean(-1)


def once(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean(-1)


@pytest.mark.parametrize("name", ["scale-free", "training", "horizon"])
def test_what_carries_over_ignores_the_units_of_the_loss(name: str) -> None:
    """SGD at a seventh of the rate on seven times the loss is the same training, and is seen as the same."""
    seen = []
    for loss, rate in ((once, 0.07), (seven_times, 0.01)):
        task = make_task("power-law-easy", loss=loss, budget=12, interval=3, initial_lr=rate)
        episode = Episode(task, control="set-raw", observe=name, dtype=F64)
        state, time_step = episode.reset([3, 4])
        rows = [time_step.observation]
        for _ in range(4):
            state, time_step = episode.step(state, torch.full((2, 1), rate, dtype=F64))
            rows.append(time_step.observation)
        seen.append(torch.stack(rows))  # type: ignore[arg-type]
    torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-9)
    assert (seen[0].std(0) > 0).any()


@pytest.mark.parametrize(("optimizer", "scales"), [("sgd", 0.0), ("nesterov", 0.0), ("adamw", 1.0), ("adam+ema", 1.0)])
def test_the_kind_of_optimizer_is_seen(optimizer: str, scales: float) -> None:
    task = make_task("power-law-easy", optimizer=optimizer, budget=4, interval=2)
    _, time_step = Episode(task, observe="training").reset([0])
    assert time_step.observation[0, list(OBSERVATIONS["training"]).index("adaptive")] == scales  # type: ignore[arg-type]


@pytest.fixture
def registries() -> Iterator[None]:
    before = dict(REWARDS), dict(OBSERVATIONS)
    yield
    for table, old in zip((REWARDS, OBSERVATIONS), before, strict=True):
        table.clear()
        table.update(old)  # type: ignore[arg-type]


def fall(d: Dynamics, diverged: Tensor) -> Tensor:
    return torch.where(diverged, -5.0, d.previous_val_loss - d.val_loss)


def motion(d: Dynamics) -> Tensor:
    return torch.stack([d.first_update, d.val_loss], 1)


def test_own_rewards_and_observations_reach_the_agent(toy: Callable[..., Task], registries: None) -> None:
    """Given as they are, and by the names that they are registered under."""
    ratio = {"ratio": Signal(0, 100, lambda d: d.val_loss / d.train_loss)}
    register_reward("fall", fall)
    register_observation("motion", motion)
    register_observation("ratio", ratio)
    seen = []
    for reward, observe in ((fall, (motion, "clock", ratio)), ("fall", ("motion", "clock", "ratio"))):
        settings: dict[str, Any] = {"control": "set-raw", "device": "cpu", "dtype": "float64"}
        envs = LearningRateVectorEnv(2, toy(), reward=reward, observe=observe, **settings)
        _, first = envs.reset(seed=0)
        observation, paid, _, _, info = envs.step(np.array([[0.1], [1e308]]))
        assert paid[0] == first["val_loss"][0] - info["val_loss"][0]
        assert paid[1] == -5.0
        assert observation.shape == (2, 2 + len(CLOCK) + 1)
        assert envs.observation_space.contains(observation)
        assert observation[0, 0] > 0, "motion is measured where something of one's own may look at it"
        assert observation[0, 1] == info["val_loss"][0]
        assert observation[0, -1] == info["val_loss"][0] / info["train_loss"][0]
        seen.append((observation, paid))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "observe",
    [
        lambda d: d.val_loss[:, None],
        lambda d: d.val_loss[:, None].double(),
        {"loss": Signal(-math.inf, math.inf, lambda d: d.val_loss)},
        {"loss": Signal(0, math.inf, lambda d: d.val_loss.double())},
    ],
)
@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e300])
def test_what_is_no_number_is_the_worst_one(observe: Any, dtype: str, loss: float) -> None:
    """Where bounds are infinite, too; the others are shown as they are."""
    kind = getattr(torch, dtype)
    observer = Observer(observe, kind, {})
    seen = observer.observe(Dynamics(*(x.to(kind) for x in dynamics(2, val_loss=[1.5, loss]))), {})
    assert isinstance(seen, Tensor)
    assert seen.dtype == kind
    assert seen[0, 0] == 1.5
    assert seen[1, 0].isfinite()
    assert seen[1, 0] >= min(1e300, torch.finfo(kind).max)
    assert all(observer.space.contains(row) for row in seen.numpy())


def test_white_box_parts_that_are_no_numbers_are_zero() -> None:
    observer = Observer(("clock", "parameters"), F64, {"parameters": 3})
    seen = observer.observe(dynamics(), {"parameters": torch.tensor([[math.nan, math.inf, 2.0]], dtype=F64)})
    assert isinstance(seen, dict)
    assert seen["parameters"].tolist() == [[0.0, torch.finfo(F64).max, 2.0]]


def test_a_snapshot_tells_own_rewards_apart(toy: Callable[..., Task]) -> None:
    def other(d: Dynamics, diverged: Tensor) -> Tensor:
        return 2 * fall(d, diverged)

    one, two = (LearningRateVectorEnv(1, toy(), reward=reward, device="cpu") for reward in (fall, other))
    one.reset(seed=0)
    one.restore(one.snapshot())
    with pytest.raises(ValueError, match="reward"):
        two.restore(one.snapshot())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reward": lambda d, diverged: d.val_loss.mean()}, ValueError, r"must give rewards \(n,\).*not \(\)"),
        ({"reward": lambda d, diverged: 1.0}, ValueError, "not a float"),
        ({"reward": 3}, TypeError, "a name or a function.*not an int"),
        ({"observe": lambda d: d.val_loss}, ValueError, r"must give numbers \(n, k\).*not \(2,\)"),
        (
            {"observe": {"loss": Signal(0, 1, lambda d: d.val_loss[:, None])}},
            ValueError,
            r"signal 'loss' of observation 'loss' must give numbers \(n,\), \(2,\) for two trainees, not \(2, 1\)",
        ),
        ({"observe": {"loss": Signal(0, 1, lambda d: d.val_loss.mean())}}, ValueError, r"signal 'loss'.*not \(\)"),
        ({"observe": {"one": Signal(0, 1, lambda d: 1.0)}}, ValueError, "signal 'one'.*not a float"),
        ({"observe": 3}, TypeError, "table of .*Signal.*not an int"),
        ({"observe": {"loss": 3}}, TypeError, "table of .*Signal.*not a dict"),
        ({"observe": ()}, ValueError, "each once"),
        ({"observe": (motion, motion)}, ValueError, "each once"),
    ],
)
def test_what_is_no_reward_or_observation_is_refused(
    toy: Callable[..., Task], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LearningRateVectorEnv(1, toy(), device="cpu", **settings)


def test_names_are_registered_once(registries: None) -> None:
    register_reward("fall", fall)
    with pytest.raises(ValueError, match="'fall' exists"):
        register_reward("fall", fall)
    register_reward("fall", fall, replace_existing=True)
    for name, message in (("val_loss", "lrenv's own"), ("a b", "can't be named")):
        with pytest.raises(ValueError, match=message):
            register_reward(name, fall, replace_existing=True)
    with pytest.raises(ValueError, match="lrenv's own"):
        register_observation("hypergradient", motion)
    with pytest.raises(TypeError, match="not a str"):
        register_observation("motion", "clock")  # type: ignore[arg-type]
    assert "motion" not in OBSERVATIONS


def test_a_reward_that_is_not_finite_says_where(toy: Callable[..., Task]) -> None:
    envs = LearningRateVectorEnv(2, toy(), control="set-raw", reward=lambda d, diverged: -d.val_loss, device="cpu")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"environments \[1\] is NaN or infinite"):
        envs.step(np.array([[0.1], [3e38]], np.float32))


class Scaled:
    """A reward that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.itself = self

    def __call__(self, dynamics: Dynamics, diverged: Tensor) -> Tensor:
        return self.factor * fall(dynamics, diverged)

    def reward(self, dynamics: Dynamics, diverged: Tensor) -> Tensor:
        return self(dynamics, diverged)


class Slotted(Scaled):
    __slots__ = ("inside",)

    def __init__(self, factor: float) -> None:
        super().__init__(0.0)
        self.inside = [np.full(2000, factor)]


@pytest.mark.parametrize(
    "made", [Scaled, Slotted, lambda factor: Scaled(factor).reward, lambda factor: functools.partial(Scaled(factor))]
)
def test_rewards_that_are_objects_are_told_apart_by_what_they_hold(
    toy: Callable[..., Task], made: Callable[[float], Any]
) -> None:
    one, same, other = (LearningRateVectorEnv(1, toy(), reward=made(x), device="cpu") for x in (1.0, 1.0, 5.0))
    one.reset(seed=0)
    same.restore(one.snapshot())
    with pytest.raises(ValueError, match="reward"):
        other.restore(one.snapshot())
