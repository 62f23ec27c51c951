"""The reproduction of learned optimizers: its problems, its measurements, its claims on made-up results, going on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import metz2019
from flow import Lines
from lrenv import networks
from lrenv.agents.learned_optimizer.problems import problems
from lrenv.agents.schedules.agent import constant
from lrenv.data import Data
from lrenv.randomness.seeds import seeds_for
from lrenv.training.hypergradients import train_by_schedule
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee
from metz2019 import SCALES, Metz2019, Settings, ablations, held_out, measured, training_settings
from metz2019_report import (
    METHODS,
    OBJECTIVES,
    best_tuned,
    claims,
    contests,
    failures,
    improvement,
    overlap,
    reached,
    report,
    smoothed,
    trainings,
)  # fmt: skip

SMOKE = SCALES["smoke"]
KEY = ["part", "case", "method", "objective", "seed"]
BUDGET = 100


def examples(data: Data) -> set[bytes]:
    return {x.numpy().tobytes() for split in data[:3] for x in split.inputs}


def test_no_example_of_a_held_out_problem_was_trained_on(tmp_path: Path) -> None:
    # The settings of the larger scale, on data that is there at once.
    scale = SCALES["cpu"]._replace(task="digits-mlp")
    drawn = problems(training_settings(scale, "valid", tmp_path))
    seen = set().union(*(examples(task.load()) for task in (*drawn.train, *drawn.held_out)))
    tasks = held_out(scale)
    assert len(tasks) == len({task.name for task in tasks}) == 10 * 2
    assert {len(next(task.module().parameters())) for task in tasks} == {16, 32}
    for task in tasks:
        assert task.load().classes == 3
        assert not examples(task.load()) & seen
    ours = set().union(*(examples(task.load()) for task in tasks))
    assert len(ours | seen) > 0.99 * len(examples(make_task("digits-mlp").load()))


def test_test_losses_are_those_of_the_same_runs() -> None:
    task = replace(held_out(SMOKE)[0], optimizer="adam")
    found = measured(constant(1e-2), task, [3, 4])
    trainee = Trainee(task)
    with torch.no_grad():
        end = train_by_schedule(trainee, trainee.init([3, 4]), {"lr": torch.full((2, 1), 1e-2)}, task.budget)
        loss = trainee.evaluate(end.params, end.buffers, trainee.test).loss
    np.testing.assert_allclose([result["final_test_loss"] for result in found], loss, rtol=1e-4)
    for result in found:
        curves = {name: np.array(curve) for name, curve in result["curves"].items()}
        assert {len(curve) for curve in curves.values()} == {task.budget // task.interval + 1}
        best = curves["test_loss"][curves["val_loss"].argmin()]
        assert result["best_test_loss"] == pytest.approx(best, rel=1e-4)


def test_curves_are_as_long_where_all_runs_diverge() -> None:
    task = replace(held_out(SMOKE)[0], optimizer="sgd")
    (result,) = measured(constant(3e38), task, [0])
    assert result["diverged"]
    assert {len(curve) for curve in result["curves"].values()} == {5}
    assert np.isnan(result["final_test_loss"])


Loss = float | None


def run(case: str, method: str, objective: str, seed: int, **values: Any) -> dict[str, Any]:
    """A training loss that falls from 2 by the points given; it has an interval of 10 steps."""
    train = values.pop("train", [2.0] * 11)
    common = {"part": "held-out", "rate": 0.1, "tuning_loss": 1.0, "diverged": False, "seconds": 1.0}
    losses = {"final_test_loss": 1.0, "best_test_loss": 1.0, "best_test_accuracy": 0.5}
    name = {"case": case, "method": method, "objective": objective, "seed": seed}
    curves = {"train_loss": train, "val_loss": [1.0] * 11, "test_loss": [1.0] * 11}
    return common | losses | name | {"curves": curves} | values


def made_up(path: Path) -> Lines:
    """Five problems. By tuning RMSprop is best, with hindsight Adam is; learned ones win on 4 and 3 of them.

    Training losses: RMSprop ends at 1 on every problem. Learned ones reach it after 40, 50, 50 and 90 steps, and never.
    """
    lines = Lines(path, KEY)
    tuning = {"learned": None, "momentum": 0.9, "rmsprop": 0.3, "adam": 0.5}
    ours = (0.1, 0.2, 0.3, 0.45, 0.6)
    there = (40, 50, 50, 90, BUDGET + 10)
    for (i, loss), objective, method in itertools.product(enumerate(ours), OBJECTIVES, METHODS["held-out"]):
        final = {"learned": loss, "momentum": 3.0, "rmsprop": 0.5, "adam": 0.4}[method]
        # The smoothed loss is at most 1 where the last three points are.
        first = there[i] // 10 - 2 if method == "learned" else 0
        train = [2.0 if k < first else 1.0 for k in range(11)]
        for seed in range(2):
            moved = {"final_test_loss": final + 0.02 * seed, "best_test_loss": final, "train": train}
            seconds = 2.0 if method == "learned" else 1.0
            lines.add(run(str(i), method, objective, seed, tuning_loss=tuning[method], seconds=seconds, **moved))
    return lines


def test_claims_follow_the_numbers(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    found = contests(lines, "held-out")
    assert [best_tuned(contest, "valid") for contest in found.values()] == ["rmsprop"] * 5
    assert improvement(found["0"], "valid", "final_test_loss") == pytest.approx(0.4)
    assert improvement(found["0"], "valid", "final_test_loss", hindsight=True) == pytest.approx(0.3)
    assert [reached(contest) for contest in found.values()] == pytest.approx([0.4, 0.5, 0.5, 0.9, np.inf])
    ratios = {
        ("fresh", 10): {"es": 4.0, "reparameterisation": 2.0, "merged": 1.0},
        ("trained", 10): {"es": 1.0, "reparameterisation": np.inf, "merged": 1.2},
    }
    rows = claims(found, ratios)
    assert [(row.ours.partition(")")[0], row.holds) for row in rows] == [
        ("on 80 % of held-out problems (4 of 5", "yes"),
        ("on 60 % of held-out problems (3 of 5", ""),
        ("on 80 % of held-out problems (4 of 5", ""),
        ("on 60 % of held-out problems (3 of 5", ""),
        ("median 50 % (40 % to never", "yes"),
        ("median 100 % (80 % to never", ""),
        ("0.50 to 1.20 times", "no"),
    ]
    assert [row.published for row in rows if row.published] == ["98 %", "below 20 %", "at most 1"]


def test_a_learned_optimizer_that_diverges_never_wins(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    for objective in OBJECTIVES:
        train = [2.0] * 2 + [1.0] * 7 + [None] * 2
        lines.add(run("0", "learned", objective, 1, final_test_loss=None, train=train))
    contest = contests(lines, "held-out")["0"]
    assert improvement(contest, "valid", "final_test_loss") == -np.inf
    assert improvement(contest, "train", "train_loss") == -np.inf
    # It was there, though, before that.
    assert reached(contest) == pytest.approx(0.4)


def test_results_say_what_the_optimizers_were_trained_with(tmp_path: Path) -> None:
    train, valid = trainings(Path(metz2019.__file__).parent / "results" / "metz2019")
    assert train[3:8] == valid[3:8] == ("50 to 80", "0.02", "0.003", "1", "16")
    assert (train[:3], valid[:3]) == (("train", "300", "300"), ("valid", "300", "260"))
    assert valid[8] == "1909 of training, 240 of selection"
    assert not list(trainings(tmp_path))


def test_results_say_which_problems_share_classes_and_where_it_fails(tmp_path: Path) -> None:
    contest = contests(made_up(tmp_path / "runs.jsonl"), "held-out")
    found = dict.fromkeys(("0, 1; mlp 16", "0, 1; mlp 32", "1, 2; mlp 16", "3, 4; mlp 16"), contest["0"])
    assert overlap(found).startswith("4 problems, out of 5 classes. 3 of the 6 pairs of problems share a class")
    told = failures({name: contest[name] for name in "024"})
    assert "test loss at the end, 4 (0.6100 against 0.4100);" in told
    assert told.endswith("test loss of the best checkpoint, 4 (0.6000 against 0.4000).")
    assert "none" in failures({"0": contest["0"]})


def test_a_contest_counts_when_everyone_has_run(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs.jsonl", KEY)
    for method, objective in itertools.product(METHODS["held-out"][:-1], OBJECTIVES):
        lines.add(run("0", method, objective, 0))
    assert contests(lines, "held-out") == {}
    assert claims({}, {}) == []


def test_smoothed_losses_are_means_of_the_last_intervals_alone() -> None:
    curve = np.array([[100.0, 6.0, 4.0, 2.0, 3.0]])
    np.testing.assert_allclose(smoothed(curve), [[6.0, 5.0, 4.0, 3.0]])


def test_estimates_are_drawn_from_runs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch of pairs begins from seeds for reports that no other has."""
    begun: list[list[int]] = []
    init = Trainee.init

    def noted(self: Trainee, seeds: Any) -> Any:
        begun.append(list(seeds))
        return init(self, seeds)

    monkeypatch.setattr(Trainee, "init", noted)
    found = Metz2019(Settings(scale="smoke", out=tmp_path)).variances(fresh=True, unroll=5)
    assert all(value > 0 for value in found.values())
    pairs = len(begun[0])
    assert begun == [list(seeds_for("report", pairs, pairs * i)) for i in range(SMOKE.batches)]


def test_an_ablation_is_judged_after_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss that every one begins with counts for none."""
    curves = np.array([[9.0, 7.0], [2.0, 4.0], [1.0, 3.0]])
    monkeypatch.setattr(Metz2019, "trained", lambda self, settings: None)
    monkeypatch.setattr(metz2019.evaluation, "evaluate", lambda *_: None)
    monkeypatch.setattr(metz2019, "curve", lambda *_: curves)
    found = Metz2019(Settings(scale="smoke", out=tmp_path)).ablated(next(iter(ablations(SMOKE))), 0)
    assert found == {"loss": pytest.approx((2 + 4 + 1 + 3) / 4), "curve": [8.0, 3.0, 2.0]}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"one layer of 8": {"network": networks.mlp(8)}}
    scale = SMOKE._replace(budget=20, selections=1, unrolls=(5,), batches=2, others=others)
    monkeypatch.setitem(SCALES, "smoke", scale)
    monkeypatch.setattr(metz2019, "ablations", lambda scale: dict(list(ablations(scale).items())[-2:]))


@pytest.mark.usefixtures("tiny")
def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(scale="smoke", out=tmp_path)
    Metz2019(settings).run()
    path, text = tmp_path / "runs.jsonl", (tmp_path / "runs.jsonl").read_text()
    runs = [run for batch in Metz2019(settings).runs() for run in batch]
    assert len(Lines(path, KEY).where()) == len(set(runs)) == len(runs)
    for name in ("held-out", "variance", "generalise", "ablations"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0
    page = (tmp_path / "results.md").read_text()
    assert all(title in page for title in ("## Claims", "Held-out problems", "Variances", "Other problems", "no RMS"))
    thetas = [(tmp_path / objective / "controller.safetensors").read_bytes() for objective in OBJECTIVES]
    assert thetas[0] != thetas[1]

    with monkeypatch.context() as patched:
        patched.setattr(metz2019, "evaluation", None)
        Metz2019(settings).run()
        assert (tmp_path / "results.md").read_text() == page
    assert path.read_text() == text, "a second run has nothing to do"

    # Killed while it wrote Adam's last run.
    monkeypatch.setattr(Metz2019, "draw", lambda self: None)
    lines = text.splitlines(keepends=True)
    kept = max(i for i, line in enumerate(lines) if '"adam"' in line)
    path.write_text("".join(lines[:kept]) + lines[kept][:50])
    Metz2019(settings).run()

    def everything() -> list[dict[str, Any]]:
        results = Lines(path, KEY).where()
        return [{name: value for name, value in result.items() if name != "seconds"} for result in results]

    again = everything()
    assert len(again) == len(runs)
    path.write_text(text)
    assert again == everything()


def test_figures_of_runs_that_diverged(tmp_path: Path) -> None:
    lines = made_up(tmp_path / "runs.jsonl")
    for case, objective in itertools.product("01234", OBJECTIVES):
        lines.add(run(case, "learned", objective, 0, final_test_loss=None, train=[2.0] + [None] * 10))
    name = {"case": "10", "objective": "train", "seed": 0}
    lines.add(name | {"part": "variance", "method": "fresh", "es": 1.0, "reparameterisation": None, "merged": 1.0})
    lines.add(name | {"part": "ablations", "method": "whole", "loss": None, "curve": [2.0, None]})
    lines.add(name | {"part": "ablations", "method": "PES", "loss": 1.0, "curve": [2.0, 1.0]})
    found = report(lines, 10, tmp_path)
    assert list(found.figures) == ["held-out.png", "variance.png", "ablations.png"]
    for draw in found.figures.values():
        draw().savefig(tmp_path / "drawn.png")
    page = found.text
    assert "| whole | 1 of 1 diverged |  |" in page
    assert "| 0 | 1 of 2 diverged | 3.0100 ± 0.0141 (0.1) | 0.5100 ± 0.0141 (0.1)* |" in page
    assert (found.claims[-1].ours, found.claims[-1].holds) == ("1.00 to 1.00 times", "yes")
