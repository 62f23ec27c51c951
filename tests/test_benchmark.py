"""Suites: grids from a file, searches whose best is inside, scores by hand, and the same table after a kill."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from lrenv.agents import View, make_agent
from lrenv.agents.schedules.refined import record_norms, refine
from lrenv.agents.universal.agent import VERSION
from lrenv.benchmark import held_out
from lrenv.benchmark import run_suite as runs
from lrenv.benchmark import search as searches
from lrenv.benchmark.contenders import version_of
from lrenv.benchmark.evaluation import ARRAYS, Result, evaluate
from lrenv.benchmark.privileges import Privileges, privileges_of
from lrenv.benchmark.rows import Runs
from lrenv.benchmark.run_suite import FILES, Line, Outcome, run_suite
from lrenv.benchmark.score_tables import markdown, save
from lrenv.benchmark.scores import Scores, budgets_of, scored
from lrenv.benchmark.search import Records, Search, grid_search, pool
from lrenv.benchmark.statistics import bootstrap_interval, expected_best, holm
from lrenv.benchmark.suite import Axis, Entry, Range, Suite, chosen, entry_of, read_suite, suites
from lrenv.benchmark.tuning import LIMITS, afresh
from lrenv.cli import COMMANDS, run
from lrenv.controllers.agent import AgentError
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.envs.observations import Signal
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import make_task

TASKS = ["noisy-quadratic:budget=20:interval=5", "power-law-hard:budget=20:interval=5"]
TEXT = f"""
seeds = 2
tuning_seeds = 1
initial_rates = [0.01, 0.1]
pool = 4
budgets = [1, 2, 4]
tasks = {json.dumps(TASKS)}
[axes]
peak = {{ low = 0.05, high = 0.2, factor = 2.0 }}
[agents.linear]
grid = {{ peak = "peak" }}
draws = {{ peak = {{ log = [0.01, 1.0] }} }}
[agents.constant]
grid = {{ peak = "peak", warmup = {{ of_budget = [0.0, 0.1] }} }}
[agents.scaling]
[agents.untuned]
agent = "constant:peak=0.1"
"""


class Scaling:
    """An agent that scales the rate."""

    view = View(control="scale", observe="clock")

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
        return np.where(observation[:, 4:] > 1, 0.5, -0.5), state


class Broken(Scaling):
    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
        if observation[0, 0] > 7:
            raise KeyError("what it needs")
        return super().predict(observation, state)


@pytest.fixture(autouse=True)
def _advertised(advertise: Callable[[str, str], None]) -> None:
    advertise("scaling", f"{__name__}:Scaling")
    advertise("broken", f"{__name__}:Broken")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return read_suite(path)


def made(suite: Suite, out: Path, **settings: Any) -> dict[str, bytes]:
    """Runs a suite; what it leaves, but the results, which hold seconds."""
    save(scored(run_suite(suite, out, device="cpu", **settings)), out)
    return {name: (out / name).read_bytes() for name in FILES if name not in ("results.jsonl", "tuned.jsonl")}


def counted(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[str]:
    """The names of the batches that begin; the one after `stop` of them is cut off."""
    begun: list[str] = []

    def counting(*args: Any, **settings: Any) -> Result:
        if len(begun) == stop:
            raise KeyboardInterrupt
        begun.append(settings["name"])
        return evaluate(*args, **settings)

    monkeypatch.setattr(searches, "evaluate", counting)
    monkeypatch.setattr(runs, "evaluate", counting)
    return begun


# Statistics


def test_the_expected_best_of_ranks_in_closed_form() -> None:
    """The lowest of k of the numbers 1 to n is (n + 1) / (k + 1) on average."""
    for n, k in ((1, 1), (7, 3), (50, 10), (200, 100), (300, 300)):
        numbers = np.random.default_rng(n).permutation(n) + 1.0
        assert expected_best(numbers, numbers, k) == pytest.approx((n + 1) / (k + 1))
        assert expected_best(-numbers, numbers, 1) == pytest.approx((n + 1) / 2)


@pytest.mark.parametrize("k", range(1, 8))
def test_the_expected_best_of_all_sets(k: int) -> None:
    """What is chosen by one number is told of another; of draws that are level, and dead ones, each is as likely."""
    chosen_by = np.array([0.3, 0.1, np.inf, 0.1, 0.9, np.inf, 0.2])
    values = np.array([5.0, 1.0, 10.0, 2.0, 0.5, 9.0, 4.0])
    found = []
    for subset in itertools.combinations(range(7), k):
        lowest = min(chosen_by[i] for i in subset)
        found.append(np.mean([values[i] for i in subset if chosen_by[i] == lowest]))
    assert expected_best(chosen_by, values, k) == pytest.approx(np.mean(found))


def test_a_draw_that_is_never_chosen_may_be_infinite() -> None:
    assert expected_best(np.array([0.0, np.inf]), np.array([1.0, np.inf]), 2) == 1


def test_there_is_no_best_of_more_than_were_drawn() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"the best of {k} can't be taken of 3 draws"):
            expected_best(np.arange(3.0), np.arange(3.0), k)


def test_holm_by_hand() -> None:
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_holm_rejects_step_by_step() -> None:
    """The procedure as it is written: from the lowest on, as long as p <= level / (tests that are left)."""
    random = np.random.default_rng(0)
    for _ in range(200):
        p = random.uniform(size=6) ** 3
        level, order = 0.05, p.argsort()
        rejected = np.zeros(6, bool)
        for place, i in enumerate(order):
            if p[i] > level / (6 - place):
                break
            rejected[i] = True
        assert ((holm(p) <= level) == rejected).all()


def test_an_interval_over_tasks_against_scipy() -> None:
    """Where seeds are alike within a task, it is the bootstrap of the tasks' means."""
    means = np.random.default_rng(1).normal(size=9)
    low, high = bootstrap_interval(np.repeat(means[:, None], 3, 1), 0.9, resamples=40_000)
    other = stats.bootstrap((means,), np.mean, confidence_level=0.9, n_resamples=40_000, method="percentile",
                            rng=np.random.default_rng(2)).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.03)


def test_an_interval_over_seeds_within_tasks() -> None:
    """Where tasks are alike and seeds are not, the spread is that of all runs; with neither there is none."""
    random = np.random.default_rng(3)
    seeds = random.normal(size=8)
    low, high = bootstrap_interval(np.repeat(seeds[None], 5, 0), resamples=40_000)
    deviation = seeds.std() / math.sqrt(5 * 8)
    assert (low - seeds.mean(), high - seeds.mean()) == pytest.approx((-1.96 * deviation, 1.96 * deviation), rel=0.05)
    assert bootstrap_interval(np.full((4, 3), 0.5)) == (0.5, 0.5)
    assert np.isnan(bootstrap_interval(np.ones((4, 1)))).all()
    assert np.isnan(bootstrap_interval(np.ones((1, 4)))).all()


# Suites


def test_the_suites_of_the_package() -> None:
    assert suites() == ["quick", "standard"]
    for name in suites():
        held = read_suite(name)
        assert held.name == name
        for task in held.tasks:
            make_task(task)
    assert len(read_suite("quick").agents) >= 16
    assert len(read_suite("quick").tasks) == 6


def test_axes_and_ranges() -> None:
    entry = entry_of(
        "a",
        {
            "grid": {"peak": {"low": 0.01, "high": 0.08, "factor": 2.0}, "w": {"of_budget": [0, 0.01, 0.1]}, "x": [3]},
            "draws": {"a": [1, 2], "b": {"log": [0.01, 1]}, "c": {"uniform": [2, 3]}, "d": {"of_budget": [0, 0.5]}},
        },
    )  # fmt: skip
    assert entry.agent == "a"
    assert entry.grid["peak"].of(50) == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert entry.grid["w"].of(50) == [0, 5], "0.5 of a step is rounded to 0, which is there"
    assert entry.grid["x"].of(50) == [3]
    drawn = {name: x.draw(np.random.default_rng(0), 4000, 100) for name, x in entry.draws.items()}
    assert set(drawn["a"]) == {1, 2}
    assert np.log(drawn["b"]).mean() == pytest.approx(math.log(0.1), abs=0.1)
    assert 0.01 <= drawn["b"].min() <= drawn["b"].max() <= 1
    assert drawn["c"].mean() == pytest.approx(2.5, abs=0.05)
    assert drawn["d"].dtype == np.int64
    assert (drawn["d"].min(), drawn["d"].max()) == (0, 50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sedes = 3\n", "unknown key of the suite 'sedes': did you mean 'seeds'"),
        ("[agents.x]\ngird = {}\n", "unknown key of agents.x 'gird': did you mean 'grid'"),
        ("[agents.x]\ngrid = { peak = 'paek' }\n", "unknown axis in agents.x.grid.peak 'paek': did you mean 'peak'"),
        ("[agents.x]\ngrid = { peak = { low = 1.0, hihg = 2.0, factor = 2.0 } }\n", "'hihg': did you mean 'high'"),
        ("[agents.x]\ngrid = { peak = { low = 2.0, high = 1.0, factor = 2.0 } }\n", "0 < low <= high"),
        ("[agents.x]\ngrid = { peak = { low = 1.0, high = 2.0, factor = 1.0 } }\n", "factor above 1"),
        ("[agents.x]\ngrid = { peak = [] }\n", "agents.x.grid.peak is empty"),
        ("[agents.x]\ngrid = { w = { of_budget = [2] } }\n", "fractions of the budget, from 0 to 1"),
        ("[agents.x]\ndraws = { peak = { log = [0, 1] } }\n", "both positive"),
        ("[agents.x]\ndraws = { peak = { logg = [1, 2] } }\n", "'logg': did you mean 'log'"),
        ("[agents.x]\nagent = 3\n", "agents.x.agent must be a text, not an int"),
        ("cap = 'high'\n", "cap must be a number, not a str"),
        ("cap = 1.0\n", "cap must be above 1"),
        ("cap = inf\n", "cap must be a finite number, not inf"),
        ("initial_rates = []\n", "initial_rates is empty"),
        ("initial_rates = [nan]\n", "initial_rates must be a finite number, not nan"),
        ("seeds = 100000000\n", "seeds for report, not 100000000"),
        ("reference = 'linaer'\n", "unknown reference among the agents 'linaer': did you mean 'linear'"),
        ("weight_decay = [-1.0]\n", "weight_decay 0 or more"),
        ("seeds = true\n", "seeds must be a whole number, not a bool"),
        ("= 3\n", "is no TOML"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_meant(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "own.toml"
    own = TEXT
    for name, value in (("seeds", "2"), ("initial_rates", "[0.01, 0.1]")):
        own = own.replace(f"{name} = {value}\n", "", 1) if change.startswith(name) else own
    path.write_text(own + change if change.startswith("[") else change + own)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as told:
        read_suite(path)
    assert str(path) in str(told.value)


def test_suites_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown suite 'qiuck': did you mean 'quick'"):
        read_suite("qiuck")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_suite(tmp_path / "none.toml")


def test_agents_and_tasks_are_chosen(suite: Suite) -> None:
    some = chosen(suite, ["constant", "cosine:peak=0.1"], ["co2-mlp"], 5)
    assert [entry.label for entry in some.agents] == ["constant", "cosine:peak=0.1", "linear"]
    assert some.agents[0].grid, "one of the suite has its grid"
    assert (some.tasks, some.seeds) == (("co2-mlp",), 5)
    assert chosen(suite) == suite


# Searches


def search_of(entry: Entry, task: str = TASKS[0], **settings: Any) -> Search:
    suite = Suite("own", (task,), (entry,), **({"tuning_seeds": 1, "seeds": 2, "pool": 5} | settings))
    return Search(entry, make_task(task), task, task, suite, "cpu", afresh)


def valley(monkeypatch: pytest.MonkeyPatch, loss: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Searches in which losses are a function of the settings; the settings that are tried."""
    tried: list[dict[str, Any]] = []
    one = evaluate("constant:peak=0.1", TASKS[0], [0], device="cpu")

    def run(self: Search, combinations: list[dict[str, Any]], seeds: list[int], key: Any) -> Any:
        tried.extend(combinations)
        for combination in combinations:
            yield replace(one, final_val_loss=np.full(len(seeds), loss(combination)))

    monkeypatch.setattr(Search, "run", run)
    return tried


@pytest.mark.parametrize("optimum", [1e-5, 0.03, 7.0])
def test_a_grid_grows_until_the_best_is_inside(monkeypatch: pytest.MonkeyPatch, optimum: float) -> None:
    tried = valley(monkeypatch, lambda x: abs(math.log(x["peak"] / optimum)) + x["warmup"])
    entry = Entry("constant", "constant", {"peak": Axis((0.01, 0.02, 0.04), factor=2.0), "warmup": Axis((5, 0))}, {})
    found = grid_search(search_of(entry))
    assert found["inside"]
    assert abs(math.log2(found["settings"]["peak"] / optimum)) <= 0.5
    assert found["settings"]["warmup"] == 0
    assert found["runs"] == len(tried) == len({(x["peak"], x["warmup"]) for x in tried}), "nothing is tried twice"
    peaks = sorted({x["peak"] for x in tried})
    np.testing.assert_allclose(np.diff(np.log2(peaks)), 1)
    assert len(tried) == 2 * len(peaks)


def test_a_grid_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    valley(monkeypatch, lambda x: -x["peak"])
    entry = Entry("constant", "constant", {"peak": Axis((1.0, 10.0), factor=10.0)}, {})
    found = grid_search(search_of(entry))
    assert not found["inside"]
    assert found["settings"]["peak"] == pytest.approx(LIMITS[1])


def test_runs_that_die_are_searched_below(monkeypatch: pytest.MonkeyPatch) -> None:
    valley(monkeypatch, lambda x: math.inf if x["peak"] > 1e-3 else -x["peak"])
    entry = Entry("constant", "constant", {"peak": Axis((1.0, 2.0), factor=2.0)}, {})
    assert grid_search(search_of(entry))["settings"]["peak"] == 2.0**-10
    valley(monkeypatch, lambda x: math.nan)
    with pytest.raises(AgentError, match="agent 'constant' on task .* runs diverge with all"):
        grid_search(search_of(entry))


def test_a_grid_ends_where_the_agent_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of this one have a lowest value of their own."""
    valley(monkeypatch, lambda x: x["initial_lr"])
    entry = Entry("gala", "gala:low=0.003", {"initial_lr": Axis((0.01, 0.02), factor=2.0)}, {})
    found = grid_search(search_of(entry))
    assert found["settings"] == {"initial_lr": 0.005}
    assert not found["inside"]


def test_a_grid_of_real_runs() -> None:
    """The settings with the lowest final validation loss, of the runs that each combination is by itself."""
    entry = Entry("linear", "linear", {"peak": Axis((0.05, 0.1, 5.0)), "warmup": Axis((0, 4))}, {})
    found = grid_search(search_of(entry, tuning_seeds=2))
    losses = {
        (peak, warmup): evaluate(f"linear:peak={peak}:warmup={warmup}", TASKS[0], [10_000, 10_001], device="cpu")
        .final_val_loss.mean()
        for peak in (0.05, 0.1, 5.0) for warmup in (0, 4)
    }  # fmt: skip
    best = min(losses, key=losses.__getitem__)
    assert tuple(found["settings"].values()) == best
    assert found["val_loss"] == pytest.approx(losses[best], rel=1e-5)
    assert found["runs"] == 12


def test_weight_decay_is_searched_where_it_is_decoupled() -> None:
    entry = Entry("constant", "constant", {"peak": Axis((0.001,))}, {"peak": Range("log", (1e-3, 1e-2))})
    task = "digits-logreg:budget=4:interval=4"
    asked: list[Any] = []

    def once(key: dict[str, Any], work: Callable[[], Result]) -> Result:
        asked.append(key["weight_decay"])
        return work()

    averaged = replace(entry, agent="constant-ema")
    for optimizer, tried in (("adam", [None]), ("adamw", [0.0, 0.5]), ("sgd", [None])):
        search = search_of(averaged, f"{task}:optimizer={optimizer}", weight_decay=(0.0, 0.5))
        assert search.decays() == tried, "an average around it is the same optimizer"
        search = replace(search_of(entry, f"{task}:optimizer={optimizer}", weight_decay=(0.0, 0.5)), once=once)
        asked.clear()
        found = grid_search(search)
        assert asked == tried
        assert ("weight_decay" in found["settings"]) == (optimizer == "adamw")
        assert found["runs"] == len(tried)
    drawn = pool(replace(search_of(entry, f"{task}:optimizer=adamw", weight_decay=(0.0, 0.5), pool=8), once=afresh))
    assert {x["weight_decay"] for x in drawn["settings"]} == {0.0, 0.5}
    for x, val, test in zip(drawn["settings"], drawn["val_loss"], drawn["test_loss"], strict=True):
        own = make_task(f"{task}:optimizer=adamw", weight_decay=x["weight_decay"])
        alone = evaluate(make_agent("constant", peak=x["peak"]), own, [10_000, 0, 1], device="cpu")
        assert val == pytest.approx(alone.final_val_loss[0], rel=1e-5), "chosen on a seed for tuning"
        assert test == pytest.approx(alone.final_test_loss[1:].tolist(), rel=1e-5), "told of those for reports"


def test_draws_are_the_same_in_every_process() -> None:
    entry = Entry("constant", "constant", {}, {"peak": Range("log", (1e-3, 1e-2))})
    first, again = (pool(search_of(entry)) for _ in range(2))
    assert first["settings"] == again["settings"]
    assert pool(search_of(entry, TASKS[1]))["settings"] != first["settings"], "each task has its own"
    assert len({x["peak"] for x in first["settings"]}) == 5


# Privileges


@pytest.mark.parametrize(
    ("agent", "horizon", "validation"),
    [
        ("constant:peak=0.1", False, False), ("linear:peak=0.1", True, False), ("cosine:peak=0.1", True, False),
        ("step:peak=0.1:discount_step=30:discount_factor=0.5", False, False), ("plateau:peak=0.1", False, True),
        ("sgdr:peak=0.1:period=50", False, False), ("inverse-sqrt:peak=0.1:timescale=20", False, False),
        ("exponential:peak=0.1:decay=0.1", True, False), ("one-cycle:peak=0.1", True, False), ("scaling", True, True),
        ("linear:peak=0.1:fan_in=0.5", True, False), ("plateau:peak=0.1:fan_in=0.5", False, True),
    ],
)  # fmt: skip
def test_what_schedules_make_use_of(agent: str, horizon: bool, validation: bool) -> None:
    assert privileges_of(make_agent(agent)) == Privileges(horizon, validation, False, False)


def test_what_views_offer() -> None:
    assert privileges_of(make_agent("sgd-hd")) == Privileges(False, False, True, True)
    assert privileges_of(make_agent("gala")) == Privileges(False, False, True, False)

    assert privileges_of(make_agent("prodigy")) == Privileges(True, False, True, True)
    assert privileges_of(make_agent("constant-ema:peak=0.1")) == Privileges(False, False, False, False)
    assert privileges_of(make_agent("dog")) == Privileges(False, False, True, True)

    class Own(Scaling):
        view = View(observe="dynamics")

    assert privileges_of(Own()) == Privileges(True, True, False, False)


def test_signals_of_ones_own_are_known_by_what_they_are_made_of() -> None:
    own = {
        "t": Signal(0, 1, lambda d: d.inner_step / d.budget),
        "v": Signal(-9, 9, lambda d: d.val_loss),
        "g": Signal(0, 9, lambda d: d.relative_gradient),
    }

    class Own(Scaling):
        view = View(observe=own)  # type: ignore[arg-type]

    assert privileges_of(Own()) == Privileges(horizon=True, validation=True, gradients=True, optimizer=False)
    Own.reads = ("t",)  # type: ignore[attr-defined]
    assert privileges_of(Own()) == Privileges(horizon=True, validation=False, gradients=False, optimizer=False)
    assert not View(observe={"v": own["v"]}).horizon  # type: ignore[arg-type]
    assert View(observe=lambda d: (d.inner_step / d.budget)[:, None]).horizon  # type: ignore[arg-type]
    assert View(observe="registered-later").horizon, "it may tell anything"

    def branches(d: Any) -> Any:
        return (d.val_loss / d.budget if d.inner_step.max() > 100 else d.train_loss)[:, None]

    Own.view, Own.reads = View(observe=branches), ("branches.0",)  # type: ignore[arg-type]
    assert privileges_of(Own()) == Privileges(horizon=True, validation=True, gradients=False, optimizer=False)
    with pytest.raises(TypeError, match="a table of lrenv.envs.observations.Signal"):
        View(observe={"x": branches})  # type: ignore[arg-type]


# Scores


def result(losses: list[float], best: list[float] | None = None, start: float | None = None) -> Result:
    one = evaluate("constant:peak=0.1", TASKS[0], range(len(losses)), device="cpu")
    final = np.array(losses)
    return replace(
        one, final_test_loss=final, test_loss=np.array(losses if best is None else best), diverged=np.isinf(final)
    )


def outcome(lines: list[Line], seeds: int = 2, optimizers: Mapping[str, str] | None = None, **settings: Any) -> Outcome:
    labels, tasks = (list(dict.fromkeys(getattr(line, name) for line in lines)) for name in ("agent", "task"))
    entries = tuple(Entry(label, label, {}, {}) for label in labels)
    suite = Suite("own", tuple(tasks), entries, seeds, reference="r", **settings)
    has = dict.fromkeys(labels, Privileges(False, False, False, False))
    trained_with = dict.fromkeys(tasks, "sgd") | dict(optimizers or {})
    return Outcome(suite, trained_with, lines, has, {}, Records({}, {}), [], {})


def line(agent: str, task: str, losses: list[float] | None, start: float | None = None, **more: Any) -> Line:
    held = None if losses is None else result(losses)
    return Line(agent, task, start, {}, Runs(3), result=held, failure="it broke" * (losses is None), **more)


def row_of(scores: Scores, agent: str) -> Any:
    return next(row for row in scores.rows if row.agent == agent)


def test_scores_by_hand() -> None:
    """Task by task the geometric mean of ratios of runs of one seed, then that over tasks."""
    lines = [
        line("r", "t", [1.0, 4.0]), line("r", "u", [2.0, 2.0]), line("r", "v", [1.0, 1.0]),
        line("a", "t", [2.0, 2.0]), line("a", "u", [1.0, 4.0]), line("a", "v", [8.0, 2.0]),
    ]  # fmt: skip
    scores = scored(outcome(lines))
    a = row_of(scores, "a")
    assert a.tasks == pytest.approx({"t": 1.0, "u": 1.0, "v": 4.0})
    assert a.mean == pytest.approx(4 ** (1 / 3))
    assert a.p == pytest.approx(stats.ttest_1samp([0, 0, math.log(4)], 0).pvalue), "one agent needs no correction"
    assert a.low <= a.mean <= a.high
    assert row_of(scores, "r").mean == 1
    assert math.isnan(row_of(scores, "r").p)
    assert a.spent.tuning == 9
    assert [row.agent for row in scores.rows] == ["r", "a"], "the lowest first"


def test_p_values_are_corrected_for_the_number_of_agents() -> None:
    ratios = {"a": (0.5, 0.6, 0.55), "b": (0.9, 0.95, 0.97), "c": (0.5, 2.0, 1.0)}
    lines = [line("r", task, [1.0, 1.0]) for task in "tuv"]
    lines += [line(name, task, [x, x]) for name, xs in ratios.items() for task, x in zip("tuv", xs, strict=True)]
    scores = scored(outcome(lines))
    raw = [stats.ttest_1samp(np.log(xs), 0).pvalue for xs in ratios.values()]
    assert [row_of(scores, name).p for name in ratios] == pytest.approx(holm(np.array(raw)).tolist())


def test_divergence_and_failure_count_as_the_cap() -> None:
    lines = [
        line("r", "t", [1.0, 1.0]), line("r", "u", [1.0, 1.0]),
        line("a", "t", [1.0, math.inf]), line("a", "u", None), line("b", "t", [1e-9, 1e9]), line("b", "u", [1.0, 1.0]),
    ]  # fmt: skip
    scores = scored(outcome(lines, cap=4.0))
    a, b = row_of(scores, "a"), row_of(scores, "b")
    assert a.tasks == pytest.approx({"t": 2.0, "u": 4.0})
    assert (a.diverged, a.failures) == (1, ["u: it broke"])
    assert b.tasks["t"] == pytest.approx(1.0), "1 / cap and cap"
    nowhere = scored(outcome([*lines, line("c", "t", [math.nan, 1.0]), line("c", "u", [1.0, 1.0])], cap=4.0))
    assert row_of(nowhere, "c").tasks["t"] == pytest.approx(2.0), "no number is as bad as any"
    assert "a failed on u: it broke" in markdown(scores)


def test_the_worst_start() -> None:
    lines = [line("r", "t", [1.0, 1.0]), line("r", "u", [1.0, 1.0])]
    lines += [line("a", task, [x, x], start) for task in "tu" for start, x in ((0.1, 2.0), (0.01, 4.0), (0.2, 1.0))]
    a = row_of(scored(outcome(lines)), "a")
    assert (a.worst, a.worst_start) == (pytest.approx(4), 0.01)
    assert a.mean == pytest.approx(2)
    assert a.spent.tuning == 6, "what it was tuned by counts once for all starts"


def test_the_worst_start_of_one_that_failed_on_the_first_task() -> None:
    lines = [line("r", "t", [1.0, 1.0]), line("r", "u", [1.0, 1.0]), line("a", "t", None)]
    lines += [line("a", "u", [x, x], start) for start, x in ((0.1, 2.0), (0.01, 3.0))]
    a = row_of(scored(outcome(lines, cap=4.0)), "a")
    assert a.worst_start == 0.01
    assert a.worst == pytest.approx((4 * 3) ** 0.5)


def test_means_over_the_tasks_of_each_optimizer() -> None:
    losses = {"t": 2.0, "u": 8.0, "v": 0.5}
    lines = [line("r", task, [1.0, 1.0]) for task in losses]
    lines += [line("a", task, [x, x]) for task, x in losses.items()]
    scores = scored(outcome(lines, optimizers={"t": "adam", "u": "adam", "v": "momentum"}))
    parts = row_of(scores, "a").parts
    assert parts["adam"] == pytest.approx((4.0, 2.0, 8.0)), "the ends are those of two tasks"
    assert parts["momentum"][0] == pytest.approx(0.5)
    shown = markdown(scores)
    assert "| agent | adam, 2 tasks | momentum, 1 task |" in shown
    assert "| a | 4.000 (2.000 to 8.000) | 0.500 (-) |" in shown
    assert "| r | 1.000 | 1.000 |" in shown
    dead = [line(name, "s", [math.inf, math.inf]) for name in "ra"]
    without = scored(outcome([*dead, *lines], optimizers={"s": "adam", "t": "adam", "u": "adam", "v": "momentum"}))
    assert row_of(without, "a").parts["adam"] == pytest.approx((4.0, 2.0, 8.0)), "a task that isn't scored"
    alike = scored(outcome(lines))
    assert row_of(alike, "a").parts == {}
    assert "By the tasks' optimizers" not in markdown(alike)


def test_a_task_on_which_every_agent_dies() -> None:
    dead = [line(name, "u", [math.inf, math.inf]) for name in "ra"]
    lines = [line("r", "t", [1.0, 1.0]), line("a", "t", [2.0, 2.0]), *dead]
    scores = scored(outcome(lines))
    assert scores.tasks == ["t"]
    told = "Task u is not scored, for every agent failed there: 2 of 2 runs diverged."
    assert told in scores.notes
    assert told in markdown(scores)
    assert "One task has no interval over tasks and no p-value." in scores.notes
    with pytest.raises(ValueError, match="no task can be scored. Task u is not scored"):
        scored(outcome(dead))


def test_one_seed_has_no_interval() -> None:
    lines = [line(name, task, [x]) for task in "tu" for name, x in (("r", 1.0), ("a", 2.0))]
    scores = scored(outcome(lines, seeds=1))
    assert "One seed has no interval." in markdown(scores)
    assert math.isnan(row_of(scores, "a").low)
    shown = next(text for text in markdown(scores).splitlines() if text.startswith("| a |"))
    assert shown.split(" | ")[2] == "-"


def test_what_tuning_is_worth() -> None:
    """Draws with relative losses 4, 2 and 1: the best of one is their mean, that of three is 1."""
    lines = [line("r", "t", [1.0, 1.0]), line("z", "t", [1.9, 1.9])]
    record = {"val_loss": [0.4, 0.2, 0.1], "test_loss": [[4.0, 4.0], [2.0, 2.0], [1.0, 1.0]]}
    lines[1] = replace(lines[1], runs=Runs())
    held = outcome(lines, pool=3, budgets=(1, 2, 3, 9))
    scores = scored(replace(held, pools={("f", "t"): record}))
    found = budgets_of(scores)
    assert found is not None
    assert found.counts == [1, 2, 3]
    two = (math.log(1) * 2 + math.log(2)) / 3
    assert found.families["f"] == pytest.approx([2.0, math.exp(two), 1.0])
    assert found.worth == {"z": 2}
    assert "| z | 2 |" in markdown(scores)


def test_agents_without_tuning_against_the_best_family_of_each_task() -> None:
    """One family is best on the first task and the other on the second; the first of two draws is the better one."""
    lines = [line("r", task, [1.0, 1.0]) for task in ("t", "u")]
    lines += [replace(line("z", task, [loss, loss]), runs=Runs()) for task, loss in (("t", 1.0), ("u", 2.0))]
    pools = {
        (family, task): {"val_loss": [1.0, 2.0], "test_loss": [[loss], [2 * loss]]}
        for family, losses in (("f", (0.5, 3.0)), ("g", (0.7, 0.8))) for task, loss in zip("tu", losses, strict=True)
    }  # fmt: skip
    scores = scored(replace(outcome(lines, pool=2, budgets=(1, 2)), pools=pools))
    found = budgets_of(scores)
    assert found is not None
    assert found.each == pytest.approx([math.sqrt(2 * 0.5 * 0.8), math.sqrt(0.5 * 0.8)])
    mean, low, high = found.against["z"]
    assert mean == pytest.approx(math.sqrt(2 / 0.4))
    assert (low, high) == pytest.approx((2.0, 2.5))
    assert f"| z | {mean:.3f} | 2.000 to 2.500 |" in markdown(scores)


# Runs


def test_the_same_table_after_a_kill(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = counted(monkeypatch)
    whole = made(suite, tmp_path / "whole")
    number = len(begun)
    random = np.random.default_rng(0)
    for stop in (1, int(random.integers(2, number))):
        out = tmp_path / f"cut{stop}"
        counted(monkeypatch, stop)
        with pytest.raises(KeyboardInterrupt, match=rf"{stop} finished cells are saved"):
            made(suite, out)
        with (out / "cells.jsonl").open("ab") as file:
            file.write(b'{"cell": {"ta')  # as a kill leaves it
        rest = counted(monkeypatch)
        assert made(suite, out) == whole
        assert len(rest) == number - stop
        assert made(suite, out) == whole
        assert len(rest) == number - stop, "nothing runs twice"


def test_a_damaged_line_is_told(suite: Suite, tmp_path: Path) -> None:
    made(suite, tmp_path / "out")
    cells = tmp_path / "out" / "cells.jsonl"
    lines = cells.read_text().splitlines(keepends=True)
    cells.write_text("".join([*lines[:3], lines[3][:40] + "\n", *lines[4:]]))
    with pytest.raises(ValueError, match="damaged at line 4"):
        made(suite, tmp_path / "out")


def test_versions_are_not_mixed(suite: Suite, tmp_path: Path) -> None:
    made(suite, tmp_path / "out")
    cells = tmp_path / "out" / "cells.jsonl"
    header, *rest = cells.read_text().splitlines()
    other = json.loads(header)
    other["settings"]["versions"]["torch"] = "1.0"
    cells.write_text("\n".join([json.dumps(other), *rest]) + "\n")
    with pytest.raises(FileExistsError, match='versions\'s torch "1.0", now'):
        made(suite, tmp_path / "out")
    cells.write_text("\n".join([header, *rest, json.dumps(other)]) + "\n")
    with pytest.raises(ValueError, match="damaged at line"):
        made(suite, tmp_path / "out")
    with pytest.raises(FileExistsError, match="seeds 2, now 3"):
        made(replace(suite, seeds=3), tmp_path / "out")


def test_versions_of_agents_are_not_mixed(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("own", "universal", {}, {})
    suite = replace(suite, agents=(*suite.agents, entry))
    made(suite, tmp_path / "out")
    begun = counted(monkeypatch)
    made(suite, tmp_path / "out")
    assert begun == []
    monkeypatch.setattr("lrenv.agents.universal.agent.UniversalController.version", -1)
    made(suite, tmp_path / "out")
    assert set(begun) == {"own"}


def test_what_tells_versions_of_an_agent_apart() -> None:
    assert version_of(make_agent("cosine:peak=0.1")) == {}
    assert version_of(make_agent("universal")) == {"version": VERSION}
    package = mock.create_autospec(OptimizerAgent, instance=True)
    package.source.return_value = "momo-opt 9.9.9"
    assert version_of(package) == {"source": "momo-opt 9.9.9"}
    assert version_of(mock.Mock(version=lambda: 3)) == {}, "a method tells nothing"


def test_other_data_than_the_held_out_lists_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(held_out.DATA, "co2", "another")
    suite = Suite("own", ("held-out:name=co2-gru",), (Entry("r", "constant:peak=0.1", {}, {}),), 1, reference="r")
    with pytest.raises(ValueError, match="the data co2 .* are others than those of the held-out list"):
        run_suite(suite, tmp_path)


def test_what_was_found_for_another_version_of_ones_own_agent_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    source = "from lrenv import make_agent\ndef Mine(peak=0.1): return make_agent('constant', peak={})\n"
    searched = []
    for peak in ("peak", "peak", "2 * peak"):
        path.write_text(source.format(peak))
        searched.append(
            search_of(Entry("mine", f"{path}:Mine", {"peak": Axis((0.1, 0.2), factor=2.0)}, {})).about("grid", [0.1])
        )
    assert searched[0] == searched[1]
    assert searched[0] != searched[2]
    assert "files" not in search_of(Entry("constant", "constant:peak=0.1", {}, {})).about("grid", [0.1])


def test_records_of_searches_that_are_read_stay_as_they_are(suite: Suite, tmp_path: Path) -> None:
    """Without the end of its last line, a file is whole; records that were asked for outlive --overwrite."""
    made(suite, tmp_path / "out")
    records = tmp_path / "out" / "tuned.jsonl"
    text = records.read_bytes()
    records.write_bytes(text.removesuffix(b"\n"))
    assert len(Records.read(records).known) == text.count(b"\n")
    assert records.read_bytes() == text.removesuffix(b"\n")
    records.write_bytes(text[:-20])
    with pytest.raises(ValueError, match="is damaged at line"):
        Records.read(records)
    assert records.read_bytes() == text[:-20]
    records.write_bytes(text)

    def interrupted(*args: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on from there, without --overwrite"):
            made(suite, tmp_path / "out", records=records, overwrite=True)
    assert records.read_bytes() == text
    assert not (tmp_path / "out" / "table.md").exists()


def test_an_agent_that_fails_in_its_draws_leaves_the_others_alone(suite: Suite, tmp_path: Path) -> None:
    """On one task of two, an agent that is drawn alone, and one that has a row of its own, which is the reference."""
    whole = searches.evaluate

    def evaluate_but(agent: Any, task: Any, seeds: Any, **settings: Any) -> Result:
        if task.name == "noisy-quadratic" and settings["name"] in ("linear", "cosine") and len(seeds) > 4:
            raise KeyError("what it needs")
        return whole(agent, task, seeds, **settings)

    entry = Entry("cosine", "cosine", {}, {"peak": Range("log", (0.01, 1.0))})
    two = replace(suite, agents=(*suite.agents, entry))
    expected = {row.agent: row.mean for row in scored(run_suite(two, tmp_path / "whole", device="cpu")).rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searches, "evaluate", evaluate_but)
        found = run_suite(two, tmp_path / "out", device="cpu")
    assert set(found.undrawn) == {("linear", "noisy-quadratic"), ("cosine", "noisy-quadratic")}
    assert set(found.pools) == {("linear", "power-law-hard"), ("cosine", "power-law-hard")}
    scores = scored(found)
    assert {row.agent: row.mean for row in scores.rows} == expected
    text = markdown(scores)
    for agent in ("linear", "cosine"):
        assert re.search(f"No random draws of {agent} on noisy-quadratic: .*what it needs", text)
    save(scores, tmp_path / "out")


def test_what_searches_found_is_used_again(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(suite, tmp_path / "first")
    begun = counted(monkeypatch)
    records = tmp_path / "first" / "tuned.jsonl"
    assert made(suite, tmp_path / "second", records=records) == first
    assert sorted(set(begun)) == ["constant", "linear", "scaling", "untuned"]
    assert len(begun) == 2 * (1 + 1 + 2 + 1), "the runs that are reported, and no search"
    assert (tmp_path / "second" / "tuned.jsonl").read_bytes() == records.read_bytes()
    begun.clear()
    made(replace(suite, tuning_seeds=2), tmp_path / "third", records=records)
    assert len(begun) > 10, "searches on other seeds are others"


def test_results_say_what_they_came_from(suite: Suite, tmp_path: Path) -> None:
    made(suite, tmp_path)
    header, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert header["suite"] == "small"
    assert set(header) == {"suite", "seeds", "command", "machine", "commit", "versions"}
    assert len(lines) == 2 * (1 + 1 + 2 + 1)
    linear = lines[0]
    assert (linear["agent"], linear["task"], linear["start"]) == ("linear", "noisy-quadratic", None)
    assert linear["cost"]["runs"]["tuning"] >= 3
    assert linear["cost"]["tuning_seconds"] > 0
    assert linear["privileges"] == {"horizon": True, "validation": False, "gradients": False, "optimizer": False}
    assert len(linear["final_test_loss"]) == len(linear["test_loss"]) == 2
    own = evaluate(f"linear:peak={linear['settings']['peak']}", TASKS[0], [0, 1], device="cpu")
    assert linear["final_test_loss"] == pytest.approx(own.final_test_loss.tolist(), rel=1e-5)
    scaling = [line for line in lines if line["agent"] == "scaling"]
    assert [line["start"] for line in scaling] == [0.01, 0.1] * 2
    for line in scaling[:2]:
        own = evaluate("scaling", TASKS[0], [0, 1], initial_lr=line["start"], device="cpu")
        assert line["final_test_loss"] == pytest.approx(own.final_test_loss.tolist(), rel=1e-5)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert {row["agent"]: row["horizon"] for row in rows}["linear"] == "1"
    assert float(next(row for row in rows if row["agent"] == "linear")["mean"]) == 1.0
    text = (tmp_path / "table.md").read_text()
    assert text.index("## Horizon known") < text.index("| linear |") < text.index("## Horizon unknown")
    assert json.loads((tmp_path / "budgets.json").read_text())["counts"] == [1, 2, 4]


def test_reported_runs_have_the_weight_decay_that_was_found(suite: Suite, tmp_path: Path) -> None:
    spec = "digits-logreg:budget=4:interval=4:optimizer=adamw"
    some = chosen(replace(suite, pool=0, weight_decay=(5.0, 9.0)), ["linear"], [spec])
    (found,) = run_suite(some, tmp_path, device="cpu").lines
    assert found.result is not None
    task = make_task(spec, weight_decay=found.settings["weight_decay"])
    own = evaluate(f"linear:peak={found.settings['peak']}", task, [0, 1], device="cpu")
    np.testing.assert_allclose(found.result.final_test_loss, own.final_test_loss, rtol=1e-5)


def test_an_agent_with_draws_alone_is_in_their_table_alone(suite: Suite, tmp_path: Path) -> None:
    entry = entry_of("cosine", {"draws": {"peak": {"log": [0.01, 1.0]}}})
    found = run_suite(replace(suite, agents=(*suite.agents, entry), draw_seeds=1), tmp_path, device="cpu")
    assert "cosine" not in {line.agent for line in found.lines}
    assert {len(losses) for record in found.pools.values() for losses in record["test_loss"]} == {1}
    budgets = budgets_of(scored(found))
    assert budgets is not None
    assert set(budgets.families) == {"linear", "cosine"}
    for given, message in (
        ({"draw_seeds": 3}, "draw_seeds=3 are more than seeds=2: lower draw_seeds"),
        ({"agents": (*suite.agents, entry), "pool": 0}, "agents.cosine has draws and no grid.*set pool"),
        ({"agents": (*suite.agents, entry), "reference": "cosine"}, "the reference, cosine, must be run.*a grid"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(replace(suite, **given))  # type: ignore[arg-type]


def test_a_missing_package_is_told(suite: Suite, tmp_path: Path) -> None:
    names = "a_package_that_nobody_has", "a_package_that_nobody_has.part"
    entries = [Entry(f"absent{i}", "constant:peak=0.1", {}, {}, needs=name) for i, name in enumerate(names)]
    found = run_suite(replace(suite, agents=(*suite.agents, *entries), pool=0), tmp_path, device="cpu")
    for entry, name in zip(entries, names, strict=True):
        assert f"Agent {entry.label} is left out: the package {name} is not installed." in markdown(scored(found))
        assert entry.label not in [line.agent for line in found.lines]


@pytest.mark.parametrize("agent", ["no_such_file.py:Mine", "no_such_file.safetensors"])
def test_a_missing_file_of_an_agent_stops_a_suite(suite: Suite, agent: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="agent 'absent' can't be made: .*no_such_file"):
        run_suite(
            replace(suite, agents=(*suite.agents, Entry("absent", agent, {}, {}))), tmp_path / "out", device="cpu"
        )
    assert not (tmp_path / "out").exists()


def test_missing_data_are_told(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRENV_DATA", str(tmp_path / "none"))
    found = run_suite(replace(suite, tasks=(*suite.tasks, "svhn-mlp20"), pool=0), tmp_path / "out", device="cpu")
    assert any(text.startswith("Task svhn-mlp20 is left out: ") for text in scored(found).notes)


def test_an_agent_that_fails_leaves_the_others_alone(suite: Suite, tmp_path: Path) -> None:
    broken = replace(suite, agents=(*suite.agents, entry_of("broken", {})), pool=0)
    found = scored(run_suite(broken, tmp_path, device="cpu"))
    assert row_of(found, "broken").mean == pytest.approx(suite.cap)
    assert "predict raised KeyError" in markdown(found)
    assert row_of(found, "linear").mean == 1


def test_targets_that_do_not_fit_are_told_before_anything_runs(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task 'digits-mlp:loss=mse' can't be made: loss 'mse' needs targets"):
        run_suite(replace(suite, tasks=(*suite.tasks, "digits-mlp:loss=mse")), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_two_versions_of_a_task_have_names_of_their_own(suite: Suite, tmp_path: Path) -> None:
    tasks = ("noisy-quadratic:budget=10:interval=5", "noisy-quadratic:budget=20:interval=5")
    found = run_suite(chosen(replace(suite, pool=0), ["linear"], tasks), tmp_path, device="cpu")
    assert list(found.tasks) == list(tasks)


def test_agents_beside_the_suite_have_their_own_grids(suite: Suite, tmp_path: Path) -> None:
    some = chosen(replace(suite, pool=0), ["exponential", "constant:peak=0.1"], TASKS[:1])
    found = run_suite(some, tmp_path, device="cpu")
    assert {line.agent: line.runs.tuning > 0 for line in found.lines} == {
        "exponential": True, "constant:peak=0.1": False, "linear": True
    }  # fmt: skip


def test_settings_from_a_run_of_another_agent(tmp_path: Path) -> None:
    """Refined by a run of linear decay as tuned: the same numbers as by hand, and what it took is counted."""
    path = tmp_path / "after.toml"
    path.write_text(TEXT + '[agents.refined]\nafter = "linear"\ngrid = { peak = "peak" }\n')
    suite = chosen(read_suite(path), ["refined"])
    assert [entry.label for entry in suite.agents] == ["refined", "linear"]
    outcome = run_suite(suite, tmp_path / "out", device="cpu")
    lines = {(line.agent, line.task): line for line in outcome.lines}
    for spec in TASKS:
        task = make_task(spec)
        line, first = lines["refined", task.name], lines["linear", task.name]
        agent = refine(make_agent("linear", **first.settings), task, **line.settings)
        by_hand = evaluate(agent, task, seeds_for("report", 2), device="cpu")
        assert line.result is not None
        np.testing.assert_array_equal(line.result.final_test_loss, by_hand.final_test_loss)
        combinations = sum(r["runs"] for r in outcome.records.used.values() if r["task"] == task.name and "runs" in r)
        assert line.runs.tuning == combinations + 1
    assert not any("norms" in line.settings for line in outcome.lines)  # hundreds of numbers
    again = run_suite(suite, tmp_path / "again", tmp_path / "tuned.jsonl", device="cpu")
    assert [line.settings for line in again.lines] == [line.settings for line in outcome.lines]


def test_random_draws_of_an_agent_that_comes_after_another(tmp_path: Path) -> None:
    """They have the settings of the other one's run, too: a draw of the tuned settings ends like the reported runs."""
    path = tmp_path / "after.toml"
    path.write_text(TEXT + '[agents.refined]\nafter = "linear"\ngrid = { peak = [0.1] }\ndraws = { peak = [0.1] }\n')
    outcome = run_suite(chosen(read_suite(path), ["refined"], TASKS[:1]), tmp_path / "out", device="cpu")
    (line,) = (line for line in outcome.lines if line.agent == "refined")
    assert line.result is not None
    np.testing.assert_allclose(
        outcome.pools["refined", line.task]["test_loss"], [line.result.final_test_loss] * 4, rtol=1e-5
    )


def test_what_a_suite_says_counts_more_than_another_run(tmp_path: Path) -> None:
    """In the search as in the reports: exponent=1 for SGD, of whose runs an exponent of 2 would follow."""
    path = tmp_path / "after.toml"
    path.write_text(
        TEXT + '[agents.refined]\nagent = "refined:exponent=1.0"\nafter = "linear"\ngrid = { peak = [0.1] }\n'
    )
    outcome = run_suite(chosen(read_suite(path), ["refined"], TASKS[:1]), tmp_path / "out", device="cpu")
    lines = {line.agent: line for line in outcome.lines}
    task = make_task(TASKS[0])
    norms = record_norms(make_agent("linear", **lines["linear"].settings), task)
    agent = make_agent("refined", norms=norms, peak=0.1, exponent=1.0)
    by_hand = evaluate(agent, task, seeds_for("tuning", 1), device="cpu")
    (tuned,) = (x for x in outcome.records.used.values() if x["search"] == "grid" and x["agent"] == "refined")
    assert tuned["val_loss"] == pytest.approx(float(by_hand.final_val_loss.mean()))


def test_what_the_reference_comes_after_takes_part_too(tmp_path: Path) -> None:
    path = tmp_path / "after.toml"
    path.write_text(f'reference = "refined"{TEXT}[agents.refined]\nafter = "linear"\ngrid = {{ peak = "peak" }}\n')
    assert [entry.label for entry in chosen(read_suite(path), ["untuned"]).agents] == ["untuned", "linear", "refined"]


@pytest.mark.parametrize(("draws", "message"), [
    ("{ peak = [-1.0, 0.1] }", "peak"), ("{ peak = { uniform = [0.1, -0.0] } }", "must be"),
    ("{ peak = { uniform = [-0.1, 0.1] } }", "peak"), ("{ foo = [0.1] }", "foo"),
])  # fmt: skip
def test_draws_that_an_agent_does_not_take_are_told_before_anything_runs(
    tmp_path: Path, draws: str, message: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'{TEXT}[agents.late]\nagent = "cosine"\ngrid = {{ peak = [0.1] }}\ndraws = {draws}\n')
    with pytest.raises(ValueError, match=message):
        run_suite(read_suite(path), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tables", [
    '[agents.late]\nagent = "constant"\nafter = "linear"\ngrid = { peak = [0.1] }',
    '[agents.refined]\nafter = "untuned"\ngrid = { peak = [0.1] }', '[agents.refined]\nafter = "linear"',
    '[agents.refined]\nafter = "liner"\ngrid = { peak = [0.1] }',
    '[agents.refined]\nafter = "linear"\ngrid = { peak = [0.1], norms = [1.0] }',
])  # fmt: skip
def test_agents_that_cannot_come_after_another(tmp_path: Path, tables: str) -> None:
    path = tmp_path / "after.toml"
    path.write_text(f"{TEXT}{tables}\n")
    with pytest.raises(ValueError, match="after"):
        run_suite(read_suite(path), tmp_path / "out", device="cpu")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    words = ["benchmark", "--suite", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--agents", "constant", "--tasks", TASKS[0], "--seeds", "1"]
    assert run(COMMANDS, "", words) == 0
    printed = capsys.readouterr().out
    assert "# Benchmark small" in printed
    assert "One seed has no interval." in printed
    (tmp_path / "out" / "tuned.jsonl").rename(tmp_path / "small.tuned.jsonl")
    assert run(COMMANDS, "", [*words, "--retune"]) == 0, "the same settings, so it goes on from there"
    assert run(COMMANDS, "", words) == 2
    assert "other settings: tuned null, now" in capsys.readouterr().err
    assert run(COMMANDS, "", [*words, "--tuned", str(tmp_path / "no.jsonl")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_the_command_tells_who_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    words = ["benchmark", "--suite", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run(COMMANDS, "", [*words, "--agents", "untuned,broken", "--tasks", TASKS[0], "--seeds", "1"]) == 2
    told = capsys.readouterr()
    assert "| untuned |" in told.out, "the others are scored"
    assert (tmp_path / "out" / "table.md").exists()
    assert told.err.endswith(
        "\nerror: broken on noisy-quadratic failed, as the table says; the same command tries again, and keeps what "
        "has run\n"
    )


def test_every_number_of_a_table_comes_from_the_lines(suite: Suite, tmp_path: Path) -> None:
    """By a second way: the means of the CSV from the JSON lines."""
    made(suite, tmp_path)
    _, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    references = {x["task"]: np.array(x["final_test_loss"]) for x in lines if x["agent"] == "linear"}
    for row in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())):
        own = [x for x in lines if x["agent"] == row["agent"]]
        starts = len({x["start"] for x in own})
        logs = [np.log(np.clip(x["final_test_loss"] / references[x["task"]], 0.1, 10)) for x in own]
        assert float(row["mean"]) == pytest.approx(stats.gmean(np.exp(np.mean(logs, 1)))), (row["agent"], starts)


def test_arrays_of_results_are_cut_by_name() -> None:
    whole = evaluate("constant:peak=0.1", TASKS[0], range(4), device="cpu")
    part = searches._rows(replace(whole, curves={}), slice(1, 3), 4)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[1:3])
    assert part.seconds == pytest.approx(whole.seconds / 2)


def test_a_weight_decay_that_the_agent_was_given_is_its_own(tmp_path: Path) -> None:
    """Neither the suite's list nor the task's takes its place."""
    (tmp_path / "shy.py").write_text(
        "import numpy as np\n"
        "from lrenv.agents import BaseAgent, View\n"
        "class Shy(BaseAgent):\n"
        "    view = View(control='set-raw', observe='clock')\n"
        "    def __init__(self, peak=0.1, weight_decay=0.0):\n"
        "        self.rate = np.asarray(peak) * (1 - np.asarray(weight_decay))\n"
        "    def act(self, observation, carry):\n"
        "        return np.broadcast_to(self.rate, len(observation))[:, None], carry\n"
    )
    text = f"""
seeds = 1
tuning_seeds = 1
weight_decay = [0.0, 0.5]
reference = "plain"
tasks = ["digits-mlp:budget=20:interval=10:optimizer=adamw"]
[agents.plain]
agent = "{tmp_path}/shy.py:Shy:peak=0.01"
[agents.own]
agent = "{tmp_path}/shy.py:Shy:peak=0.1:weight_decay=0.9"
[agents.grid]
agent = "{tmp_path}/shy.py:Shy"
grid = {{ peak = [0.1], weight_decay = [0.9] }}
"""
    (tmp_path / "suite.toml").write_text(text)
    outcome = run_suite(read_suite(tmp_path / "suite.toml"), tmp_path / "out", device="cpu")
    losses = {line.agent: line.result.final_test_loss.tolist() for line in outcome.lines if line.result is not None}
    assert losses["own"] == losses["grid"] == pytest.approx(losses["plain"])
    assert next(line.settings for line in outcome.lines if line.agent == "grid") == {"peak": 0.1, "weight_decay": 0.9}


def test_an_extension_that_fails_leaves_the_best_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Any) -> float:
        if x["peak"] > 0.5:
            raise AgentError("too high")
        return -float(x["peak"])

    valley(monkeypatch, fails)
    found = grid_search(search_of(Entry("constant", "constant", {"peak": Axis((0.1, 0.2, 0.4), factor=2.0)}, {})))
    assert found["settings"]["peak"] == 0.4
    assert not found["inside"]
