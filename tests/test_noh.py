"""Coordinatewise LSTMs: their arithmetic, the gradient they learn from, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import noh as reference
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lrenv.agents import make_agent
from lrenv.agents.noh.agent import NOH, DMopt, LSTMPolicy
from lrenv.agents.noh.lstm import Architecture, CoordinateLSTM, preprocessed
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.noh.training import NOHTraining
from lrenv.agents.outer.training import train as train_agent
from lrenv.agents.schedules.agent import constant
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.controller_file import ControllerFileError
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.training.gradient_observer import MEAN
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64
KINDS: dict[str, tuple[type[LSTMPolicy], type[NOHSettings]]] = {
    "noh": (NOH, NOHSettings), "dmopt": (DMopt, DMoptSettings)
}  # fmt: skip


def settings(kind: str, out: Path, **others: Any) -> NOHSettings:
    small: dict[str, Any] = {
        "task": "digits-logreg", "out": out, "envs": 2, "budget": 9, "interval": 2 if kind == "noh" else 1, "unroll": 3,
        "meta_iterations": 3, "hidden": 4, "layers": 2, "eval_every": 2, "eval_seeds": 2, "device": "cpu",
    }  # fmt: skip
    return KINDS[kind][1](**small | others)


def stirred(network: CoordinateLSTM, dtype: torch.dtype = torch.float32) -> CoordinateLSTM:
    """With an output layer that lets gradients through to the layers below."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in (network.output, network.offset):
            part.copy_(torch.randn(part.shape, generator=generator))
    return network.to(dtype)


def test_preprocessing_is_the_papers() -> None:
    c = 10.0
    gradients = [3.0, -1e-3, math.exp(-c), -math.exp(-c) / 2, 1e-9, 0.0]
    expected = np.stack([reference.preprocessed(g, c) for g in gradients], 1)
    found = preprocessed(torch.tensor([gradients], dtype=F64), c)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_is_the_papers(kind: str) -> None:
    """Actions of an episode, and of one that starts beside it, against one LSTM per parameter in NumPy."""
    torch.manual_seed(0)
    policy = KINDS[kind][0](Architecture(layers=2, hidden=4, scale=0.3), 2, KINDS[kind][0].OPTIMIZERS[0])
    stirred(policy.network)
    weights = {name: x.double().numpy() for name, x in policy.network.state_dict().items()}
    written = reference.Policy(
        [weights["weights.0"], weights["weights.1"]], [weights["biases.0"][:, 0], weights["biases.1"][:, 0]],
        weights["output"][0], float(weights["offset"][0, 0]), 0.3, policy.network.cut,
    )  # fmt: skip
    act = reference.rates if kind == "noh" else reference.updates
    zeros = [(np.zeros(4), np.zeros(4))] * 2
    carries, state = [[zeros] * 7, [zeros] * 7], None
    for decision, gradients in enumerate(np.random.default_rng(0).normal(size=(4, 2, 7)) * 10.0 ** np.arange(-6, 1)):
        start = np.array([False, decision == 2])
        found, state = policy.predict({MEAN: gradients.astype(np.float32)}, state, start)
        for i in range(2):
            expected, carries[i] = act(written, gradients[i], [zeros] * 7 if start[i] else carries[i])
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-6)


def test_the_network_is_an_lstm_on_every_coordinate() -> None:
    torch.manual_seed(0)
    network = stirred(CoordinateLSTM(Architecture(layers=3, hidden=4)), F64)
    theirs = nn.LSTM(2, 4, 3).double()
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        inputs = weight.shape[1] - 4
        parts = {"weight_ih": weight[:, :inputs], "weight_hh": weight[:, inputs:], "bias_ih": bias[:, 0]}
        for name, value in parts.items():
            getattr(theirs, f"{name}_l{i}").data.copy_(value)
        getattr(theirs, f"bias_hh_l{i}").data.zero_()
    gradients = 1e-3 * torch.randn(5, 2, 7, dtype=F64)
    carry, outputs = network.start(2, 7), []
    for gradient in gradients:
        output, carry = network(preprocessed(gradient, network.cut), carry)
        outputs.append(output)
    rows = torch.stack([preprocessed(g, network.cut).transpose(1, 2).flatten(0, 1) for g in gradients])
    expected = theirs(rows)[0] @ network.output[0] + network.offset[0]
    torch.testing.assert_close(torch.stack(outputs), expected.view(5, 2, 7))


@pytest.mark.parametrize("longest", [2, 30])
def test_units_remember_for_up_to_so_many_steps(longest: int) -> None:
    """A cell that sees nothing more keeps 1 - 1/T of itself in a step, T between 2 and the longest."""
    torch.manual_seed(1)
    network = CoordinateLSTM(Architecture(layers=2, hidden=50), memory=longest).double()
    with torch.no_grad():
        for weight in network.weights:
            weight.zero_()
        nothing = torch.zeros(1, 50, 1, dtype=F64)
        _, after = network(torch.zeros(1, 2, 1, dtype=F64), (nothing, nothing + 1e6) * 2)
    for cell in after[1::2]:
        steps = 1 / (1 - cell.flatten() / 1e6)
        assert 2 - 1e-3 <= steps.min() <= steps.max() <= longest + 1e-3
        assert steps.max() - steps.min() >= (longest - 2) * 0.7


def test_an_untrained_noh_is_a_constant_rate(toy: Callable[..., Task]) -> None:
    agent = NOH(Architecture(scale=3e-2), interval=4, optimizer="adam")
    ours = evaluate(agent, toy(optimizer="adam"), range(3))
    theirs = evaluate(constant(3e-2), toy(optimizer="adam"), range(3))
    np.testing.assert_allclose(ours.curves["val_loss"], theirs.curves["val_loss"], rtol=1e-5)


def test_unit_updates_are_the_rates(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer="unit"), dtype=F64)
    start = trainee.init([0, 1])
    update = torch.randn(start.params.shape, dtype=F64)
    after, _ = trainee.unroll(start, update, trainee.hyper(2), 1)
    torch.testing.assert_close(after.params, start.params - update)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_training_loss(kind: str, tmp_path: Path) -> None:
    """A window against automatic differentiation of the losses: one step deep for NOH, through all steps for DMopt."""
    training = NOHTraining(KINDS[kind][0], settings(kind, tmp_path, budget=8, unroll=4, scale=0.02))
    network = copy.deepcopy(stirred(training.policy.network))
    trainee = Trainee(training.task)
    state, hyper = trainee.init(seeds_for("training", 2)), trainee.hyper(2)
    carry, total = network.start(*state.params.shape), torch.zeros(())

    def gradient(params: Tensor) -> Tensor:
        with torch.no_grad():
            at = state._replace(params=params.detach())
            return trainee.gradient(at, trainee.batch_indices(at, 1)[:, 0]).grads

    params, seen = state.params, [gradient(state.params)]
    for _ in range(4):
        output, carry = network(preprocessed(torch.stack(seen).mean(0), network.cut), carry)
        action, seen = 0.02 * (output.exp() if kind == "noh" else output), []
        for _ in range(training.task.interval):
            direction, opt = trainee.optimizer.direction(gradient(params), state.opt, params.detach(), hyper)
            params = (params.detach() if kind == "noh" else params) - action * direction
            state = state._replace(opt=opt, step=state.step + 1)
            total = total + trainee.loss(params, state, trainee.batch_indices(state, 1)[:, 0])[0].sum()
            seen.append(gradient(params))
    expected = parameters_to_vector(torch.autograd.grad(total, list(network.parameters())))
    training.iterate()
    learned = training._moments["mean"][0]  # of Adam's first step: 0.1 times the gradient
    torch.testing.assert_close(learned / 0.1, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(training._state.trainee.params, params.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_acts_as_the_policy_in_memory_on_trainees_of_any_size(
    tmp_path: Path, toy: Callable[..., Task], kind: str
) -> None:
    chosen = settings(kind, tmp_path)
    training = NOHTraining(KINDS[kind][0], chosen)
    stirred(training.policy.network)
    training.iterate()
    training.policy.save(tmp_path / "x.safetensors", {})
    loaded = make_agent(tmp_path / "x.safetensors")
    assert loaded.view == training.policy.view
    assert repr(loaded) == kind
    results = [evaluate(agent, toy(), range(3)) for agent in (training.policy, loaded)]
    np.testing.assert_array_equal(results[0].curves["lr"], results[1].curves["lr"])
    assert np.ptp(results[0].curves["lr"]) > 0


def test_coordinates_and_trainees_are_apart() -> None:
    """Permuting either permutes what is done; a trainee that starts anew forgets, the others do not."""
    torch.manual_seed(1)
    agent = NOH(Architecture(hidden=4), interval=5, optimizer="adam")
    stirred(agent.network)
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 3, 6)).astype(np.float32)
    _, state = agent.predict({"mean_gradient": first})
    action, _ = agent.predict({"mean_gradient": second}, state)
    assert (action > 0).all()
    rows, columns = [2, 0, 1], [3, 1, 0, 5, 4, 2]
    _, other = agent.predict({"mean_gradient": first[rows][:, columns]})
    permuted, _ = agent.predict({"mean_gradient": second[rows][:, columns]}, other)
    np.testing.assert_allclose(permuted, action[rows][:, columns], rtol=1e-5)
    restarted, _ = agent.predict({"mean_gradient": second}, state, np.array([False, True, False]))
    fresh, _ = agent.predict({"mean_gradient": second})
    np.testing.assert_allclose(restarted, np.stack([action[0], fresh[1], action[2]]), rtol=1e-5)
    assert np.abs(fresh - action).min() > 0


def test_hypergradients_find_the_rate_from_below_and_above(tmp_path: Path) -> None:
    """On one window again and again: a rate that is too low rises, one that is too high falls."""
    last = {}
    for scale in (1e-5, 3.0):
        chosen = settings("noh", tmp_path, budget=40, interval=5, unroll=8, scale=scale, meta_lr=0.1)
        training = NOHTraining(NOH, chosen)
        rows = []
        for _ in range(16):
            rows.append(training.iterate())
            training.iteration += 1
        assert rows[-1]["train/loss"] < rows[0]["train/loss"]
        last[scale] = rows[-1]["train/rate_last"]
    assert last[1e-5] > 1e-4
    assert last[3.0] < 1.0


def test_what_is_kept_ends_with_the_lowest_training_loss(tmp_path: Path) -> None:
    training = NOHTraining(NOH, settings("noh", tmp_path, budget=39, scale=0.02))
    ours = training.held_out_loss(training.controller())
    theirs = evaluate(constant(0.02), training.task, range(20_000, 20_002))
    assert ours == pytest.approx(theirs.curves["train_loss"][-2:].mean(), rel=1e-5)
    assert training.held_out_loss(NOH(Architecture(scale=3e38), 2, "sgd")) == math.inf


def test_trainees_that_diverge_teach_nothing(tmp_path: Path) -> None:
    training = NOHTraining(
        NOH, settings("noh", tmp_path, optimizer="sgd", scale=1e6, budget=40, task="noisy-quadratic")
    )
    for _ in range(3):
        row = training.iterate()
        training.iteration += 1
    assert row["train/diverged"] == 2
    assert training._weights.isfinite().all()


@pytest.mark.parametrize(("kind", "wrong", "message"), [
    ("noh", {"scale": 0.0}, "scale must be positive"),
    ("noh", {"layers": 101}, "settings.layers must be an integer from 1 to 100, not 101"),
    ("dmopt", {"cut": 81.0}, "settings.cut must be a number above 0.001 and at most 80, not 81.0"),
    ("noh", {"hidden": 2**20 + 1}, "settings.hidden must be an integer from 1 to 1048576"),
    ("noh", {"meta_lr": math.inf}, "meta_lr must be a finite number, not inf"),
    ("noh", {"memory": 1}, "give 2 decisions or more"),
    ("noh", {"unroll": 0}, "unroll must be at least 1"),
    ("noh", {"meta_iterations": 0}, "meta_iterations must be at least 1"),
    ("noh", {"optimizer": "unit"}, "choose another than 'unit'"),
    ("dmopt", {"optimizer": "adam"}, "leave optimizer out"),
    ("dmopt", {"interval": 5}, "those of an update at each step; leave interval=5 out, or choose another estimator"),
    ("noh", {"estimator": "guess"}, "estimator must be one of hypergradient, es, .*, not 'guess'"),
    ("noh", {"per": "network"}, "per must be one of parameter, tensor, layer, trainee, not 'network'"),
])  # fmt: skip
def test_unfit_settings_are_refused(tmp_path: Path, kind: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(kind, tmp_path, **wrong)


def test_unfit_observations_are_refused(toy: Callable[..., Task]) -> None:
    agent = NOH(Architecture(hidden=4), interval=4, optimizer="adam")
    with pytest.raises(ValueError, match="noh reads mean_gradient, which the observation lacks.*view"):
        agent.predict(np.zeros((2, 8)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of a batch"):
        agent.predict({"mean_gradient": np.zeros(8)})
    _, state = agent.predict({"mean_gradient": np.zeros((2, 8))})
    with pytest.raises(ValueError, match="state is that of"):
        agent.predict({"mean_gradient": np.zeros((2, 9))}, state)
    coarser = LearningRateVectorEnv(2, toy(optimizer="adam"), control="set-raw/layer", observe="mean_gradient")
    action, _ = agent.predict(coarser.reset(seed=0)[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 2\)"):
        coarser.step(action)


def test_unfit_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    NOH(Architecture(hidden=4), 5, "adam").save(path, {})
    with pytest.raises(ControllerFileError, match="holds the agent 'noh', not the agent 'dmopt'"):
        DMopt.load(path)
    tensors, metadata = controller_file.read(path)
    controller_file.write(path, tensors, metadata | {"architecture": {**metadata["architecture"], "hidden": 5}})
    with pytest.raises(ControllerFileError, match="doesn't hold the weights"):
        NOH.load(path)
    with pytest.raises(ValueError, match="give its controller file instead"):
        make_agent("noh")


@pytest.mark.parametrize("optimizer", ["adam+ema", "momentum"])
def test_what_is_trained_can_be_loaded(tmp_path: Path, optimizer: str) -> None:
    path = tmp_path / "x.safetensors"
    NOH(Architecture(hidden=4), 5, optimizer).save(path, {})
    assert make_agent(path).view.optimizer == optimizer


@pytest.mark.parametrize("optimizer", ["unit", "adam+average", "adan"])
def test_optimizers_that_it_is_not_for_are_refused_before_it_is_trained(tmp_path: Path, optimizer: str) -> None:
    with pytest.raises(ValueError, match="noh is for the optimizers sgd, .*, not"):
        NOH(Architecture(hidden=4), 5, optimizer)
    with pytest.raises(ValueError, match=r"optimizer|wrapper"):
        train_agent(
            partial(NOHTraining, NOH),
            settings("noh", tmp_path / "out", task=f"noisy-quadratic:optimizer={optimizer}", optimizer=None),
        )
    assert not (tmp_path / "out").exists()
