"""Comparisons: honest statistics, labels that tell rows apart, files that parse, and mistakes found before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from lrenv.agents import BaseAgent, View, make_agent
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.benchmark import Comparison, compare, comparison, evaluate, tune, wording
from lrenv.benchmark.contenders import contenders_of
from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.report import save_report
from lrenv.benchmark.statistics import mean_std, paired, paired_t, welch
from lrenv.benchmark.wording import cells
from lrenv.data import registry
from lrenv.training.tasks import LogUniform, Task, make_task

NOISY = make_task("noisy-quadratic", budget=20, interval=5)
PNG = b"\x89PNG\r\n\x1a\n"


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for n, m in ((3, 3), (10, 4), (2, 30)):
        a, b = rng.normal(0, 1, n), rng.normal(0.5, 3, m)
        assert welch(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-12)
        assert welch(a, b) == pytest.approx(welch(b, a))
    single = (2.3 + 1e-4 * rng.normal(size=(2, 10))).astype(np.float32)  # as optimizers of other packages give
    exact = stats.ttest_ind(*single.astype(np.float64), equal_var=False).pvalue
    assert welch(*single) == pytest.approx(exact, rel=1e-12)
    assert mean_std(single[0]) == pytest.approx(mean_std(single[0].astype(np.float64)), rel=1e-12)


def test_welch_by_hand() -> None:
    """Means 2 and 4, variances 1 and 4 over three: t = -2 / sqrt(5/3), and Welch and Satterthwaite's 50/17 degrees."""
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    t, degrees = -2 / math.sqrt(5 / 3), (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    assert degrees == pytest.approx(50 / 17)
    grid = np.linspace(-200, t, 2_000_001)
    density = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    tail = float(np.trapezoid(density * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2), grid))
    assert welch(a, b) == pytest.approx(2 * tail, rel=1e-4)


def test_pairs_are_told_apart_where_groups_are_not() -> None:
    """Against SciPy's test of two related samples, and by hand."""
    baseline = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    ours = baseline - np.array([0.02, 0.01, 0.02, 0.03, 0.02])
    assert paired_t(ours - baseline) == pytest.approx(stats.ttest_rel(ours, baseline).pvalue, rel=1e-9)
    # t = 0.02 / (0.007071 / sqrt(5)) = 6.325 with 4 degrees of freedom.
    assert paired_t(ours - baseline) == pytest.approx(2 * stats.t.sf(6.3246, 4), rel=1e-4)
    assert welch(ours, baseline) > 0.9
    assert paired_t(np.zeros(3)) == 1.0
    assert paired_t(np.full(3, 0.1)) == 0.0
    assert math.isnan(paired_t(np.ones(1)))
    assert math.isnan(paired_t(np.array([1.0, -np.inf])))


def test_welch_at_its_edges() -> None:
    same, other = np.array([1.0, 1.0]), np.array([2.0, 2.0])
    assert welch(same, same) == 1.0
    assert welch(same, other) == 0.0
    assert math.isnan(welch(np.array([1.0]), other))
    assert math.isnan(welch(other, np.array([1.0])))
    assert math.isnan(welch(other, np.array([1.0, np.inf])))
    assert math.isnan(paired(np.array([np.inf, 1.0]), np.array([np.inf, 2.0])))
    almost = np.array([0.3, 0.3, np.nextafter(0.3, 1)])
    assert max(welch(almost, almost - 0.2), paired(almost, almost - np.array([0.2, 0.2, 0.1]))) < 0.1
    assert paired(almost, np.array([0.1, 0.1, np.nextafter(0.1, 1)])) < 1e-9, "a difference up to rounding"


def test_mean_and_deviation() -> None:
    assert mean_std(np.array([1.0, 2.0, 6.0])) == pytest.approx((3.0, math.sqrt((4 + 1 + 9) / 2)))
    mean, std = mean_std(np.array([5.0]))
    assert mean == 5.0
    assert math.isnan(std)


@pytest.fixture(scope="module")
def compared() -> Comparison:
    task = make_task("digits-logreg", budget=40, interval=20)
    return compare(
        task,
        ["constant:peak=0.01", "cosine", "exponential:peak=0.1:decay=0.1"],
        3,
        tuning_seeds=(10_000,),
        device="cpu",
    )


def test_a_comparison_is_its_evaluations(compared: Comparison) -> None:
    constant, cosine, exponential = compared.rows
    tuned = tune("cosine", compared.task, (10_000,), device="cpu")
    for row, agent in (
        (constant, make_agent("constant", peak=0.01)),
        (cosine, make_agent("cosine", **tuned.settings)),
        (exponential, make_agent("exponential", peak=0.1, decay=0.1)),
    ):
        assert row.result is not None
        np.testing.assert_array_equal(
            row.result.test_loss, evaluate(agent, compared.task, range(3), device="cpu").test_loss
        )
    assert [str(row.runs) for row in compared.rows] == ["0", str(len(tuned.combinations)), "0"]
    assert [row.label for row in compared.rows] == ["constant", "cosine", "exponential"]
    assert (constant.settings, exponential.settings) == ("peak=0.01", "peak=0.1, decay=0.1")
    assert compared.baseline == "constant"
    assert constant.paired is None
    assert constant.result is not None
    assert cosine.result is not None
    assert cosine.welch == stats.ttest_ind(cosine.result.test_loss, constant.result.test_loss, equal_var=False).pvalue
    assert cosine.paired == pytest.approx(
        stats.ttest_rel(cosine.result.test_loss, constant.result.test_loss).pvalue, rel=1e-4
    )


def test_files_hold_every_run(compared: Comparison, tmp_path: Path) -> None:
    page = save_report(compared, tmp_path / "a" / "out")
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "comparison.png", "report.html", "results.jsonl", "summary.json",
    ]  # fmt: skip
    runs = [strict(line) for line in (page.parent / "results.jsonl").read_text().splitlines()]
    assert [(run["agent"], run["seed"]) for run in runs] == [
        (row.label, seed) for row in compared.rows for seed in range(3)
    ]
    results = [row.result for row in compared.rows if row.result is not None]
    np.testing.assert_allclose([run["test_loss"] for run in runs[3:6]], results[1].test_loss)
    summary = strict((page.parent / "summary.json").read_text())
    assert [row["agent"] for row in summary] == ["constant", "cosine", "exponential"]
    assert summary[0]["test_loss"]["mean"] == pytest.approx(float(results[0].test_loss.mean()))
    assert summary[1]["runs_spent"] == {"tuning": 22, "training": 0, "selection": 0}
    assert [row["p_welch"] for row in summary] == [row.welch for row in compared.rows]
    assert (page.parent / "comparison.png").read_bytes().startswith(PNG)


def test_divergence_and_single_runs_are_shown(tmp_path: Path) -> None:
    """No accuracy, no deviation, no p-value, curves with holes, and losses beyond every scale."""
    odd = compare(NOISY, ["constant:peak=0.1", "step:peak=1e38:discount_step=9:discount_factor=0.5"], 1, device="cpu")
    page = save_report(odd, tmp_path)
    summary = strict((tmp_path / "summary.json").read_text())
    assert "test_accuracy" not in summary[0]
    assert summary[1]["final_test_loss"] == {"mean": None, "std": None}, "a run that diverged ends infinitely bad"
    assert cells(odd.rows[1], odd)["final_test_loss"] == "inf"
    assert summary[1]["diverged"] == 1
    assert [strict(line)["diverged"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == [False, True]
    assert [(entries["p"], entries["metric"]) for entries in (cells(row, odd) for row in odd.rows)] == [("-", "-")] * 2
    assert odd.best == []
    text = page.read_text()
    assert "One seed tells no agents apart" in text
    assert "nan" not in text


def controller(path: Path, hidden: int = 4, control: str = "scale", **metadata: Any) -> str:
    architecture = Architecture(8, 1, (), hidden)
    with torch.random.fork_rng():
        torch.manual_seed(hidden)
        policy = architecture.build()
    PPOController(policy, np.zeros(8), np.ones(8), View(control), architecture).save(path, metadata)
    return str(path)


def test_agents_that_scale_the_rate_get_a_row_from_each_start(tmp_path: Path) -> None:
    path = controller(tmp_path / "c.safetensors")
    table = compare(NOISY, ["constant:peak=0.1", path], 2, initial_lrs=(0.1, 0.01), device="cpu")
    assert [row.label for row in table.rows] == ["constant", "ppo from 0.1", "ppo from 0.01"]
    assert [row.result.curves["lr"][0].tolist() for row in table.rows[1:] if row.result is not None] == [
        pytest.approx([0.1, 0.1]), pytest.approx([0.01, 0.01]),
    ]  # fmt: skip
    scaled = compare(NOISY, [path], 2, initial_lrs=(0.1, 0.01), device="cpu")
    assert scaled.baseline == "ppo from 0.1", "p-values refer to one row"
    assert [row.paired is None for row in scaled.rows] == [True, False]


def test_the_tasks_own_initial_rates_are_never_mixed(tmp_path: Path) -> None:
    """A row from each rate, which is the row that asking for the rate gives; of a range the runs draw theirs."""
    path = controller(tmp_path / "c.safetensors")
    table = compare(NOISY, ["constant:peak=0.1", path], 3, device="cpu")
    assert [row.label for row in table.rows] == ["constant", "ppo from 1", "ppo from 0.1", "ppo from 0.01"]
    asked = compare(NOISY, [path], 3, initial_lrs=(0.01,), device="cpu").rows[0].result
    assert asked is not None
    assert table.rows[3].result is not None
    np.testing.assert_array_equal(table.rows[3].result.test_loss, asked.test_loss)
    near = compare(NOISY, [path], 1, initial_lrs=(0.1, 0.1 + 1e-9), device="cpu")
    assert [row.label for row in near.rows] == ["ppo from 0.1", "ppo from 0.100000001"]
    ranged = make_task(NOISY, initial_lr=LogUniform(1e-3, 1e-1))
    drawn = compare(ranged, ["constant:peak=0.1", path], 3, device="cpu")
    assert [row.label for row in drawn.rows] == ["constant", "ppo from 0.001 to 0.1"]
    assert drawn.rows[1].result is not None
    rates = drawn.rows[1].result.curves["lr"][0]
    assert len(set(rates)) == 3
    assert ((rates >= 1e-3) & (rates <= 1e-1)).all()
    text = save_report(drawn, tmp_path / "out").read_text()
    assert "each run&#x27;s initial rate is drawn from the task&#x27;s range" in text


def test_what_an_agent_cost_is_told_whole(tmp_path: Path) -> None:
    files = [
        controller(tmp_path / "a.safetensors", runs={"training": 8, "selection": 6}),
        controller(tmp_path / "b.safetensors", episodes=8),
    ]
    table = compare(
        NOISY, [*files, "metz2019-cpu", "constant"], 1, initial_lrs=(0.1,), tuning_seeds=(10_000, 10_001), device="cpu"
    )
    assert [str(row.runs) for row in table.rows][:2] == ["14", "8 and those of selection, not recorded"]
    assert table.rows[2].runs.training > 0, "a controller that comes along was trained, too"
    assert [vars(row.runs) for row in table.rows[::3]] == [
        {"tuning": 0, "training": 8, "selection": 6}, {"tuning": 30, "training": 0, "selection": 0},
    ]  # fmt: skip


def test_labels_are_distinct(tmp_path: Path) -> None:
    specs = ["constant:peak=0.1", "constant:peak=0.2", *(controller(tmp_path / f"{h}.safetensors", h) for h in (4, 5))]
    labels = [row.label for row in compare(NOISY, specs, 1, initial_lrs=(0.1,), device="cpu").rows]
    assert labels == [*specs[:2], "4.safetensors from 0.1", "5.safetensors from 0.1"]


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (("a/controller", "b/controller"), ("a", "b")),
        (("x/a/controller", "y/a/controller", "b/controller"), ("x/a", "y/a", "b")),
        (("a/controller", "a/other"), ("a", "other.safetensors")),
        (("x/constant/controller", "x/b/controller"), ("x/constant", "x/b")),
        (("a/controller",), ("ppo",)),
    ],
)
def test_files_are_told_apart_by_the_ends_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        controller(Path(f"{file}.safetensors"))
    found = contenders_of(["constant:peak=0.1", *(f"{file}.safetensors" for file in files)])
    assert [contender.label for contender in found] == ["constant", *labels]


def test_agents_are_given_as_objects_beside_specs(tmp_path: Path) -> None:
    """With the numbers of their specs; a row from each start where they scale the rate."""
    path = controller(tmp_path / "c.safetensors")
    asked = compare(NOISY, ["constant:peak=0.1", path], 2, initial_lrs=(0.1, 0.01), device="cpu")
    given = compare(
        NOISY, [make_agent("constant", peak=0.1), make_agent(path), "linear:peak=0.1"], 2, initial_lrs=(0.1, 0.01),
        device="cpu",
    )  # fmt: skip
    names = ["constant(peak=0.1, warmup=0)", "ppo from 0.1", "ppo from 0.01", "linear"]
    assert [row.label for row in given.rows] == names
    assert given.baseline == names[0]
    for one, other in zip(asked.rows, given.rows, strict=False):
        assert one.result is not None
        assert other.result is not None
        np.testing.assert_array_equal(one.result.test_loss, other.result.test_loss)


def test_labels_that_are_given() -> None:
    given = {
        "slow": make_agent("constant", peak=0.01),
        "also slow": make_agent("constant", peak=0.01),
        "fast": "constant",
    }
    table = compare(NOISY, given, 2, baseline="fast", tuning_seeds=(10_000,), device="cpu")
    assert [row.label for row in table.rows] == ["slow", "also slow", "fast"]
    assert table.baseline == "fast"
    assert [row.paired is None for row in table.rows] == [False, False, True]
    assert table.rows[2].settings.startswith("peak="), "a bare name is tuned, whatever it is called"


def test_agents_as_objects_are_checked_before_any_work() -> None:
    agent = make_agent("constant", peak=0.1)
    with pytest.raises(ValueError, match=r"named twice: constant\(.*\); give each a label, as in"):
        compare(NOISY, [agent, agent], 1, device="cpu")
    with pytest.raises(ValueError, match="agent '3' must have a `view`"):
        compare(NOISY, ["constant:peak=0.1", 3], 1, device="cpu")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="out is empty"):
        compare(NOISY, [agent], 1, device="cpu", out="")


def test_runs_of_objects_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells in another process that an object is the same; those of specs are."""
    ran: list[str] = []

    def counted(agent: Any, task: Any, seeds: Any, **settings: Any) -> Result:
        ran.append(settings["name"])
        return evaluate(agent, task, seeds, **settings)

    monkeypatch.setattr(comparison, "evaluate", counted)
    for peak, expected in ((0.1, ["mine", "linear"]), (0.2, ["mine"])):
        ran.clear()
        given = {"mine": make_agent("constant", peak=peak), "linear": "linear:peak=0.1"}
        table = compare(NOISY, given, 2, device="cpu", out=tmp_path)
        assert ran == expected
        result = table.rows[0].result
        assert result is not None
        np.testing.assert_array_equal(result.curves["lr"][1:], np.float32(peak))
    with pytest.raises(FileExistsError, match="labels's linear:peak=0.1 .*linear.*now .*other"):
        compare(NOISY, {"mine": given["mine"], "other": "linear:peak=0.1"}, 2, device="cpu", out=tmp_path)


def test_a_change_of_ones_own_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agents, tasks = tmp_path / "my_agents.py", tmp_path / "my_tasks.py"
    agents.write_text("from lrenv import make_agent\ndef Mine(peak=0.1): return make_agent('constant', peak=peak)\n")
    tasks.write_text("from lrenv import make_task\nmine = make_task('noisy-quadratic', budget=20)\n")

    def again() -> Comparison:
        return compare("my_tasks.py:mine", "my_agents.py:Mine,linear:peak=0.1", 2, device="cpu", out=tmp_path / "out")

    assert [row.label for row in again().rows] == ["Mine", "linear"]
    again()
    for path, name in ((agents, "my_agents.py:Mine"), (tasks, "task")):
        before = path.read_text()
        path.write_text(before + "# changed\n")
        with pytest.raises(FileExistsError, match=f"files's {name} .*, now "):
            again()
        path.write_text(before)
    again()


def test_a_change_of_ones_own_data_or_network_is_noticed(tmp_path: Path, make_blobs: Any) -> None:
    """What their functions read from elsewhere, which is not in the functions."""
    held: dict[str, Any] = {"data": make_blobs(), "width": 3}

    def again() -> Comparison:
        task = Task(
            name="mine", data=lambda: held["data"], budget=10, batch_size=8,
            network=lambda shape, classes: nn.Sequential(
                nn.Linear(shape[0], held["width"]), nn.ReLU(), nn.Linear(held["width"], classes)
            ),
        )  # fmt: skip
        return compare(task, "linear:peak=0.1", 2, device="cpu", out=tmp_path)

    again()
    again()
    for change, name in (({"data": make_blobs(train=40)}, "data"), ({"width": 4}, "network")):
        before = held.copy()
        held.update(change)
        with pytest.raises(FileExistsError, match=f"{name} .*, now "):
            again()
        held.update(before)
    again()


def test_other_files_of_a_data_set_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRENV_DATA", str(tmp_path / "data"))

    def draw(grey: int) -> None:
        monkeypatch.setattr(registry, "_LOADED", {})  # as in another process
        for label in range(2):
            (tmp_path / "images" / str(label)).mkdir(parents=True, exist_ok=True)
            for number in range(30):
                image = np.full((4, 4), grey + 100 * label + number, np.uint8)
                Image.fromarray(image).save(tmp_path / "images" / str(label) / f"{number}.png")

    def again() -> Comparison:
        options = {"path": str(tmp_path / "images"), "channels": 1}
        task = make_task("digits-mlp", data="folder", budget=4, batch_size=8, **options)
        return compare(task, "linear:peak=0.1", 2, device="cpu", out=tmp_path / "out")

    draw(0)
    again()
    again()
    draw(50)
    with pytest.raises(FileExistsError, match="contents's data .*, now "):
        again()
    draw(0)
    again()


def test_what_tunes_does_not_report() -> None:
    with pytest.raises(ValueError, match="tuning_seeds and the seeds of the report share 2"):
        compare(NOISY, "linear", 3, tuning_seeds=[2, 10_000], device="cpu")


def test_ones_own_agent_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("class Mine:\n    def __init__(self):\n        raise RuntimeError('no such memory')\n")
    with pytest.raises(ValueError, match=r"Mine' raised RuntimeError: no such memory .*own.py:3.* when it was made"):
        make_agent(f"{path}:Mine")


def test_who_is_measured_less_often_is_told() -> None:
    class Still(BaseAgent[tuple[()]]):
        def __init__(self, interval: int) -> None:
            self.view = View("set-raw", "clock", interval)

        def act(self, observation: Any, carry: tuple[()]) -> Any:
            return np.full((len(observation), 1), 0.1), carry

    often, seldom = Still(5), Still(10)
    told = wording.caption(compare(NOISY, {"often": often, "seldom": seldom}, 2, device="cpu"))
    assert "Less often than others are measured: seldom (every 10 steps). " in told
    odd = wording.caption(compare(NOISY, {"every third": Still(3), "often": often}, 2, device="cpu"))
    assert "measured: every third (every 6 steps)." in odd, "of what it acts after, the first multiple from 5 on"
    for agents in ({"often": often}, {"seldom": seldom}, {"often": often, "linear": "linear:peak=0.1"}):
        assert "Less often" not in wording.caption(compare(NOISY, agents, 2, device="cpu"))


def test_ones_own_agents_are_tuned(tmp_path: Path) -> None:
    path = tmp_path / "my_agents.py"
    path.write_text(
        "from lrenv import make_agent\ndef Mine(peak): return make_agent('constant', peak=peak)\n"
        "Mine.grid = {'peak': (1e38, 0.1)}\n"
    )
    row = compare(NOISY, f"{path}:Mine", 2, tuning_seeds=(10_000,), device="cpu").rows[0]
    assert (row.label, row.settings, row.runs.tuning) == ("Mine", "peak=0.1", 2)


def test_the_baseline() -> None:
    two = ["constant:peak=0.1", "linear:peak=0.1"]
    assert compare(NOISY, two, 2, device="cpu").baseline == "constant"
    chosen = compare(NOISY, two, 2, baseline="linear:peak=0.1", device="cpu")
    assert chosen.baseline == "linear"
    assert [row.paired is None for row in chosen.rows] == [False, True]
    tuned = compare(NOISY, ["constant:peak=0.1", "step"], 2, tuning_seeds=(10_000,), device="cpu")
    assert tuned.baseline == "step"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": ["constant:peak=0.1", "cosin"]}, "unknown agent 'cosin': did you mean 'cosine'"),
        ({"agents": ["constant:peak=0.1", "cosine:peek=0.1"]}, "peek"),
        ({"agents": ["constant:peak=0.1", "cosine:peak=-1"]}, "peak=-1"),
        ({"agents": ["constant:peak=0.1", "cosine:peak=fast"]}, "peak='fast'"),
        ({"agents": ["constant:peak=0.1", "cosine:0.1"]}, "name:key=value"),
        ({"agents": ["constant:peak=0.1", "ppo"]}, "'ppo'"),
        ({"agents": ["constant:peak=0.1", "constant:peak=0.1"]}, "named twice"),
        ({"agents": []}, "at least one agent"),
        ({"baseline": "step"}, "baseline 'step' is not among the agents constant"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": 20_000}, "there are 10000 seeds for report, not 20000"),
        ({"task": "digits-mlpp"}, "did you mean 'digits-mlp'"),
        ({"initial_lrs": (float("nan"),)}, "initial_lr"),
        ({"initial_lrs": (-1.0,)}, "initial_lr"),
    ],
)
def test_mistakes_are_found_before_any_work(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(comparison, "evaluate", work)
    monkeypatch.setattr(comparison, "tune", work)
    with pytest.raises(ValueError, match=message):
        compare(**{"task": NOISY, "agents": ["constant:peak=0.1"], "seeds": 2, "device": "cpu", **arguments})


def test_a_missing_controller_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "evaluate", lambda *_, **__: pytest.fail("a run began"))
    with pytest.raises(FileNotFoundError, match="no controller file"):
        compare(NOISY, ["constant:peak=0.1", str(tmp_path / "x.safetensors")], 1, device="cpu")


def test_comparing_leaves_the_task_alone(toy: Callable[..., Task]) -> None:
    task = toy()
    assert compare(task, ["constant:peak=0.1"], 1, device="cpu").task == task
