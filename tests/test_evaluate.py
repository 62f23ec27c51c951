"""Evaluation and tuning: what a loop by hand gives, the same randomness for everyone, honest failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from lrenv.agents import AgentError, BaseAgent, View, make_agent
from lrenv.agents.fds.agent import FDS
from lrenv.agents.schedules.agent import PEAKS
from lrenv.benchmark import Result, evaluate, tune
from lrenv.benchmark.evaluation import ARRAYS
from lrenv.benchmark.tuning import TUNING_SEEDS, ratio_of
from lrenv.controllers.agent import agent_factory
from lrenv.envs.env import LearningRateEnv
from lrenv.runtime.json_values import json_value, to_json
from lrenv.training.tasks import Task, make_task

NOISY = make_task("noisy-quadratic", budget=20, interval=5)


def assert_same_result(a: Result, b: Result, rows: slice = slice(None), tolerance: float = 0.0) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)[rows]
        np.testing.assert_allclose(x, y, rtol=tolerance, err_msg=name)
    for name in a.curves:
        np.testing.assert_allclose(a.curves[name], b.curves[name][:, rows], rtol=tolerance, err_msg=name)


def test_a_result_is_a_loop_by_hand(toy: Callable[..., Task]) -> None:
    task, seeds = toy(budget=10), [4, 9]
    result = evaluate(make_agent("constant", peak=0.3), task, seeds, device="cpu")
    for i, seed in enumerate(seeds):
        env = LearningRateEnv(task, control="set-raw", device="cpu")
        infos = [env.reset(seed=seed)[1]]
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(np.array([0.3], np.float32))
            infos.append(info)
        for name, curve in result.curves.items():
            np.testing.assert_allclose(curve[:, i], [info[name] for info in infos], rtol=1e-5, err_msg=name)
        assert result.val_loss[i] == pytest.approx(min(info["val_loss"] for info in infos), rel=1e-5)
        assert result.test_loss[i] == pytest.approx(infos[-1]["test_loss"], rel=1e-5)
        assert result.test_metric[i] == pytest.approx(infos[-1]["test_accuracy"])
        assert result.final_val_loss[i] == pytest.approx(infos[-1]["val_loss"], rel=1e-5)
        assert result.final_test_loss[i] == pytest.approx(infos[-1]["final_test_loss"], rel=1e-5)
        assert result.final_test_metric[i] == pytest.approx(infos[-1]["final_test_accuracy"])
    assert result.metric == "accuracy"
    assert set(result.numbers()) == {
        "val_loss", "test_loss", "test_accuracy", "final_val_loss", "final_test_loss", "final_test_accuracy"
    }  # fmt: skip
    assert result.seeds.tolist() == seeds
    assert result.agent == "constant(peak=0.3, warmup=0)"
    assert result.view == {"control": "set-raw", "observe": "clock"}
    assert not result.diverged.any()


def test_every_agent_starts_from_the_same_weights_and_batches(toy: Callable[..., Task]) -> None:
    task, seeds = toy(budget=24), range(4)
    results = [
        evaluate(make_agent(name, **settings), task, seeds, device="cpu")
        for name, settings in (
            ("constant", {"peak": 0.05}),
            ("cosine", {"peak": 1.0}),
            ("plateau", {"peak": 0.3}),
            ("linear", {"peak": 0.05, "floor": 0.05}),
        )
    ]
    for other in results[1:]:
        for name in ("val_loss", "train_loss"):
            np.testing.assert_array_equal(other.curves[name][0], results[0].curves[name][0])
    assert (results[1].test_loss != results[0].test_loss).all()
    # Two ways to the same rate throughout are the same run, to the last batch.
    np.testing.assert_array_equal(results[3].curves["train_loss"], results[0].curves["train_loss"])


def test_the_checkpoint_is_the_best_by_validation_loss(toy: Callable[..., Task]) -> None:
    """Descent for a while, then ascent, which undoes what was learned without any chaos."""
    task, turn = toy(budget=60), 8

    class Turning:
        view = View(control="set-raw")

        def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
            decision = 0 if state is None else state[0]
            rate = 0.1 if decision < turn else -0.1
            return np.full((len(observation), 1), rate, np.float32), (decision + 1,)

    result = evaluate(Turning(), task, range(3), device="cpu")
    losses = result.curves["val_loss"]
    best = losses.argmin(0)
    assert ((best > 0) & (best <= turn)).all()
    assert (losses[-1] > 1.1 * losses.min(0)).all()
    np.testing.assert_array_equal(result.val_loss, losses.min(0))
    stopped = [evaluate(Turning(), make_task(task, budget=int(4 * k)), [i], device="cpu") for i, k in enumerate(best)]
    np.testing.assert_allclose(result.test_loss, [r.test_loss[0] for r in stopped], rtol=1e-5)


def test_the_order_of_seeds_is_irrelevant(toy: Callable[..., Task]) -> None:
    agent = make_agent("plateau", peak=0.3)
    forwards, backwards = (evaluate(agent, toy(), seeds, device="cpu") for seeds in ([1, 2, 3], [3, 2, 1]))
    assert_same_result(forwards, backwards, slice(None, None, -1), 1e-5)


def test_a_diverging_agent_is_reported(toy: Callable[..., Task]) -> None:
    """One run of three dies at its first decision; the others are what they are without it."""
    mixed = evaluate(make_agent("constant", peak=[0.1, 1e38, 0.1]), NOISY, [0, 1, 2], device="cpu")
    calm = evaluate(make_agent("constant", peak=0.1), NOISY, [0, 1, 2], device="cpu")
    assert mixed.diverged.tolist() == [False, True, False]
    for name in mixed.curves:
        np.testing.assert_array_equal(mixed.curves[name][:, ::2], calm.curves[name][:, ::2])
        assert np.isnan(mixed.curves[name][2:, 1]).all(), "nothing after the end"
    np.testing.assert_array_equal(mixed.test_loss[::2], calm.test_loss[::2])
    assert mixed.val_loss[1] == mixed.curves["val_loss"][0, 1], "the checkpoint is the untrained network"
    assert np.isfinite(mixed.test_loss).all()
    everyone = evaluate(make_agent("constant", peak=1e38), NOISY, [0, 1], device="cpu")
    assert everyone.diverged.all()
    assert len(everyone.curves["lr"]) == 2, "nothing runs on when all have ended"


def test_initial_rates_and_names(toy: Callable[..., Task]) -> None:
    class Keeping:
        view = View(control="discrete", interval=3)

        def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
            return np.ones(len(observation), np.int64), state

    result = evaluate(Keeping(), toy(), [0], initial_lr=0.25, name="keeping", device="cpu")
    assert result.agent == "keeping"
    assert result.curves["lr"][:, 0].tolist() == [0.25] * 5
    assert result.curves["inner_step"][:, 0].tolist() == [0, 3, 6, 9, 12]


def test_lines_are_strict_json(toy: Callable[..., Task]) -> None:
    """Divergence and tasks without classes leave numbers out; JSON calls them null."""
    result = evaluate(make_agent("constant", peak=[0.1, 1e38]), NOISY, [7, 8], name="a", device="cpu")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in result.lines()]
    assert [row["seed"] for row in rows] == [7, 8]
    assert [row["diverged"] for row in rows] == [False, True]
    assert "test_accuracy" not in rows[0], "a loss that is given has no metric"
    assert rows[0]["final_test_loss"] == pytest.approx(float(result.final_test_loss[0]))
    assert np.isinf(result.final_test_loss[1])
    assert np.isinf(result.final_val_loss[1])
    assert rows[1]["final_test_loss"] is None
    assert rows[0]["test_loss"] == pytest.approx(float(result.test_loss[0]))
    assert rows[0]["curves"]["inner_step"] == [0, 5, 10, 15, 20]
    assert rows[0]["curves"]["val_loss"] == pytest.approx(result.curves["val_loss"][:, 0].tolist(), rel=1e-5)
    assert rows[1]["val_loss"] == pytest.approx(float(result.curves["val_loss"][0, 1]))
    assert rows[1]["curves"]["lr"][2:] == [None] * 3
    assert json_value([np.inf, (-np.inf, 1.5)], exact=True) == ["inf", ["-inf", 1.5]]
    assert math.isnan(float(json_value(float("nan"), exact=True)))
    numpys = [np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True), np.float32("nan"), np.float16("inf")]
    assert to_json({"of": numpys}) == '{"of": [0.5, 0.5, 3, true, null, null]}'
    assert json_value(numpys[-2:], exact=True) == ["nan", "inf"]
    assert to_json({"a": [float("inf"), 1.5], "b": (float("nan"), None)}) == '{"a": [null, 1.5], "b": [null, null]}'


@pytest.mark.parametrize(
    ("task", "metric"), [("co2-mlp", "r2"), ("doctor-visits-mlp", "d2"), ("text-transformer", "bits_per_character")]
)
def test_a_result_has_the_metric_of_its_loss(task: str, metric: str) -> None:
    result = evaluate("constant:peak=[0.001,1e38]", f"{task}:budget=2:interval=1", [0, 1], device="cpu")
    assert result.metric == metric
    assert np.isfinite(result.test_metric).all()
    assert np.isfinite(result.final_test_metric).tolist() == [True, False]
    assert json.loads(result.lines()[1])[f"final_test_{metric}"] is None


def test_a_result_is_shown_in_a_line() -> None:
    result = evaluate("constant:peak=0.1", NOISY, range(2), device="cpu")
    mean = f"{result.test_loss.mean():.4g}"
    assert repr(result) == f"<Result: {result.agent} on noisy-quadratic, 2 seeds, mean test loss {mean}>"
    broken = replace(result, diverged=np.array([True, False]))
    assert ", 2 seeds, 1 diverged, " in repr(broken)


def test_a_class_is_no_agent() -> None:
    with pytest.raises(AgentError, match=r"FDS is a class, which is no agent yet: pass FDS\(\)"):
        evaluate(FDS, NOISY, [0], device="cpu")  # type: ignore[arg-type]


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        evaluate(make_agent("constant", peak=0.1), NOISY, [], device="cpu")


def test_a_grid_as_one_batch_is_each_alone() -> None:
    """The 48 step decays of the paper."""
    task, seeds = make_task("digits-logreg", budget=60, interval=20), (3, 4)
    tuned = tune("step", task, seeds, device="cpu")
    assert len(tuned.combinations) == 48
    assert len({tuple(sorted(c.items())) for c in tuned.combinations}) == 48
    for i in (0, 17, 30, 47):
        alone = evaluate(make_agent("step", **tuned.combinations[i]), task, seeds, device="cpu")
        assert tuned.val_loss[i] == pytest.approx(float(alone.val_loss.mean()), rel=1e-5)
    assert tuned.settings == tuned.combinations[int(np.argmin(tuned.val_loss))]
    assert tuned.val_loss.max() > 1.1 * tuned.val_loss.min(), "the choice matters"


def test_a_grid_is_extended_until_the_best_rate_is_inside() -> None:
    """On a quadratic that wants a rate above the highest of the grid, and for an agent that takes rates up to 1."""
    task = make_task("noisy-quadratic", budget=20, interval=10)
    tuned = tune("constant", task, (1, 2), device="cpu")
    peaks = sorted(each["peak"] for each in tuned.combinations)
    assert max(peaks) > tuned.settings["peak"] > max(PEAKS)
    assert len(set(peaks)) == len(peaks) == len(tuned.val_loss)
    assert tuned.settings == tuned.combinations[int(np.argmin(tuned.val_loss))]
    assert len(tune("step", task, (1,), device="cpu").combinations) == 48, "that of the paper stays as it is"


class UpTo(BaseAgent[tuple[()]]):
    """An agent that fails at rates above 0.5, and whose other setting can't be hashed."""

    view = View(control="set-raw", observe="clock")
    grid: ClassVar[Any] = {"peak": (0.05, 0.1, 0.2), "other": ([1, 2], [3, 4])}

    def __init__(self, peak: Any, other: Any = None) -> None:
        self.peak = peak

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        rates = np.broadcast_to(self.peak, len(observation))[:, None]
        assert rates.max() <= 0.5, "too high"
        return rates, carry


def test_an_agent_that_fails_beyond_its_grid_has_the_best_of_it(advertise: Callable[[str, str], None]) -> None:
    advertise("up-to", f"{__name__}:UpTo")
    tuned = tune("up-to", make_task("noisy-quadratic", budget=20, interval=10), (1,), device="cpu")
    assert tuned.settings["peak"] == 0.2
    assert len(tuned.combinations) == 6


@pytest.mark.parametrize(
    ("values", "ratio"),
    [((0.1, 0.01, 0.001), 10), ((1e-3, 2e-3, 4e-3), 2), ((0.1, 0.2), None), ((0.1, 0.2, 0.3), None), ((0, 1, 2), None),
     ((1.0, 1.0, 1.0), None), (("a", "b", "c"), None)],
)  # fmt: skip
def test_axes_of_equal_ratios(values: Any, ratio: float | None) -> None:
    assert ratio_of(values) == (None if ratio is None else pytest.approx(ratio))


@pytest.mark.parametrize("at_once", [1, 4, 5, 1000])
def test_how_many_at_once_is_irrelevant(at_once: int) -> None:
    reference, parts = (tune("constant", NOISY, (1, 2), at_once=size, device="cpu") for size in (256, at_once))
    np.testing.assert_allclose(parts.val_loss, reference.val_loss, rtol=1e-6)
    assert parts.settings == reference.settings


def test_tuning_needs_a_grid() -> None:
    assert not hasattr(agent_factory("ppo"), "grid")
    with pytest.raises(ValueError, match="'ppo' has no grid"):
        tune("ppo", NOISY)
    with pytest.raises(ValueError, match="did you mean 'step'"):
        tune("stepp", NOISY)


def test_tuning_seeds_are_held_out() -> None:
    assert not set(TUNING_SEEDS) & set(range(10_000))
