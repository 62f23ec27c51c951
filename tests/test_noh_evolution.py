"""LSTMs per layer, and their training by evolution strategies over whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import noh as reference
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from lrenv.agents import make_agent
from lrenv.agents.noh import evolution
from lrenv.agents.noh.agent import CONTROLS, NOH, PIECES, DMopt, LSTMPolicy
from lrenv.agents.noh.evolution import EvolutionTraining, lstm_training
from lrenv.agents.noh.lstm import Architecture, CoordinateLSTM, preprocessed_pieces
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.noh.training import NOHTraining
from lrenv.agents.outer.gradient_estimators import perturbations
from lrenv.agents.outer.validation import WORST
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.controller_file import ControllerFileError
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness import draws
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64


def training_of(out: Path, estimator: str = "es", kind: type[LSTMPolicy] = NOH, **others: Any) -> EvolutionTraining:
    """A small training, whose LSTM depends on all of its weights."""
    small: dict[str, Any] = {
        "task": "digits-logreg", "out": out, "budget": 24, "interval": 4, "meta_iterations": 3, "hidden": 4,
        "layers": 2, "memory": 6, "pairs": 2, "eval_seeds": 2, "device": "cpu", "estimator": estimator,
    }  # fmt: skip
    settings = {NOH: NOHSettings, DMopt: DMoptSettings}[kind]
    training = lstm_training(kind, settings(**small | others))
    assert isinstance(training, EvolutionTraining)
    stir(training.policy.network)
    return training


def stir(network: CoordinateLSTM) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in (network.output, network.offset):
            part.copy_(0.3 * torch.randn(part.shape, generator=generator))


def noise_of(training: EvolutionTraining, theta: Tensor, window: int) -> Tensor:
    settings = training.settings
    key = draws.fold(draws.fold(torch.tensor(settings.seed), draws.POLICY), window)
    generator = torch.Generator().manual_seed(int(key) & (2**62 - 1))
    return perturbations(settings.pairs, theta, settings.sigma, generator)


@pytest.mark.parametrize("per", ["tensor", "layer", "trainee"])
def test_inputs_of_pieces_against_the_gradients_of_a_run(toy: Callable[..., Task], per: str) -> None:
    """In plain steps of the trainee, piece by piece in NumPy."""
    task = toy(optimizer="momentum", interval=3)
    agent = NOH(Architecture(hidden=4, scale=0.05), 3, "momentum", per=per)
    envs = LearningRateVectorEnv(2, task, **agent.view.settings())
    observation, _ = envs.reset(seed=[4, 5])
    trainee = Trainee(task)
    state, hyper = trainee.init([4, 5]), trainee.hyper(2)
    sizes = trainee.network._pieces.sizes.get(per, [trainee.network.size])

    def gradient() -> Tensor:
        return trainee.gradient(state, trainee.batch_indices(state, 1)[:, 0]).grads

    g = gradient()
    gradients, directions, carry = [g], [torch.zeros_like(g)], None
    for _ in range(3):
        found = agent.inputs(observation)  # type: ignore[arg-type]
        assert found.shape == (2, 2, len(sizes))
        for i in range(2):
            rows = [[x[i].double().numpy() for x in each] for each in (gradients, directions)]
            ends = np.cumsum(sizes)[:-1]
            pieces = [[np.split(x, ends) for x in each] for each in rows]
            for k in range(len(sizes)):
                expected = reference.preprocessed_piece(
                    [x[k] for x in pieces[0]], [x[k] for x in pieces[1]], agent.architecture.cut
                )
                np.testing.assert_allclose(found[i, :, k].numpy(), expected, rtol=1e-3, atol=1e-4)
        action, carry = agent.predict(observation, carry)  # type: ignore[arg-type]
        rates = trainee.spread(torch.as_tensor(action))
        observation, *_ = envs.step(action)
        gradients, directions = [], []
        for _ in range(3):
            direction, opt = trainee.optimizer.direction(g, state.opt, state.params, hyper)
            state = state._replace(opt=opt, step=state.step + 1, params=state.params - rates * direction)
            g = gradient()
            gradients.append(g)
            directions.append(direction)


def test_inputs_of_pieces_that_stand_still_are_finite() -> None:
    zeros, tiny = torch.zeros(1, 2), torch.full((1, 2), 1e-38)
    for parts in ((zeros, zeros, zeros), (tiny, tiny, -tiny), (zeros + 1e38, zeros + 1e38, zeros - 1e38)):
        given = [x.clone().requires_grad_() for x in parts]
        found = preprocessed_pieces(*given, 5, 10.0)  # type: ignore[arg-type]
        assert found.isfinite().all()
        assert (found.abs()[:, 1] <= 1).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), given))
    assert float(found[0, 0, 0].detach()) == pytest.approx(math.log(1e38 / 5) / 20)
    assert float(found[0, 1, 0].detach()) == pytest.approx(1)


@pytest.mark.parametrize("per", ["parameter", "layer"])
def test_perturbed_networks_are_networks_of_their_own(per: str) -> None:
    torch.manual_seed(0)
    agent = NOH(Architecture(layers=2, hidden=3), 2, "adam", per=per)
    network = agent.network
    size = sum(x.numel() for x in network.parameters())
    theta, inputs = torch.randn(4, size), torch.randn(3, 4, 2, 5)
    carry, found = network.start(4, 5), []
    for x in inputs:
        output, carry = network.perturbed(theta, x, carry)
        found.append(output)
    for i in range(4):
        vector_to_parameters(theta[i], network.parameters())
        own = network.start(1, 5)
        for x, together in zip(inputs, found, strict=True):
            output, own = network(x[i : i + 1], own)
            torch.testing.assert_close(output[0], together[i])


@pytest.mark.parametrize(("estimator", "kind", "per"), [
    ("es", NOH, "parameter"), ("es", NOH, "layer"), ("pes", NOH, "layer"), ("pes", NOH, "parameter"),
    ("es", DMopt, "parameter"),
])  # fmt: skip
def test_the_estimate_is_that_of_runs_of_single_policies(
    tmp_path: Path, estimator: str, kind: type[LSTMPolicy], per: str
) -> None:
    """Each perturbed policy runs by itself, in an environment that measures every decision, twice over."""
    windowed = {"unroll": 4} if estimator == "pes" else {}
    given: dict[str, Any] = {"per": per, "seed": 2, "scale": 0.02, "sigma": 0.3, "meta_lr": 0.01}
    training = training_of(tmp_path, estimator, kind, **given | windowed)
    m, interval = training.settings.pairs, training.task.interval
    policies = [
        kind(training.settings.architecture, interval, training.policy.optimizer, per=per) for _ in range(2 * m)
    ]
    mean = torch.zeros(1)
    for run in range(2):
        seeds = seeds_for("training", m, run * m, 2)
        envs = [
            LearningRateVectorEnv(1, training.task, **policies[0].view.settings(), device="cpu") for _ in range(2 * m)
        ]
        begun = [each.reset(seed=[seed]) for each, seed in zip(envs, seeds * 2, strict=True)]
        seen, first = [each[0] for each in begun], [float(each[1]["val_loss"][0]) for each in begun]
        carries: list[Any] = [None] * (2 * m)
        fall, accumulated = np.zeros(2 * m), torch.zeros(m, training._weights.shape[1])
        for window in range(training.windows):
            theta = training._weights[0].clone()
            noise = noise_of(training, theta, training.iteration)
            accumulated = accumulated + noise
            number = min(4, 6 - 4 * window) if estimator == "pes" else training._episode.decisions
            before = fall.copy()
            for i, policy in enumerate(policies):
                vector_to_parameters(theta + (noise[i] if i < m else -noise[i - m]), policy.network.parameters())
                for _ in range(number):
                    action, carries[i] = policy.predict(seen[i], carries[i])
                    seen[i], _, ended, *_, info = envs[i].step(action)
                last = info["final_info"]["val_loss"] if ended[0] and "final_info" in info else info["val_loss"]
                fall[i] = math.log(float(np.asarray(last).ravel()[0]) / first[i])
            rise = torch.tensor(fall - before)
            difference = ((rise[:m] - rise[m:]) / (2 * 0.3**2)).float()
            expected = (difference[:, None] * (accumulated if estimator == "pes" else noise)).mean(0)
            row = training.iterate()
            training.iteration += 1
            assert row["outer/loss"] == pytest.approx(float(rise.mean()), abs=1e-3)
            mean = 0.9 * mean + 0.1 * expected
            torch.testing.assert_close(
                training._moments["mean"][0], mean, rtol=2e-2, atol=2e-2 * float(mean.abs().max())
            )
        assert abs(fall).max() > 0.05


@pytest.mark.parametrize("per", ["parameter", "layer"])
def test_derivatives_through_whole_runs_against_a_difference_quotient(tmp_path: Path, per: str) -> None:
    training = training_of(tmp_path, "reparameterisation", per=per, sigma=1e-6, scale=0.02)
    theta, between = training._weights[0], (training._state, training._carry)
    window = training._window(range(6))
    training.iterate()
    found = training._moments["mean"][0] / 0.1
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        way = torch.randn(theta.shape, generator=generator)
        with torch.no_grad():
            up, down = (window((theta + h * way).expand(4, -1), between)[0].double().mean() for h in (2e-3, -2e-3))
        assert float(found @ way) == pytest.approx(float((up - down) / 4e-3), rel=0.05)


def test_merged_takes_the_more_precise_estimator(tmp_path: Path) -> None:
    """In short runs that of differentiation, by far."""
    ways = {name: training_of(tmp_path, name, pairs=8, sigma=0.02) for name in ("merged", "reparameterisation", "es")}
    for training in ways.values():
        training.iterate()
    merged, smooth, es = (training._moments["mean"][0] for training in ways.values())
    assert (merged - smooth).norm() < 0.1 * smooth.norm() < (es - smooth).norm()


def test_runs_that_diverge_have_the_worst_loss(tmp_path: Path) -> None:
    training = training_of(tmp_path, task="noisy-quadratic", optimizer="sgd", scale=1e6, budget=40)
    row = training.iterate()
    assert row["train/diverged"] == 4
    assert row["outer/loss"] == WORST
    assert (training._moments["mean"] == 0).all()
    assert training.held_out_loss(NOH(Architecture(scale=3e38), 4, "sgd")) == math.inf


def test_what_is_kept_ends_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    training = training_of(tmp_path)
    result = evaluate(training.controller(), training.task, seeds_for("validation", 2), device="cpu")
    assert training.held_out_loss(training.controller()) == pytest.approx(float(result.final_val_loss.mean()), rel=1e-5)


@pytest.mark.parametrize("estimator", ["es", "pes"])
def test_what_helps_is_learned(tmp_path: Path, estimator: str) -> None:
    """A rate that is too low rises, one that is too high falls."""
    windowed = {"unroll": 3} if estimator == "pes" else {}
    for scale, up in ((1e-4, True), (3.0, False)):
        training = training_of(tmp_path, estimator, per="layer", scale=scale, meta_lr=0.1, pairs=8, **windowed)
        before = training.iterate()
        for training.iteration in range(1, 16):
            after = training.iterate()
        assert (after["train/rate_last"] > 1.5 * before["train/rate_last"]) is up
        assert (after["train/rate_last"] < before["train/rate_last"] / 1.5) is not up


def test_perturbations_are_new_in_each_window_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def noted(*given: Any) -> Tensor:
        drawn.append(perturbations(*given))
        return drawn[-1]

    monkeypatch.setattr(evolution, "perturbations", noted)
    for seed in (0, 1):
        training = training_of(tmp_path, "pes", seed=seed, unroll=3)
        for training.iteration in range(3):
            training.iterate()
    assert len(drawn) == 6
    assert not any((a == b).any() for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("per", CONTROLS)
def test_files_of_all_kinds(tmp_path: Path, toy: Callable[..., Task], per: str) -> None:
    torch.manual_seed(0)
    agent = NOH(Architecture(hidden=4, scale=0.05), 4, "adam", per=per)
    stir(agent.network)
    agent.save(tmp_path / "x.safetensors", {})
    loaded = make_agent(tmp_path / "x.safetensors")
    assert isinstance(loaded, NOH)
    assert (loaded.view, loaded.per) == (agent.view, per)
    ours, theirs = (evaluate(each, toy(), range(2), device="cpu") for each in (agent, loaded))
    np.testing.assert_array_equal(ours.curves["val_loss"], theirs.curves["val_loss"])
    tensors, metadata = controller_file.read(tmp_path / "x.safetensors")
    other = {"parameter": "set-raw/layer"}.get(per, "set-raw/parameter")
    for change in ({"control": other}, {"observe": list(PIECES)[::-1]}, {"control": "set/layer"}):
        controller_file.write(tmp_path / "y.safetensors", tensors, metadata | {"view": metadata["view"] | change})
        with pytest.raises(ControllerFileError, match="observes what goes with it"):
            make_agent(tmp_path / "y.safetensors")


def test_the_settings_choose_the_training(tmp_path: Path) -> None:
    assert type(lstm_training(NOH, NOHSettings(task="digits-logreg", out=tmp_path))) is NOHTraining
    by_layer = lstm_training(NOH, NOHSettings(task="digits-mlp", out=tmp_path, per="layer", budget=10, device="cpu"))
    assert by_layer.policy.view.control == "set-raw/layer"
    assert set(by_layer.iterate()) > {"train/loss", "train/rate_first"}, "hypergradients of layers are sums"


def test_losses_that_have_no_logarithm_are_refused(tmp_path: Path) -> None:
    training = training_of(tmp_path)
    state = training._state
    less = state.dynamics._replace(initial_val_loss=-state.dynamics.initial_val_loss)
    training._state = state._replace(dynamics=less)
    with pytest.raises(ValueError, match="losses of 0 or less: add a constant"):
        training.iterate()


@pytest.mark.parametrize(("kind", "wrong", "message"), [
    (NOHSettings, {"estimator": "es", "envs": 4}, "pairs of trainees; say how many by pairs, and leave envs=4 out"),
    (NOHSettings, {"estimator": "es", "unroll": 7}, "es looks at whole runs, not at windows, and leave unroll=7"),
    (NOHSettings, {"estimator": "merged", "unroll": 7}, "merged looks at whole runs"),
    (NOHSettings, {"estimator": "merged", "pairs": 1}, "at least two pairs, not 1; raise pairs"),
    (NOHSettings, {"pairs": 4}, "hypergradient compares no pairs; say how many trainees by envs"),
    (NOHSettings, {"sigma": 0.2}, "hypergradient perturbs nothing; choose another estimator"),
    (NOHSettings, {"estimator": "es", "sigma": 0.0}, "sigma must be positive"),
    (NOHSettings, {"estimator": "es", "pairs": 0}, "pairs must be at least 1"),
    (NOHSettings, {"estimator": "ces"}, "estimator must be one of hypergradient, .*merged.*, not 'ces'"),
    (NOHSettings, {"per": "neuron"}, "per must be one of parameter, tensor, layer, trainee, not 'neuron'"),
    (DMoptSettings, {"per": "layer"}, "an update per layer would move all its weights alike; leave per='layer' out"),
])  # fmt: skip
def test_settings_that_cannot_be_meant(
    tmp_path: Path, kind: type[NOHSettings], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(out=tmp_path, **wrong)
