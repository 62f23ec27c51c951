"""FDS: its outer step by hand, its hypergradients, the schedules it finds, and what it is compared with."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import LiveBytes, table
from reference import fds as reference
from torch import Tensor

from lrenv.agents import agents, make_agent
from lrenv.agents.fds import training as fds_training
from lrenv.agents.fds.agent import FDS
from lrenv.agents.fds.random_search import RANGES, RandomSearch, Search, schedule_training
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.fds.training import FDSTraining, ScheduleTraining, Searched, sign_step
from lrenv.agents.outer import training as outer_training
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.envs import actions as controls
from lrenv.randomness import draws
from lrenv.randomness.seeds import seeds_for
from lrenv.training.analytic import expected_loss, optimal_schedule
from lrenv.training.hypergradients import forward, train_by_schedule, validation_loss
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

F64 = torch.float64
train = partial(outer_training.train, schedule_training)


def settings(out: Path = Path("unused"), **others: Any) -> FDSSettings:
    small: dict[str, Any] = {
        "task": "digits-mlp", "out": out, "budget": 12, "interval": 3, "val_examples": 20, "segments": 3, "trainees": 2,
        "outer_steps": 4, "eval_seeds": 2, "eval_every": 2, "device": "cpu",
    }  # fmt: skip
    if others.get("method") == "truncated":
        small["window"] = 5
    return FDSSettings(**small | others)


def quadratic(method: str, **others: Any) -> ScheduleTraining:
    """A finished search on the noisy quadratic."""
    sgd = {"optimizer": "sgd", "momentum_segments": 0, "weight_decay_segments": 0, "budget": None, "val_examples": None}
    training = schedule_training(settings(task="noisy-quadratic", method=method, **sgd | others))
    while training.iteration < training.iterations:
        training.iterate()
        training.iteration += 1
    return training


def test_an_outer_step_by_hand() -> None:
    nan, inf = float("nan"), float("inf")
    before = Searched(
        torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.9], dtype=F64),
        torch.full((7,), 0.2, dtype=F64),
        torch.tensor([0.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0], dtype=F64),
    )
    after = sign_step(before, torch.tensor([3.0, 1e-9, -7.0, nan, 0.0, 5.0, -inf], dtype=F64), highest=0.999)
    expected = Searched(
        # first move, the same sign, a flip, no sign twice, and both bounds
        torch.tensor([0.3, 0.3, 0.6, 0.5, 0.5, 0.0, 0.999], dtype=F64),
        torch.tensor([0.2, 0.2, 0.1, 0.2, 0.2, 0.2, 0.2], dtype=F64),
        torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0, 1.0, -1.0], dtype=F64),
    )
    torch.testing.assert_close(after, expected)


def test_outer_steps_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    theirs = (np.full(6, 5.0), np.full(6, 0.2), np.zeros(6))
    ours = Searched(*(torch.from_numpy(x) for x in theirs))
    for _ in range(10):
        gradient = rng.normal(size=6) * (rng.random(6) > 0.1)
        theirs = reference.outer_step(*theirs, gradient)
        ours = sign_step(ours, torch.from_numpy(gradient), highest=np.inf)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert (theirs[1] < 0.2).all(), "every sign has flipped"


@pytest.mark.parametrize("minimum", [0.03, 0.37, 0.9])
def test_sign_steps_close_in_on_a_minimum(minimum: float) -> None:
    """After the first flip the step size halves every second step or so, and is about the distance to the minimum."""
    searched = Searched(*torch.tensor([[0.0], [0.1], [0.0]], dtype=F64))
    for _ in range(60):
        searched = sign_step(searched, searched.values - minimum, 1.0)
    assert abs(float(searched.values) - minimum) < 1e-4


def test_the_first_outer_step_by_hand() -> None:
    """At rate 0 the weights stand still: d loss / d lr_s = -<val gradient, sum of the segment's gradients>, and those
    by momentum and weight decay, which act through the rate, are 0."""
    training = FDSTraining(settings(trainees=1))
    losses, found = training.hypergradient()
    trainee = training.trainee
    start = trainee.init(seeds_for("training", 1))
    leaf = start.params.clone().requires_grad_()
    loss = validation_loss(trainee, start._replace(params=leaf))
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    batches = trainee.batch_indices(start, 12).unbind(1)
    each = torch.stack([trainee.gradient(start, batch).grads for batch in batches])
    expected = -(each * slope).flatten(1).sum(1).view(3, 4).sum(1)
    torch.testing.assert_close(found["lr"], expected.double(), rtol=1e-4, atol=1e-6)
    assert expected.abs().min() > 1e-3
    assert found["momentum"].tolist() == found["weight_decay"].tolist() == [0.0]
    torch.testing.assert_close(losses, loss.detach())


def test_hypergradients_are_averaged_over_the_trainees_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    training = FDSTraining(settings(trainees=3))
    training.searched["lr"] = training.searched["lr"]._replace(values=torch.tensor([0.1, 0.2, 0.05], dtype=F64))
    trainee, (first,) = training.trainee, seeds_for("training", 1)
    schedule = {name: values[None] for name, values in training.schedule.items()}
    alone = [forward(trainee, trainee.init([first + i]), schedule, 12).gradient for i in range(3)]
    for groups in ([3], [2, 1]):
        monkeypatch.setattr(trainee, "chunks", lambda n, groups=groups: groups)
        _, found = training.hypergradient()
        for name in schedule:
            mean = torch.stack([own[name][0] for own in alone]).mean(0).double()
            torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6)
    init = trainee.init

    def broken(seeds: Any) -> Any:
        state = init(seeds)
        lost = torch.tensor([seed == first + 1 for seed in seeds])
        return state._replace(params=torch.where(lost[:, None], torch.nan, state.params))

    monkeypatch.setattr(trainee, "init", broken)
    losses, found = training.hypergradient()
    assert losses.isnan().tolist() == [False, True, False]
    mean = ((alone[0]["lr"] + alone[2]["lr"]) / 2)[0].double()
    torch.testing.assert_close(found["lr"], mean, rtol=1e-4, atol=1e-6)


def excess(training: ScheduleTraining) -> float:
    """The expected loss at the end of the schedule, above that of the best one, which is constant over five steps: the
    best of all is hardly better, and takes longer to find."""
    budget, batch = training.task.budget, training.task.batch_size
    lr = training.schedule["lr"]
    rates = lr[torch.arange(budget) * len(lr) // budget]
    ends = [expected_loss(x, batch)[-1].item() for x in (rates, optimal_schedule(budget, batch, interval=5))]
    return ends[0] / ends[1] - 1


def test_fds_finds_the_schedule_of_the_noisy_quadratic_and_greedy_does_not() -> None:
    """The short-horizon bias: the greedy optimum, a rate a step that makes the next loss small, lies 2.6 % above."""
    far = quadratic("fds", segments=7, trainees=32, outer_steps=5)
    assert excess(far) < 0.012
    near = quadratic("greedy", segments=100, trainees=32, outer_steps=10)
    assert excess(near) > 0.02


def test_a_resumed_search_may_end_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between two validations, and resumed to end there, or sooner."""

    def interrupted(name: str, at: int) -> Path:
        steps, iterate = iter(range(at)), FDSTraining.iterate

        def stopping(self: FDSTraining) -> dict[str, float]:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return iterate(self)

        with monkeypatch.context() as patch:
            patch.setattr(FDSTraining, "iterate", stopping)
            with pytest.raises(KeyboardInterrupt, match=f"{at} outer steps are saved"):
                outer_training.train(FDSTraining, settings(tmp_path / name, outer_steps=8, eval_every=4))
        return tmp_path / name

    for at in (2, 6):
        out = interrupted(f"cut{at}", at)
        again = partial(settings, out, eval_every=4, resume=True)
        with pytest.raises(
            ValueError, match=f"outer_steps=1 is less than the {at} outer steps that are done: give more"
        ):
            outer_training.train(FDSTraining, again(outer_steps=1))
        with monkeypatch.context() as patch:
            patch.setattr(FDSTraining, "validate", mock.Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                outer_training.train(FDSTraining, again(outer_steps=at))
        outer_training.train(FDSTraining, again(outer_steps=at))
        outer_training.train(FDSTraining, settings(tmp_path / f"straight{at}", outer_steps=at, eval_every=4))
        cut, straight = (
            controller_file.read(folder / "controller.safetensors") for folder in (out, tmp_path / f"straight{at}")
        )
        assert all(torch.equal(cut[0][name], straight[0][name]) for name in straight[0])
        assert cut[1]["runs"] == straight[1]["runs"]
        assert cut[1]["finished"]


def test_a_converged_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fds_training, "CONVERGED", 0.6)
    train(settings(tmp_path, momentum_segments=0, weight_decay_segments=0, outer_steps=9, eval_every=9))
    rows = table(tmp_path)
    sizes, values = ([[float(row[f"{x}/lr_{s}"]) for s in range(3)] for row in rows] for x in ("step_size", "schedule"))
    small = [
        all(size < 0.6 * value for size, value in zip(*pair, strict=True)) for pair in zip(sizes, values, strict=True)
    ]
    assert small == [False] * (len(rows) - 1) + [True]
    assert len(rows) < 9
    assert rows[-1]["eval/val_loss"], "the last schedule is validated"
    train(settings(tmp_path, momentum_segments=0, weight_decay_segments=0, outer_steps=20, eval_every=9, resume=True))
    assert table(tmp_path) == rows


def test_the_agent_trains_as_the_search_did() -> None:
    agent = FDS(lr=(0.3, 0.1, 0.02), momentum=(0.0, 0.9), weight_decay=(3e-3,))
    task = make_task("digits-mlp", budget=36, interval=3, optimizer="adam")
    result = evaluate(agent, task, [0, 1], device="cpu")
    trainee = Trainee(make_task(task, optimizer="momentum"))
    values = {"lr": agent.lr, "momentum": agent.momentum, "weight_decay": agent.weight_decay}
    schedule = {name: torch.tensor([own, own]) for name, own in values.items()}
    end = train_by_schedule(trainee, trainee.init([0, 1]), schedule, 36)
    np.testing.assert_allclose(result.curves["val_loss"][-1], validation_loss(trainee, end).detach(), rtol=1e-5)
    np.testing.assert_allclose(result.curves["lr"][1:, 0], np.repeat(agent.lr, 4), rtol=1e-6)
    for budget in (360, 2):
        longer = evaluate(agent, make_task(task, budget=budget, interval=1), [0], device="cpu")
        steps = np.arange(budget) * 3 // budget
        np.testing.assert_allclose(longer.curves["lr"][1:, 0], np.array(agent.lr)[steps], rtol=1e-6)


@pytest.mark.parametrize("name", controls.HYPERPARAMETERS)
def test_actions_are_inverse_to_what_they_do(name: str) -> None:
    actions = torch.linspace(-1, 1, 21, dtype=F64)
    values = controls.HYPERPARAMETERS[name](actions)
    torch.testing.assert_close(controls.action_of(name, values), actions)
    assert values[0] == 0
    beyond = controls.action_of(name, torch.tensor([0.0, 0.9999], dtype=F64))
    assert beyond.tolist() == [-1, 1]


def test_the_least_weight_decay_is_not_none() -> None:
    asked = torch.tensor([1e-6, 9e-7, 4e-7, 0.0], dtype=F64)
    got = controls.weight_decay(controls.action_of("weight_decay", asked).float())
    torch.testing.assert_close(got.double(), torch.tensor([1e-6, 1e-6, 0.0, 0.0], dtype=F64), rtol=1e-3, atol=0)


def test_random_search_keeps_the_best_of_its_draws() -> None:
    training = RandomSearch(settings(method="random", trainees=5, outer_steps=3))
    trainee, best = training.trainee, float("inf")
    seen: list[Tensor] = []
    for _ in range(3):
        schedule = training.drawn()
        seen.append(torch.cat(list(schedule.values()), 1))
        for name, (low, high) in RANGES.items():
            values = 1 - schedule[name] if name == "momentum" else schedule[name]
            assert ((values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))).all()
        start = trainee.init(seeds_for("training", 1) * 5)
        with torch.no_grad():
            losses = validation_loss(trainee, train_by_schedule(trainee, start, schedule, 12)).nan_to_num(torch.inf)
        if losses.min() < best:
            best, expected = float(losses.min()), {name: own[losses.argmin()] for name, own in schedule.items()}
        training.iterate()
        training.iteration += 1
        assert training.schedule.keys() == expected.keys()
        assert all(torch.equal(training.schedule[name], expected[name]) for name in expected)
    assert len(torch.cat(seen).unique(dim=0)) == 15
    assert isinstance(training.controller(), Search)


def test_draws_of_random_search_fill_their_ranges() -> None:
    drawn = RandomSearch(settings(method="random", trainees=2000)).drawn()
    for name, (low, high) in RANGES.items():
        values = 1 - drawn[name] if name == "momentum" else drawn[name]
        places = (values.flatten() / low).log() / np.log(high / low)
        assert abs(places.mean() - 0.5) < 0.03
        assert places.std() == pytest.approx(12**-0.5, abs=0.02)


def test_random_search_draws_from_a_stream_of_its_own() -> None:
    """No iteration shares a number with what episodes of any purpose's first seeds draw."""
    training, drawn = RandomSearch(settings(method="random", trainees=2, segments=1)), []
    low, high = RANGES["lr"]
    for training.iteration in range(8):
        drawn.append(training.drawn()["lr"])
    places = torch.cat(drawn).div(low).log().div(math.log(high / low)).flatten()
    assert len(places.unique()) == len(places)
    purposes = ("report", "tuning", "validation", "training")
    seeds = torch.tensor([s for purpose in purposes for s in seeds_for(purpose, 50)])
    streams = (draws.BATCH, draws.DROPOUT, draws.AUGMENT, draws.INITIAL_LR, draws.EPISODE)
    others = [draws.uniform(draws.fold(seeds, stream), (4,), F64).flatten() for stream in streams]
    assert (places[:, None] - torch.cat(others)).abs().min() > 1e-9


@pytest.mark.parametrize("kind", [FDS, Search])
def test_a_schedule_outlives_its_file(tmp_path: Path, kind: type[FDS]) -> None:
    agent, path = kind((0.3, 0.1), (0.9,), optimizer="nesterov"), tmp_path / "x.safetensors"
    agent.save(path, {"episodes": 3})
    loaded = make_agent(path)
    assert type(loaded) is kind
    assert loaded == agent
    assert repr(loaded) == f"{kind.NAME}(lr=(0.3, 0.1), momentum=(0.9,), weight_decay=())"
    assert loaded.view.optimizer == "nesterov"
    assert kind.NAME in agents()
    other = Search if kind is FDS else FDS
    with pytest.raises(controller_file.ControllerFileError, match=f"holds the agent '{kind.NAME}', not"):
        other.load(path)
    controller_file.write(path, {"lr": torch.ones(1)}, {"agent": kind.NAME})
    with pytest.raises(controller_file.ControllerFileError, match="metadata lacks optimizer"):
        make_agent(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": ()}, r"lr=\(\) must be a value for each segment, such as lr=\(0.1,\)"),
        ({"lr": 0.1}, r"lr=0.1 must be a value for each segment"),
        ({"lr": (0.1,), "momentum": 0.9}, r"momentum=0.9 must be a value for each segment"),
        ({"lr": (0.1, -0.1)}, r"lr=\(0.1, -0.1\): values must be finite, and between 0 and inf"),
        ({"lr": (float("nan"),)}, "finite"),
        ({"lr": (0.1,), "momentum": (1.0,)}, "between 0 and 0.999"),
        ({"lr": (0.1,), "weight_decay": (0.2,)}, "between 0 and 0.1"),
    ],
)
def test_schedules_that_can_not_be_followed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FDS(**values)


def test_a_momentum_for_an_optimizer_without() -> None:
    with pytest.raises(ValueError, match="control 'momentum': this optimizer has no momentum"):
        evaluate(FDS((0.1,), (0.9,), optimizer=None), "noisy-quadratic", [0], device="cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segments": 13}, "segments=13, but the budget has 12 inner steps; give at most one per step"),
        ({"weight_decay_segments": 13}, "weight_decay_segments=13, but"),
        ({"segments": 0}, "segments must be at least 1"),
        ({"momentum_segments": -1}, "momentum_segments must be at least 1"),
        ({"window": 0, "method": "truncated"}, "window must be at least 1"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' has no momentum; set momentum_segments=0"),
        ({"optimizer": "adam"}, "through the optimizers sgd, momentum, nesterov, not through 'adam'"),
        ({"optimizer": "momentum+ema"}, "through the optimizers sgd, momentum, nesterov, not through 'momentum.ema'"),
        ({"method": "guess"}, "method must be one of fds, greedy, truncated, random, not 'guess'"),
        ({"method": "greedy", "window": 7}, "window=7 would do nothing beside these settings"),
        ({"method": "random", "lr_step": 0.5}, "lr_step=0.5 would do nothing"),
        ({"momentum_segments": 0, "momentum_step": 0.5}, "momentum_step=0.5 would do nothing"),
        ({"lr_step": 0.0}, "lr_step must lie between 0 and 1"),
        ({"task": "digits-mpl"}, "unknown task 'digits-mpl'"),
    ],
)
def test_settings_that_can_not_be_meant(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_training(settings(**wrong))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_horizon() -> None:
    peaks = []
    for budget in (500, 5000):
        training = FDSTraining(settings(budget=budget, interval=20, trainees=1, segments=2))
        with LiveBytes() as live:
            training.iterate()
        peaks.append(live.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
