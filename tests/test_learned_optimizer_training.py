"""Training learned optimizers: truncations, problems, the curriculum, exact resumption, and the tuned baselines."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import learned_settings

from lrenv.agents import make_agent
from lrenv.agents.learned_optimizer.agent import Architecture, LearnedOptimizer
from lrenv.agents.learned_optimizer.baselines import RATES, tune_optimizers
from lrenv.agents.learned_optimizer.problems import class_subset, problems
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining, unrolled
from lrenv.agents.outer import training as outer_training
from lrenv.agents.schedules.agent import constant
from lrenv.benchmark import evaluate
from lrenv.data import load
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

F64 = torch.float64
train = partial(outer_training.train, LearnedOptimizerTraining)


@pytest.mark.parametrize("objective", ["train", "valid"])
def test_a_truncations_gradient_is_that_of_its_mean_loss(objective: str) -> None:
    """By central differences; training's loss is that of the weights after each step, on the batch that follows."""
    architecture = Architecture(hidden=3)
    theta = architecture.init(0).double()
    task = make_task("digits-logreg", optimizer=LearnedOptimizer(theta, architecture), interval=2)
    trainee = Trainee(task, dtype=F64)
    rollout, start = unrolled(trainee, 5, objective), trainee.init([0, 1])
    population = theta + 0.1 * torch.randn(2, len(theta), dtype=F64, generator=torch.Generator().manual_seed(0))
    leaf = population.clone().requires_grad_()
    loss, _ = rollout(leaf, start)
    loss.sum().backward()
    with torch.no_grad():
        _, losses = trainee.unroll(start, torch.ones(2, 1, dtype=F64), {"theta": population}, 6)
        if objective == "train":
            torch.testing.assert_close(loss.detach(), losses[:, 1:].mean(1))
        assert leaf.grad is not None
        for direction in torch.randn(3, 2, len(theta), dtype=F64, generator=torch.Generator().manual_seed(1)):
            ahead, behind = (rollout(population + h * direction, start)[0] for h in (1e-6, -1e-6))
            slope = (leaf.grad * direction).sum(1)
            torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)
            assert slope.abs().min() > 1e-6, "a slope of zero would agree with anything"


def test_the_curriculum_grows_linearly_and_jitters(tmp_path: Path) -> None:
    chosen = learned_settings(tmp_path, budget=1000, first_unroll=50, last_unroll=850, curriculum=100)
    middle = [chosen.unroll(update, 0.5, 1000) for update in (0, 50, 100, 5000)]
    assert middle == [50, 450, 850, 850]
    assert [chosen.unroll(50, chance, 1000) for chance in (0.0, 0.25, 1.0)] == [360, 405, 540]


def test_classes_of_problems_are_selected_and_held_out(tmp_path: Path) -> None:
    drawn = problems(learned_settings(tmp_path, classes=3, problems=5, held_out=2))
    names = [task.name for task in drawn.train + drawn.held_out]
    assert (len(drawn.train), len(drawn.held_out), len(set(names))) == (5, 2, 7)
    again = problems(learned_settings(tmp_path, classes=3, problems=5, held_out=2))
    assert names == [task.name for task in again.train + again.held_out]
    whole, part = load("digits"), class_subset(load("digits"), (7, 2))
    assert part.classes == 2
    for split, of in zip(part[:3], whole[:3], strict=True):
        assert (split.targets == 0).sum() == (of.targets == 7).sum()
        assert torch.equal(split.inputs[split.targets == 1], of.inputs[of.targets == 2])


def test_held_out_classes_are_others_where_there_are_enough(tmp_path: Path) -> None:
    """Thirty percent of digits' ten classes are three: enough for two pairs of classes, not for two of three."""

    def used(tasks: list[Any]) -> set[int]:
        return {int(digit) for task in tasks for digit in task.name.partition("(")[2] if digit.isdigit()}

    apart = problems(learned_settings(tmp_path, classes=2, problems=4, held_out=2))
    assert not used(apart.train) & used(apart.held_out)
    shared = problems(learned_settings(tmp_path, classes=3, problems=4, held_out=2))
    assert used(shared.train) & used(shared.held_out)


def test_widths_are_problems_of_their_own(tmp_path: Path) -> None:
    drawn = problems(learned_settings(tmp_path, network="mlp", widths="4,8"))
    assert [Trainee(task).network.size for task in drawn.train] == [
        64 * w + w + w * w + w + 10 * w + 10 for w in (4, 8)
    ]


def test_workers_are_staggered_and_start_anew(tmp_path: Path) -> None:
    training = LearnedOptimizerTraining(
        learned_settings(tmp_path, workers=3, first_unroll=3, curriculum=1000, jitter=0.0)
    )
    assert [worker.left for worker in training.workers] == [3, 9, 12]
    training.iterate()
    assert [worker.left for worker in training.workers] == [12, 6, 9]
    assert [int(worker.trainees.step.max()) for worker in training.workers] == [0, 3, 3]
    for _ in range(2):
        training.iterate()
    assert [worker.left for worker in training.workers] == [6, 12, 3]


def test_pairs_begin_alike_except_with_pes(tmp_path: Path) -> None:
    for estimator in ("merged", "pes"):
        training = LearnedOptimizerTraining(learned_settings(tmp_path, estimator=estimator))
        training.iterate()
        plus, minus = training.workers[1].trainees.params.split(2)
        assert torch.equal(plus, minus) == (estimator == "merged")
        assert bool(training.workers[1].accumulated.any())


def test_diverged_pairs_are_counted_and_start_anew(tmp_path: Path) -> None:
    training = LearnedOptimizerTraining(learned_settings(tmp_path, workers=1, first_unroll=3))
    training.workers[0].trainees.params[0] = torch.nan
    assert training.iterate()["outer/diverged"] == 1
    trainees = training.workers[0].trainees
    assert trainees.step.flatten().tolist() == [0, 3, 0, 3]
    assert trainees.params.isfinite().all()
    assert not training.workers[0].accumulated[0].any()


@pytest.mark.slow
def test_training_makes_an_optimizer_that_descends(tmp_path: Path) -> None:
    """The trained optimizer's mean training loss on held-out seeds is below half of what the untrained one leaves."""
    chosen = learned_settings(
        tmp_path, updates=60, pairs=8, budget=30, interval=5, first_unroll=10, curriculum=60, outer_lr=1e-2, hidden=16,
        eval_every=60,
    )  # fmt: skip
    agent = make_agent(train(chosen))
    task = chosen.each_task()[0]
    fresh = LearnedOptimizer(chosen.architecture.init(0), chosen.architecture)
    trained, untrained = (evaluate(x, task, range(4)).curves["train_loss"][-1].mean() for x in (agent, fresh))
    assert trained < untrained / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first_unroll": 13}, "first_unroll=13 is longer than the budget of 12 inner steps: lower first_unroll"),
        ({"last_unroll": 99}, "last_unroll=99 is longer than the budget of 12"),
        ({"first_unroll": 6, "last_unroll": 3}, "last_unroll=3 is below first_unroll=6"),
        ({"optimizer": "adam"}, "leave optimizer='adam' out"),
        ({"workers": 1, "pairs": 1}, "at least two pairs"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"outer_lr": -1.0}, "outer_lr must be positive, not -1.0"),
        ({"estimator": "guess"}, "estimator must be one of merged, reparameterisation, es, pes, not 'guess'"),
        ({"objective": "test"}, "objective must be one of train, valid, not 'test'"),
        ({"tasks": "digits-mlp", "task": "mnist1d-mlp"}, "task='mnist1d-mlp' would do nothing"),
        ({"classes": None, "problems": 100}, "problems=100 would do nothing"),
        ({"compile": "graph"}, "compile='graph' captures decisions of environments"),
        ({"outer_lr": math.nan}, "outer_lr must be a finite number, not nan"),
        ({"jitter": 1.0}, "jitter must be at least 0 and below 1"),
        ({"widths": "4"}, "network and widths go together"),
        ({"classes": 1}, "at least two classes"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learned_settings(tmp_path, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"tasks": "digits-logreg, noisy-quadratic", "task": "digits-mlp"},
            "digits-logreg has 10, noisy-quadratic has 0; choose other",
        ),
        ({"classes": 9, "problems": 20}, "fewer than 22 selections of 9"),
        ({"classes": 11}, "has 10 classes"),
        ({"network": "mlp", "widths": "4,x"}, "widths are whole numbers"),
    ],
)
def test_problems_that_cannot_be_drawn(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems(learned_settings(tmp_path, **wrong))


def test_each_rate_of_a_baseline_is_a_run_of_its_own() -> None:
    """The batch of all rates and seeds against runs at one rate."""
    assert len(RATES) == 11
    assert (RATES[0], RATES[-1]) == pytest.approx((1e-4, 10))
    task = make_task("noisy-quadratic", budget=20)
    tuned = tune_optimizers(task, seeds=(0, 1), rates=(1e-2, 1.0, 1e3), optimizers=("momentum",))["momentum"]
    alone = evaluate(constant(peak=1.0), make_task(task, optimizer="momentum"), (0, 1))
    np.testing.assert_allclose(tuned.val_loss[1], alone.val_loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(tuned.train_loss[1], alone.curves["train_loss"][-1].mean(), rtol=1e-5)
    assert tuned.best("valid") == tuned.rates[tuned.val_loss.argmin()]
    assert tuned.best("train") == tuned.rates[tuned.train_loss.argmin()]
    with pytest.raises(ValueError, match="diverge at all of the rates"):
        tune_optimizers("two-minima", seeds=(0,), rates=(1e3,), optimizers=("momentum",))["momentum"].best("train")
