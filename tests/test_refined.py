"""The refined schedule: its formula, the norms that it is computed from, and its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import schedules as reference
from scipy.ndimage import median_filter

from lrenv.agents import make_agent
from lrenv.agents.schedules import formulas
from lrenv.agents.schedules.agent import linear
from lrenv.agents.schedules.refined import norms_of_run, record_norms, refine, refined
from lrenv.benchmark import compare, evaluate
from lrenv.controllers import controller_file
from lrenv.envs.observations import CLOCK
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee


def norms_of(seed: int, steps: int) -> np.ndarray:
    """Norms that fall steeply, stay, and rise, with outliers."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, steps)
    found: np.ndarray = (1 + 10 * np.exp(-20 * t) + 0.5 * t**2) * np.exp(0.3 * rng.normal(size=steps))
    return found


def clock(t: Any, budget: int) -> np.ndarray:
    columns = {"inner_step": t, "budget": budget, "interval": 1, "train_loss": 2.0, "val_loss": 1.0}
    return np.stack([np.broadcast_to(columns[name], len(t)) for name in CLOCK], axis=1).astype(np.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_it_equals_the_formula(smoothing: float, exponent: float) -> None:
    norms = norms_of(0, 61)
    found = formulas.refined(norms, smoothing=smoothing, exponent=exponent)
    np.testing.assert_allclose(found, reference.refined(norms.tolist(), smoothing, exponent), rtol=1e-9, atol=1e-15)
    assert found.max() == 1
    assert found[-1] == 0


def test_the_median_is_that_of_the_authors() -> None:
    """They reflect the norms at the end, and filter with SciPy, which repeats the first one at the beginning."""
    norms, width = norms_of(1, 200), 21
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    smooth = median_filter(padded, size=width, mode="nearest")[:200]
    found = formulas.refined(norms, smoothing=0.1, exponent=2.0)
    np.testing.assert_allclose(found, formulas.refined(smooth, smoothing=0.0, exponent=2.0), rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 50])
def test_equal_norms_give_the_linear_decay(steps: int) -> None:
    """To 0 at the last step, as the bound that it comes from has it: (T - t) / (T - 1), t from 1."""
    agent = refined(np.full(steps, 3.0), peak=0.2)
    rates = agent.predict(clock(np.arange(steps), steps))[0][:, 0]
    np.testing.assert_allclose(rates, 0.2 * (1 - np.arange(steps) / (steps - 1)), rtol=1e-12, atol=1e-15)


def test_a_schedule_fits_budgets_of_any_length() -> None:
    agent = refined(norms_of(2, 30), peak=1.0)
    short = agent.predict(clock(np.arange(30), 30))[0]
    long = agent.predict(clock(np.arange(90), 90))[0]
    np.testing.assert_array_equal(long, short.repeat(3, 0))
    warm = refined(norms_of(2, 30), peak=1.0, warmup=10).predict(clock(np.arange(40), 40))[0]
    np.testing.assert_allclose(warm[:10, 0], np.arange(1, 11) / 10)
    np.testing.assert_array_equal(warm[10:], short)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_norms_are_those_of_each_step_of_the_run(toy: Callable[..., Task], norm: str) -> None:
    task = toy(optimizer="sgd", budget=7, interval=3, weight_decay=0.0)
    found = record_norms(linear(peak=0.1), task, norm, seed=5, device="cpu")
    trainee = Trainee(task)
    state, expected = trainee.init([5]), []
    with torch.no_grad():
        for t in range(7):
            gradient = trainee.gradient(state, trainee.batch_indices(state, 1)[:, 0]).grads
            expected.append(gradient.norm().item() if norm == "l2" else gradient.abs().sum().item())
            lr = torch.tensor([[0.1 * (1 - t / 7)]])
            state = trainee.unroll(state, lr, trainee.hyper(1), 1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_one_run_makes_an_agent_whose_run_is_counted(toy: Callable[..., Task], tmp_path: Path) -> None:
    task = toy(optimizer="adam", budget=20, interval=5)
    agent = refine(linear(peak=0.01), task, peak=0.02, norm="l1", device="cpu")
    assert (len(agent.norms), agent.exponent) == (20, 1.0)
    assert agent.norms == record_norms(linear(peak=0.01), task, "l1", seeds_for("tuning", 1)[0], "cpu")
    path = tmp_path / "refined.safetensors"
    agent.save(path, {"command": "made for a test"})
    assert make_agent(path) == agent
    table = compare(task, [path, "linear:peak=0.01"], 2, device="cpu")
    assert vars(table.rows[0].runs) == {"tuning": 0, "training": 1, "selection": 0}
    expected = evaluate(agent, task, [0, 1], device="cpu").test_loss
    assert table.rows[0].result is not None
    np.testing.assert_array_equal(table.rows[0].result.test_loss, expected)


@pytest.mark.parametrize("norms", [[], [1.0], [1.0, 0.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_bad_norms_are_refused(norms: Any) -> None:
    with pytest.raises(ValueError, match="norms must be positive numbers, two or more"):
        refined(norms, peak=0.1)


def test_runs_that_tell_no_norms_are_refused(toy: Callable[..., Task]) -> None:
    task = toy(optimizer="sgd", budget=20)
    with pytest.raises(ValueError, match=r"linear.* observes .*fan_in.*record norms with a schedule without fan_in"):
        record_norms(linear(peak=0.1, fan_in=1), task)
    with pytest.raises(ValueError, match=r"diverged at inner step \d+; record norms at a lower rate"):
        record_norms(linear(peak=1e30), make_task("digits-mlp", optimizer="sgd", budget=20), device="cpu")
    with pytest.raises(ValueError, match="unknown norm 'l3'"):
        record_norms(linear(peak=0.1), task, "l3")


def test_a_file_holds_one_agent(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="peak has 2 values, one per env"):
        refined([1.0, 2.0], peak=[0.1, 0.2]).save(path, {})
    refined([1.0, 2.0], peak=0.1).save(path, {})
    tensors, metadata = controller_file.read(path)
    controller_file.write(path, tensors, metadata | {"peak": "high"})
    with pytest.raises(controller_file.ControllerFileError, match="peak must be a number"):
        make_agent(path)
    controller_file.write(path, tensors, metadata | {"smoothing": 2})
    with pytest.raises(controller_file.ControllerFileError, match="smoothing must be a fraction"):
        make_agent(path)


def test_it_is_not_tuned_without_norms() -> None:
    with pytest.raises(ValueError, match="norms"):
        compare(make_task("noisy-quadratic"), "refined", 1, device="cpu")


@pytest.mark.parametrize(
    ("optimizer", "exponent"),
    [("sgd", 2.0), ("momentum+ema", 2.0), ("nesterov", 2.0), ("adam", 1.0), ("adam+ema", 1.0)],
)
def test_the_norm_is_that_of_the_optimizers_kind(toy: Callable[..., Task], optimizer: str, exponent: float) -> None:
    found = norms_of_run(make_agent("constant:peak=0.01"), toy(optimizer=optimizer), device="cpu")
    assert found["exponent"] == exponent
