"""The search for the best peaks of drawn tasks, the fit of power laws to them, and what the beginning of runs shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.agents.universal import policy
from lrenv.agents.universal.agent import UniversalController
from lrenv.agents.universal.policy import EXPONENT, PEAK, SCHEDULE, Architecture, Guard
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.benchmark.comparison import runs_of
from lrenv.benchmark.contenders import contenders_of
from lrenv.benchmark.evaluation import evaluate
from lrenv.envs.observations import DYNAMICS, SCALE_FREE, TRAINING
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import json_lines
from lrenv.training.tasks import make_task


@pytest.fixture
def drawn_peaks(script: Callable[[str], Any]) -> Any:
    return script("drawn_peaks")


@pytest.fixture
def drawn_guards(script: Callable[[str], Any]) -> Any:
    return script("drawn_guards")


@pytest.fixture
def drawn_readouts(script: Callable[[str], Any]) -> Any:
    return script("drawn_readouts")


def test_a_power_law_is_found_again(drawn_peaks: Any) -> None:
    """Parabolas over log peak, whose lowest points lie on a law; the bound is far above."""
    generator = torch.Generator().manual_seed(0)
    logs = {name: torch.randn(200, generator=generator) for name in ("batch_size", "layers")} | {"one": torch.ones(200)}
    law = {"one": math.log(0.02), "batch_size": 0.4, "layers": -0.7}
    best = sum(a * logs[name] for name, a in law.items())
    peaks = torch.from_numpy(5e-3 * drawn_peaks.FACTORS).log()
    losses = 0.1 * (peaks - best[:, None]) ** 2
    curves = drawn_peaks.Curves(logs, torch.zeros(200), losses[:, None].float(), 5e-3, math.log(10.0))
    found = curves.fitted(list(law))
    for name, a in law.items():
        assert float(found[name]) == pytest.approx(a, abs=0.05)
    bounded = drawn_peaks.Curves(logs, torch.zeros(200), losses[:, None].float(), 5e-3, math.log(0.01))
    exponents = {name: torch.tensor(a) for name, a in law.items()}
    assert float(bounded.regret(exponents).mean()) > float(curves.regret(exponents).mean())


def test_runs_of_the_search_are_those_of_a_policy_with_that_peak(
    drawn_peaks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no guard."""
    monkeypatch.setattr(policy, "GUARD", Guard(rise=1e9, farthest=1e9))
    training = UniversalTraining(UniversalSettings(layers=True, out=tmp_path, device="cpu"))
    task = next(task for task in training.distribution.tasks("training", 9) if task.optimizer != "momentum")
    found = drawn_peaks.searched(training, task, (0.0, EXPONENT))
    run, episode = training.run(task)
    theta = training.architecture.init(0)
    for place, (family, name) in enumerate(training.architecture.exponents, len(SCHEDULE)):
        theta[place] = -PEAK[family][name] + math.log(found["peaks"][3]) * (name == "one")
    theta[SCHEDULE.index("log_warmup")] = drawn_peaks.SHORTER
    state, _ = episode.reset(seeds_for("selection", drawn_peaks.SEEDS))
    with torch.no_grad():
        expected = run(theta.expand(drawn_peaks.SEEDS, -1), state)[0].mean()
    assert found["log_loss"][1][3] == pytest.approx(float(expected), abs=2e-3)
    assert found["log_loss"][0][3] != found["log_loss"][1][3]


def test_runs_of_designs_are_those_of_policies(drawn_guards: Any, tmp_path: Path) -> None:
    """With and without a horizon, with a guard that acts, and with another that doesn't, in one batch."""
    training = UniversalTraining(UniversalSettings(out=tmp_path, device="cpu"))
    task = next(task for task in training.distribution.tasks("training", 30) if task.optimizer == "momentum")
    for architecture in (Architecture(), Architecture(horizon=False)):
        designs = [drawn_guards.Design(guard, 0.05) for guard in (policy.GUARD, drawn_guards.NONE)]
        guard, _ = drawn_guards.as_one(designs)
        shape, log_factor = torch.zeros(2, len(SCHEDULE)), torch.full((2, 1), math.log(32))
        shape[:, SCHEDULE.index("log_power")] = math.log(2)
        losses = drawn_guards.losses_of(training, task, architecture, log_factor, guard, shape)
        theta = architecture.init(0)
        theta[SCHEDULE.index("log_power")] = math.log(2)
        theta[len(SCHEDULE) + architecture.exponents.index(("sgd", "one"))] = math.log(32)
        agent = UniversalController(theta, architecture)
        result = evaluate(agent, task, seeds_for("selection", 2, drawn_guards.FIRST_SEED), device="cpu")
        expected = np.log(result.final_val_loss / result.curves["val_loss"][0]).mean()
        assert float(losses[0]) == pytest.approx(expected, abs=2e-3)
        assert abs(float(losses[1]) - expected) > 0.1


def test_tables_of_designs_have_each_in_its_place(
    drawn_guards: Any, script: Callable[[str], Any], tmp_path: Path
) -> None:
    """One cell of each, against runs of that design alone."""
    anytime, training = script("drawn_anytime"), UniversalTraining(UniversalSettings(out=tmp_path, device="cpu"))
    task = make_task("digits-mlp", budget=40, interval=4, optimizer="momentum", measure_interval=40)
    shape, known = torch.zeros(1, len(SCHEDULE)), Architecture()
    shape[:, SCHEDULE.index("log_warmup")] = math.log(0.05 / policy.WARMUP)
    factor = torch.full((1, 1), math.log(drawn_guards.FACTORS[1]))
    expected = drawn_guards.losses_of(training, task, known, factor, drawn_guards.NONE, shape)
    found = drawn_guards.tried(training, task)["log_loss"]["none, warm-up 0.05"]
    assert found[1] == pytest.approx(float(expected), abs=1e-3)
    unknown, power, factor = Architecture(horizon=False), 0.25, torch.full((1, 1), math.log(2.0))
    expected = drawn_guards.losses_of(
        training, task, unknown, factor, policy.GUARD, anytime.shapes(torch.tensor([power]))
    ) - drawn_guards.losses_of(training, task, known, 0 * factor, policy.GUARD, 0 * shape)
    row = anytime.tried(training, task)["more_than_universal"]
    assert row[anytime.DESIGNS.index((power, 2.0))] == pytest.approx(float(expected), abs=1e-3)
    table = anytime.told([{"more_than_universal": row}] * 2).splitlines()[3].split("|")
    assert (table[1].strip(), float(table[5].split()[0])) == ("0.25", pytest.approx(float(expected), abs=2e-3))


def test_rules_multiply_the_rates_of_layers(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by fan-in, against a policy with that exponent and no guard."""
    layers, settings = script("drawn_layers"), UniversalSettings(layers=True, out=tmp_path, device="cpu")
    monkeypatch.setattr(policy, "GUARD", Guard(rise=1e9, farthest=1e9))
    training, seeds = UniversalTraining(settings), seeds_for("selection", 2)
    task = make_task("digits-mlp", budget=40, interval=4, measure_interval=40)
    _, episode = training.run(task)
    fan_in = np.array([64.0, 32, 32])
    features = layers.features_of(fan_in, np.ones(3), np.ones(3), np.ones(3))
    log_factors = np.stack([features[0], 0 * features[0]])[:, None] + np.log(2)
    found = layers.losses_of(episode, replace(training.architecture, layers=False), seeds, log_factors)
    for e, loss in zip((0.5, 0.0), found[:, 0], strict=True):
        architecture = training.architecture
        theta = architecture.init(0)
        theta[SCHEDULE.index("exponent")] = e - policy.EXPONENT
        theta[len(SCHEDULE) + architecture.exponents.index(("adaptive", "one"))] = math.log(2)
        result = evaluate(UniversalController(theta, architecture), task, seeds, device="cpu")
        expected = np.log(result.final_val_loss / result.curves["val_loss"][0]).mean()
        assert loss == pytest.approx(expected, abs=2e-3)


def test_layers_are_told_by_centred_features(script: Callable[[str], Any]) -> None:
    layers = script("drawn_layers")
    found = layers.features_of(
        np.array([4.0, 1, 1]), np.array([1.0, 4, 9]), np.array([4.0, 16, 0]), np.array([4.0, 16 * 9, 1])
    )
    log2, log3 = math.log(2), math.log(3)
    expected = [
        [-log2 / 2, log2 / 2, 0],  # fan-ins of 4 and 1
        [0.5, -0.5, 0],
        [0, 0, 0],  # the last one has weights of 0
        [0, 0, 0],  # root mean squares of 2 and 2
        [-log3 / 2, log3 / 2, 0],  # relative gradients of 1 and 3
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_the_rates_of_layers_are_worth_is_written_down(script: Callable[[str], Any], tmp_path: Path) -> None:
    """One rule and peak of a task, against runs of it alone."""
    layers = script("drawn_layers")
    training = UniversalTraining(UniversalSettings(layers=True, out=tmp_path, device="cpu"))
    architecture = replace(training.architecture, layers=False)
    task = make_task("digits-mlp", budget=40, interval=4, optimizer="momentum", measure_interval=40)
    row = layers.tried(training, architecture, task)
    theta, features = np.array(row["theta"]), np.array(row["features"])
    np.testing.assert_array_equal(theta[: layers.PAIRS], -theta[layers.PAIRS :])
    assert features[1].argmax() == 0
    assert features[2].argmax() == 2
    log_factors = (theta[3] @ features + math.log(layers.FACTORS[1]))[None, None]
    _, episode = training.run(task)
    seeds = seeds_for("selection", layers.SEEDS, layers.FIRST_SEED)
    expected = layers.losses_of(episode, architecture, seeds, log_factors)
    assert row["log_loss"][3][1] == pytest.approx(float(expected[0, 0]), abs=2e-3)
    assert layers.tried(training, architecture, make_task("digits-logreg", budget=4, interval=2))["log_loss"] == []


def test_peaks_move_as_scaled_weights_tell(script: Callable[[str], Any]) -> None:
    """Against weights of 1/e of the size in one layer, and the power laws of the policy."""
    layers, numbers = script("drawn_layers"), [400.0, 1.0, 4.0]
    row = {"numbers": numbers, "weights": [40.0, 1.0, 0.4], "gradients": [1.0, 2.0, 3.0], "theta": [[1.0], [0.0]]}
    row |= {"features": [[1.0, 0.0, 0.0]]}  # the rate of the first layer times e, or all as they are
    sizes = layers.SIZES[True]
    expected = {
        "none": 0.0, "as in `universal`": -20 / 23, "the same, but each layer counts with its number": -400 / 405,
        "root mean square of all weights": math.log((40 * math.exp(-2) + 1.4) / 41.4) / 2,
        "the smallest layer's root mean square": -1.0,
    }  # fmt: skip
    for name, size in sizes.items():
        np.testing.assert_allclose(layers.moved(row | {"adaptive": True}, size), [expected[name], 0], atol=1e-6)
    # The last layer has the largest relative gradient, until the first one's is e^4 times as large.
    size = layers.SIZES[False]["as in `universal`"]
    for factor, moved in ((1.0, 0.0), (4.0, -0.6 * (4 + math.log(1 / 40) / 2 - math.log(3 / 0.4) / 2))):
        own = row | {"adaptive": False, "theta": [[factor]]}
        np.testing.assert_allclose(layers.moved(own, size), [moved], atol=1e-6)
    curve = [[0.4, 0.1, 0.0, 0.1, 0.4]] * 2
    lost = layers.lost(row | {"adaptive": True, "log_loss": curve}, sizes["the smallest layer's root mean square"])
    beyond = 0.1 + 0.3 * (1 - math.log(2)) / math.log(2)
    assert lost == pytest.approx(beyond / 2)


def test_slopes_that_are_there_are_found(script: Callable[[str], Any]) -> None:
    layers, rng = script("drawn_layers"), np.random.default_rng(0)
    half = rng.normal(size=(layers.PAIRS, len(layers.FEATURES)))
    theta = np.concatenate([half, -half])
    row = {"theta": theta, "log_loss": (0.3 - 0.05 * theta[:, 3:4] + np.array([0.2, 0.1, 0.0, 0.1, 0.2])).tolist()}
    np.testing.assert_allclose(layers.slopes_of(row), [0, 0, 0, -0.05, 0], atol=0.01)


def test_what_the_search_cost_is_counted(drawn_peaks: Any, drawn_guards: Any, script: Callable[[str], Any]) -> None:
    """At least: sketches are told in the agents' file."""
    anytime = script("drawn_anytime")
    universal, universal_anytime, linear = contenders_of(["universal", "universal-anytime", "linear"])
    settings, peaks = drawn_peaks.Settings(), len(drawn_peaks.FACTORS) * drawn_peaks.SEEDS
    guards = drawn_guards.Settings().tasks * len(drawn_guards.FACTORS) * len(drawn_guards.DESIGNS) * drawn_guards.SEEDS
    rules = script("drawn_layers")
    runs_of_rules = rules.Settings().tasks * 2 * rules.PAIRS * len(rules.FACTORS) * rules.SEEDS
    ends = anytime.Settings().tasks * (len(anytime.DESIGNS) + 1) * drawn_guards.SEEDS
    selection = settings.tasks * peaks * len(drawn_peaks.EXPONENTS["selection"]) + guards + runs_of_rules
    for agent, least in ((universal, selection), (universal_anytime, selection + ends)):
        assert runs_of(agent).training == settings.fitted * peaks
        assert runs_of(agent).selection > least
    assert str(runs_of(linear)) == "0"


def test_designs_of_endless_schedules(script: Callable[[str], Any]) -> None:
    anytime, architecture = script("drawn_anytime"), Architecture(horizon=False)
    seen = {"steps": torch.full((2, 1), math.log10(60)), "steps_per_decision": torch.full((2, 1), math.log10(2))}
    decay = policy.log_decay(architecture, anytime.shapes(torch.tensor([0.0, 0.75])), seen).exp()
    torch.testing.assert_close(decay, torch.tensor([[1.0], [(1 + 60 / 30) ** -0.75]]))


def family_of(drawn_peaks: Any, drawn_readouts: Any, tells: bool) -> Any:
    """Parabolas around best peaks a factor of 4 above or below the power law's; one signal tells which, or is noise."""
    generator = torch.Generator().manual_seed(1)
    tasks, moments = 60, len(drawn_readouts.MOMENTS)
    side = torch.randint(2, (tasks,), generator=generator) * 2.0 - 1
    law = torch.full((tasks,), math.log(0.01))
    peaks = torch.from_numpy(5e-3 * drawn_peaks.FACTORS).log()
    losses = 0.1 * (peaks - (law + side * math.log(4))[:, None]) ** 2
    curves = drawn_peaks.Curves({}, torch.zeros(tasks), losses[:, None].float(), 5e-3, math.log(10.0))
    signals = sum(map(len, drawn_readouts.SEEN.values()))
    seen = torch.randn(tasks * moments, signals, generator=generator)
    if tells:
        seen[:, -1] = side.repeat_interleave(moments)
    moment = torch.arange(moments).repeat(tasks)
    looks = drawn_readouts.Looks(moment, law.repeat_interleave(moments), torch.zeros(len(moment)), seen)
    return drawn_readouts.Family(curves, torch.arange(tasks).repeat_interleave(moments), looks)


def test_a_readout_finds_what_a_signal_tells(drawn_peaks: Any, drawn_readouts: Any) -> None:
    for tells in (True, False):
        family = family_of(drawn_peaks, drawn_readouts, tells)
        still = drawn_readouts.told(family, torch.zeros(len(family.task)))
        assert still.shape == (60, len(drawn_readouts.MOMENTS))
        assert float(still.mean()) == pytest.approx(0.1 * math.log(4) ** 2, abs=0.03), "between peaks of the grid"
        moved = drawn_readouts.fitted(family, ("gradients",), seed=0)
        with torch.no_grad():
            lost = drawn_readouts.told(family, moved(family.inputs(("gradients",))))
        assert (float(lost.mean()) < 0.2 * float(still.mean())) == tells


def test_peaks_above_the_power_laws_are_higher(drawn_peaks: Any, drawn_readouts: Any) -> None:
    family = family_of(drawn_peaks, drawn_readouts, tells=True)
    best = math.log(4) * family.looks.seen[:, -1]
    at_best, opposite = (float(drawn_readouts.told(family, above).mean()) for above in (best, -best))
    assert at_best < 0.02, "between peaks of the grid"
    assert opposite > 0.5


def test_what_gradients_show(drawn_readouts: Any) -> None:
    """Two layers, sums over an interval of 4 steps, a rate of 0.5 and a training loss of 2."""
    observation: dict[str, torch.Tensor] = {
        name: torch.zeros(1, len(table)) for name, table in
        (("training", TRAINING), ("scale-free", SCALE_FREE), ("dynamics", DYNAMICS))
    }  # fmt: skip
    observation["training"][0, list(TRAINING).index("steps_per_decision")] = math.log10(4)
    observation["dynamics"][0, list(DYNAMICS).index("train_loss")] = math.log10(2)
    sums = {"hypergradient": [-2.0, -6.0], "gradient_square": [4.0, 4.0], "direction_square": [4.0, 12.0]}
    observation |= {name: torch.tensor([values]) for name, values in sums.items()}
    (seen,) = drawn_readouts.quantities(observation, torch.tensor([[math.log(0.5)]])).tolist()
    shown = dict(zip([name for names in drawn_readouts.SEEN.values() for name in names], seen, strict=True))
    assert shown["gain"] == pytest.approx(0.5 * 2 / 2)
    assert shown["gain_size"] == pytest.approx(math.log10(0.5))
    assert shown["polyak"] == pytest.approx(math.log10(2 / 2 / 0.5))
    assert shown["step"] == pytest.approx(math.log10(0.5 * 2), abs=1e-6)
    assert shown["cosine"] == pytest.approx(2 / (2 * 4) ** 0.5)


def test_looks_are_at_runs_next_to_the_power_law(drawn_peaks: Any, drawn_readouts: Any) -> None:
    training = UniversalTraining(UniversalSettings(device="cpu"))
    task = next(task for task in training.distribution.tasks("training", 30) if task.optimizer == "momentum")
    looks = drawn_readouts.looked_at(training, task)
    moments, runs = len(drawn_readouts.MOMENTS), (2 * drawn_readouts.NEAR + 1) * drawn_peaks.SEEDS
    assert looks.moment.tolist() == [moment for moment in range(moments) for _ in range(runs)]
    assert torch.isfinite(looks.seen).all()
    grid = torch.from_numpy(drawn_peaks.CENTRE["sgd"] * drawn_peaks.FACTORS).float().log()
    peaks = (looks.law + looks.distance).view(moments, runs)
    assert (peaks[..., None] - grid).abs().amin(-1).max() < 1e-5
    assert torch.equal(peaks[0], peaks[-1])
    assert looks.distance.view(moments, -1, drawn_peaks.SEEDS)[0, drawn_readouts.NEAR].abs().max() < math.log(2)


def test_runs_without_a_horizon_are_none_with_one(drawn_peaks: Any, tmp_path: Path) -> None:
    file = tmp_path / "peaks.jsonl"
    for horizon in (True, False):
        settings = drawn_peaks.Settings(fitted=1, tasks=0, horizon=horizon, out=file)
        (row,) = drawn_peaks.found(settings)["training"]
        assert row["horizon"] is horizon
    assert len(json_lines(file)) == 2
    assert drawn_peaks.found(settings)["training"] == [row]
    assert len(json_lines(file)) == 2


def test_controllers_are_told_apart_by_their_numbers(
    script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controllers, out = script("drawn_controllers"), tmp_path / "found.jsonl"
    made = {False: Architecture(), True: Architecture(layers=True)}
    for layers, architecture in made.items():
        theta = architecture.init(0)
        folder = tmp_path / f"layers-{layers}"
        folder.mkdir()
        UniversalController(theta, architecture).save(folder / "controller.safetensors", {})
    files = tuple(tmp_path / f"layers-{layers}" / "controller.safetensors" for layers in made)
    controllers.main(controllers.Settings(files, tasks=2, out=out))
    printed = capsys.readouterr().out
    assert "| layers-False | +0.0000 (0.0000) |" in printed, "the power laws themselves"
    rule, trained = (next(x for x in printed.splitlines() if name in x) for name in ("fan-in alone", "layers-True"))
    assert rule.split("|")[2] == trained.split("|")[2], "an untrained policy with a rate per layer is the rule"
    (row, _), training = json_lines(out), UniversalTraining(UniversalSettings())
    (task,) = training.distribution.tasks("validation", 1, controllers.FIRST_TASK)
    run, episode = training.run(task)
    seeds = seeds_for("validation", controllers.SEEDS, controllers.FIRST_SEED)
    with torch.no_grad():
        fall, _ = run(made[False].init(0).expand(len(seeds), -1), episode.reset(seeds)[0])
    assert (row["task"], row["log_loss"]["universal"]) == (task.name, pytest.approx(float(fall.mean()), abs=1e-3))
    other = made[False].init(0)
    other[0] += 1
    UniversalController(other, made[False]).save(files[0], {})
    controllers.main(controllers.Settings(files, tasks=2, out=out))
    assert "| layers-False | +0.0000 (0.0000) |" not in capsys.readouterr().out
    assert len(json_lines(out)) == 4
    with pytest.raises(SystemExit, match="two controllers layers-False: name their folders differently"):
        controllers.main(controllers.Settings((files[0], files[0]), tasks=2, out=out))
