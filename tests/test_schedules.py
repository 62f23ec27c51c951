"""Schedules against PyTorch's own schedulers, step for step, and against closed forms."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import schedules as reference
from torch.optim import lr_scheduler

from lrenv.agents.schedules import agent as schedules
from lrenv.agents.schedules.greedy import greedy, greedy_bounded
from lrenv.agents.schedules.plateau import plateau
from lrenv.benchmark import evaluate
from lrenv.controllers.agent import Agent
from lrenv.envs.observations import CLOCK
from lrenv.training.tasks import make_task

SCHEDULES: dict[str, Any] = {
    "constant": schedules.constant,
    "step": schedules.step,
    "exponential": schedules.exponential,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "one-cycle": schedules.one_cycle,
    "sgdr": schedules.sgdr,
    "inverse-sqrt": schedules.inverse_sqrt,
    "wsd": schedules.wsd,
    "power": schedules.power,
    "rex": schedules.rex,
    "plateau": plateau,
    "greedy": greedy,
    "greedy-bounded": greedy_bounded,
}
REACTIVE = ("plateau", "greedy", "greedy-bounded")
"""Those that react to losses; the others are functions of time."""
T = 90
# The settings with which each schedule is compared with PyTorch, and the scheduler that it should equal.
TORCH: dict[str, tuple[list[dict[str, Any]], Callable[[Any, dict[str, Any]], Any]]] = {
    "constant": (
        [{"peak": 0.1}, {"peak": 3e-4}],
        lambda o, h: lr_scheduler.ConstantLR(o, factor=1.0),
    ),
    "step": (
        [
            {"peak": 0.1, "discount_step": 10, "discount_factor": 0.9},
            {"peak": 1e-3, "discount_step": 7, "discount_factor": 0.88},
        ],
        lambda o, h: lr_scheduler.StepLR(o, h["discount_step"], h["discount_factor"]),
    ),
    "exponential": (
        [{"peak": 0.1, "decay": 0.01}, {"peak": 1e-2, "decay": 0.5}],
        lambda o, h: lr_scheduler.ExponentialLR(o, h["decay"] ** (1 / T)),
    ),
    "linear": (
        [{"peak": 0.1, "floor": 0.0}, {"peak": 1e-2, "floor": 1e-3}],
        lambda o, h: lr_scheduler.LinearLR(o, 1.0, h["floor"] / h["peak"], total_iters=T),
    ),
    "cosine": (
        [{"peak": 0.1, "floor": 0.0}, {"peak": 1e-2, "floor": 1e-3}],
        lambda o, h: lr_scheduler.CosineAnnealingLR(o, T, eta_min=h["floor"]),
    ),
    "wsd": (
        [
            {"peak": 0.1, "floor": 0.0, "decay_fraction": 0.2, "shape": "linear"},
            {"peak": 1e-2, "floor": 1e-3, "decay_fraction": 0.5, "shape": "cosine"},
            {"peak": 1e-2, "floor": 1e-3, "decay_fraction": 0.3, "shape": "1-sqrt"},
        ],
        lambda o, h: stable_then(o, h),
    ),
    "power": (
        [{"peak": 0.1, "floor": 0.0, "power": p} for p in (0.5, 1.0, 2.0, 3.0)],
        lambda o, h: lr_scheduler.PolynomialLR(o, T, h["power"]),
    ),
    "one-cycle": (
        [
            {"peak": 0.1, "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4},
            {"peak": 1e-2, "pct_start": 0.17, "div_factor": 10.0, "final_div_factor": 50.0},
            {"peak": 1e-2, "pct_start": 0.001, "div_factor": 10.0, "final_div_factor": 50.0},
        ],
        lambda o, h: lr_scheduler.OneCycleLR(
            o,
            max_lr=h["peak"],
            total_steps=T,
            pct_start=h["pct_start"],
            div_factor=h["div_factor"],
            final_div_factor=h["final_div_factor"],
        ),
    ),
    "sgdr": (
        [
            {"peak": 0.1, "floor": 0.0, "period": 13, "multiplier": 1},
            {"peak": 1e-2, "floor": 1e-3, "period": 10, "multiplier": 2},
            {"peak": 0.1, "floor": 0.0, "period": 3, "multiplier": 3},
        ],
        lambda o, h: lr_scheduler.CosineAnnealingWarmRestarts(o, h["period"], h["multiplier"], h["floor"]),
    ),
}


def stable_then(opt: torch.optim.Optimizer, h: dict[str, Any]) -> lr_scheduler.SequentialLR:
    """A constant rate, and PyTorch's decay of that shape in the last steps; PyTorch has none of the shape 1-sqrt."""
    length = round(h["decay_fraction"] * T)
    decay: Any = {
        "linear": lambda: lr_scheduler.LinearLR(opt, 1.0, h["floor"] / h["peak"], total_iters=length),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(opt, length, eta_min=h["floor"]),
        "1-sqrt": lambda: lr_scheduler.LambdaLR(
            opt, lambda t: 1 - (1 - h["floor"] / h["peak"]) * math.sqrt(min(t, length) / length)
        ),
    }[h["shape"]]()
    stable = lr_scheduler.ConstantLR(opt, factor=1.0)
    return lr_scheduler.SequentialLR(opt, [stable, decay], milestones=[T - length])


CASES = [pytest.param(name, setting, id=f"{name}-{i}") for name in TORCH for i, setting in enumerate(TORCH[name][0])]
PLATEAUS: list[dict[str, Any]] = [
    {"peak": 0.1, "factor": 0.5, "patience": 2, "threshold": 1e-4, "cooldown": 0, "floor": 0.0},
    {"peak": 0.01, "factor": 0.1, "patience": 0, "threshold": 0.05, "cooldown": 3, "floor": 1e-6},
    {"peak": 1e-3, "factor": 0.9, "patience": 1, "threshold": 0.0, "cooldown": 1, "floor": 5e-4},
    # Stopped by eps.
    {"peak": 3e-8, "factor": 0.5, "patience": 0, "threshold": 1e-4, "cooldown": 0, "floor": 0.0},
]


def optimizer(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def torch_rates(make: Callable[[Any, dict[str, Any]], Any], setting: dict[str, Any], steps: int) -> list[float]:
    """The rate before each of `steps` steps."""
    opt = optimizer(setting["peak"])
    scheduler = make(opt, setting)
    rates = []
    for _ in range(steps):
        rates.append(float(opt.param_groups[0]["lr"]))
        opt.step()
        scheduler.step()
    return rates


def clock(n: int, t: Any, budget: Any = T, val_loss: Any = 1.0, dtype: Any = np.float64) -> np.ndarray:
    columns = {"inner_step": t, "budget": budget, "interval": 1, "train_loss": 2.0, "val_loss": val_loss}
    return np.stack([np.broadcast_to(columns[name], n) for name in CLOCK], axis=1).astype(dtype)


def run(agent: Agent, n: int = 1, steps: int = T, budget: int = T) -> np.ndarray:
    """The rates (steps, n) of an episode with an interval of one step."""
    return np.stack([agent.predict(clock(n, t, budget))[0][:, 0] for t in range(steps)])


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_equals_torch_step_for_step(name: str, setting: dict[str, Any]) -> None:
    expected = torch_rates(TORCH[name][1], setting, T)
    np.testing.assert_allclose(run(SCHEDULES[name](**setting))[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *CASES,
        ("inverse-sqrt", {"peak": 0.1, "timescale": 17.5}),
        ("rex", {"peak": 0.1, "floor": 0.0}),
        ("rex", {"peak": 1e-2, "floor": 1e-3}),
        ("power", {"peak": 1e-2, "floor": 1e-3, "power": 1.7}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 11])
def test_equals_the_formula(name: str, setting: dict[str, Any], warmup: int) -> None:
    formula, start = getattr(reference, name.replace("-", "_")), 0 if name == "inverse-sqrt" else warmup
    expected = [
        reference.warmed_up(t, T, warmup, setting["peak"], formula(max(t - start, 0), T - start, **setting))
        for t in range(T)
    ]
    found = run(SCHEDULES[name](**setting, warmup=warmup))[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


TWO_NAMES: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("power", {"power": 1}), ("linear", {})),
    (("power", {"power": 1, "floor": 1e-3}), ("linear", {"floor": 1e-3})),
    (("wsd", {"decay_fraction": 1, "shape": "linear", "floor": 1e-3}), ("linear", {"floor": 1e-3})),
    (("wsd", {"decay_fraction": 1, "shape": "cosine", "floor": 1e-3}), ("cosine", {"floor": 1e-3})),
    (("wsd", {"decay_fraction": 0}), ("constant", {})),
    (("exponential", {"decay": 1.0}), ("constant", {})),
    (("step", {"discount_step": 7, "discount_factor": 1.0}), ("constant", {})),
    (("inverse-sqrt", {"timescale": 1000}), ("constant", {})),
    (("plateau", {"factor": 1.0}), ("constant", {})),
    (("greedy", {"factor": 1.0}), ("constant", {})),
]


@pytest.mark.parametrize("pair", TWO_NAMES, ids=lambda pair: f"{pair[0][0]}-{pair[1][0]}")
@pytest.mark.parametrize("warmup", [0, 11, 0.1])
def test_two_names_of_one_schedule_give_the_same_rates_to_the_last_bit(pair: Any, warmup: float) -> None:
    peaks = np.array([0.1, 0.0137, 3e-4])
    peaks = np.maximum(peaks, 2e-3) if "floor" in pair[1][1] else peaks
    one, other = (run(SCHEDULES[name](peak=peaks, warmup=warmup, **setting), 3) for name, setting in pair)
    np.testing.assert_array_equal(one, other)


def test_two_names_of_one_schedule_give_the_same_run() -> None:
    """To the last bit: of losses, and of weights, which the losses are functions of."""
    task = make_task("digits-mlp", budget=20, interval=4)
    names = (("linear", {}), ("power", {"power": 1}), ("wsd", {"decay_fraction": 1, "shape": "linear"}))
    first, *others = (
        evaluate(SCHEDULES[name](peak=0.02, warmup=0.2, **setting), task, [0, 1], device="cpu")
        for name, setting in names
    )
    for other in others:
        np.testing.assert_array_equal(other.test_loss, first.test_loss)
        for name, curve in first.curves.items():
            np.testing.assert_array_equal(other.curves[name], curve)


@pytest.mark.parametrize(("fraction", "steps"), [(0.1, 9), (0.5, 45), (0.01, 1), (0.005, 0)])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "inverse-sqrt"])
def test_a_warmup_may_be_a_fraction_of_the_budget(name: str, fraction: float, steps: int) -> None:
    setting = {key: values[0] for key, values in SCHEDULES[name].grid.items() if key != "warmup"}
    by_fraction, by_steps = (SCHEDULES[name](**setting, warmup=warmup) for warmup in (fraction, steps))
    np.testing.assert_array_equal(run(by_fraction), run(by_steps))
    assert by_fraction.view.horizon, "who warms up over a fraction of the budget knows it"


def test_a_warmup_beyond_the_timescale_is_refused_when_the_budget_tells() -> None:
    agent = schedules.inverse_sqrt(peak=0.1, timescale=10, warmup=0.2)
    assert run(agent, steps=10, budget=50).max() == 0.1
    with pytest.raises(ValueError, match=r"warmup=.*18.* is above timescale=.*10"):
        run(agent)


@pytest.mark.parametrize("name", SCHEDULES)
def test_who_knows_the_horizon_depends_on_it(name: str) -> None:
    setting = {key: values[0] for key, values in SCHEDULES[name].grid.items() if key != "warmup"}
    agent = SCHEDULES[name](**setting)
    depends = not np.array_equal(run(agent, budget=T), run(agent, budget=2 * T))
    assert agent.view.horizon == depends


def test_the_decay_of_wsd_takes_its_share_of_what_the_warmup_leaves() -> None:
    rates = run(schedules.wsd(peak=1.0, decay_fraction=0.25, shape="linear", warmup=10), steps=T, budget=T)[:, 0]
    assert rates[10:70].tolist() == [1.0] * 60
    np.testing.assert_allclose(rates[70:], 1 - np.arange(20) / 20, rtol=1e-12)


def test_linear_equals_polynomial_of_power_one() -> None:
    expected = torch_rates(lambda o, h: lr_scheduler.PolynomialLR(o, T, power=1.0), {"peak": 0.2}, T)
    np.testing.assert_allclose(run(schedules.linear(peak=0.2))[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("timescale", [1, 10, 37.5])
def test_inverse_sqrt_is_flat_then_falls_with_the_root(timescale: float) -> None:
    rates = run(schedules.inverse_sqrt(peak=0.3, timescale=timescale))[:, 0]
    expected = [0.3 if t <= timescale else 0.3 * (timescale / t) ** 0.5 for t in range(1, T + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_inverse_sqrt_equals_the_schedule_of_t5() -> None:
    k = 16
    rates = run(schedules.inverse_sqrt(peak=k**-0.5, timescale=k))[:, 0]
    np.testing.assert_allclose(rates, [1 / max(t, k) ** 0.5 for t in range(1, T + 1)], rtol=1e-12)


@pytest.mark.parametrize("warmup", [1, 16])
def test_inverse_sqrt_equals_the_schedule_of_the_transformer(warmup: int) -> None:
    d_model = 512
    rates = run(schedules.inverse_sqrt(peak=(d_model * warmup) ** -0.5, timescale=warmup, warmup=warmup))[:, 0]
    expected = [d_model**-0.5 * min(t**-0.5, t * warmup**-1.5) for t in range(1, T + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("period", [1, 7, 50])
def test_sgdr_restarts_where_the_periods_end(period: int, multiplier: int) -> None:
    """Restart steps summed one by one: the closed form for the number of restarts must never be one off."""
    steps = 20_000
    restarts, length, t = [], period, 0
    while t < steps:
        restarts.append(t)
        t, length = t + length, length * multiplier
    agent = schedules.sgdr(peak=1.0, period=period, multiplier=multiplier)
    rates = agent.predict(clock(steps, np.arange(steps), steps))[0][:, 0]
    np.testing.assert_array_equal(np.flatnonzero(rates == 1.0), restarts)


@pytest.mark.parametrize(("name", "setting"), CASES)
@pytest.mark.parametrize("warmup", [1, 12])
def test_warmup_rises_to_the_peak_and_then_runs_the_schedule_over_the_rest(
    name: str, setting: dict[str, Any], warmup: int
) -> None:
    rising = [setting["peak"] * (t + 1) / warmup for t in range(warmup)]
    rates = run(SCHEDULES[name](**setting, warmup=warmup), steps=T + warmup, budget=T + warmup)[:, 0]
    np.testing.assert_allclose(rates, rising + torch_rates(TORCH[name][1], setting, T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["step", "cosine", "sgdr"])
def test_warmup_equals_torch_linear_lr_followed_by_the_schedule(name: str) -> None:
    settings, make = TORCH[name]
    warmup = 12

    def sequence(opt: torch.optim.SGD, h: dict[str, Any]) -> lr_scheduler.SequentialLR:
        rise = lr_scheduler.LinearLR(opt, start_factor=1 / warmup, total_iters=warmup - 1)
        return lr_scheduler.SequentialLR(opt, [rise, make(opt, h)], milestones=[warmup])

    rates = run(SCHEDULES[name](**settings[0], warmup=warmup), steps=T + warmup, budget=T + warmup)[:, 0]
    np.testing.assert_allclose(rates, torch_rates(sequence, settings[0], T + warmup), rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [5, 10])
def test_a_warmup_as_long_as_the_budget_fills_it(budget: int) -> None:
    rates = run(schedules.cosine(peak=1.0, warmup=10), steps=budget, budget=budget)[:, 0]
    np.testing.assert_allclose(rates, np.arange(1, budget + 1) / 10, rtol=1e-12)


def plateau_rates(setting: dict[str, Any], losses: np.ndarray) -> list[float]:
    """ReduceLROnPlateau's rate after each loss."""
    opt = optimizer(setting["peak"])
    options = {key: value for key, value in setting.items() if key not in ("peak", "floor")}
    scheduler = lr_scheduler.ReduceLROnPlateau(opt, min_lr=setting["floor"], **options)
    rates = []
    for loss in losses:
        scheduler.step(float(loss))
        rates.append(float(opt.param_groups[0]["lr"]))
    return rates


def stalling_losses(seed: int, decisions: int, n: int) -> np.ndarray:
    """Losses that fall, stall and rise, with a few that are not numbers."""
    generator = np.random.default_rng(seed)
    losses = 2.0 / (1 + 0.2 * np.arange(decisions)[:, None]) + 0.1 * generator.normal(size=(decisions, n))
    losses[generator.random((decisions, n)) < 0.03] = np.nan
    return losses


def stacked(settings: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.array([setting[key] for setting in settings]) for key in settings[0]}


@pytest.mark.parametrize("seed", [0, 1])
def test_plateau_equals_torch_with_other_settings_and_restarts_in_every_env(seed: int) -> None:
    decisions, n = 120, len(PLATEAUS)
    losses = stalling_losses(seed, decisions, n)
    restarts = [[0, 50], [0], [0, 31, 32], [0, 119]]
    expected = np.empty((decisions, n))
    for i, starts in enumerate(restarts):
        for start, end in itertools.pairwise([*starts, decisions]):
            expected[start:end, i] = plateau_rates(PLATEAUS[i], losses[start:end, i])

    agent = plateau(**stacked(PLATEAUS))
    state, rates = None, []
    for d in range(decisions):
        begins = np.array([d in starts for starts in restarts])
        action, state = agent.predict(clock(n, 10 * d, 10 * decisions, losses[d]), state, begins)
        rates.append(action[:, 0])
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12)
    assert len(np.unique(expected[:, 0])) > 3, "decays happened"
    assert len(np.unique(expected[:, 3])) == 2, "eps stopped one"


@pytest.mark.parametrize("setting", PLATEAUS)
def test_plateau_equals_the_rule(setting: dict[str, Any]) -> None:
    losses, agent, state, found = stalling_losses(4, T, 1)[:, 0], plateau(**setting), None, []
    for t, loss in enumerate(losses):
        action, state = agent.predict(clock(1, t, val_loss=loss), state)
        found.append(action[0, 0])
    np.testing.assert_allclose(found, reference.plateau(losses.tolist(), **setting), rtol=1e-12)


def test_plateau_keeps_its_memory_in_the_state() -> None:
    """The same call twice gives the same answer, and leaves the state that it was given as it was."""
    agent = plateau(peak=0.1, patience=0)
    _, state = agent.predict(clock(2, 0, val_loss=1.0))
    assert state is not None
    before = [array.copy() for array in state]
    first, _ = agent.predict(clock(2, 1, val_loss=2.0), state)
    second, _ = agent.predict(clock(2, 1, val_loss=2.0), state)
    np.testing.assert_allclose(first, [[0.01], [0.01]])
    np.testing.assert_array_equal(first, second)
    for array, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_plateau_warmup_scales_the_rate() -> None:
    losses, warmup = stalling_losses(3, T, 1), 15
    states: list[Any] = [None, None]
    for t in range(T):
        observation = clock(1, t, val_loss=losses[t])
        plain, states[0] = plateau(peak=0.1, patience=2).predict(observation, states[0])
        warm, states[1] = plateau(peak=0.1, patience=2, warmup=warmup).predict(observation, states[1])
        np.testing.assert_allclose(warm, plain * min(1, (t + 1) / warmup), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in REACTIVE])
def test_the_grid_as_one_batch_equals_one_by_one(name: str) -> None:
    factory = SCHEDULES[name]
    settings = [dict(zip(factory.grid, values, strict=True)) for values in itertools.product(*factory.grid.values())]
    assert 1 < len(settings) <= 48
    together = run(factory(**stacked(settings)), len(settings))
    for i, setting in enumerate(settings):
        np.testing.assert_allclose(together[:, i], run(factory(**setting))[:, 0], rtol=1e-14)


@pytest.mark.parametrize("name", REACTIVE)
def test_a_reactive_grid_as_one_batch_equals_one_by_one(name: str) -> None:
    factory = SCHEDULES[name]
    grid = factory.grid
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    losses = stalling_losses(2, 40, len(settings))
    agents = [factory(**stacked(settings)), *(factory(**setting) for setting in settings)]
    states: list[Any] = [None] * len(agents)
    for t in range(len(losses)):
        together, states[0] = agents[0].predict(clock(len(settings), t, val_loss=losses[t]), states[0])
        for i, agent in enumerate(agents[1:]):
            alone, states[i + 1] = agent.predict(clock(1, t, val_loss=losses[t, i]), states[i + 1])
            assert alone[0] == together[i]


def test_step_has_the_48_settings_of_the_paper() -> None:
    grid = schedules.step.grid
    assert len(list(itertools.product(*grid.values()))) == 48
    assert grid == {
        "peak": (0.1, 0.01, 0.001, 0.0001),
        "discount_step": (10, 20, 50, 100),
        "discount_factor": (0.99, 0.9, 0.88),
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_factory_takes_warmup_and_its_grid(name: str) -> None:
    parameters = inspect.signature(SCHEDULES[name]).parameters
    assert parameters["warmup"].default == 0
    assert set(SCHEDULES[name].grid) <= set(parameters)
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    assert required <= set(SCHEDULES[name].grid), "a grid must make an agent by itself"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contract(name: str, dtype: Any) -> None:
    """Sees the clock, sets the rate; a value that compares, hashes and pickles; each env by its own clock."""
    setting = {key: values[0] for key, values in SCHEDULES[name].grid.items()}
    agent, twin = SCHEDULES[name](**setting), SCHEDULES[name](**setting)
    assert isinstance(agent, Agent)
    assert (agent.view.control, agent.view.observe) == ("set-raw", "clock")
    assert agent == twin == pickle.loads(pickle.dumps(agent))
    assert hash(agent) == hash(twin)
    assert agent != SCHEDULES[name](**{**setting, "peak": 0.5})

    times, budgets = np.array([0, 20, 55]), np.array([60, 600, 56])
    observation = clock(3, times, budgets, dtype=dtype)
    action, _ = agent.predict(observation)
    assert action.shape == (3, 1)
    assert action.dtype == dtype
    for i in range(3):
        np.testing.assert_array_equal(agent.predict(observation[i : i + 1])[0], action[i : i + 1])


def test_repr_names_the_hyperparameters() -> None:
    assert repr(schedules.cosine(peak=0.1)) == "cosine(peak=0.1, floor=0.0, warmup=0)"
    assert repr(schedules.inverse_sqrt(peak=[1, 2], timescale=5)) == (
        "inverse-sqrt(peak=(1, 2), timescale=5, warmup=0)"
    )
    assert repr(plateau(peak=0.1)) == (
        "plateau(peak=0.1, factor=0.1, patience=10, threshold=0.0001, cooldown=0, floor=0.0, warmup=0)"
    )
    assert len(repr(schedules.constant(peak=np.full(1000, 0.1)))) < 100


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("constant", {"peak": -0.1}, "peak must be a learning rate"),
        ("constant", {"peak": float("nan")}, "peak must be"),
        ("constant", {"peak": [0.1, float("inf")]}, "peak must be"),
        ("constant", {"peak": "high"}, "one number, or a flat array"),
        ("constant", {"peak": [[0.1]]}, "flat array"),
        ("constant", {"peak": []}, "flat array"),
        ("cosine", {"peak": 0.1, "warmup": -1}, "warmup must be a whole number of inner steps"),
        ("cosine", {"peak": 0.1, "warmup": 1.5}, "warmup must be a whole number of inner steps, or a fraction"),
        ("cosine", {"peak": 0.1, "floor": 0.2}, "above peak"),
        ("linear", {"peak": 0.1, "floor": -1e-3}, "floor must be"),
        ("step", {"peak": 0.1, "discount_step": 0, "discount_factor": 0.9}, "discount_step must be"),
        ("step", {"peak": 0.1, "discount_step": 10, "discount_factor": 1.1}, "discount_factor must be"),
        ("step", {"peak": [0.1, 0.2], "discount_step": [1, 2, 3], "discount_factor": 0.9}, "unequal length"),
        ("wsd", {"peak": 0.1, "decay_fraction": 1.1}, "decay_fraction must be a fraction"),
        ("wsd", {"peak": 0.1, "shape": "sqrt"}, "shape must be one of linear, 1-sqrt, cosine"),
        ("wsd", {"peak": 0.1, "shape": 1}, "shape must be one of"),
        ("power", {"peak": 0.1, "power": 0}, "power must be positive"),
        ("rex", {"peak": 0.1, "fan_in": -1}, "fan_in must be an exponent"),
        ("rex", {"peak": 0.1, "weight_decay": 0.5}, "weight_decay must be 0, or between"),
        ("greedy", {"peak": 0.1, "factor": 0}, "factor must be"),
        ("greedy", {"peak": 0.1, "window": 0}, "window must be"),
        ("greedy", {"peak": 0.1, "low": 0.1, "high": 0.01}, "low=0.1 is above high=0.01"),
        ("greedy-bounded", {"peak": "high"}, "one number, or a flat array"),
        ("exponential", {"peak": 0.1, "decay": 0.0}, "decay must be"),
        ("one-cycle", {"peak": 0.1, "pct_start": 1.5}, "pct_start must be"),
        ("one-cycle", {"peak": 0.1, "div_factor": 0}, "div_factor must be"),
        ("sgdr", {"peak": 0.1, "period": 0}, "period must be"),
        ("sgdr", {"peak": 0.1, "period": 10, "multiplier": 0.5}, "multiplier must be"),
        ("inverse-sqrt", {"peak": 0.1, "timescale": 0}, "timescale must be"),
        ("inverse-sqrt", {"peak": 0.1, "timescale": 10, "warmup": 11}, "warmup=11 is above timescale=10"),
        ("plateau", {"peak": 0.1, "factor": 0}, "factor must be"),
        ("plateau", {"peak": 0.1, "patience": -1}, "patience must be"),
        ("plateau", {"peak": 0.1, "threshold": -1e-4}, "threshold must be"),
        ("plateau", {"peak": 0.1, "cooldown": 0.5}, "cooldown must be"),
    ],
)
def test_bad_hyperparameters_are_refused(name: str, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](**setting)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_a_batch_of_another_size_is_refused(name: str) -> None:
    agent = SCHEDULES[name](peak=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"peak has 3 values.*batch of 2"):
        agent.predict(clock(2, 0))


def test_a_state_of_another_batch_is_refused() -> None:
    agent = plateau(peak=0.1)
    _, state = agent.predict(clock(3, 0))
    with pytest.raises(ValueError, match=r"state is that of another batch or agent: .*\(3,.*; pass None to restart"):
        agent.predict(clock(2, 1), state)


@pytest.mark.parametrize(
    "observation",
    [np.zeros(5), np.zeros((2, 7)), np.zeros((2, 5), np.int64)],
    ids=["unbatched", "other", "integers"],
)
@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_anything_but_a_clock_is_refused(name: str, observation: np.ndarray) -> None:
    with pytest.raises(ValueError, match="observe='clock'"):
        SCHEDULES[name](peak=0.1).predict(observation)


def test_any_first_loss_is_the_best_so_far() -> None:
    action, state = plateau(peak=0.1, patience=0).predict(clock(1, 0, val_loss=1e6))
    for loss in (1e5, 1e4):
        action, state = plateau(peak=0.1, patience=0).predict(clock(1, 1, val_loss=loss), state)
    assert action == 0.1
