"""Drawn tasks: a number names one for good, each is within its limits, and purposes share none."""

from __future__ import annotations

import hashlib
import itertools
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lrenv import make_task, tasks
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.noh.settings import NOHSettings
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.data import generated
from lrenv.data.generated import Copying, GaussianMixture, MarkovChain, PowerLawRegression, Resampled, Sines, Teacher
from lrenv.envs.episode import Episode
from lrenv.networks.families import ACTIVATIONS, Perceptron, ResidualPerceptron, Transformer
from lrenv.randomness.named import Chance
from lrenv.randomness.seeds import RANGES, TRAINING, seeds_for
from lrenv.training import drawn
from lrenv.training.drawn import DATA, LIMIT, TaskDistribution, flops, parts
from lrenv.training.power_law import PowerLaw
from lrenv.training.tasks import Task

ROOT = Path(__file__).parents[1]
DISTRIBUTION = TaskDistribution()


def kind_of(task: Task) -> str:
    """The kind of data, as the summary tells it."""
    return task.summary.split(": ")[1].split(",")[0]


def of_all_kinds(number: int) -> list[Task]:
    """The first tasks of each kind of data and of network."""
    found: dict[tuple[object, ...], list[Task]] = {}
    for i in range(400):
        task = DISTRIBUTION.task(i)
        for kind in ((kind_of(task),), (type(task.network).__name__, getattr(task.network, "layer_norm", None))):
            found.setdefault(kind, []).append(task)
    return list({task.name: task for some in found.values() for task in some[:number]}.values())


def test_a_number_names_a_task_for_good() -> None:
    """What this pins may change only together with `VERSION`."""
    told = "\n".join(repr(DISTRIBUTION.task(i)) for i in range(500))
    assert (drawn.VERSION, hashlib.sha256(told.encode()).hexdigest()[:16]) == (2, "11866a158fdb95f4")


PINNED = (
    (0, 143, 2734),
    (1, -18.681, 202),
    (2, 294, 79),
    (3, -1.3945, 5.0401),
    (5, -2.5672, 1.5339),
    (11, -4.3255, 40),
    (20, -20.01, 101),
    (30, -0.54517, 36),
    (31, -0.60131, -2.7203),
    (49, 28, 418),
)
"""A number of each kind of data, and the sums of the first training example and of the first twenty targets."""


@pytest.mark.parametrize(("number", "example", "targets"), PINNED)
def test_a_number_names_its_data_for_good(number: int, example: float, targets: float) -> None:
    """As above."""
    train = DISTRIBUTION.task(number).load().train
    assert float(train.inputs[0].double().sum()) == pytest.approx(example, rel=1e-3)
    assert float(train.targets[:20].double().sum()) == pytest.approx(targets, rel=1e-3)


def test_the_pinned_data_are_of_all_kinds() -> None:
    assert {kind_of(DISTRIBUTION.task(number)) for number, _, _ in PINNED} == set(DATA)


def test_a_task_depends_on_its_number_alone() -> None:
    here = [DISTRIBUTION.task(i) for i in (3, 9, 25)]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert [DISTRIBUTION.task(i) for i in (25, 3, 9)] == [here[2], here[0], here[1]]
    assert len({repr(DISTRIBUTION.task(i)) for i in range(200)}) == 200
    code = (
        "import torch, numpy; torch.manual_seed(1); numpy.random.seed(1); from lrenv.training.drawn import *\n"
        "for i in (25, 9, 3):\n"
        "    task = TaskDistribution().task(i); data = task.load()\n"
        "    print(repr(task), [float(x.double().sum()) for split in data[:3] for x in split])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    told = [(task, task.load()) for task in reversed(here)]
    assert done.stdout.splitlines() == [
        f"{task!r} {[float(x.double().sum()) for split in data[:3] for x in split]}" for task, data in told
    ]


def test_data_leave_the_global_generators_alone() -> None:
    task = DISTRIBUTION.task(3)
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = task.load()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    for one, other in zip(first[:3], task.load()[:3], strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_limits_hold() -> None:
    kinds: Counter[str] = Counter()
    shapes: Counter[type] = Counter()
    for i in range(2000):
        task = DISTRIBUTION.task(i)
        data, network = parts(task)
        kinds[kind_of(task)] += 1
        shapes[type(network)] += 1
        assert flops(task) <= LIMIT
        assert 100 <= task.budget <= 3000
        assert task.budget % task.interval == 0
        assert 20 <= task.budget // task.interval <= 300
        assert task.batch_size <= data.examples / 2
        assert task.budget * task.batch_size <= 10 * data.examples
        assert (task.initial_lr.low, task.initial_lr.high) == (1e-5, 1e-1)  # type: ignore[union-attr]
        assert 500 <= data.examples <= 50_000
        assert 200 <= data.held_out <= 600
        if task.loss in ("mse", "huber"):
            assert getattr(data, "noise") >= 0.05  # noqa: B009
    assert set(kinds) == set(DATA)
    for kind, weight in DATA.items():  # 4.5 standard deviations of a binomial distribution
        share = weight / sum(DATA.values())
        assert abs(kinds[kind] - 2000 * share) < 4.5 * (2000 * share * (1 - share)) ** 0.5
    assert set(shapes) == {Perceptron, ResidualPerceptron, Transformer}
    budgets = [DISTRIBUTION.task(i).budget for i in range(500)]
    assert max(budgets) > 25 * min(budgets)


def test_a_lower_limit_changes_the_costly_ones_alone() -> None:
    low = TaskDistribution(1e9)
    for i in range(300):
        mine, theirs = low.task(i), DISTRIBUTION.task(i)
        assert flops(mine) <= 1e9
        assert mine.name == f"drawn:number={i}:limit=1000000000.0"
        assert make_task(mine.name) == mine
        assert (kind_of(mine), type(mine.network)) == (kind_of(theirs), type(theirs.network))
        if flops(theirs) <= 1e9:
            assert (mine.data, mine.network, mine.budget) == (theirs.data, theirs.network, theirs.budget)


def test_purposes_have_tasks_of_their_own() -> None:
    asked = {purpose: [task.name for task in DISTRIBUTION.tasks(purpose, 3)] for purpose in (*RANGES, "training")}
    asked["another training"] = [task.name for task in DISTRIBUTION.tasks("training", 3, training=1)]
    asked["later"] = [task.name for task in DISTRIBUTION.tasks("training", 3, first=3)]
    assert {"report", "validation", "selection", "training"} <= set(asked)
    assert len(set(itertools.chain(*asked.values()))) == 3 * len(asked)
    assert asked["report"] == [f"drawn:number={i}" for i in seeds_for("report", 3)]


def test_a_spec_names_a_drawn_task() -> None:
    assert "drawn" in tasks()
    assert make_task("drawn") == make_task(f"drawn:number={TRAINING}") == DISTRIBUTION.tasks("training", 1)[0]
    for i in (0, 17, 2_000_003):
        assert make_task(f"drawn:number={i}").name == f"drawn:number={i}"
    changed = make_task("drawn:number=17:budget=40:interval=4")
    assert (changed.budget, changed.interval, changed.data) == (40, 4, DISTRIBUTION.task(17).data)


@pytest.mark.parametrize("purpose", RANGES)
def test_no_training_is_on_tasks_of_another_purpose(purpose: str) -> None:
    for number in (RANGES[purpose][0], RANGES[purpose][-1]):
        for settings in (
            PPOSettings(task=f"drawn:number={number}:budget=40"),
            NOHSettings(task=f"drawn:number={number}"),
        ):
            with pytest.raises(
                ValueError, match=f"number={number}' is not for training.*whose number is 1000000 or more"
            ):
                settings.make_task()
        with pytest.raises(ValueError, match=f"number={number}' is not for training"):
            LearnedOptimizerSettings(tasks=f"two-minima,drawn:number={number}")
    for number in seeds_for("training", 1) + seeds_for("training", 1, training=3):
        assert PPOSettings(task=f"drawn:number={number}").make_task() == DISTRIBUTION.task(number)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("drawn:number=-1", ValueError, "number must be at least 0, not -1"),
        ("drawn:number=1.5", TypeError, "number must be an integer, not 1.5"),
        ("drawn:number=all", TypeError, "number must be an integer, not 'all'"),
        ("drawn:number=True", TypeError, "number must be an integer, not True"),
        ("drawn:limit=1e6", ValueError, "too few for a drawn task; take 5e.08 or more"),
        ("drawn:limit=1e999", ValueError, "limit=inf must be a finite number of FLOPs"),
        ("drawn:limit=nan", TypeError, "limit must be a number of FLOPs, not 'nan'"),
        ("drawn:limit=much", TypeError, "limit must be a number of FLOPs, not 'much'"),
        ("drawn:seed=1", ValueError, "unknown setting of a task 'seed'"),
    ],
)
def test_specs_that_cannot_be_meant(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_task(spec)
    with pytest.raises(ValueError, match="limit=nan"):
        TaskDistribution(float("nan"))
    with pytest.raises(TypeError, match="task 'digits-mlp' is none that was drawn"):
        flops(make_task("digits-mlp"))


def test_a_description_tells_what_is_drawn() -> None:
    for number in (3, 9, 30):
        told, task = DISTRIBUTION.describe(number), DISTRIBUTION.task(number)
        assert (told["flops"], told["budget"], told["optimizer"]) == (flops(task), task.budget, task.optimizer)
        assert told["decisions"] * told["interval"] == told["budget"]
        assert told["weight_decay"] == task.weight_decay
        assert all(isinstance(value, int | float | str) for value in told.values())
        assert told["network"] in task.summary


def test_the_table_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "drawn_tasks.py"))
    script["main"](script["Settings"]())
    printed = capsys.readouterr().out.split("\n")
    assert drawn.__doc__ is not None
    told = {line.strip() for line in drawn.__doc__.split("\n")}
    assert len(printed) > 10
    assert set(printed) <= told


def run_two_decisions(task: Task) -> None:
    episode = Episode(task)
    data, _ = parts(task)
    assert (tuple(episode.trainee.train.inputs.shape[1:]), episode.trainee.outputs) == (data.shape, data.outputs)
    assert len(episode.trainee.train.targets) == data.examples
    assert len(episode.trainee.val.targets) == len(episode.trainee.test.targets) == data.held_out
    assert episode.decisions == task.budget // task.interval
    with torch.no_grad():
        state, time_step = episode.reset([0, 1])
        assert len(set(state.lr[:, 0].tolist())) == 2
        assert time_step.info["val_loss"].isfinite().all()
        assert time_step.info["train_loss"].isfinite().all()
        for _ in range(2):
            state, time_step = episode.step(state, torch.zeros(2, 1))
    assert time_step.info["inner_step"].tolist() == [2 * task.interval] * 2
    assert (time_step.info["val_loss"].isfinite() | time_step.info["diverged"]).all()


def short(task: Task) -> Task:
    return make_task(
        task, interval=min(task.interval, 5), budget=min(task.interval, 5) * (task.budget // task.interval)
    )


@pytest.mark.parametrize("task", of_all_kinds(1), ids=lambda task: task.name.partition("=")[2])
def test_each_kind_trains(task: Task) -> None:
    run_two_decisions(short(task))


@pytest.mark.slow
def test_three_hundred_train() -> None:
    for i in range(300):
        run_two_decisions(short(DISTRIBUTION.task(i)))


def counted(task: Task) -> int:
    """The FLOPs of an episode of one trainee, as torch counts them."""
    episode = Episode(task)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        state, _ = episode.reset([0])
        for _ in range(episode.decisions):
            state, _ = episode.step(state, torch.zeros(1, 1))
    return int(counter.get_total_flops())


SMALL: dict[str, Any] = {"seed": 1, "examples": 60, "held_out": 30}


@pytest.mark.parametrize(
    ("data", "network", "loss"),
    [
        (GaussianMixture(**SMALL, features=5, classes=3), Perceptron(), "cross_entropy"),
        (GaussianMixture(**SMALL, features=5, classes=3), Perceptron((7, 4), "tanh"), "cross_entropy"),
        (Teacher(**SMALL, features=5, width=3, answers=2, says="bits"), Perceptron((6,), "gelu", True), "bce"),
        (Sines(**SMALL, features=2, terms=3, frequency=1.0), ResidualPerceptron(6, 2), "huber"),
        (Copying(**SMALL, symbols=5, length=9), Transformer(8, 2, 2), "cross_entropy"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_flops_are_those_that_torch_counts(data: Any, network: Any, loss: str) -> None:
    task = Task("counted", data, network, loss=loss, batch_size=7, budget=6, interval=2, initial_lr=0.01)
    assert flops(task) == counted(task)
    fewer = make_task(task, val_examples=11, interval=4)
    assert flops(fewer) == counted(fewer)


def test_draws_have_the_chances_that_they_claim() -> None:
    chances = [Chance("here", i) for i in range(4000)]
    drawn_of = Counter(chance.one_of("x", {"a": 1.0, "b": 3.0, "c": 0.0}) for chance in chances)
    assert abs(drawn_of["a"] - 1000) < 4.5 * (1000 * 0.75) ** 0.5
    assert drawn_of["c"] == 0
    counts = Counter(chance.count("n", 1, 3) for chance in chances)
    expected = np.diff(np.log([1, 2, 3, 4])) / np.log(4) * 4000
    assert all(abs(counts[n] - expected[n - 1]) < 4.5 * expected[n - 1] ** 0.5 for n in (1, 2, 3))
    logs = np.log10([chance.scale("r", 1e-5, 1e-1) for chance in chances])
    assert abs(logs.mean() + 3) < 4.5 * 4 / 12**0.5 / 4000**0.5
    assert -5 <= logs.min() < -4.9
    assert -1.1 < logs.max() <= -1
    one, other = (np.array([chance.uniform(name) for chance in chances]) for name in ("x", "y"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / 4000**0.5


MANY: dict[str, Any] = {"seed": 3, "examples": 3000, "held_out": 500}


def test_classes_of_a_mixture_are_as_far_apart_as_said() -> None:
    mixture = GaussianMixture(**MANY, features=30, classes=5, separation=6.0)
    data = mixture()
    centres = torch.stack([data.train.inputs[data.train.targets == c].mean(0) for c in range(5)])
    assert (torch.pdist(centres) ** 2).mean().sqrt().item() == pytest.approx(6.0, rel=0.15)
    within = torch.stack([data.train.inputs[data.train.targets == c].std(0) for c in range(5)])
    assert within.mean().item() == pytest.approx(1.0, rel=0.05)
    counts = data.train.targets.bincount()
    assert counts.min() > 0.8 * counts.max()
    noisy = GaussianMixture(**MANY, features=30, classes=5, separation=6.0, label_noise=0.5)()
    assert torch.equal(noisy.train.inputs, data.train.inputs)
    assert (noisy.train.targets != data.train.targets).double().mean().item() == pytest.approx(0.4, abs=0.04)


def test_a_teacher_says_numbers_bits_and_classes() -> None:
    own: dict[str, Any] = MANY | {"features": 8, "width": 5, "answers": 3}
    numbers, bits, classes = (Teacher(**own, says=says)() for says in ("numbers", "bits", "classes"))
    assert torch.equal(numbers.train.inputs, classes.train.inputs)
    assert torch.equal((numbers.train.targets > 0).float(), bits.train.targets)
    assert torch.equal(numbers.train.targets.argmax(1), classes.train.targets)
    scaled = Teacher(**own, says="numbers", scale=2.5, noise=0.5)()
    left = scaled.train.targets - 2.5 * numbers.train.targets
    assert left.std().item() == pytest.approx(1.25, rel=0.05)
    assert (2.5 * numbers.train.targets).std().item() == pytest.approx(2.5, rel=0.1)
    spread = Teacher(**own, decay=1.0)().train.inputs.var(0)
    torch.testing.assert_close(spread * torch.arange(1, 9), torch.ones(8), rtol=0.15, atol=0)
    wrong = Teacher(**own, says="bits", noise=0.5)().train.targets != bits.train.targets
    assert wrong.double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_power_laws_are_those_of_the_exact_tasks() -> None:
    data = PowerLawRegression(**MANY, features=12, capacity=1.5, source=0.6)()
    problem = PowerLaw(1.5, 0.6, dimension=12)
    x, y = data.train.inputs.double(), data.train.targets.double()
    found = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    torch.testing.assert_close(found / found[0], problem.target / problem.target[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x.var(0) / problem.spectrum, torch.ones(12).double(), rtol=0.15, atol=0)
    assert y.std().item() == pytest.approx(1.0, rel=0.05)
    loud = PowerLawRegression(**MANY, features=12, capacity=1.5, source=0.6, noise=0.3, scale=2.0)()
    assert (loud.train.targets.double() - 2 * y).std().item() == pytest.approx(0.6, rel=0.05)


def test_sums_of_sines_are_smooth_and_scaled() -> None:
    data = Sines(**MANY, features=1, terms=3, frequency=0.5, scale=3.0)()
    order = data.train.inputs[:, 0].argsort()
    assert data.train.targets[order].diff().abs().max() < 0.3
    assert data.train.targets.std().item() == pytest.approx(3.0, rel=0.1)
    assert data.train.inputs.abs().max() <= 1


def test_chains_follow_their_table_and_copies_repeat() -> None:
    chain = MarkovChain(**MANY, symbols=4, length=12, order=2, concentration=0.05)()
    seen = torch.cat([chain.train.inputs, chain.train.targets[:, -1:]], 1).unfold(1, 3, 1).flatten(0, 1)
    assert torch.equal(chain.train.inputs[:, 1:], chain.train.targets[:, :-1])
    counts = torch.zeros(16, 4).index_put_((seen[:, 0] * 4 + seen[:, 1], seen[:, 2]), torch.ones(len(seen)), True)
    share = counts / counts.sum(1, keepdim=True)
    assert (share.amax(1) * counts.sum(1)).sum() / counts.sum() > 0.7, "the two before tell the next one"
    first = torch.zeros(4, 4).index_put_((seen[:, 1], seen[:, 2]), torch.ones(len(seen)), True)
    assert first.amax(1).sum() / first.sum() < (share.amax(1) * counts.sum(1)).sum() / counts.sum()
    copies = Copying(**MANY, symbols=9, length=16)()
    whole = torch.cat([copies.train.inputs, copies.train.targets[:, -1:]], 1)
    periods = torch.stack([(whole[:, p:] == whole[:, :-p]).all(1) for p in range(4, 9)], 1)
    assert periods.any(1).all()
    assert periods.double().mean(0).min() > 0.1
    assert whole.max() == 8


def test_resampled_sets_are_parts_of_theirs() -> None:
    part = Resampled(seed=4, examples=500, held_out=200, source="digits", scale=2.0)()
    inputs = (part.train.inputs.float() - part.mean) / part.std
    assert inputs.std().item() == pytest.approx(2.0, rel=1e-3)
    whole = generated.load("digits")
    held = {tuple(x) for x in whole.train.inputs.flatten(1).tolist()}
    mine = [tuple(x) for x in part.train.inputs.flatten(1).tolist()]
    assert len(mine) == 500
    assert held.issuperset(mine)
    assert torch.equal(part.val.inputs, whole.val.inputs[:200])
    noisy = Resampled(seed=4, examples=500, held_out=200, source="digits", label_noise=0.5)()
    assert (noisy.train.targets != part.train.targets).double().mean().item() == pytest.approx(0.45, abs=0.08)
    assert torch.equal(noisy.val.targets, part.val.targets)
    with pytest.raises(ValueError, match="digits has 1200 examples and 297 held out, too few"):
        Resampled(seed=4, examples=1201, held_out=200, source="digits")


def test_networks_are_equal_where_their_settings_are() -> None:
    assert Perceptron((3, 4), "tanh") == Perceptron((3, 4), "tanh") != Perceptron((3, 4), "relu")
    assert set(drawn.ACTIVATIONS) == set(ACTIVATIONS)
    module = Perceptron((3, 4), "sigmoid", True)((2, 2), 5)
    assert [type(part).__name__ for part in module.children()] == [
        "Flatten", "Linear", "LayerNorm", "Sigmoid", "Linear", "LayerNorm", "Sigmoid", "Linear",
    ]  # fmt: skip
