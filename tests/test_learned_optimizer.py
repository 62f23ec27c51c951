"""The learned optimizer of Metz et al. 2019: its features, its update, its invariances, and the agent it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import learned_optimizer as reference

from lrenv.agents import make_agent
from lrenv.agents.learned_optimizer.agent import Architecture, LearnedOptimizer
from lrenv.agents.schedules.agent import constant
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.agent import Agent
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.optimizers import Optimizer
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee

F64 = torch.float64
SIZES = (12, 1, 7)
PAPER = Architecture()
NAMES = (
    "gradient", "weight", *(f"{kind} {decay}" for kind in ("m", "rms", "r", "r m") for decay in range(5)),
    *(f"time {eta}" for eta in range(9)),
)  # fmt: skip
GATES = {"m": "momentum", "rms": "rms", "r": "rms", "time": "time"}


def trained(optimizer: Optimizer, gradients: torch.Tensor, weights: torch.Tensor, **hyper: Any) -> torch.Tensor:
    """The direction (n, P) after gradients (T, n, P)."""
    state = optimizer.init(weights)
    for g in gradients:
        direction, state = optimizer.direction(g, state, weights, hyper)
    return direction


def probe(feature: int, architecture: Architecture = PAPER) -> torch.Tensor:
    """The theta whose update is 1e-3 times one input: o_2 = relu(x) - relu(-x), o_1 = 0."""
    first = torch.zeros(architecture.hidden, architecture.inputs + 1, dtype=F64)
    second = torch.zeros(2, architecture.hidden + 1, dtype=F64)
    first[0, feature], first[1, feature], second[1, 0], second[1, 1] = 1, -1, 1, -1
    return torch.cat([first.flatten(), second.flatten()])


@pytest.fixture
def course() -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients (5, 2, 20) and weights (2, 20)."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 10.0, 1.0], dtype=F64).repeat_interleave(torch.tensor(SIZES))
    gradients = torch.randn(5, 2, sum(SIZES), generator=generator, dtype=F64) * scales
    return gradients, torch.randn(2, sum(SIZES), generator=generator, dtype=F64)


@pytest.mark.parametrize("feature", range(31), ids=NAMES)
def test_each_feature_is_that_of_appendix_c(course: tuple[torch.Tensor, torch.Tensor], feature: int) -> None:
    gradients, weights = course
    found = 1e3 * trained(LearnedOptimizer(probe(feature))(SIZES), gradients, weights)
    expected = [reference.features(gradients[:, i].numpy(), weights[i].numpy(), SIZES)[:, feature] for i in range(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_update_is_that_of_appendix_c(course: tuple[torch.Tensor, torch.Tensor]) -> None:
    """One theta for both trainees, and one for each."""
    gradients, weights = course
    thetas = torch.stack([PAPER.init(0), PAPER.init(1)]).double()
    thetas += 0.1 * torch.randn(thetas.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    thetas[:, -66:-33] *= 1000  # o_1 is scaled by 1e-3 inside an exponential; make it matter
    each = trained(LearnedOptimizer(thetas[0])(SIZES), gradients, weights, theta=thetas)
    for i, theta in enumerate(thetas.numpy()):
        x = reference.features(gradients[:, i].numpy(), weights[i].numpy(), SIZES)
        np.testing.assert_allclose(each[i].numpy(), reference.update(x, theta), rtol=1e-5, atol=1e-9)
    shared = trained(LearnedOptimizer(thetas[0])(SIZES), gradients, weights)
    torch.testing.assert_close(shared[0], each[0])


def test_a_training_is_that_of_appendix_c(course: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Weights change on the way, and are features of later steps."""
    gradients, weights = course
    theta = PAPER.init(0).double() * 10
    optimizer, w = LearnedOptimizer(theta)(SIZES), weights
    state = optimizer.init(w)
    for g in gradients:
        direction, state = optimizer.direction(g, state, w, {})
        w = w - direction
    for i in range(2):
        expected = reference.train(gradients[:, i].numpy(), weights[i].numpy(), theta.numpy(), SIZES)
        np.testing.assert_allclose(w[i].numpy(), expected, rtol=0, atol=1e-5)
    assert (w - weights).abs().max() > 1e-2


def test_permuting_a_tensors_elements_permutes_the_update(course: tuple[torch.Tensor, torch.Tensor]) -> None:
    gradients, weights = course
    optimizer = LearnedOptimizer(PAPER.init(0))(SIZES)
    order = torch.cat([torch.randperm(12, generator=torch.Generator().manual_seed(2)), torch.arange(12, 20)])
    update = trained(optimizer, gradients, weights)
    torch.testing.assert_close(trained(optimizer, gradients[..., order], weights[:, order]), update[:, order])
    across = torch.cat([torch.tensor([13]), torch.arange(1, 13), torch.tensor([0]), torch.arange(14, 20)])
    moved = trained(optimizer, gradients[..., across], weights[:, across])
    assert not torch.allclose(moved, update[:, across], rtol=1e-2), "elements of two tensors are not interchangeable"


@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_scales_of_gradients_and_of_weights_do_not_matter(
    course: tuple[torch.Tensor, torch.Tensor], scale: float
) -> None:
    gradients, weights = course
    optimizer = LearnedOptimizer(PAPER.init(0))(SIZES)
    update = trained(optimizer, gradients, weights)
    torch.testing.assert_close(trained(optimizer, scale * gradients, weights), update, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(trained(optimizer, gradients, scale * weights), update, rtol=1e-5, atol=1e-8)
    # A tensor's scale is its own affair; that of an element is not.
    tensor = torch.ones(20, dtype=F64)
    tensor[:12] = scale
    torch.testing.assert_close(trained(optimizer, tensor * gradients, weights), update, rtol=1e-5, atol=1e-8)
    tensor[6:12] = 1
    assert not torch.allclose(trained(optimizer, tensor * gradients, weights), update, rtol=1e-2)


def test_tensors_of_zeros(course: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Biases start at 0, and dead units have no gradient: updates and their derivatives by theta stay finite."""
    gradients, weights = (x.float() for x in course)
    gradients[..., :12], weights[:, 12:] = 0, 0
    theta = PAPER.init(0).expand(2, -1).clone().requires_grad_()
    leaf = gradients.clone().requires_grad_()
    update = trained(LearnedOptimizer(PAPER.init(0))(SIZES), leaf, weights, theta=theta)
    update.sum().backward()
    assert theta.grad is not None
    assert leaf.grad is not None
    assert update.isfinite().all()
    assert theta.grad.isfinite().all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("ablation", ["momentum", "rms", "time", "momentum rms"])
def test_ablations_leave_features_out(course: tuple[torch.Tensor, torch.Tensor], ablation: str) -> None:
    """Each input that is left, in order, is a feature of the whole optimizer that no ablated group has part in."""
    gradients, weights = course
    gone = ablation.split()
    architecture = replace(PAPER, **dict.fromkeys(gone, False))
    parts = [[word for word in name.split() if word in GATES] for name in NAMES]
    left = [i for i, words in enumerate(parts) if not {GATES[word] for word in words} & set(gone)]
    assert architecture.inputs == len(left)
    for place, feature in enumerate(left):
        own = trained(LearnedOptimizer(probe(place, architecture), architecture)(SIZES), gradients, weights)
        torch.testing.assert_close(own, trained(LearnedOptimizer(probe(feature))(SIZES), gradients, weights))


def test_the_paper_has_31_inputs_and_about_a_thousand_parameters() -> None:
    assert (PAPER.inputs, PAPER.size) == (31, 32 * 31 + 32 + 2 * 32 + 2)


def test_a_trainee_normalises_over_its_networks_tensors(toy: Callable[..., Task]) -> None:
    """On its first step the gradient's feature is g / rms(g) over each tensor, and it is descended along."""
    trainee = Trainee(toy(optimizer=LearnedOptimizer(probe(0))), dtype=F64)
    state = trainee.init([3])
    gradient = trainee.gradient(state, trainee.batch_indices(state, 1)[:, 0])
    after, _ = trainee.unroll(state, torch.ones(1, 1, dtype=F64), trainee.hyper(1), 1)
    for g, before, now in zip(
        *(trainee.network.named(x).values() for x in (gradient.grads, state.params, after.params)), strict=True
    ):
        torch.testing.assert_close(before - now, 1e-3 * g / g.square().mean().sqrt())


def test_it_is_an_agent_beside_all_others(toy: Callable[..., Task], tmp_path: Path) -> None:
    agent = LearnedOptimizer(probe(0).float())
    assert isinstance(agent, Agent)
    task = toy(optimizer="adam", batch_size=24, budget=40)
    result = evaluate(agent, task, range(3))
    assert (result.curves["lr"][1:] == 1).all()
    assert (result.curves["train_loss"][-1] < result.curves["train_loss"][0]).all(), "a scaled gradient descends"
    assert '"optimizer": "learned-optimizer"' in result.lines()[0]
    agent.save(tmp_path / "controller.safetensors", {})
    loaded = make_agent(tmp_path / "controller.safetensors")
    np.testing.assert_array_equal(evaluate(loaded, task, range(3)).val_loss, result.val_loss)


def test_the_optimizer_that_comes_along_trains_what_it_never_saw() -> None:
    """Other data, another number of classes: below Adam from its usual rate, after a third of the budget."""
    task = make_task("digits-mlp", budget=100)
    ours, adam = (evaluate(agent, task, range(3)) for agent in (make_agent("metz2019-cpu"), constant(1e-3)))
    assert not ours.diverged.any()
    assert (ours.test_loss < adam.test_loss).all()


def test_memory_counts_its_averages(toy: Callable[..., Task]) -> None:
    """What a trainee holds between decisions grows by the ten averages, each as large as the weights."""
    learned, plain = (Trainee(toy(optimizer=x)) for x in (LearnedOptimizer(PAPER.init(0)), "sgd"))
    grown = learned.memory.held - plain.memory.held
    assert grown >= 10 * learned.network.size * 4


def test_a_theta_of_another_shape(tmp_path: Path, toy: Callable[..., Task]) -> None:
    with pytest.raises(ValueError, match=r"theta has shape \(5,\).*hidden=32.*1090"):
        LearnedOptimizer(torch.zeros(5))
    trainee = Trainee(toy(optimizer=LearnedOptimizer(PAPER.init(0))))
    hyper = {"theta": torch.zeros(2, 7)}
    with pytest.raises(ValueError, match="theta has 7 parameters"):
        trainee.unroll(trainee.init([0, 1]), torch.ones(2, 1), hyper, 1)
    with pytest.raises(ValueError, match="trained, so give its controller file"):
        make_agent("learned-optimizer")
    path = tmp_path / "controller.safetensors"
    controller_file.write(path, {"theta": torch.zeros(5)}, {"agent": "learned-optimizer", "architecture": {}})
    with pytest.raises(controller_file.ControllerFileError, match=r"metadata\.architecture lacks hidden"):
        make_agent(path)


def test_environments_run_it(toy: Callable[..., Task]) -> None:
    """Also where a batch goes through in groups: a group's directions are those of the whole batch."""
    agent = LearnedOptimizer(PAPER.init(1))
    task = toy()
    runs = []
    for chunk_size in (1, 8):
        envs = LearningRateVectorEnv(3, task, device="cpu", **agent.view.settings())
        envs.episode.trainee.chunk_size = chunk_size
        observation, _ = envs.reset(seed=5)
        for _ in range(2):
            observation, *_ = envs.step(agent.predict(observation)[0])
        runs.append(observation)
    np.testing.assert_allclose(*runs, rtol=1e-5)


@pytest.mark.slow
def test_compiled_steps_give_the_same(toy: Callable[..., Task]) -> None:
    task = toy(optimizer=LearnedOptimizer(PAPER.init(0)), interval=1)
    thetas = torch.stack([PAPER.init(0), PAPER.init(1)])
    ends = []
    for compile in (False, True):
        trainee = Trainee(task, compile=compile)
        state = trainee.init([0, 1])
        with torch.no_grad():
            for _ in range(3):
                state, _ = trainee.unroll(state, torch.ones(2, 1), {"theta": thetas}, 1)
        ends.append(state.params)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
