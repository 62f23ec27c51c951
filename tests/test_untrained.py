"""What untrained networks show: in environments, and as a loop's optimizer first steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from home_loop import Loop
from torch import Tensor, nn

from lrenv.agents import BaseAgent, View
from lrenv.envs.episode import Episode
from lrenv.home.controller import LRController
from lrenv.training.dynamics import Untrained
from lrenv.training.losses import LOSSES
from lrenv.training.tasks import Task

F64 = torch.float64
LAYERS = ("0", "2")
"""Of `Loop`'s model."""


def sizes_of(model: nn.Module, layers: tuple[str, ...] = LAYERS) -> tuple[float, float, int]:
    """By torch's own modules, whose gradients are there; and the number of layers."""
    ratios, weights = [], []
    for name in layers:
        own = list(model.get_submodule(name).parameters())
        gradient, weight = (
            math.sqrt(sum(float(x.square().sum()) for x in tensors))
            for tensors in ([p.grad for p in own if p.grad is not None], [p.detach() for p in own])
        )
        ratios.append(gradient / weight)
        weights.append(torch.cat([p.detach().flatten() for p in own]))
    counts = [math.sqrt(len(w)) for w in weights]
    logs = [math.log(float(w.square().mean().sqrt())) for w in weights]
    size = math.exp(sum(n * log for n, log in zip(counts, logs, strict=True)) / sum(counts))
    return max(ratios), size, len(layers)


def test_layers_whose_weights_are_0_are_left_out() -> None:
    gradients, weights = torch.tensor([[4.0, 9.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = Untrained.of(gradients, weights, [4, 9])
    torch.testing.assert_close(found.relative_gradient, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(found.weight_size, torch.tensor([0.5, 0.0]))


def test_a_large_layer_does_not_speak_for_all() -> None:
    """Of 9 weights of size 8 and 4 of size 1: 8 to the power of 3 / (3 + 2)."""
    found = Untrained.of(torch.ones(1, 2), torch.tensor([[9 * 64.0, 4.0]]), [9, 4])
    torch.testing.assert_close(found.weight_size, torch.tensor([8**0.6]))


def test_layers_that_begin_near_0_are_left_out_of_the_size() -> None:
    """As are those at 0, and those without weights; one of more than a 10,000th counts."""
    for size, expected in ((0.0, 2.0), (1e-6, 2.0), (1.9e-4, 2.0), (2.1e-4, 2**0.6 * 2.1e-4**0.4)):
        found = Untrained.of(torch.ones(1, 3), torch.tensor([[9 * 4.0, 4 * size**2, 0.0]]), [9, 4, 0])
        torch.testing.assert_close(found.weight_size, torch.tensor([expected]))


def test_an_environment_shows_those_of_the_first_batch_until_the_end(toy: Callable[..., Task]) -> None:
    task = toy(optimizer="momentum", budget=6, interval=2, weight_decay=0.1)
    episode = Episode(task, observe="untrained", dtype=F64)
    state, step = episode.reset([3, 5])
    batches = episode.trainee.batch_indices(state.trainee, 1)[:, 0]
    expected = []
    for seed, rows in zip((3, 5), batches, strict=True):
        torch.manual_seed(seed)
        model = task.module().double()
        data = episode.trainee.train
        outputs, targets = model(data.inputs[rows]), data.targets[rows]
        loss = LOSSES[str(task.loss)].per_example(outputs[None], targets[None]).mean()
        loss.backward()
        layers = tuple(name for name, module in model.named_modules() if list(module.parameters(recurse=False)))
        expected.append([float(loss.detach()), *sizes_of(model, layers)])
    for _ in range(3):
        assert isinstance(step.observation, Tensor)
        np.testing.assert_allclose(10 ** step.observation.numpy(), expected, rtol=1e-9)
        state, step = episode.step(state, torch.ones(2, 1, dtype=F64))


def test_where_nobody_looks_at_them_no_gradient_is_taken(
    toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, does_not = (Episode(toy(), observe=each) for each in ("untrained", "scale-free"))

    def never(*_: Any) -> None:
        raise AssertionError

    for episode in (looks, does_not):
        monkeypatch.setattr(episode.trainee, "gradient", never)
    state, _ = does_not.reset([0])
    assert float(state.dynamics.relative_gradient) == float(state.dynamics.weight_size) == 0
    with pytest.raises(AssertionError):
        looks.reset([0])


# In a loop of one's own


class Shown(BaseAgent[tuple[()]]):
    """Keeps the rate, and what it is shown at each decision."""

    def __init__(self, observe: Any = "untrained") -> None:
        self.view = View("set-raw", observe, interval=2)
        self.seen: list[np.ndarray[Any, Any]] = []

    def start(self, observation: Any) -> tuple[()]:
        return ()

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        self.seen.append(10 ** observation[0])
        return np.full((1, 1), 0.01), ()


def controlled(loop: Loop, **settings: Any) -> tuple[LRController, Shown]:
    agent = Shown()
    return LRController(loop.optimizer, agent, module=loop.model, fallback=None, **settings), agent


def backward(loop: Loop, rows: slice = slice(0, 4), factor: float = 1.0) -> Tensor:
    loss = nn.functional.mse_loss(loop.model(loop.x[rows]), loop.y[rows])
    (factor * loss).backward()
    return loss.detach()


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
def test_a_loop_shows_those_of_its_first_step(kind: Any, start: bool) -> None:
    """With any optimizer. The first rate is the agent's where the loss was told; else it comes after the first step."""
    loop = Loop([0.05], kind)
    controller, agent = controlled(loop)
    loss = backward(loop)
    expected = [float(loss.detach()), *sizes_of(loop.model)]
    if start:
        controller.start(loss)
        assert not agent.seen, "there may be no gradient yet"
    loop.optimizer.step()
    assert len(agent.seen) == start
    controller.step(loss)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    for _ in range(4):
        loop.optimizer.zero_grad()
        loss = backward(loop, slice(4, 8))
        loop.optimizer.step()
        controller.step(loss)
    assert len(agent.seen) == 3
    np.testing.assert_allclose(agent.seen, [expected] * 3, rtol=1e-5)


def test_gradients_are_what_the_optimizer_steps_with() -> None:
    """Accumulated over two batches, unscaled and clipped; nothing that was there before."""
    loop = Loop([0.05])
    controller, agent = controlled(loop)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for rows in (slice(0, 4), slice(4, 8)):
        loss = nn.functional.mse_loss(loop.model(loop.x[rows]), loop.y[rows]) / 2
        scaler.scale(loss).backward()
    controller.start(loss)
    scaler.unscale_(loop.optimizer)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.01)
    expected = sizes_of(loop.model)
    scaler.step(loop.optimizer)
    np.testing.assert_allclose(agent.seen[0][1:], expected, rtol=1e-5)


def test_fused_optimizers_are_told_by_how_much_gradients_are_scaled() -> None:
    loop = Loop([0.05], fused=True)
    controller, agent = controlled(loop)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = backward(loop)
    expected = sizes_of(loop.model)
    loop.optimizer.zero_grad()
    scaler.scale(nn.functional.mse_loss(loop.model(loop.x[:4]), loop.y[:4])).backward()
    assert sizes_of(loop.model)[0] == pytest.approx(8 * expected[0], rel=1e-5)
    controller.start(loss)
    scaler.step(loop.optimizer)
    np.testing.assert_allclose(agent.seen[0][1:], expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:a loss, a weight or a gradient was not finite")
def test_a_gradient_that_is_no_number_is_not_the_first_one() -> None:
    loop = Loop([0.05])
    controller, agent = controlled(loop)
    expected: list[tuple[float, float, int]] = []
    for step in range(5):
        weights = [p.detach().clone() for p in loop.model.parameters()]
        loop.optimizer.zero_grad()
        loss = backward(loop, factor=math.nan if step == 0 else 1.0)
        expected.append(sizes_of(loop.model))
        loop.optimizer.step()
        if step == 0:  # a user who sees it puts the weights back
            with torch.no_grad():
                for p, weight in zip(loop.model.parameters(), weights, strict=True):
                    p.copy_(weight)
        controller.step(loss)
        assert bool(agent.seen) == (step > 0)
    np.testing.assert_allclose([seen[1:] for seen in agent.seen], [expected[1]] * len(agent.seen), rtol=1e-5)


def test_a_state_has_them() -> None:
    """Saved before the first decision and after it, loaded in a loop that has seen no gradient."""
    for decided in (False, True):
        loop = Loop([0.05])
        controller, _ = controlled(loop)
        loss = backward(loop)
        expected = sizes_of(loop.model)
        loop.optimizer.step()
        if decided:
            controller.step(loss)
        state = controller.state_dict()
        other = Loop([0.05])
        again, shown = controlled(other)
        again.load_state_dict(state)
        for _ in range(3):
            other.optimizer.zero_grad()
            loss = backward(other, slice(8, 12))
            other.optimizer.step()
            again.step(loss)
        assert shown.seen
        np.testing.assert_allclose(shown.seen[-1][1:], expected, rtol=1e-5)


def test_layers_are_those_of_a_module_or_the_optimizers_groups() -> None:
    loop = Loop([0.05])
    with pytest.raises(ValueError, match="looks at layers: pass module="):
        LRController(loop.optimizer, Shown())
    loop = Loop([0.3, 0.3])
    agent = Shown()
    controller = LRController(loop.optimizer, agent, layers="groups", fallback=None)
    loss = backward(loop)
    expected = sizes_of(loop.model)
    controller.start(loss)
    loop.optimizer.step()
    np.testing.assert_allclose(agent.seen[0][1:], expected, rtol=1e-5)
