"""The reproduction of hypergradient descent: its runs against one another, its claims on made-up results, going on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baydin2018
from baydin2018 import METHODS, RATES, SCALES, Baydin2018, Network, Run, Settings, task_of, train
from baydin2018_report import BETA, claims, losses, shortly, verdict
from flow import Lines, markdown
from lrenv.data import DataMissing

LOGREG = Network("digits-logreg", tuning_epochs=2, online_epochs=2, seeds=1, online_seeds=1)
KEY = list(Run.__annotations__)


def outcomes(*runs: Run) -> list[dict[str, Any]]:
    return train(list(runs), task_of(runs[0], LOGREG), False, lambda status: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Everything, on digits and from two rates."""
    monkeypatch.setitem(SCALES, "smoke", {"logreg": LOGREG})
    monkeypatch.setattr(baydin2018, "RATES", (1e-1, 1e-3))
    monkeypatch.setattr(baydin2018, "GRID", dict.fromkeys(BETA, (1e-3, 1e-5)))
    return Settings(scale="smoke", out=tmp_path)


@pytest.mark.parametrize("plain", ["sgd", "nesterov", "adam"])
def test_without_beta_hypergradients_change_nothing(plain: str) -> None:
    """A decision an epoch against one a step: curves of epochs do not depend on how often an agent acts."""
    (alone,) = outcomes(Run("logreg", plain, 0.01, 0.0, 2, 3))
    (beside,) = outcomes(Run("logreg", f"{plain}-hd", 0.01, 0.0, 2, 3))
    for name, curve in alone["curves"].items():
        assert len(curve) == 2
        np.testing.assert_allclose(curve, beside["curves"][name], rtol=1e-4, err_msg=name)


def test_a_batch_is_its_runs_one_by_one() -> None:
    runs = [Run("logreg", "sgd-hd", alpha0, beta, 2, seed) for alpha0, beta, seed in ((0.1, 1e-3, 0), (0.0, 1e-2, 1))]
    for run, result in zip(runs, outcomes(*runs), strict=True):
        (alone,) = outcomes(run)
        for name, curve in alone["curves"].items():
            np.testing.assert_allclose(curve, result["curves"][name], rtol=1e-4, err_msg=name)


def test_adam_decays_by_the_root_of_time() -> None:
    (result,) = outcomes(Run("logreg", "adam-decayed", 0.01, 0.0, 2, 0))
    np.testing.assert_allclose(result["curves"]["lr"], 0.01 / np.sqrt([9, 18]), rtol=1e-5)


def test_a_run_that_explodes_ends_beside_one_that_does_not() -> None:
    fine, broken = outcomes(*(Run("logreg", "sgd-hd", 0.01, beta, 2, 0) for beta in (1e-3, 1e30)))
    assert (fine["diverged"], broken["diverged"]) == (False, True)
    assert np.isfinite(fine["curves"]["val_loss"]).all()
    assert np.isnan(broken["curves"]["val_loss"]).all()


def test_tasks_have_the_published_settings() -> None:
    for network in SCALES["smoke"].values():
        for method in METHODS:
            task = task_of(Run("", method, 1e-3, 0.0, 3, 0), network)
            assert (task.batch_size, task.weight_decay, task.budget, task.measure_interval) == (128, 1e-4, 27, 9)
            assert task.optimizer == METHODS[method].optimizer


def test_it_goes_on_where_it_stopped(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Baydin2018(small).run()
    file = small.out / "runs.jsonl"
    whole = file.read_text()
    # The origin, three rates' worth of plain methods, one decayed, and hypergradients at both experiments' betas.
    assert len(whole.splitlines()) == 1 + 3 * 2 + 1 + (3 + 3 + 4) * 2
    for name in ("tuning.png", "online-logreg.png", "beta.png", "results.md"):
        assert (small.out / name).stat().st_size > 100

    file.write_text(whole[:-100])
    made: list[Run] = []
    monkeypatch.setattr(baydin2018, "train", lambda batch, *rest: made.extend(batch) or train(batch, *rest))
    Baydin2018(small).run()
    assert 1 <= len(made) <= LOGREG.at_once, "the batch of the half line alone"
    kept, last = (text.splitlines() for text in (file.read_text(), whole))
    assert [line for line in kept if '"origin"' not in line] == last[1:], "and it is the same run"


def test_missing_data_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LRENV_DATA", str(tmp_path / "none"))
    monkeypatch.delenv("LRENV_DOWNLOAD", raising=False)
    with pytest.raises(DataMissing, match="lrenv download mnist"):
        Baydin2018(Settings(scale="cpu", out=tmp_path)).run()


def made_up(path: Path, losses: dict[tuple[str, float], float | None]) -> Lines:
    """Logistic regressions that ended at the given losses: (method, beta) -> loss, the same from every rate."""
    lines = Lines(path, KEY)
    for (method, beta), loss in losses.items():
        for rate in RATES:
            curves = {name: [1.0, loss] for name in ("train_loss", "val_loss", "lr")}
            run = asdict(Run("logreg", method, rate, beta, 2, 0))
            lines.add(run | {"diverged": loss is None, "curves": curves})
    return lines


def test_claims_are_judged_by_the_losses(tmp_path: Path) -> None:
    ends = {
        ("sgd", 0.0): 0.5, ("sgd-hd", 1e-3): 0.4, ("sgd-hd", 1e-4): 0.6,
        ("adam", 0.0): 0.3, ("adam-hd", 1e-7): 0.3, ("adam-hd", 1e-4): None,
    }  # fmt: skip
    judged = {row.claim: row.holds for row in claims(made_up(tmp_path / "runs.jsonl", ends), ["logreg"])}
    for claim, held in {
        "sgd-hd with beta 0.001 ends below sgd from 0.001": "yes",
        "sgd-hd with beta 0.001 ends below sgd from every rate in 1e-06 to 0.001": "yes",
        "sgd-hd with beta 0.0001 ends below sgd from every rate in 1e-06 to 0.001": "no (0 of 4)",
        "sgd-hd with beta 0.001 ends below sgd from every rate in 0.01 to 0.1": "yes",
        "sgd-hd with beta 0.0001 ends below sgd from every rate in 0.01 to 0.1": "no (0 of 2)",
        "adam-hd with beta 1e-07 ends below adam from every rate in 1e-06 to 0.0001": "no (0 of 3)",
        "adam-hd with beta 0.0001 ends below adam from every rate in 1e-06 to 0.0001": "no (0 of 3)",
    }.items():
        assert judged[f"logreg, 2 epochs: {claim}"] == held, claim
    assert [held for claim, held in judged.items() if "diverges" in claim] == ["yes"]
    assert {held for claim, held in judged.items() if "nesterov" in claim} == {"not run"}


def test_a_region_of_small_betas(tmp_path: Path) -> None:
    ends = {("sgd", 0.0): 0.5, ("sgd-hd", 1e-5): 0.5, ("sgd-hd", 1e-4): 0.45, ("sgd-hd", 1e-3): 0.51}
    rows = list(claims(made_up(tmp_path / "runs.jsonl", ends), ["logreg"]))
    (region,) = (row for row in rows if "sgd-hd" in row.claim and row.paper == "figure 4")
    assert (region.holds, region.ours) == ("yes", "within 0.1 % or lower from all rates for beta = 1e-05, 0.0001")
    published = {row.published: row.claim for row in rows if row.published}
    assert list(published) == ["0.2878 against 0.3737", "0.2719 against 0.2846", "0.2723 against 0.2719"]
    assert all(claim.endswith("from 0.001") for claim in published.values())
    assert {row.paper for row in rows if "0.01 to 0.1" in row.claim} == {"not in it"}


def test_tables_hold_the_published_run_and_mark_divergence(tmp_path: Path) -> None:
    table = losses(made_up(tmp_path / "runs.jsonl", {("sgd", 0.0): 0.5, ("adam-hd", 1e-4): None}), "logreg")
    assert "| sgd |  | 2 | " + " | ".join(["0.5000"] * 6) + " | 0.3737 |" in table
    assert "| adam-hd | 0.0001 | 2 | " + " | ".join(["1 of 1 diverged"] * 6) + " |  |" in table
    assert shortly(np.array([0.1, 0.3, np.inf])) == "0.2000 ± 0.1414 (1 of 3 diverged)"
    assert [verdict(x) for x in ([], [True], [True, False])] == ["not run", "yes", "no (1 of 2)"]
    assert markdown(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
