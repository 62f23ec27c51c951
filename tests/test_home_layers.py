"""`lrenv.LRController` with agents that set a rate per layer, or observe gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from home_loop import Loop, T, resumed
from torch import Tensor, nn

from lrenv.agents import BaseAgent, View, make_agent
from lrenv.agents.universal import policy
from lrenv.agents.universal.agent import UniversalController
from lrenv.agents.universal.policy import Architecture
from lrenv.home.controller import LRController
from lrenv.home.deciding import LATE
from lrenv.home.fallback import Fallback

SPLIT = "ignore:the optimizer's . parameter groups were split"
pytestmark = pytest.mark.filterwarnings(SPLIT, "ignore:agent .* was made for")
BY_LAYER = "linear:peak=0.1:fan_in=1"  # of the layers with 3 and 4 inputs
HD = "sgd-hd:initial_lr=0.01:beta=0.0001"
MULTIPLIERS = (4 / 3) ** 0.5, (3 / 4) ** 0.5


def by_layer(loop: Loop, agent: Any = BY_LAYER, horizon: int | None = T, **settings: Any) -> LRController:
    return LRController(loop.optimizer, agent, horizon, module=loop.model, **settings)


class Clocked(BaseAgent[tuple[()]]):
    """An agent that grows each piece's rate at a pace of its own."""

    reads = ("inner_step",)

    def __init__(self, granularity: str = "layer") -> None:
        self.view = View(f"scale/{granularity}", ("clock", "fan_in"), 1)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        paces = np.linspace(-0.1, 0.2, observation["fan_in"].shape[1])
        return np.broadcast_to(paces, observation["fan_in"].shape), ()


def test_groups_are_split_with_their_options_and_state() -> None:
    loop, plain = Loop([0.1], torch.optim.AdamW), Loop([0.1], torch.optim.AdamW)
    for each in (loop, plain):
        weights, biases = ([p for p in each.model.parameters() if (p.ndim > 1) == own] for own in (True, False))
        rate = torch.tensor(0.1)
        groups = [{"params": weights, "lr": rate}, {"params": biases, "lr": 0.01, "weight_decay": 0.0}]
        each.optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
        for _ in range(3):
            each.step()
    first = loop.optimizer.param_groups[0]
    state = copy.deepcopy(loop.optimizer.state_dict()["state"])
    with pytest.warns(UserWarning, match=r"2 parameter groups were split into 4, for agent 'linear.*checkpoint"):
        by_layer(loop, f"{BY_LAYER}:warmup=0".replace("fan_in=1", "fan_in=0"))
    groups = loop.optimizer.param_groups
    assert [[p.shape for p in group["params"]] for group in groups] == [[(4, 3)], [(1, 4)], [(4,)], [(1,)]]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01, 0.0, 0.0]
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}
    assert groups[0] is first
    assert isinstance(groups[1]["lr"], Tensor)
    assert groups[1]["lr"] is not groups[0]["lr"]
    own = loop.optimizer.state_dict()["state"]
    assert [own[i]["exp_avg"].tolist() for i in (0, 1, 2, 3)] == [state[i]["exp_avg"].tolist() for i in (0, 1, 2, 3)]
    loop.step()
    plain.step()
    assert torch.equal(loop.model[0].weight, plain.model[0].weight)  # split or not, a step is the same
    by_layer(loop, "linear:peak=0.1:fan_in=1")  # nothing is left to split, and so nothing is said
    assert len(loop.optimizer.param_groups) == 4


def test_names_of_parameters_are_split_with_them() -> None:
    loop = Loop()
    loop.optimizer = torch.optim.SGD(loop.model.named_parameters(), lr=0.1)
    by_layer(loop)
    assert [g["param_names"] for g in loop.optimizer.param_groups] == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("groups", [(0.1,), (0.1, 0.02)])
def test_rates_per_layer_resume_and_groups_keep_their_ratios(groups: tuple[float, ...], optimizer_first: bool) -> None:
    loop = Loop(groups)
    controller = by_layer(loop)
    found = loop.run(controller, 11)
    loop, controller = resumed(by_layer, loop, controller, optimizer_first)
    found += loop.run(controller, T - 11)
    shares = [groups[0], groups[-1]]
    expected = [[m * lr * (1 - t / T) for m, lr in zip(MULTIPLIERS, shares, strict=True)] for t in range(T)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert controller.rate_at(3) == pytest.approx(0.1 * MULTIPLIERS[0] * (1 - 3 / T))
    decision = controller.history[-1]
    assert (len(decision.rates), len(decision.proposed), len(decision.action)) == (2, 2, 2)
    assert "lr.1" in controller.history.rows()[-1]


def test_the_users_groups_may_be_the_layers() -> None:
    loop = Loop([0.1, 0.02])
    controller = LRController(loop.optimizer, BY_LAYER, T, layers="groups")
    assert loop.run(controller, 1) == [pytest.approx([0.1 * MULTIPLIERS[0], 0.02 * MULTIPLIERS[1]])]
    loop = Loop([0.1])
    assert loop.run(LRController(loop.optimizer, BY_LAYER, T, layers="groups"), 1) == [[0.1]]


def test_tensors_may_have_rates_of_their_own() -> None:
    loop = Loop()
    controller = by_layer(loop, Clocked("tensor"))
    rates = loop.run(controller, 3)
    np.testing.assert_allclose(rates[-1], [0.1 * 2 ** (3 * pace) for pace in (-0.1, 0, 0.1, 0.2)], rtol=1e-6)


def test_a_layer_that_is_frozen_has_no_rate() -> None:
    loop = Loop()
    frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    loop.model = nn.Sequential(loop.model[0], frozen, nn.Tanh(), loop.model[2])
    loop.model[3].bias.requires_grad_(False)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    controller = by_layer(loop)
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == [2 + 4, 2]
    assert loop.run(controller, 1) == [pytest.approx([0.1 * m for m in MULTIPLIERS])]


def test_a_network_of_one_layer_and_an_agent_of_one_rate() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = LRController(optimizer, BY_LAYER, T, module=model)
    controller.start()
    assert controller.get_last_lr() == [0.1]
    loop = Loop([0.3])
    by_layer(loop)
    loop.step()
    assert loop.run(LRController(loop.optimizer, "linear:peak=0.1", T), 2)[1] == pytest.approx([0.1 * (1 - 1 / T)] * 2)


def test_the_user_is_in_charge_of_every_layer() -> None:
    loop = Loop()
    controller = by_layer(loop, Clocked(), bounds=(0.0, 0.11))
    assert loop.run(controller, 2)[1] == pytest.approx([0.1 * 2**-0.2, 0.11])
    assert controller.history[-1].why == ("clipped to 0 .. 0.11",)
    controller.hold()
    kept = controller.get_last_lr()
    assert loop.run(controller, 2) == [kept] * 2
    controller.hold([0.01, 0.02])
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.05})
    assert loop.run(controller, 2)[1] == pytest.approx([0.01, 0.02, 0.5 * (0.01 * 0.02) ** 0.5])
    for lr in ([0.1] * 3, [0.1, -1], [0.1, "a"]):
        with pytest.raises(ValueError, match="one number of 0 or more, or 2 of them, one for each piece, not"):
            controller.hold(lr)  # type: ignore[arg-type]
    controller.hold(0.03)
    assert controller.get_last_lr() == pytest.approx([0.03, 0.03, 0.015])


class Falling(Clocked):
    """An agent that asks for rates of both signs."""

    view = View("set-raw/layer", ("clock", "fan_in"), 1)

    def __init__(self) -> None:
        pass

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        step = observation["clock"][:, :1]
        return np.concatenate([1 - step, 1 + step], 1) / 16, ()


def test_of_several_rates_those_below_0_stay_as_they_are() -> None:
    loop = Loop()
    controller = by_layer(loop, Falling())
    with pytest.warns(UserWarning, match=r"asked for the rate -0\.0625 at step 2"):
        assert loop.run(controller, 3) == [[1 / 16, 1 / 16], [0.0, 2 / 16], [0.0, 3 / 16]]
    assert [decision.why for decision in controller.history] == [(), (), ("below 0",), ("below 0",)]


def test_a_shadow_splits_nothing_and_tells_each_layers_rate() -> None:
    loop = Loop()
    controller = by_layer(loop, shadow=True)
    assert loop.run(controller, 2) == [[0.1]] * 2
    assert len(loop.optimizer.param_groups) == 1
    assert controller.history[1].rates == (0.1, 0.1)
    assert controller.history[1].proposed == pytest.approx([0.1 * m * (1 - 1 / T) for m in MULTIPLIERS])


def test_the_fallback_keeps_the_ratios_of_layers() -> None:
    agent = Clocked()
    agent.observation_range = np.full(5, 1e3), np.full(5, 1e4)  # type: ignore[attr-defined]
    loop = Loop()
    controller = by_layer(loop, agent, patience=2, evaluate=loop.validate)
    assert loop.run(controller, 5)[-1] == pytest.approx([0.1 * 2**-0.5, 0.1 * 2**1.0])  # by the clock alone it goes on
    agent.reads = ("inner_step", "val_loss")
    loop = Loop()
    controller = by_layer(loop, agent, patience=2, evaluate=loop.validate)
    with pytest.warns(UserWarning, match="3 decisions in a row"):
        rates = loop.run(controller, 6)
    expected = [[0.1 * 2 ** (2 * pace) * (1 - t / (T - 2)) for pace in (-0.1, 0.2)] for t in range(4)]
    np.testing.assert_allclose(rates[2:], expected, rtol=1e-6)
    other = Loop()
    second = by_layer(other, agent, patience=2, evaluate=other.validate)
    second.load_state_dict(controller.state_dict())
    other.optimizer.load_state_dict(loop.optimizer.state_dict())
    assert other.run(second, 3) == loop.run(controller, 3)


def test_a_rate_of_0_stays_so_where_a_schedule_takes_over() -> None:
    fallback, other = Fallback("linear", 0), Fallback("linear", 0)
    assert fallback.notice(True, 4, [0.0, 0.1, 0.4])
    assert fallback.rates(9, 14, 1) == pytest.approx([0.0, 0.05, 0.2])
    other.restoring(fallback.state())()
    assert other.rates(9, 14, 1) == fallback.rates(9, 14, 1)


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        (BY_LAYER, {}, r"sets a rate per layer: pass module=, .* or layers='groups' to take its parameter groups"),
        (Clocked("tensor"), {"layers": "groups"}, "layers='groups' gives a rate per group, and the agent sets"),
        (BY_LAYER, {"layers": "mine"}, "layers must be 'module', whose layers have a rate each, or 'groups'"),
        (BY_LAYER, {"module": nn.Linear(3, 4)}, "the optimizer trains no parameter of module"),
        ("constant:peak=0.1", {"fallback": "linear:fan_in=1"}, "sets a rate per layer, and here is one"),
    ],
)  # fmt: skip
def test_what_has_no_layers_is_refused_and_changes_nothing(agent: Any, settings: dict[str, Any], message: str) -> None:
    loop = Loop()
    before = copy.deepcopy(loop.optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        LRController(loop.optimizer, agent, T, **settings)
    assert loop.optimizer.state_dict() == before
    with pytest.raises(ValueError, match="the optimizer trains parameters that module doesn't hold"):
        LRController(loop.optimizer, BY_LAYER, T, module=loop.model[0])
    assert loop.optimizer.state_dict() == before


def test_states_of_another_number_of_layers_are_refused() -> None:
    loop, other = Loop(), Loop([0.1, 0.2])
    state = LRController(loop.optimizer, BY_LAYER, T, layers="groups").state_dict()
    with pytest.raises(ValueError, match="it has 1 rates, and here are 2"):
        by_layer(other).load_state_dict(state)


HYPER: dict[str, dict[str, Any]] = {
    f"{HD}:granularity=layer": {"weight_decay": 0.1},
    "adam-hd:initial_lr=0.01:beta=0.001": {"kind": torch.optim.Adam},
}


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("spec", HYPER)
def test_hypergradients_resume_exactly(spec: str, optimizer_first: bool) -> None:
    def make(loop: Loop) -> LRController:
        return by_layer(loop, spec, None, every=2)

    whole, loop = Loop([0.1, 0.02], **HYPER[spec]), Loop([0.1, 0.02], **HYPER[spec])
    expected = whole.run(make(whole))
    assert len({tuple(rates) for rates in expected}) == T // 2
    controller = make(loop)
    found = loop.run(controller, 8)  # within an interval: a product is summed up
    loop, controller = resumed(make, loop, controller, optimizer_first)
    assert found + loop.run(controller, T - 8) == expected
    state = controller.state_dict()
    state["decider"]["observing"]["gradients"]["direction"] = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="its network has 3 weights, and here are 21"):
        controller.load_state_dict(state)


class Given(BaseAgent[tuple[()]]):
    """An agent with a rate of 0.1, but for one step."""

    view = View("set-raw", ("clock", "hypergradient"), 1)
    reads = ("inner_step",)

    def __init__(self, step: int, change: float) -> None:
        self.step, self.change = step, change

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return 0.1 + self.change * (observation["clock"][:, :1] == self.step), ()


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})])
@pytest.mark.parametrize("step", [0, 3])
def test_a_hypergradient_is_the_derivative_of_the_next_loss(kind: Any, options: dict[str, Any], step: int) -> None:
    """By the agent's one rate, to which two groups keep a ratio; by differences."""

    def after(change: float) -> tuple[float, LRController]:
        loop = Loop([0.1, 0.02], kind, weight_decay=0.3, **options)
        loop.model.double()
        loop.x, loop.y = loop.x.double(), loop.y.double()
        controller = LRController(loop.optimizer, Given(step, change), T)
        loop.run(controller, step + 1)
        with torch.no_grad():
            batch = slice(4 * step + 4, 4 * step + 8)
            loss = float(nn.functional.mse_loss(loop.model(loop.x[batch]), loop.y[batch]))
            if kind is torch.optim.SGD:  # whose decay is the gradient of a penalty
                loss += 0.15 * sum(float((p**2).sum()) for p in loop.model.parameters())
        loop.step(controller)
        return loss, controller

    slope = (after(1e-5)[0] - after(-1e-5)[0]) / 2e-5
    assert after(0.0)[1].history[step + 1].observation["hypergradient"] == pytest.approx(slope, rel=1e-6)


def gradient_norm(controller: LRController) -> list[float]:
    return [decision.observation["gradient_square"] ** 0.5 for decision in controller.history]


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_that_is_seen_is_the_one_that_is_stepped_with(fused: bool) -> None:
    """Accumulated, unscaled, and clipped; steps that a GradScaler skips are none."""
    spec = "sgd-hd:initial_lr=0.05:beta=0.3:rule=multiplicative"
    plain, loop = Loop(), Loop(fused=fused)
    reference = LRController(plain.optimizer, spec)
    controller = LRController(loop.optimizer, spec)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for i in range(12):
        batch = slice(4 * i, 4 * i + 4)
        nn.functional.mse_loss(plain.model(plain.x[batch]), plain.y[batch]).backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        reference.step()
        for broken in (True, False) if i in (0, 4, 7) else (False,):
            for j in range(4 * i, 4 * i + 4):
                loss = nn.functional.mse_loss(loop.model(loop.x[j : j + 1]), loop.y[j : j + 1])
                scaler.scale(loss / 4).backward()
            if broken:
                next(loop.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
            if not fused:  # which unscale gradients by themselves
                scaler.unscale_(loop.optimizer)
            nn.utils.clip_grad_norm_(loop.model.parameters(), 0.5 * (scaler.get_scale() if fused else 1))
            scaler.step(loop.optimizer)
            scaler.update()
            loop.optimizer.zero_grad()
            controller.step()
    norms = gradient_norm(reference)
    assert max(norms) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(gradient_norm(controller), norms, rtol=1e-4)
    assert controller.get_last_lr() == pytest.approx(reference.get_last_lr(), rel=1e-4)
    assert len({rate for decision in reference.history for rate in decision.rates}) > 6


def test_broken_gradients_hold_the_rate_and_the_loop_goes_on() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, HD)
    loop.run(controller, 3)
    kept = controller.get_last_lr()
    hook = loop.model[0].weight.register_hook(lambda g: g * torch.nan)
    weights = loop.model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match="a gradient was not finite at step 3: the rate stays"):
        assert loop.step(controller) == kept
    hook.remove()
    with torch.no_grad():
        loop.model[0].weight.copy_(weights)
    assert loop.step(controller) == kept  # the direction of that step is none, either
    assert loop.run(controller, 2)[1] != kept
    assert [bool(decision.why) for decision in controller.history][3:] == [True, True, False, False]


def test_hypergradients_stop_at_the_end_and_begin_anew_when_it_is_moved() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, HD, 3)
    with pytest.warns(UserWarning, match="training goes on after horizon=3"):
        loop.run(controller, 7)
    assert [decision.step for decision in controller.history] == [0, 1, 2]
    assert controller.state_dict()["decider"]["observing"]["gradients"]["direction"] is None
    controller.extend(10)
    last = controller.get_last_lr()
    assert loop.run(controller, 1) == [last]  # nothing is known of the step before
    assert controller.history[-1].step == 7
    assert loop.run(controller, 1) != [last]


def test_steps_that_no_one_saw_are_told() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, HD)
    loop.step(controller)
    with pytest.warns(UserWarning, match="observes gradients, and saw none of this step: let Python call"):
        controller.step(stepped=True)
    assert controller.last_epoch == 2


def test_a_step_whose_evaluation_failed_can_be_tried_again() -> None:
    """Its gradient counts once."""
    rates = []
    for fails in (0, 2):
        loop, left = Loop(), [fails]

        def validate(loop: Loop = loop, left: list[int] = left) -> Tensor:
            left[0] -= loop.at == 3
            if loop.at == 3 and left[0] >= 0:
                raise OSError("no disk")
            return loop.validate()

        controller = LRController(loop.optimizer, Reacting(), T, evaluate=validate, fallback=None)
        loop.run(controller, 3)
        for _ in range(fails):
            with pytest.raises(OSError, match="no disk"):
                loop.step(controller)
        rates.append(loop.run(controller, 6))
    assert rates[0] == rates[1]
    assert len(set(map(tuple, rates[0]))) == 6


class Reacting(BaseAgent[tuple[()]]):
    """An agent that looks at validation and at gradients."""

    view = View("scale", ("clock", "hypergradient", "gradient_square"), 1)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        seen = observation["hypergradient"] + observation["gradient_square"] + observation["clock"][:, 4:]
        return np.sin(seen), ()


def test_a_decision_that_waits_for_the_next_step_is_not_lost_when_the_end_is_moved() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, HD, 12, every=2)
    loop.run(controller, 4)
    controller.extend(2)
    loop.step(controller)
    assert [decision.step for decision in controller.history] == [0, 2, 4]


def test_parameters_without_a_gradient_stand_still() -> None:
    loop = Loop()
    spare = nn.Parameter(torch.ones(3))
    loop.optimizer.add_param_group({"params": [spare], "weight_decay": 5.0})
    alone = Loop()
    for each in (loop, alone):
        each.run(LRController(each.optimizer, HD), 6)
    assert alone.optimizer.param_groups[0]["lr"] == loop.optimizer.param_groups[0]["lr"] != 0.01
    loop.step()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (torch.optim.SGD, {"dampening": 0.5, "momentum": 0.5}, "this optimizer is SGD with dampening=0.5"),
        (torch.optim.Adam, {"amsgrad": True}, "this optimizer is Adam with amsgrad=True"),
        (torch.optim.RMSprop, {"centered": True}, "RMSprop with centered=True"),
        (torch.optim.Adagrad, {}, "known of torch.optim's SGD, RMSprop, Adam and AdamW .* this optimizer is Adagrad"),
    ],
)
def test_directions_that_are_not_known_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRController(Loop([0.1], kind, **options).optimizer, "adam-hd")


class SetsMomentum(BaseAgent[tuple[()]]):
    """An agent that observes gradients and sets the momentum."""

    view = View(control=("scale", "momentum"), observe="hypergradient", interval=2)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return np.zeros((1, 2)), ()


def test_a_momentum_of_rmsprop_with_which_directions_are_not_known_is_not_set() -> None:
    loop = Loop([0.1], torch.optim.RMSprop)
    with pytest.raises(ValueError, match="this optimizer is RMSprop with momentum that the agent sets"):
        LRController(loop.optimizer, SetsMomentum())
    assert "step" not in vars(loop.optimizer)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        loop = Loop([0.1], kind)
        controller = LRController(loop.optimizer, SetsMomentum())
        loop.run(controller, 3)
        assert set(controller.history[0].hyper) == {"momentum"}


def test_the_option_that_is_refused_is_told_of_the_group_that_has_it() -> None:
    optimizer = Loop([0.1, 0.2]).optimizer
    optimizer.param_groups[1]["maximize"] = True
    with pytest.raises(ValueError, match="this optimizer is SGD with maximize=True"):
        LRController(optimizer, HD)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"shadow": "no"}, TypeError, "shadow must be True or False, not a str"),
        ({"module": nn.Linear}, TypeError, "module must be the network that is trained, .* not the class Linear"),
        ({"first": 3}, TypeError, "first must be a weight of module, or its name there, not an int"),
        ({"last": ["0.weight"]}, TypeError, "last must be a weight of module"),
        ({"fallback": 3}, TypeError, "fallback must be the spec of a schedule, such as 'linear', or None, not an int"),
        ({"fallback": "plateau"}, ValueError, "has no rate as a function of the step"),
        ({"loss": "crossentropy"}, ValueError, "unknown loss 'crossentropy': did you mean"),
        ({"target_std": "1"}, TypeError, "target_std must be the standard deviation of the targets, .* not a str"),
        ({"target_std": -1.0}, ValueError, "a number above 0 or a tensor of such, not -1.0"),
        ({"target_std": float("nan")}, ValueError, "target_std must be"),
        ({"target_std": True}, TypeError, "target_std must be"),
        ({"target_std": torch.tensor([1.0, 0.0])}, ValueError, "target_std must be"),
        ({"target_std": torch.tensor([True])}, TypeError, "target_std must be"),
        ({"horizon": 9.5}, TypeError, "horizon must be an integer"),
        ({"every": True}, TypeError, "every must be an integer"),
        ({"evaluate": 1.0}, TypeError, "evaluate must be a function"),
    ],
)
def test_arguments_of_another_kind_are_refused(settings: dict[str, Any], error: Any, message: str) -> None:
    loop = Loop()
    before = copy.deepcopy(loop.optimizer.state_dict())
    with pytest.raises(error, match=message):
        LRController(loop.optimizer, "constant:peak=0.1", **settings)
    assert loop.optimizer.state_dict() == before
    assert not hasattr(loop.optimizer.step, "lrenv_listeners")


@pytest.mark.parametrize("reads", [("nope",), "val_loss", 3, ("val_loss", 3)])
def test_what_an_agent_reads_is_checked(reads: Any) -> None:
    agent: Any = make_agent("sgd-hd")
    agent = copy.copy(agent)
    object.__setattr__(agent, "reads", reads)
    with pytest.raises(ValueError, match="`reads`"):
        LRController(Loop().optimizer, agent)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["linear:peak=0.1", "sgd-hd:initial_lr=0.1:beta=0.0001"])
def test_a_compiled_step_sees_the_rates(agent: str) -> None:
    """Compilers leave the controller out of their graphs, and tensor rates are inputs of these."""
    runs: list[list[float]] = []
    for compiled in (False, True):
        loop = Loop()
        loop.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        controller = LRController(loop.optimizer, agent, 8)

        def train(x: Tensor, y: Tensor, loop: Loop = loop) -> Tensor:
            loss = nn.functional.mse_loss(loop.model(x), y)
            loss.backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            return loss

        call: Callable[..., Tensor] = torch.compile(train, backend="eager") if compiled else train
        for i in range(8):
            controller.step(call(loop.x[4 * i : 4 * i + 4], loop.y[4 * i : 4 * i + 4]))
        runs.append([decision.rates[0] for decision in controller.history])
        assert controller.last_epoch == 8
    assert len(set(runs[0])) > 6
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)


def universal(**architecture: bool) -> UniversalController:
    """An untrained controller, a warm-up and a decay."""
    own = Architecture(**architecture)
    return UniversalController(own.init(0), own)


@pytest.mark.filterwarnings("ignore:the optimizer's 1 parameter groups were split")
@pytest.mark.parametrize("architecture", [{}, {"layers": True}, {"layers": True, "gradients": True}])
def test_a_universal_controller_drives_a_loop_that_tells_its_length_its_module_and_its_batches(
    architecture: dict[str, bool],
) -> None:
    horizon = 200
    loop = Loop([0.3], torch.optim.Adam)
    agent = universal(**architecture)
    controller = LRController(
        loop.optimizer, agent, horizon=horizon, evaluate=loop.validate, module=loop.model, batch_size=4
    )
    assert controller.every == horizon // 100
    rates = loop.run(controller, horizon)
    assert [decision.step for decision in controller.history] == list(range(0, horizon, 2))
    assert {why for decision in controller.history for why in decision.why} == set()
    assert all(len(rate) == 1 + ("layers" in architecture) for rate in rates[2:])
    peak = max(range(horizon), key=lambda t: rates[t][0])
    assert 0 < peak < horizon // 5
    assert rates[-1][0] < 0.1 * rates[peak][0]


def test_the_history_tells_of_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lets nothing move far; and it is told after a checkpoint, too."""
    monkeypatch.setattr(policy, "GUARD", policy.Guard(farthest=1e-6))
    loop = Loop([0.003], torch.optim.Adam)
    given: dict[str, Any] = {"horizon": 200, "module": loop.model, "batch_size": 4}
    controller = LRController(loop.optimizer, "universal", **given)
    loop.run(controller, 10)
    state, (first, *others) = controller.state_dict(), list(controller.history)
    del controller
    controller = LRController(loop.optimizer, "universal", **given)
    controller.load_state_dict(state)
    loop.run(controller, 10)
    assert first.why == (LATE,)
    assert {decision.why for decision in (*others, *controller.history)} == {("the guard holds the rate down",)}


def test_what_a_universal_controller_has_to_be_told_is_said() -> None:
    loop = Loop([0.003], torch.optim.Adam)
    given: dict[str, Any] = {"horizon": 200, "module": loop.model, "batch_size": 4}
    for lacking, message in (
        ("horizon", "pass horizon="), ("module", "pass module="), ("batch_size", "pass batch_size="),
    ):  # fmt: skip
        settings = {name: value for name, value in given.items() if name != lacking}
        with pytest.raises(ValueError, match=message):
            LRController(loop.optimizer, universal(), **settings)
    anytime = universal(horizon=False)
    with pytest.raises(ValueError, match="pass every="):
        LRController(loop.optimizer, anytime, module=loop.model, batch_size=4)
    controller = LRController(loop.optimizer, anytime, every=5, module=loop.model, batch_size=4)
    assert loop.run(controller, 60)[-1][0] > 0
