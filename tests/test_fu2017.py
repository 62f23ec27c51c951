"""The reproduction of NOH: its runs, its claims on made-up results, going on, data that is missing."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fu2017
from flow import Claim, Lines
from fu2017 import SCALES, Fu2017, Run, Settings, agent_of, task_of, trained, wanted
from fu2017_report import TITLES, best, claims, compared, finals, policy, reported, table
from lrenv.agents.hypergradient.descent import adam_hd
from lrenv.agents.schedules.agent import constant
from lrenv.data import DataMissing

SMOKE = SCALES["smoke"]
KEY = list(Run.__annotations__)


def runs(*rates: float, method: str = "adam") -> list[Run]:
    return [Run("digits", method, rate, 0.0, seed, 200) for rate in rates for seed in range(2)]


def test_the_perceptron_is_the_papers() -> None:
    task = task_of("digits")
    assert (task.batch_size, task.optimizer) == (120, "adam")
    assert [type(layer).__name__ for layer in task.module()][-5:] == [
        "Linear",
        "Sigmoid",
        "Linear",
        "Sigmoid",
        "Linear",
    ]
    assert [p.shape[0] for p in task.module().parameters()] == [20, 20, 20, 20, 10, 10]


def test_a_curve_does_not_depend_on_how_often_an_agent_acts() -> None:
    """Adam in intervals of 50, against Adam-HD with beta = 0 in every step."""
    batch = runs(1e-2)
    told: list[int] = []
    coarse = trained(batch, constant(1e-2), told.append)
    fine = trained(batch, adam_hd([1e-2] * 2, 0.0), told.append)
    assert told == [50, 100, 150, 200] * 2
    for one, other in zip(coarse, fine, strict=True):
        assert len(one["loss"]) == len(one["rate"]) == 4
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)
        np.testing.assert_allclose(one["rate"], 1e-2, rtol=1e-5)
    assert coarse[0]["loss"] != coarse[1]["loss"], "seeds differ"


def test_losses_are_no_numbers_after_divergence() -> None:
    fine, broken = (trained(runs(rate)[:1], constant(rate), lambda _: None)[0] for rate in (1e-2, 3e38))
    assert np.isfinite(fine["loss"]).all()
    assert np.isnan(broken["loss"]).all()


def test_every_run_is_wanted_once() -> None:
    for scale in SCALES.values():
        everything = [run for data in scale.data for batch in wanted(data, scale) for run in batch]
        assert len(set(everything)) == len(everything)
        for method in ("adam", *scale.nohs, "linear", "cosine"):
            assert {run.data for run in everything if run.method == method} == set(scale.data)


def test_a_schedule_is_tuned_on_seeds_of_its_own_and_ends_with_the_run(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs.jsonl", KEY)
    batches = [batch for batch in wanted("digits", SMOKE) if batch[0].method == "linear"]
    assert [(batch[0].budget, batch[0].alpha0 > 0) for batch in batches] == [
        (100, True), (100, False), (200, True), (200, False),
    ]  # fmt: skip
    for tuning, report in zip(batches[::2], batches[1::2], strict=True):
        assert {run.seed for run in tuning} == {10_000, 10_001, 10_002}
        assert {run.seed for run in report} == {0, 1}
        # The second peak is the better one after 100 steps, the first after 200.
        good = tuning[-1 if tuning[0].budget == 100 else 0].alpha0
        for run in tuning:
            lines.add(asdict(run) | {"loss": [0.1 if run.alpha0 == good else 0.2] * (run.budget // 50)})
        assert best(lines, "digits", "linear", tuning[0].budget) == (good, 0.0)
        assert reported(lines, "digits", "linear", tuning[0].budget) is None
        agent = agent_of(report, lines)
        results = trained(report, agent, lambda _: None)
        steps = np.arange(40, report[0].budget, 50)  # a point of a curve ends with ten steps at one rate
        for run, result in zip(report, results, strict=True):
            np.testing.assert_allclose(result["rate"], good * (1 - steps / report[0].budget), rtol=1e-4)
            lines.add(asdict(run) | result)
        losses = reported(lines, "digits", "linear", report[0].budget)
        assert losses is not None
        np.testing.assert_allclose(losses, [np.mean(result["loss"][-2:]) for result in results], rtol=1e-5)
    assert best(lines, "digits", "linear", 100) != best(lines, "digits", "linear", 200)


def test_results_say_which_policy_noh_is(tmp_path: Path) -> None:
    text = policy(Path(fu2017.__file__).parent / "results" / "fu2017" / "noh", "NOH")
    assert "NOH: the policy after update 24 of 40 (3 of 5 runs)" in text
    assert "0.1938, where the last one has 0.2629" in text
    assert "5 runs of training and 40 of selection" in text
    assert not policy(tmp_path, "NOH")


def made_up(path: Path) -> Lines:
    """200 steps: 0.03 is Adam's best rate on the source after 100 and 0.01 after 200; elsewhere a rate broke down."""
    lines = Lines(path, KEY)
    curves = {
        ("a", "adam", 0.03): [2.0, 0.4, 0.5, 0.5], ("a", "adam", 0.01): [2.0, 1.0, 0.4, 0.4],
        ("a", "noh", 0.0): [2.0, 0.2, 0.45, 0.45], ("b", "adam", 0.03): [2.0, None, None, None],
        ("b", "adam", 0.01): [3.0, 3.0, 3.0, 3.0], ("b", "noh", 0.0): [3.0, 2.0, 2.0, 2.0],
    }  # fmt: skip
    for (data, method, rate), loss in curves.items():
        for seed in range(2):
            moved = [None if x is None else x + 0.02 * seed for x in loss]
            lines.add(asdict(Run(data, method, rate, 0.0, seed, 200)) | {"loss": moved, "rate": [], "rates": []})
    return lines


def test_finals_are_means_over_the_last_steps_up_to_a_horizon(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    np.testing.assert_allclose(finals(lines, "a", "adam", 100)[0.03, 0.0], [1.2, 1.22])
    np.testing.assert_allclose(finals(lines, "a", "adam", 200)[0.03, 0.0], [0.5, 0.52])
    assert np.isinf(finals(lines, "b", "adam", 200)[0.03, 0.0]).all()
    assert best(lines, "a", "adam", 100) == (0.03, 0.0)
    assert best(lines, "a", "adam", 200) == (0.01, 0.0)
    assert best(lines, "b", "adam", 100) == (0.01, 0.0)
    assert best(lines, "a", "dmopt", 100) is None


def test_claims_follow_the_means(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    rows = {row.claim: row for row in claims(lines, ["a", "b"], 100, 2)}
    assert [row.holds for row in rows.values()] == ["yes", "no", "yes", "yes", "yes", "yes"]
    first = rows["a, 100 steps: NOH below Adam, best constant rate"]
    assert first.paper == "section 3.1"
    assert first.ours.startswith("1.1100 against 1.2100; lower")
    own = rows["b, 200 steps: frozen NOH below Adam, best constant rate"]
    assert (own.paper, own.ours) == ("not in it", "2.0100 against 3.0100; lower on 2 of 2 seeds")
    transfer = rows["b, 200 steps: frozen NOH below Adam at a's best rate, 0.03"]
    assert (transfer.paper, transfer.ours) == ("section 3.2", "2.0100 against inf; lower on 2 of 2 seeds")
    cells = dict(zip(TITLES, table(lines, ["a"], [100])[0][2:], strict=True))
    told = {method: cell for method, cell in cells.items() if cell}
    assert told == {"adam": "1.2100 ± 0.0141 (0.03)", "noh": "1.1100 ± 0.0141"}


def test_what_whole_runs_teach_is_compared_with_all_others(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    for data, loss in (("a", 0.1), ("b", 4.0)):
        for seed in range(2):
            run = Run(data, "noh-layers", 0.0, 0.0, seed, 200)
            lines.add(asdict(run) | {"loss": [loss + 0.02 * seed] * 4, "rate": [], "rates": []})
    rows = {row.claim: row for row in claims(lines, ["a", "b"], 100, 2) if TITLES["noh-layers"] in row.claim}
    own = rows["a, 100 steps: NOH per layer, by whole runs below NOH"]
    assert (own.paper, own.ours, own.holds) == ("not in it", "0.1100 against 1.1100; lower on 2 of 2 seeds", "yes")
    assert rows["b, 200 steps: frozen NOH per layer, by whole runs below NOH"].holds == "no"
    frozen = rows["b, 100 steps: frozen NOH per layer, by whole runs below Adam at a's best rate, 0.03"]
    assert frozen.paper == "not in it"


def test_an_unfinished_comparison_counts_the_seeds_that_there_are() -> None:
    assert compared("place", "x", None, np.ones(2)) == Claim("place", "x", "", "", "not run")
    row = compared("place", "x", np.array([1.0, 4.0]), np.array([2.0, 2.0, 9.0]))
    assert row == Claim("place", "x", "", "2.5000 against 4.3333; lower on 1 of 2 seeds", "level")


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two results, and between a policy's training and its runs."""
    monkeypatch.setitem(SCALES, "smoke", SMOKE._replace(rates=(1e-2,), peaks=(1e-2,), longer=1))
    whole, broken = (Settings(scale="smoke", out=tmp_path / name) for name in ("whole", "broken"))
    Fu2017(whole).run()
    for name in ("curves.png", "results.md"):
        assert (whole.out / name).stat().st_size > 0
    text = (whole.out / "runs.jsonl").read_text()
    shutil.copytree(whole.out, broken.out)
    kept = text.splitlines(keepends=True)
    (broken.out / "runs.jsonl").write_text("".join(kept[:4]) + kept[4][:30])
    monkeypatch.setattr(fu2017.LSTMTraining, "_descend", lambda self: pytest.fail("the policies are trained already"))
    Fu2017(broken).run()
    assert Lines(broken.out / "runs.jsonl", KEY).where() == Lines(whole.out / "runs.jsonl", KEY).where()
    assert (broken.out / "results.md").read_text() == (whole.out / "results.md").read_text()


def test_data_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("LRENV_DATA", str(tmp_path))
    assert not fu2017.available("svhn")
    assert "leaving svhn out: svhn: 2 of 2 files are missing" in capsys.readouterr().out
    with pytest.raises(DataMissing, match="mnist"):
        Fu2017(Settings(scale="cpu", out=tmp_path / "out")).run()
    with pytest.raises(ValueError, match="this scale has digits"):
        Fu2017(Settings(scale="smoke", out=tmp_path / "other", data=("mnist",)))
    with pytest.raises(ValueError, match="noh-parameters: this scale has adam, linear"):
        Fu2017(Settings(scale="cpu", out=tmp_path / "other", methods=("noh-parameters",)))
