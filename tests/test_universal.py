"""Universal controllers: the policy against a second rendering, and its training."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import universal as reference
from torch import Tensor

from lrenv.agents import make_agent
from lrenv.agents.outer import training as outer_training
from lrenv.agents.outer.validation import WORST
from lrenv.agents.universal import policy
from lrenv.agents.universal import training as training_module
from lrenv.agents.universal.agent import UniversalController, action_of_rates, view_of_policy
from lrenv.agents.universal.policy import CENTRES, PEAK, SCHEDULE, Architecture, Memory, decide, first_memory
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.privileges import Privileges, privileges_of
from lrenv.envs.actions import BOUNDS, KINDS
from lrenv.envs.episode import Episode
from lrenv.envs.observations import UNTRAINED
from lrenv.networks import mlp
from lrenv.randomness import draws
from lrenv.randomness.seeds import TRAINING, seeds_for
from lrenv.training.drawn import TaskDistribution, flops
from lrenv.training.tasks import Task, make_task

F64 = torch.float64
ARCHITECTURES = [
    Architecture(layers, horizon, gradients, hidden=5 * layers)
    for layers, horizon, gradients in itertools.product((False, True), repeat=3)
]
PLAIN = Architecture(hidden=5)


def exponents_of(architecture: Architecture, theta: Tensor, family: str) -> dict[str, float]:
    learned = zip(architecture.exponents, architecture.parts(theta)["peak"].tolist(), strict=True)
    return {name: a + architecture.peak[family][name] for (of_family, name), a in learned if of_family == family}


def peak_of(exponents: dict[str, float], family: str, seen: dict[str, float], budget: int | None) -> float:
    """By what is seen of a trainee with batches of 64 and a momentum of 0.8."""
    value = {name: 10 ** seen[name] for name in UNTRAINED}
    if family == "adaptive":
        return reference.peak_of_adaptive(exponents, 64, value["weight_size"], 3)
    return reference.peak_of_sgd(exponents, 64, budget, 0.8, value["first_loss"], value["relative_gradient"])


def random_theta(architecture: Architecture, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(architecture.size, generator=torch.Generator().manual_seed(1), dtype=F64)


def episode_of(architecture: Architecture, **settings: Any) -> Episode:
    task = make_task("digits-mlp", budget=14, interval=4, **settings)
    view = view_of_policy(architecture)
    return Episode(task, view.control, view.observe, dtype=F64)


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_decisions_against_a_second_rendering(architecture: Architecture, optimizer: str) -> None:
    """In training runs of three networks, of which each has a policy of its own."""
    episode = episode_of(architecture, optimizer=optimizer, momentum=0.8)
    theta = random_theta(architecture) * torch.tensor([[0.0], [0.5], [1.0]], dtype=F64)
    state, step = episode.reset([0, 1, 2])
    assert isinstance(step.observation, dict)
    layers, memory = episode.control.rates, first_memory(step.observation)
    parts, guards = [architecture.parts(row) for row in theta], [reference.Guard() for _ in theta]
    family = "adaptive" if optimizer == "adam" else "sgd"
    budget = 14 if architecture.horizon else None
    reached = [0.0] * 3
    for number in range(episode.decisions):
        assert isinstance(step.observation, dict)
        x = policy.inputs(architecture, step.observation, memory.correction)
        decision = decide(architecture, theta, step.observation, memory)
        for i in range(3):
            learned = dict(zip(SCHEDULE, parts[i]["schedule"].tolist(), strict=True))
            signals = {name: float(x[i]) for name, x in policy.signals(architecture, step.observation).items()}
            moved = 10 ** signals["first_update"], 10 ** signals["last_update"]
            progress = signals.get("progress")
            guards[i].see(10 ** signals["train_fall"], moved, reached[i], 4, 64, 4 * number, progress)
            peak = peak_of(exponents_of(architecture, theta[i], family), family, signals, budget)
            warmed_up = reference.warmed_up(learned, peak, 4 * number, 4, budget)
            reached[i] = min(warmed_up, guards[i].ceiling)
            for k in range(layers):
                w, b, w1, b1, w2 = (parts[i][name].numpy() for name in ("w", "b", "w1", "b1", "w2"))
                seen = np.array([float(x[name].expand(3, layers)[i, k]) for name in architecture.inputs])
                before = float(memory.correction[i, k])
                c = reference.corrected(before, reference.output(seen, w, float(b[0]), w1, b1, w2))
                layer = k if architecture.layers else None
                rate = reference.rate(learned, reached[i], 4 * number, 4, budget, c, (64, 32, 32), layer)
                assert float(decision.memory.correction[i, k]) == pytest.approx(c, rel=1e-9, abs=1e-12)
                assert float(decision.rates[i, k]) == pytest.approx(rate, rel=1e-9)
        memory = decision.memory
        state, step = episode.step(state, action_of_rates(decision.rates))
        torch.testing.assert_close(state.lr, decision.rates.clamp(*BOUNDS), rtol=1e-9, atol=0)


def test_gradients_are_seen_as_cosines_and_shares() -> None:
    architecture = Architecture(layers=True, gradients=True, hidden=5)
    episode = episode_of(architecture, optimizer="sgd")
    state, step = episode.reset([0])
    state, step = episode.step(state, action_of_rates(torch.full((1, episode.control.rates), 0.1, dtype=F64)))
    seen = step.observation
    assert isinstance(seen, dict)
    x = policy.inputs(architecture, seen, torch.zeros(1, episode.control.rates, dtype=F64))
    cosine = -seen["hypergradient"] / (seen["gradient_square"] * seen["direction_square"]).sqrt()
    centre, spread = CENTRES["cosine"]
    torch.testing.assert_close(x["cosine"], ((cosine - centre) / spread).clamp(-3, 3))
    assert (cosine.abs() <= 1).all()
    centre, spread = CENTRES["share"]
    torch.testing.assert_close((10 ** (x["share"] * spread + centre)).sum(1), torch.ones(1, dtype=F64))


def test_layers_are_seen_by_fan_in_place_and_their_own_correction() -> None:
    architecture = Architecture(layers=True, hidden=5)
    _, step = episode_of(architecture).reset([0])  # of the perceptron 64-32-32-10
    assert isinstance(step.observation, dict)
    x = policy.inputs(architecture, step.observation, torch.tensor([[1.0, -1.0, 100.0]], dtype=F64))
    expected = {
        "fan_in": [(np.log10(f) - 1.8) / 0.5 for f in (64, 32, 32)],
        "place": [-1.0, 0.0, 1.0],
        "correction": [0.5, -0.5, 3.0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(x[name], torch.tensor([values], dtype=F64))


def test_an_untrained_policy_is_a_warm_up_and_a_linear_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guard does nothing."""
    monkeypatch.setattr(policy, "GUARD", policy.Guard(rise=1e9, farthest=1e9))
    agent = UniversalController(PLAIN.init(3), PLAIN)
    result = evaluate(agent, make_task("digits-mlp", budget=40, interval=4), [0], device="cpu")
    still = dict.fromkeys(SCHEDULE, 0.0)
    _, first = Episode(make_task("digits-mlp", budget=40, interval=4), observe="untrained").reset([0])
    assert isinstance(first.observation, Tensor)
    size = 10 ** float(first.observation[0, list(UNTRAINED).index("weight_size")])
    peak = reference.peak_of_adaptive(PEAK["adaptive"], 64, size, 3)
    reached = [reference.warmed_up(still, peak, step, 4, 40) for step in range(0, 40, 4)]
    expected = [reference.rate(still, reached[i], 4 * i, 4, 40, 0.0, (64, 32, 32)) for i in range(10)]
    middle = np.arange(2, 40, 4) / 40
    np.testing.assert_allclose(expected, peak * np.minimum(1, middle / policy.WARMUP) * (1 - middle))
    np.testing.assert_allclose(result.curves["lr"][1:, 0], expected, rtol=1e-4)


def seen_by_the_guard(
    architecture: Architecture,
    fall: float,
    moved: tuple[float, float],
    progress: float,
    steps: int = 4,
    batch: int = 32,
    taken: int = 4,
) -> dict[str, Tensor]:
    """Signals (1, 1) of an interval, with decimal logarithms of the loss and of how far both layers moved."""
    first, last = moved
    named = {"train_fall": fall, "first_update": first, "last_update": last, "steps_per_decision": math.log10(steps)}
    named |= {"first_loss": 0.3, "layers": math.log10(3), "batch_size": math.log10(batch)}
    named |= {"steps": math.log10(1 + taken)}
    named |= {"progress": progress} if architecture.horizon else {}
    return {name: torch.tensor([[value]], dtype=F64) for name, value in named.items()}


@pytest.mark.parametrize("architecture", [PLAIN, Architecture(horizon=False)], ids=str)
@pytest.mark.parametrize(("interval", "batch"), [(1, 32), (1, 8), (4, 256), (50, 1)])
def test_the_guard_against_a_second_rendering(architecture: Architecture, interval: int, batch: int) -> None:
    """In runs of random losses and movements, in which all that it looks out for happens."""
    rng = np.random.default_rng(interval)
    guard, memory, zero = reference.Guard(), fresh_memory(), torch.zeros(1, 1, dtype=F64)
    ceilings = []
    for number in range(60):
        fall, rate = rng.normal(1.2 * (number % 12 > 5) - 0.6, 0.5), rng.uniform(0.1, 1)
        first, last = np.minimum(rng.normal(-0.1, 0.6, 2) + math.log10(interval) / 2, rng.uniform(-0.05, 0.1, 2))
        progress = number / 60 if architecture.horizon else 0.0
        seen = seen_by_the_guard(architecture, fall, (first, last), progress, interval, batch, interval * (number + 1))
        memory = policy.GUARD(memory._replace(reached=zero + math.log(rate)), seen)
        moved, taken = (10**first, 10**last), interval * (number + 1)
        guard.see(10**fall, moved, rate, interval, batch, taken, progress if architecture.horizon else None)
        found = [float(x) for x in (memory.ceiling.exp(), memory.loss, memory.lowest)]
        np.testing.assert_allclose(found, (guard.ceiling, guard.loss, guard.lowest), rtol=1e-9, atol=1e-12)
        ceilings.append(found[0])
    changes = [number for number, (one, other) in enumerate(itertools.pairwise(ceilings)) if one != other]
    assert {"moved", "rose"} == set(guard.causes)
    assert all(number <= 18 for number in changes) is architecture.horizon


def fresh_memory() -> Memory:
    zero = torch.zeros(1, 1, dtype=F64)
    return Memory(zero, torch.full_like(zero, math.inf), zero, zero, zero)


def test_one_rise_of_the_loss_lowers_the_rate_once() -> None:
    memory = fresh_memory()
    for fall in (-1.0, *[1.0] * 20):
        memory = policy.GUARD(memory, seen_by_the_guard(PLAIN, fall, (-8.0, -8.0), 0.1, steps=2))
    assert float(memory.ceiling.exp()) == pytest.approx(policy.GUARD.fall)


def test_a_first_loss_that_says_nothing_makes_no_rise() -> None:
    seen = seen_by_the_guard(PLAIN, 3.0, (-8.0, -8.0), 0.1, steps=20)
    for first, ceiling in ((0.3, policy.GUARD.fall), (UNTRAINED["first_loss"].low, math.inf)):
        found = policy.GUARD(fresh_memory(), seen | {"first_loss": torch.tensor([[first]], dtype=F64)})
        assert float(found.ceiling.exp()) == pytest.approx(ceiling)


def test_networks_of_one_layer_may_move_far() -> None:
    seen = seen_by_the_guard(PLAIN, 0.1, (-0.01, -0.01), 0.1)
    assert math.isfinite(policy.GUARD(fresh_memory(), seen).ceiling)
    alone = seen | {"layers": torch.zeros(1, 1, dtype=F64)}
    assert math.isinf(policy.GUARD(fresh_memory(), alone).ceiling)


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("size", [0.0, 0.01])
def test_a_last_layer_that_begins_small_costs_nothing(
    optimizer: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves far relative to its weights, whatever the rate."""

    def network(shape: Any, classes: int) -> torch.nn.Module:
        net = mlp(20)(shape, classes)
        with torch.no_grad():
            for parameter in list(net.modules())[-1].parameters():
                parameter *= size
        return net

    task = make_task("digits-mlp", network=network, budget=200, interval=2, optimizer=optimizer)
    guarded = evaluate(make_agent("universal"), task, range(3), device="cpu").final_test_loss.mean()
    monkeypatch.setattr(policy, "GUARD", policy.Guard(rise=1e9, farthest=1e9))
    assert guarded < 1.3 * evaluate(make_agent("universal"), task, range(3), device="cpu").final_test_loss.mean()


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_linear_models_may_begin_at_0(optimizer: str) -> None:
    """Their weights then say nothing of how large rates may be."""

    def network(shape: Any, classes: int) -> torch.nn.Module:
        net = mlp()(shape, classes)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter *= 0
        return net

    task = make_task("digits-logreg", budget=200, interval=4, optimizer=optimizer)
    usual, zero = (
        evaluate(make_agent("universal"), each, range(3), device="cpu").final_test_loss.mean()
        for each in (task, replace(task, network=network))
    )
    assert zero < 1.3 * usual


def test_the_guard_saves_runs_whose_peak_is_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SGD, at four times the peak of the power law, where without a guard all runs end as they began."""
    task, architecture = make_task("digits-mlp", budget=200, interval=4, optimizer="momentum"), Architecture()
    theta = architecture.init(0)
    theta[len(SCHEDULE) + architecture.exponents.index(("sgd", "one"))] += math.log(4)
    agent = UniversalController(theta, architecture)
    guarded = evaluate(agent, task, range(4), device="cpu").final_test_loss.mean()
    monkeypatch.setattr(policy, "GUARD", policy.Guard(rise=1e9, farthest=1e9))
    assert guarded < 0.6 * evaluate(agent, task, range(4), device="cpu").final_test_loss.mean()


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_rates_of_sgd_are_divided_by_what_a_loss_is_multiplied_by(factor: float) -> None:
    """And those of optimizers that scale gradients stay the same."""
    theta = random_theta(PLAIN, 0.1)[None]
    for optimizer, expected in (("momentum", 1 / factor), ("adam", 1.0)):
        _, step = episode_of(PLAIN, optimizer=optimizer).reset([0])
        assert isinstance(step.observation, dict)
        untrained = step.observation["untrained"].clone()
        places = [list(UNTRAINED).index(name) for name in ("first_loss", "relative_gradient")]
        untrained[:, places] += math.log10(factor)
        times, once = (
            decide(PLAIN, theta, seen, first_memory(seen)).rates
            for seen in (step.observation | {"untrained": untrained}, step.observation)
        )
        torch.testing.assert_close(times, expected * once, rtol=1e-9, atol=0)


def peaks_of(optimizer: str, seen: dict[str, list[float]]) -> list[float]:
    """The logarithms of the peaks where signals have these values in the place of their own."""
    architecture = Architecture()
    _, step = episode_of(architecture, optimizer=optimizer, momentum=0.9).reset([0])
    assert isinstance(step.observation, dict)
    found = policy.signals(architecture, step.observation)
    found |= {name: torch.tensor(values, dtype=F64)[:, None] for name, values in seen.items()}
    number = max(len(x) for x in found.values())
    found = {name: x.expand(number, 1) for name, x in found.items()}
    peaks: list[float] = policy.power_law(architecture, torch.zeros(number, len(architecture.exponents)), found)[
        :, 0
    ].tolist()
    return peaks


def test_what_is_not_like_any_training_does_not_move_the_peak_further() -> None:
    """Powers are of at most exp(6) and at least exp(-6), and of batches of at most 256."""
    losses, gradients = [0.0, 0.0, 0.0], [-11.0, -5.0, 9.0]
    high, same, low = peaks_of("momentum", {"first_loss": losses, "relative_gradient": gradients})
    assert high == same
    assert high - low == pytest.approx(2 * policy.FARTHEST * PEAK["sgd"]["gradient"])
    for optimizer in ("momentum", "adam"):
        small, large, larger = peaks_of(optimizer, {"batch_size": [math.log10(b) for b in (255, 256, 4096)]})
        assert small < large == larger


def test_weights_may_be_scaled() -> None:
    """Adam's rates are as large then as the weights."""
    large, small = peaks_of("adam", {"weight_size": [-1.0, -1.3]})
    assert large - small == pytest.approx(0.3 * math.log(10))


def test_what_says_nothing_counts_as_usual() -> None:
    """Weights of 0, such as those of a linear model, and a first loss of 0 or less."""
    nothing, usual = peaks_of("adam", {"weight_size": [UNTRAINED["weight_size"].low, -1.0]})
    assert nothing == pytest.approx(usual)
    low = UNTRAINED["relative_gradient"].low
    for loss in (0.0, 2.0):
        nothing, usual = peaks_of("momentum", {"first_loss": [loss, loss], "relative_gradient": [low, loss]})
        assert nothing == pytest.approx(usual)
    no_loss, one = peaks_of("momentum", {"first_loss": [UNTRAINED["first_loss"].low, 0.0]})
    assert no_loss == one


def test_peaks_of_optimizers_that_scale_gradients_have_a_bound() -> None:
    architecture = Architecture()
    for optimizer, family in (("adam", "adaptive"), ("sgd", "sgd")):
        _, step = episode_of(architecture, optimizer=optimizer).reset([0])
        assert isinstance(step.observation, dict)
        learned = torch.tensor([[50.0 * (name == "one") for _, name in architecture.exponents]], dtype=F64)
        peak = policy.power_law(architecture, learned, policy.signals(architecture, step.observation)).exp()
        assert float(peak) == pytest.approx(policy.HIGHEST[family])


def test_the_first_rate_of_the_task_does_not_matter() -> None:
    agent = UniversalController(random_theta(PLAIN).float(), PLAIN)
    task = make_task("digits-mlp", budget=20, interval=4)
    low, high = (evaluate(agent, task, [0, 1], initial_lr=lr, device="cpu") for lr in (1e-5, 1e-1))
    np.testing.assert_array_equal(low.final_test_loss, high.final_test_loss)


def test_actions_set_the_rates() -> None:
    rates = torch.tensor([[1e-9, 1e-5, 0.03, 2.0, 100.0]], dtype=F64)
    found = KINDS["set"](action_of_rates(rates), torch.zeros_like(rates))
    torch.testing.assert_close(found, rates.clamp(*BOUNDS))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_names_and_leagues(architecture: Architecture) -> None:
    agent = UniversalController(architecture.init(0), architecture)
    assert agent.view.horizon is architecture.horizon
    assert ("anytime" in repr(agent)) is not architecture.horizon
    assert ("layers" in repr(agent)) is architecture.layers
    assert privileges_of(agent) == Privileges(architecture.horizon, False, gradients=True, optimizer=False)


def test_theta_of_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters"):
        UniversalController(PLAIN.init(0), Architecture(hidden=6))


# Training


def toy_settings(out: Path, **others: Any) -> UniversalSettings:
    given = {"updates": 3, "tasks": 2, "pairs": 3, "eval_every": 3, "eval_tasks": 1, "eval_seeds": 1, "hidden": 3}
    return UniversalSettings(out=out, device="cpu", **given | others)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whatever number is asked for, a short run on a small task; the numbers that were."""
    asked: list[int] = []

    def task(self: TaskDistribution, number: int) -> Task:
        asked.append(number)
        return make_task("digits-logreg", budget=12, interval=3, optimizer=("adam", "momentum")[number % 2])

    monkeypatch.setattr(TaskDistribution, "task", task)
    return asked


def test_the_gradient_is_that_of_the_loss_over_whole_runs(small_tasks: list[int], tmp_path: Path) -> None:
    """By the parameter of the peak, against a difference quotient, on the same initial weights and batches."""
    training = UniversalTraining(toy_settings(tmp_path, pairs=1024, sigma=0.01, spread=1e-9))
    at = len(SCHEDULE)  # the first number of the power law of the adaptive family
    training.theta.data[at] -= 2  # from the highest peak there is
    gradient, loss, difference = training._estimate(0)
    run, episode = training.run(training._task(0))
    seeds = training.training_seeds(1024)

    def mean_loss(shift: float) -> float:
        theta = training.theta.detach().clone()
        theta[at] += shift
        with torch.no_grad():
            return float(run(theta.expand(1024, -1), episode.reset(seeds)[0])[0].mean())

    slope = (mean_loss(0.05) - mean_loss(-0.05)) / 0.1
    assert abs(slope) > 0.1
    assert float(gradient[at] * difference) == pytest.approx(slope, rel=0.1)
    assert float(loss) == pytest.approx(mean_loss(0), abs=0.01)


def test_a_loss_is_the_fall_of_the_validation_loss(small_tasks: list[int], tmp_path: Path) -> None:
    training = UniversalTraining(toy_settings(tmp_path))
    task = training._task(0)
    run, episode = training.run(task)
    losses, _ = run(training.theta.detach().expand(2, -1), episode.reset([5, 6])[0])
    result = evaluate(training.controller(), task, [5, 6], device="cpu")
    expected = np.log(result.final_val_loss / result.curves["val_loss"][0])
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-3)


def test_runs_that_diverge_have_the_worst_loss(small_tasks: list[int], tmp_path: Path) -> None:
    training = UniversalTraining(toy_settings(tmp_path))
    run, episode = training.run(make_task("power-law-easy", budget=200, interval=50))
    theta = training.theta.detach().clone()
    theta[len(SCHEDULE) + training.architecture.exponents.index(("sgd", "one"))] += 7
    losses, end = run(theta.expand(2, -1), episode.reset([0, 1])[0])
    assert end.diverged.all()
    assert (losses == WORST).all()


def test_every_task_is_new_and_of_its_purpose(small_tasks: list[int], tmp_path: Path) -> None:
    small_tasks.clear()
    outer_training.train(UniversalTraining, toy_settings(tmp_path / "a", seed=2))
    numbers = small_tasks[1:]  # the first is looked at before the training begins
    assert numbers == seeds_for("validation", 1) + [3 * TRAINING + i for i in range(6)]


def test_perturbations_are_new_for_each_task_and_training(
    small_tasks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = training_module.orthogonal_perturbations, []

    def noted(*args: Any) -> Tensor:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(training_module, "orthogonal_perturbations", noted)
    for seed, place in ((0, 0), (0, 1), (1, 0), (0, 0)):
        UniversalTraining(toy_settings(tmp_path, seed=seed))._estimate(place)
    first, other_task, other_training, again = drawn
    assert torch.equal(first, again)
    for other in (other_task, other_training):
        assert not (first == other).any()
    key = draws.fold(draws.fold(torch.tensor(0), draws.POLICY), 0)
    generator = torch.Generator().manual_seed(int(key) & (2**62 - 1))
    assert torch.equal(first, draw(3, torch.zeros(first.shape[1]), 0.1, generator)), "of a stream of their own"


def test_the_controller_is_an_average(small_tasks: list[int], tmp_path: Path) -> None:
    training = UniversalTraining(toy_settings(tmp_path, updates=4))
    expected = training.theta.detach().clone()
    for training.iteration in range(4):
        training.iterate()
        expected = 0.9 * expected + 0.1 * training.theta.detach()
    torch.testing.assert_close(training.controller().theta, expected)


def test_what_helps_is_learned(small_tasks: list[int], tmp_path: Path) -> None:
    """From peaks that are far too low."""
    training = UniversalTraining(toy_settings(tmp_path, updates=20, pairs=16, outer_lr=0.1))
    for place, (_, name) in enumerate(training.architecture.exponents, len(SCHEDULE)):
        training.theta.data[place] -= 3.0 * (name == "one")
    training.average.copy_(training.theta.detach())
    before = training.held_out_loss(training.controller())
    for training.iteration in range(20):
        training.iterate()
    assert training.held_out_loss(training.controller()) < before - 0.2


@pytest.mark.parametrize("given", [
    {"task": "digits-mlp"}, {"budget": 10}, {"optimizer": "adam"}, {"compile": True}, {"sigma": 0.0}, {"limit": 10.0},
    {"pairs": 0}, {"hidden": -1}, {"spread": -1.0},
])  # fmt: skip
def test_settings_that_cannot_be_meant(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        UniversalSettings(out=tmp_path, **given)


def test_drawn_tasks_differ_in_what_a_training_meets() -> None:
    tasks = TaskDistribution(1e9).tasks("training", 30)
    assert {task.optimizer for task in tasks} == {"adam", "adamw", "momentum"}
    assert max(flops(task) for task in tasks) <= 1e9


def test_more_tasks_for_validation_than_there_are_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10000 seeds for validation, not 20000"):
        UniversalSettings(out=tmp_path, eval_tasks=20_000)


def test_the_middle_of_a_last_interval_that_is_shorter() -> None:
    """Of 100 steps in intervals of 40, the last one has 20."""
    progress = torch.tensor([[0.0], [0.4], [0.8]], dtype=torch.float64)
    seen = {"progress": progress}
    seen |= {name: torch.full_like(progress, math.log10(x)) for name, x in
             (("steps_in_all", 100), ("steps_per_decision", 40))}  # fmt: skip
    torch.testing.assert_close(policy.middle_part(seen), torch.tensor([[0.2], [0.6], [0.9]], dtype=torch.float64))
