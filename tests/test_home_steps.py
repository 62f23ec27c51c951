"""Steps that are none of training, closures, and the rates of groups: a controller changes what it should alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from home_loop import Loop, T, resumed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lrenv import LRController

pytestmark = pytest.mark.filterwarnings("ignore:agent 'universal' was fitted to")


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("agent", ["linear:peak=0.1", "greedy:peak=0.1", "universal"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_bringing_an_optimizers_state_into_being_is_no_step(agent: str, kind: Any) -> None:
    """`torch.distributed.checkpoint` takes a step with rates and gradients of 0 for that."""
    loop = Loop([1e-3], kind, weight_decay=0.1)
    settings: Any = {"horizon": T, "evaluate": loop.validate, "module": loop.model, "batch_size": 4}
    controller = LRController(loop.optimizer, agent, **settings)
    before = weights(loop.model)
    get_optimizer_state_dict(loop.model, loop.optimizer)
    torch.testing.assert_close(weights(loop.model), before, rtol=0, atol=0)
    assert controller.get_last_lr() == [1e-3]
    assert len(controller.history) == 0
    alone = Loop([1e-3], kind, weight_decay=0.1)
    settings |= {"evaluate": alone.validate, "module": alone.model}
    assert loop.run(controller, 6) == alone.run(LRController(alone.optimizer, agent, **settings), 6)


def test_a_step_at_a_rate_of_0_is_one() -> None:
    loop = Loop([0.0])
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T, shadow=True)
    loop.run(controller, 5)
    assert controller.last_epoch == 5


def test_a_closure_at_a_rate_of_0_trains() -> None:
    """There are no gradients before it, or those of 0."""
    for set_to_none in (True, False):
        loop = Loop([0.0])
        controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)

        def closure(loop: Loop = loop) -> Tensor:
            loss = loop.validate()
            loss.backward()
            return loss

        for _ in range(4):
            loss = loop.optimizer.step(closure)
            loop.optimizer.zero_grad(set_to_none)
            controller.step(loss)
        assert controller.last_epoch == 4
        assert controller.get_last_lr() == [pytest.approx(0.1 * (1 - 4 / T))]


def test_a_closure_that_is_never_called_leaves_bounds() -> None:
    class Ignoring(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()

    loop = Loop([0.5], Ignoring)
    settings: Any = {"horizon": T, "module": loop.model, "batch_size": 4, "bounds": (1e-4, 0.1)}
    controller = LRController(loop.optimizer, "universal", **settings)
    loop.validate().backward()
    loop.optimizer.step(lambda: 1 / 0)
    assert controller.get_last_lr() == [0.1]
    controller.step(1.0)
    assert controller.last_epoch == 1


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) that moves weights by `data`, which autograd doesn't notice."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.0})
        self.given: list[Any] = []

    def step(self, closure: Any, *given: Any, **others: Any) -> Any:  # type: ignore[override]
        self.given += [given, others]
        own = [p for group in self.param_groups for p in group["params"]]
        climbs = [0.1 * p.grad for p in own]
        for p, climb in zip(own, climbs, strict=True):
            p.data.add_(climb)
        loss = closure()
        for p, climb in zip(own, climbs, strict=True):
            p.data.sub_(climb).sub_(p.grad, alpha=self.param_groups[0]["lr"])
        return loss


@pytest.mark.parametrize("clears", [True, False])
def test_a_shadow_leaves_closures_as_they_are(clears: bool) -> None:
    """As often as the optimizer calls them, at its weights, whether or not gradients add up; with all its arguments."""
    found = []
    for driven in (False, True):
        loop, calls = Loop(kind=SAM), []

        def closure(loop: Loop = loop, calls: list[float] = calls) -> Tensor:
            if clears:
                loop.optimizer.zero_grad()
            loss = loop.validate()
            loss.backward()
            calls.append(float(loss.detach()))
            return loss

        settings: Any = {"horizon": T, "module": loop.model, "batch_size": 4, "shadow": True}
        controller = LRController(loop.optimizer, "universal", **settings) if driven else None
        for _ in range(3):
            loop.optimizer.zero_grad()
            loop.validate().backward()
            loss = loop.optimizer.step(closure, 0.5, tag="a")
            if controller is not None:
                controller.step(loss)
        if controller is not None:
            assert len(controller.history) == 4
        assert loop.optimizer.given == [(0.5,), {"tag": "a"}] * 3
        found.append((calls, weights(loop.model)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_the_group_with_the_highest_rate_has_the_agents() -> None:
    for order in ((1e-3, 0.1), (0.1, 1e-3)):
        loop = Loop(order)
        LRController(loop.optimizer, "linear:peak=0.5", horizon=T, bounds=(1e-5, 0.2)).start()
        rates = [group["lr"] for group in loop.optimizer.param_groups]
        assert rates == pytest.approx([0.2 * lr / 0.1 for lr in order])


def test_a_frozen_group_gives_no_rate_to_start_from() -> None:
    loop = Loop([10.0, 0.1])
    for p in loop.optimizer.param_groups[0]["params"]:
        p.requires_grad_(False)
    LRController(loop.optimizer, "linear:peak=0.5", horizon=T).start()
    assert loop.optimizer.param_groups[1]["lr"] == 0.5


@pytest.mark.parametrize("order", [(0.001, 0.5), (0.5, 0.001)])
def test_bounds_before_the_agent_has_decided_keep_the_ratios_of_the_moment(order: tuple[float, float]) -> None:
    loop = Loop([0.1, 0.1])
    settings: Any = {"horizon": T, "module": loop.model, "batch_size": 4}
    controller = LRController(loop.optimizer, "universal", bounds=(1e-4, 0.1), **settings)
    for group, lr in zip(loop.optimizer.param_groups, order, strict=True):
        group["lr"] = lr
    assert loop.step(controller) == pytest.approx([0.2 * lr for lr in order])


def test_bounds_hold_before_the_agent_has_decided() -> None:
    loop = Loop([0.05])
    settings: Any = {"horizon": T, "module": loop.model, "batch_size": 4}
    controller = LRController(loop.optimizer, "universal", bounds=(1e-4, 1e-2), **settings)
    assert loop.step(controller) == [1e-2]
    assert all(1e-4 <= rate <= 1e-2 for [rate] in loop.run(controller, 5))


def test_bounds_hold_to_the_last_bit() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "greedy:peak=0.1", evaluate=lambda: 1.0, every=1, bounds=(1e-5, 1e-3))
    assert max(max(rates) for rates in loop.run(controller, 5)) == 1e-3


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_what_is_held_before_the_first_step_holds_after_loading(optimizer_first: bool) -> None:
    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, "universal", horizon=T, module=loop.model, batch_size=4)

    loop = Loop([0.05])
    controller = make(loop)
    controller.hold(0.01)
    other, again = resumed(make, loop, controller, optimizer_first)
    assert other.run(again, 3) == [[0.01]] * 3
    controller.hold(0.003)
    loop.optimizer.load_state_dict(Loop([0.05]).optimizer.state_dict())
    assert loop.run(controller, 3) == [[0.003]] * 3


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_group_that_is_added_has_its_ratio_from_the_next_step_on(optimizer_first: bool) -> None:
    extra = nn.Parameter(torch.zeros(1))

    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, "linear:peak=0.1", horizon=T, every=6)

    loop = Loop([0.1])
    controller = make(loop)
    loop.run(controller, 7)
    first = loop.optimizer.param_groups[0]["lr"]
    loop.optimizer.add_param_group({"params": [extra], "lr": 0.02})
    assert loop.step(controller) == pytest.approx([first, first * 0.2])
    assert controller.base_lrs == [0.1, 0.02]


@pytest.mark.filterwarnings("ignore:something else has set the optimizer's rate")
def test_a_group_that_is_added_changes_no_rate_that_the_user_has_set() -> None:
    loop = Loop([0.1])
    controller = LRController(loop.optimizer, "constant:peak=0.1", horizon=T, every=6)
    loop.run(controller, 7)
    loop.optimizer.param_groups[0]["lr"] = 0.05
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.02})
    assert loop.step(controller) == pytest.approx([0.05, 0.02])
    loop.run(controller, 6)
    assert any("something else" in why for decision in controller.history for why in decision.why)


@pytest.mark.parametrize("agent", ["plateau:peak=0.1", "linear:peak=0.1"])
def test_a_loop_that_never_calls_the_controller_is_told(agent: str) -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, agent, horizon=500, evaluate=loop.validate)
    for _ in range(100):
        loop.step()
    with pytest.warns(UserWarning, match=r"took 100 steps without .*: call step\(loss\) after each"):
        loop.step()
    assert controller.last_epoch == 0


@pytest.fixture
def elsewhere() -> Any:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_a_default_device_is_not_that_of_rates(elsewhere: None) -> None:
    """Decisions are taken on the host, whatever device a program makes its tensors on."""
    parameter = nn.Parameter(torch.ones(2, device="cpu"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    controller: Any = LRController(optimizer, "sgd-hd:initial_lr=0.1:beta=1e-3", module=None, horizon=10, every=1)
    torch.set_default_device("cpu")
    parameter.grad = torch.ones(2)
    torch.set_default_device("meta")
    for _ in range(3):
        optimizer.step()
        controller.step()
    assert controller.get_last_lr()[0] > 0.1
