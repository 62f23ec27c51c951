"""The loop that all trainings share: what it gives, its gradients, and episodes as its decisions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lrenv.agents.outer.gradient_estimators import paired, perturbations, sampled
from lrenv.envs.episode import Episode, EpisodeState
from lrenv.training.hypergradients import reverse
from lrenv.training.rollout import rollout
from lrenv.training.tasks import Task

F64 = torch.float64
State = dict[str, Tensor]


def step(theta: Tensor, state: State, number: int) -> tuple[Tensor, State]:
    """x <- x sin(theta + x) + number, which every weight of theta and every step matters for."""
    x = state["x"] * (theta + state["x"]).sin() + number
    return x.square().sum(1), {"x": x, "step": state["step"] + 1}


def start() -> State:
    return {"x": torch.linspace(-1, 1, 6, dtype=F64).view(2, 3), "step": torch.zeros(2, dtype=torch.int64)}


def test_it_carries_the_state_through_what_is_given() -> None:
    theta = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    outputs, state = rollout(step, theta, start(), [3, 1, 2])
    expected, own = start(), []
    for number in (3, 1, 2):
        output, expected = step(theta, expected, number)
        own.append(output)
    assert torch.equal(torch.stack(outputs), torch.stack(own))
    assert torch.equal(state["x"], expected["x"])
    assert state["step"].tolist() == [3, 3]
    outputs, state = rollout(step, theta, start(), [])
    assert outputs == []
    assert torch.equal(state["x"], start()["x"])


def test_steps_that_are_taken_again_have_the_same_gradient() -> None:
    gradients, calls = [], itertools.count()

    def counted(theta: Tensor, state: State, number: int) -> tuple[Tensor, State]:
        next(calls)
        return step(theta, state, number)

    for recompute in (False, True):
        theta = torch.tensor([0.1, 0.2, 0.3], dtype=F64).requires_grad_()
        outputs, state = rollout(counted, theta, start(), range(4), recompute)
        (sum(output.sum() for output in outputs) + state["x"].sum()).backward()
        assert theta.grad is not None
        gradients.append(theta.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
    assert gradients[0].abs().min() > 1e-2
    assert next(calls) == 4 + 8, "once more on the way back"
    with torch.no_grad():
        outputs, _ = rollout(counted, theta, start(), range(4), recompute=True)
    assert not outputs[-1].requires_grad
    assert next(calls) == 4 + 8 + 1 + 4, "and not where there is no way back"


@pytest.mark.parametrize("recompute", [False, True])
def test_estimators_of_outer_gradients_go_through_episodes(toy: Callable[..., Task], recompute: bool) -> None:
    """The rates of three decisions as theta: reparameterisation gradients are the hypergradients in reverse mode."""
    task, pairs, sigma = toy(optimizer="momentum"), 3, 0.02
    episode = Episode(task, "set-raw", dtype=F64)
    theta = torch.tensor([0.1, 0.3, 0.2], dtype=F64)

    def decision(rates: Tensor, state: EpisodeState, number: int) -> tuple[Tensor, EpisodeState]:
        state, _ = episode.step(state, rates[:, number, None])
        return state.dynamics.val_loss, state

    def trained(rates: Tensor, state: EpisodeState) -> tuple[Tensor, EpisodeState]:
        losses, state = rollout(decision, rates, state, range(3), recompute)
        return losses[-1], state

    noise = perturbations(pairs, theta, sigma, torch.Generator().manual_seed(0))
    begun: Any = paired(episode.reset(range(pairs))[0])
    samples = sampled(trained, theta, noise, sigma, begun)
    assert samples.kept.all()
    rates = theta + torch.cat([noise, -noise])
    trainees = paired(episode.trainee.init(range(pairs)))
    found = reverse(episode.trainee, trainees, {"lr": rates}, task.budget)
    torch.testing.assert_close(samples.loss, found.objective.view(2, pairs).mean(0))
    torch.testing.assert_close(samples.reparameterisation, found.gradient["lr"].view(2, pairs, 3).mean(0))
    plus, minus = found.objective.split(pairs)
    torch.testing.assert_close(samples.es, noise * ((plus - minus) / (2 * sigma**2))[:, None])
    assert samples.state.trainee.step.tolist() == [task.budget] * 2 * pairs
