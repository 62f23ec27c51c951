"""The reproduction of FDS: what it measures, what it claims, and that a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import micaelli2021
from flow import Lines
from lrenv.randomness.seeds import seeds_for
from lrenv.training.hypergradients import train_by_schedule, validation_loss
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee
from micaelli2021 import METHODS, Micaelli2021, Scale, Settings, claims, effort, found, measured, search_settings


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        micaelli2021.SCALES, "smoke", Scale("digits-mlp", 8, outer_steps=2, seeds=1, val_examples=50, measured=2)
    )


def settings(out: Path) -> Settings:
    return Settings(scale="smoke", out=out, device="cpu")


def test_it_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Micaelli2021(settings(tmp_path / "whole")).run()
    train, calls = Micaelli2021.controller_of, 0

    def killed(*arguments: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Micaelli2021, "controller_of", killed)
        with pytest.raises(KeyboardInterrupt):
            Micaelli2021(settings(tmp_path / "broken")).run()
    assert len(Lines(tmp_path / "broken" / "runs.jsonl", ("method", "seed")).where()) == 2
    Micaelli2021(settings(tmp_path / "broken")).run()
    whole, broken = (Lines(tmp_path / name / "runs.jsonl", ("method", "seed")).where() for name in ("whole", "broken"))
    for result in (*whole, *broken):
        assert result.pop("seconds") > 0
    assert whole == broken
    assert [(result["method"], result["seed"]) for result in whole] == [(method, 0) for method in METHODS]
    assert {result["inner_steps"][-1] for result in whole} == {2 * 8}
    assert matplotlib.image.imread(tmp_path / "whole" / "fds.png").std() > 0
    text = (tmp_path / "whole" / "results.md").read_text()
    assert all(f"| {method} | 1 | 16 |" in text for method in METHODS)


def test_the_log_has_the_schedule_of_the_controller(tmp_path: Path) -> None:
    search = search_settings(settings(tmp_path), "fds", 1)
    Micaelli2021(settings(tmp_path)).controller_of(micaelli2021.schedule_training, search)
    schedules, rows = found(search)
    assert [row["inner_steps"] for row in rows] == ["8.0", "16.0"]
    tensors = micaelli2021.schedule_training(search)
    for _ in rows:
        tensors.iterate()
        tensors.iteration += 1
    for name, values in tensors.schedule.items():
        np.testing.assert_allclose(schedules[name][-1], values, rtol=1e-6)


def test_schedules_are_measured_side_by_side_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainee = Trainee(make_task("digits-mlp", optimizer="momentum", budget=12))
    schedules = {"lr": np.array([[0.1, 0.3], [0.2, 0.0], [0.5, 0.1]]), "momentum": np.array([[0.0], [0.5], [0.9]])}
    for groups in ([6], [4, 2]):
        monkeypatch.setattr(trainee, "chunks", lambda n, groups=groups: groups)
        together = measured(trainee, schedules, 2, 12)
        for k, i in ((0, 0), (1, 1), (2, 0)):
            alone = {name: torch.tensor(values[k : k + 1]) for name, values in schedules.items()}
            end = train_by_schedule(trainee, trainee.init(seeds_for("schedules", 1, i)), alone, 12)
            assert together["val_loss"][k, i] == pytest.approx(validation_loss(trainee, end).item(), rel=1e-5)
            accuracy = trainee.evaluate(end.params, end.buffers, trainee.test).metric.item()
            assert together["test_accuracy"][k, i] == pytest.approx(accuracy)


def test_each_search_has_the_seed_of_its_name(tmp_path: Path) -> None:
    for method in METHODS:
        for seed in (0, 3):
            search = search_settings(settings(tmp_path), method, seed)
            assert (search.seed, search.out.name) == (seed, f"{method}-{seed}")


def searches(ends: dict[str, list[float]]) -> dict[str, list[dict[str, Any]]]:
    return {
        method: [{"measured": {"val_accuracy": [0.1, 0.5, 0.6, value]}} for value in values]
        for method, values in ends.items()
    }


def test_claims_say_what_the_numbers_say() -> None:
    rows = claims(searches({"fds": [0.8, 0.9], "greedy": [0.7, 0.6], "random": [0.95, 0.91]}))
    assert [(row.claim.split(" at ")[0], row.holds, row.ours) for row in rows[:2]] == [
        ("FDS ends above greedy", "yes", "+20.0 points; 2 of 2 searches above all of greedy"),
        ("FDS ends above random", "no", "-8.0 points; 0 of 2 searches above all of random"),
    ]
    assert rows[2].holds == "no"
    assert rows[2].ours == "10.0 % after the first, 50.0 % two before the end, 85.0 % at the end"
    assert claims(searches({"fds": [0.505]}))[0].holds == "yes"
    assert claims(searches({"random": [0.5]})) == []


def test_results_say_what_random_search_had() -> None:
    took = {"fds": [30.0, 50.0], "random": [4.0, 6.0]}
    text = effort({m: [{"seconds": s, "inner_steps": [8, 16, 24]} for s in own] for m, own in took.items()})
    assert "draws 3 schedules" in text
    assert "FDS takes 8.0 times as many seconds" in text
