"""`lrenv.LRController` in loops of one's own: schedulers' protocol, what users can do, and what is refused."""

from __future__ import annotations

import copy
import csv
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from home_loop import Loop, T, resumed
from reacting import Everything, TrainingLosses
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

import lrenv
from lrenv.agents import BaseAgent, View
from lrenv.envs.observations import Signal
from lrenv.home import fallback, stepping
from lrenv.home.controller import IDLE, LRController
from lrenv.home.deciding import LATE
from lrenv.home.driver import Driver
from lrenv.home.needs import Needs

Torch = Callable[[Any], LRScheduler]


SCHEDULES: dict[str, Torch] = {
    "constant:peak=0.1": lambda o: LambdaLR(o, lambda t: 1.0),
    "step:peak=0.1:discount_step=5:discount_factor=0.5": lambda o: StepLR(o, 5, 0.5),
    "exponential:peak=0.1:decay=0.1": lambda o: ExponentialLR(o, 0.1 ** (1 / T)),
    "linear:peak=0.1": lambda o: LinearLR(o, 1.0, 0.0, T),
    "cosine:peak=0.1": lambda o: CosineAnnealingLR(o, T),
    "power:peak=0.1:power=2": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, T, 2.0),
    "one-cycle:peak=0.1": lambda o: OneCycleLR(o, [0.1, 0.02], T, cycle_momentum=False),
    "inverse-sqrt:peak=0.1:timescale=4": lambda o: LambdaLR(o, lambda t: (4 / max(t + 1, 4)) ** 0.5),
    "sgdr:peak=0.1:period=7": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
}


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("spec", SCHEDULES)
def test_schedules_give_torchs_rates_and_resume(spec: str, optimizer_first: bool) -> None:
    loop, peer = Loop([0.1, 0.02]), Loop([0.1, 0.02])
    scheduler = SCHEDULES[spec](peer.optimizer)
    expected = [peer.step(scheduler) for _ in range(T)]

    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, spec, horizon=T)

    controller = make(loop)
    found = loop.run(controller, 11)
    loop, controller = resumed(make, loop, controller, optimizer_first)
    found += loop.run(controller, T - 11)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-18)
    planned = [controller.rate_at(t) for t in range(0, T, 5)]
    assert planned == pytest.approx([rate for rate, _ in expected[::5]], rel=1e-12)


@pytest.mark.parametrize("agent", [Everything(), TrainingLosses()])
@pytest.mark.parametrize(("at", "optimizer_first"), [(1, True), (7, False), (9, True), (9, False)])
def test_what_reacts_resumes_exactly(agent: Any, at: int, optimizer_first: bool) -> None:
    """Within an interval, and at its end."""

    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, agent, horizon=T, evaluate=loop.validate, module=loop.model)

    whole = Loop([0.1, 0.02])
    expected = whole.run(make(whole))
    assert len({rate for rate, _ in expected}) > 4
    loop = Loop([0.1, 0.02])
    controller = make(loop)
    found = loop.run(controller, at)
    loop, controller = resumed(make, loop, controller, optimizer_first)
    assert found + loop.run(controller, T - at) == expected


def test_the_state_alone_brings_the_rates() -> None:
    """An optimizer whose own state was lost, made with other rates, gets them."""
    loop, other = Loop([0.1, 0.02]), Loop([0.3, 0.3])
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)
    loop.run(controller, 5)
    second = LRController(other.optimizer, "linear:peak=0.1", horizon=T)
    second.load_state_dict(controller.state_dict())
    assert second.get_last_lr() == controller.get_last_lr()
    assert other.run(second, 4) == loop.run(controller, 4)


def test_it_is_a_scheduler_whose_rates_others_can_read() -> None:
    loop = Loop([0.1, 0.02])
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)
    assert isinstance(controller, LRScheduler)
    assert controller.get_last_lr() == [0.1, 0.02] == controller.base_lrs
    loop.step()
    controller.step()  # schedules ask for no loss
    assert controller.get_last_lr() == pytest.approx([0.1 * (1 - 1 / T), 0.02 * (1 - 1 / T)])
    assert controller.last_epoch == 1


def test_tensor_rates_are_filled_and_groups_added_later_keep_their_ratio() -> None:
    loop = Loop([0.1])
    rate = loop.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)
    loop.run(controller, 6)
    extra = nn.Parameter(torch.zeros(1))
    loop.optimizer.add_param_group({"params": [extra], "lr": 0.01})
    rates = loop.run(controller, 6)
    assert loop.optimizer.param_groups[0]["lr"] is rate
    assert rates[-1] == pytest.approx([0.1 * (1 - 11 / T), 0.01 * (1 - 11 / T)])


def test_momentum_and_weight_decay_are_set_where_groups_have_them() -> None:
    class All(BaseAgent[tuple[()]]):
        view = View(control=("set-raw", "momentum", "weight_decay"), observe="clock", interval=2)
        reads = ("inner_step",)

        def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
            return np.array([[0.05, -1 / 3, 0.2]]), ()

    loop = Loop([0.1, 0.02], torch.optim.AdamW)
    loop.optimizer.param_groups[1]["weight_decay"] = 0.0
    controller = LRController(loop.optimizer, All(), horizon=T)
    loop.step(controller)
    first, second = loop.optimizer.param_groups
    assert (first["betas"], second["betas"]) == ((pytest.approx(0.9), 0.999),) * 2
    assert (first["weight_decay"], second["weight_decay"]) == (pytest.approx(1e-3), 0.0)
    with pytest.raises(ValueError, match="has no momentum"):
        LRController(torch.optim.Adagrad(loop.model.parameters()), All(), horizon=T)


def test_the_user_stays_in_charge(tmp_path: Path) -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T, bounds=(0.05, 0.08))
    assert loop.run(controller, 3) == [[0.08]] * 3
    controller.hold(0.2)
    assert loop.run(controller, 2) == [[0.2]] * 2
    controller.release()
    loop.step(controller)
    assert loop.run(controller, 1)[0] == [pytest.approx(0.1 * (1 - 6 / T))]
    assert loop.run(controller, 8)[-1] == [0.05]
    whys = [decision.why for decision in controller.history]
    assert whys[0] == ("clipped to 0.05 .. 0.08",)
    assert whys[4] == ("held",)
    assert whys[6] == ()
    controller.history.write_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["saw.inner_step"]) for row in rows] == [row["step"] for row in controller.history.rows()]
    assert float(rows[1]["proposed.0"]) == pytest.approx(0.1 * (1 - 1 / T))
    controller.history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes()[1:4] == b"PNG"


def test_a_shadow_changes_nothing_and_says_what_it_would_do() -> None:
    alone, loop = Loop([0.1, 0.02]), Loop([0.1, 0.02])
    expected = [alone.step(own) for own in [CosineAnnealingLR(alone.optimizer, T)] for _ in range(T)]
    shadow = LRController(loop.optimizer, Everything(), horizon=T, evaluate=loop.validate, shadow=True, fallback=None)
    own = CosineAnnealingLR(loop.optimizer, T)
    found = [loop.step(own, shadow) for _ in range(T)]
    assert found == expected
    for decision in shadow.history:
        assert decision.rates == tuple(expected[decision.step]) or decision.step
        factor = 2 ** decision.action[0]
        assert decision.proposed == pytest.approx([factor * lr for lr in decision.rates], rel=1e-5)
    with pytest.raises(ValueError, match="shadow=True changes no rate"):
        shadow.hold(0.1)


def test_training_goes_on_after_the_horizon_and_can_be_extended() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=6)
    loop.run(controller, 6)
    with pytest.warns(UserWarning, match="after horizon=6 steps: the last rate stays"):
        loop.step(controller)
    assert loop.step(controller) == [pytest.approx(0.1 * (1 - 5 / 6))]
    controller.extend(14)
    assert controller.horizon == 20
    loop.run(controller, 2)
    assert loop.step(controller) == [pytest.approx(0.1 * (1 - 10 / 20))]
    with pytest.raises(ValueError, match="no horizon"):
        LRController(Loop().optimizer, "constant:peak=0.1").extend(3)


def test_extended_at_its_end_it_goes_on_as_if_there_were_none() -> None:
    """Of an agent that doesn't look at the end."""
    runs = []
    for extended in (False, True):
        loop = Loop()
        controller = LRController(
            loop.optimizer,
            "plateau:peak=0.1:patience=0:factor=0.5:threshold=0.1",
            6 if extended else 12,
            2,
            loop.validate,
        )
        runs.append(loop.run(controller, 6))
        if extended:
            controller.extend(6)
        runs[-1] += loop.run(controller, 6)
    assert runs[0] == runs[1]
    assert len({rate for (rate,) in runs[0]}) > 2


def test_broken_losses_hold_the_rate_and_the_loop_goes_on() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, TrainingLosses(), horizon=T)
    loop.run(controller, 7)
    before = controller.get_last_lr()
    loop.step(controller, loss=float("nan"))
    with pytest.warns(UserWarning, match="not finite at step 9: the rate stays"):
        loop.step(controller, loss=float("nan"))
    assert controller.get_last_lr() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.step(controller, loss=float("nan"))
        loop.run(controller, 5)
    assert controller.get_last_lr() != before
    assert controller.history[3].why == ("a loss, a weight or a gradient is not finite",)


def test_strange_observations_are_flagged_and_a_schedule_takes_over() -> None:
    agent = Everything()
    agent.observation_range = np.full(11, -1e3), np.array([1e3] * 10 + [0.4])  # type: ignore[attr-defined]
    loop = Loop()
    controller = LRController(loop.optimizer, agent, horizon=T, evaluate=loop.validate, patience=1)
    loop.run(controller, 12)
    assert controller.history[3].why == ()
    with pytest.warns(UserWarning, match=r"2 decisions in a row .*\(progress\): from step 15 the schedule 'linear'"):
        loop.run(controller, 6)
    assert controller.history[4].why == ("outside what the agent was trained on: progress",)
    start = controller.history[4].rates[0]
    assert loop.step(controller) == [pytest.approx(start * (1 - (18 - 15) / (T - 15)))]
    assert controller.history[5].why[-1] == "the schedule 'linear' has taken over"


def test_skipped_and_accumulated_steps_do_not_count() -> None:
    """The same decisions as without them."""
    plain, loop = Loop(), Loop()
    controller = LRController(plain.optimizer, Everything(), horizon=T, evaluate=plain.validate)
    expected = plain.run(controller)
    controller = LRController(loop.optimizer, Everything(), horizon=T, evaluate=loop.validate)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    found = []
    for i in range(T):
        for broken in (True, False) if i in (0, 4, 11) else (False,):
            k = 4 * i
            parts = [nn.functional.mse_loss(loop.model(loop.x[j : j + 1]), loop.y[j : j + 1]) for j in range(k, k + 4)]
            loop.optimizer.zero_grad()
            for part in parts:
                scaler.scale(part / 4).backward()
                if part is not parts[-1]:
                    controller.step(part)  # as a loop that calls it per batch
            if broken:
                next(loop.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
            scaler.step(loop.optimizer)
            if not broken:
                found.append([float(group["lr"]) for group in loop.optimizer.param_groups])
            scaler.update()
            controller.step(sum(parts) / 4)
    assert controller.last_epoch == T
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("agent", [TrainingLosses(), "universal", "sgd-hd:beta=1e-5"])
def test_a_fused_optimizer_that_skips_steps_is_noticed(agent: Any) -> None:
    """The first among them, before which nothing was decided."""
    runs = []
    for skip in (False, True):
        loop = Loop([0.01], torch.optim.Adam if agent == "universal" else torch.optim.SGD, fused=True)
        controller = LRController(loop.optimizer, agent, horizon=T, module=loop.model, batch_size=4)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        found: list[float] = []
        for i in range(T):
            for broken in (True, False) if skip and i in (0, 2, 3, 7) else (False,):
                loss = nn.functional.mse_loss(loop.model(loop.x[4 * i : 4 * i + 4]), loop.y[4 * i : 4 * i + 4])
                loop.optimizer.zero_grad()
                scaler.scale(loss).backward()
                if broken:
                    next(loop.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
                scaler.step(loop.optimizer)
                if not broken:
                    found.append(float(loop.optimizer.param_groups[0]["lr"]))
                scaler.update(1.0)
                controller.step(loss)
        runs.append(found)
        assert controller.history[0].step == 0
        assert controller.last_epoch == T
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)
    assert len(set(runs[0])) > 4


def test_without_validation_training_losses_will_do() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, TrainingLosses(), horizon=T)
    rates = loop.run(controller)
    assert controller.history[0].step == 0
    assert rates[0] == [0.1]  # nothing is known before the first loss
    assert len({rate for (rate,) in rates}) > 4
    assert np.isnan(controller.history[1].val_loss)
    with pytest.raises(ValueError, match="looks at training losses: call step"):
        controller.step()
    with pytest.raises(TypeError, match=r"one number, not a tensor of shape \(2,\)"):
        controller.step(torch.ones(2))


def test_before_the_first_step_the_validation_loss_stands_for_that_of_the_batch() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, Everything(), horizon=T, evaluate=loop.validate)
    expected = loop.validate().item()
    loop.step(controller)
    begun = controller.history[0]
    assert (begun.train_loss, begun.val_loss) == (pytest.approx(expected), pytest.approx(expected))
    controller = LRController(loop.optimizer, Everything(), horizon=T, evaluate=loop.validate)
    with pytest.warns(UserWarning, match=r"rates that the optimizer's groups began with \(0.1\)"):
        controller.start(7.0)
    controller.start(8.0)
    assert controller.history[0].train_loss == 7.0


def test_evaluation_mode_and_gradients_are_as_before() -> None:
    loop = Loop()
    loop.model.insert(2, nn.Dropout())
    loop.model[0].eval()
    modes = []

    def validate() -> Tensor:
        modes.append((loop.model[2].training, torch.is_grad_enabled()))
        return loop.validate()

    controller = LRController(loop.optimizer, "plateau:peak=0.1", every=2, evaluate=validate, module=loop.model)
    loop.run(controller, 5)
    assert modes == [(False, False)] * 3
    assert [part.training for part in loop.model] == [False, True, True, True]


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        ("cosine:peak=0.1", {}, "observes progress, so it must know how long training takes: pass horizon="),
        (Everything(), {"evaluate": lambda: 1.0}, "observes progress"),
        ("plateau:peak=0.1", {"every": 5}, "observes the validation loss: pass evaluate="),
        ("plateau:peak=0.1", {"evaluate": lambda: 1.0}, "no interval of its own, and there is no horizon"),
        ("gala", {}, "observes gradient_change_square, which takes another gradient per step"),
        ("sgd-hd:granularity=parameter", {}, "sets a rate per parameter, and an optimizer of torch takes"),
        ("sgd-hd:granularity=layer", {}, "sets a rate per layer: pass module=, the network that the optimizer trains"),
        ("metz2019-cpu", {"horizon": 9}, "is an optimizer itself"),
        ("prodigy", {"horizon": 9}, "is an optimizer itself"),
        ("constant-ema:peak=0.1", {}, "averages weights, which is the loop's own business: agents that work are"),
        ("linear:peak=0.1", {"horizon": 9, "bounds": (2, 1)}, "bounds must be two rates"),
        ("linear:peak=0.1", {"horizon": 0}, "horizon must be at least 1"),
        ("linear:peak=0.1", {"horizon": 9, "first": "nowhere"}, "first='nowhere' is no parameter that the optimizer"),
    ],
)  # fmt: skip
def test_what_can_not_be_driven_is_refused(agent: Any, settings: dict[str, Any], message: str) -> None:
    loop = Loop()
    kept = ("lr", "momentum", "weight_decay")
    before = [loop.optimizer.param_groups[0][name] for name in kept]
    with pytest.raises(ValueError, match=message):
        LRController(loop.optimizer, agent, **settings)
    step = loop.optimizer.step
    assert getattr(step, "__func__", None) is torch.optim.SGD.step
    assert before == [loop.optimizer.param_groups[0][name] for name in kept]


def test_complex_weights_are_refused_where_weights_or_gradients_are_observed() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3, dtype=torch.complex64))], 0.1)
    with pytest.raises(ValueError, match="trains complex ones"):
        lrenv.LRController(optimizer, "sgd-hd", horizon=10)
    assert lrenv.LRController(optimizer, "linear:peak=0.1", horizon=10).get_last_lr() == [0.1]


def test_frozen_models_and_other_optimizers_are_told() -> None:
    loop = Loop()
    loop.model.requires_grad_(False)
    with pytest.raises(ValueError, match="the model is frozen: no parameter of the optimizer requires a gradient"):
        LRController(loop.optimizer, "linear:peak=0.1", horizon=9)
    loop = Loop()
    agent = TrainingLosses()
    agent.view = View("scale", "scale-free", 3, "adam")
    with pytest.warns(UserWarning, match=r"was made for 'adam' \(Adam\), and this optimizer is SGD without momentum"):
        LRController(loop.optimizer, agent, horizon=9)
    told = r"was fitted to Adam and SGD with momentum, and this optimizer is {}: rates"
    for kind, name in ((torch.optim.SGD, "SGD without momentum"), (torch.optim.Adagrad, "Adagrad")):
        other = Loop([0.1], kind)
        with pytest.warns(UserWarning, match=told.format(name)):
            LRController(other.optimizer, "universal", horizon=9, module=other.model, batch_size=4)
    other = Loop([0.1], torch.optim.AdamW)
    LRController(other.optimizer, "universal-anytime", every=3, module=other.model, batch_size=4)
    agent.view = View("scale", "scale-free", 3, "sgd")
    controller = LRController(loop.optimizer, agent, horizon=T)
    loop.run(controller, 3)
    loop.optimizer.param_groups.clear()
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    with pytest.warns(UserWarning, match="no longer trains the layers that are looked at"):
        loop.run(controller, 3)
    for _ in range(IDLE - 1):
        controller.step(torch.tensor(1.0))
    with pytest.warns(UserWarning, match="doesn't count these calls: unless gradients are accumulated over as many"):
        controller.step(torch.tensor(1.0))
    assert controller.last_epoch == 6
    controller.step(torch.tensor(1.0), stepped=True)
    assert controller.last_epoch == 7


def test_groups_that_take_the_place_of_others_have_first_rates_of_their_own() -> None:
    """Two at half the rate, in the place of one; nothing is told of those that are added, or lose a parameter."""
    loop = Loop([0.1])
    controller = LRController(loop.optimizer, "constant:peak=0.2", horizon=T)
    assert loop.run(controller, 3)[-1] == pytest.approx([0.2])
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
    assert loop.run(controller, 3)[-1] == pytest.approx([0.2, 0.1])
    loop.optimizer.param_groups.clear()
    for parameter in (nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))):
        loop.optimizer.add_param_group({"params": [parameter], "lr": 0.05})
    with pytest.warns(UserWarning, match="were replaced: the new ones' rates keep their ratios .* 0.1;"):
        assert loop.run(controller, 3)[-1] == pytest.approx([0.1, 0.1])
    assert sum("replaced" in str(row) for row in controller.history.rows()) == 1


def test_a_call_per_epoch_is_told() -> None:
    """Where it isn't said to be meant."""
    for stepped, expected in ((None, 1), (True, 0)):
        loop = Loop()
        controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                for _ in range(5):
                    loop.optimizer.step()
                controller.step(stepped=stepped)
        told = [str(each.message) for each in caught]
        assert len(told) == expected
        assert all("took 5 steps since the last call of step, which counts them as one" in each for each in told)
        assert controller.last_epoch == 2


def test_evaluate_must_give_what_is_observed() -> None:
    class Seeing(TrainingLosses):
        view = View(control="scale", observe="dynamics", interval=3)
        reads = ("prediction_change",)

    loop = Loop()
    controller = LRController(loop.optimizer, Seeing(), horizon=T, evaluate=loop.validate)
    with pytest.raises(ValueError, match=r"evaluate must give \(logits, targets\) and not the loss alone"):
        controller.start()
    controller = LRController(loop.optimizer, Seeing(), horizon=T, evaluate=lambda: (loop.model(loop.x), loop.y))
    with pytest.raises(TypeError, match="loss 'cross_entropy' can't take .* name another loss by loss="):
        controller.start()
    controller = LRController(loop.optimizer, "plateau:peak=0.1", every=3, evaluate=lambda: "low")
    with pytest.raises(TypeError, match="evaluate must give a loss, which is one number, or a pair"):
        controller.start()


def test_states_of_others_are_refused() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=T)
    with pytest.raises(ValueError, match="no state of an LRController"):
        controller.load_state_dict({"last_epoch": 3})
    other = LRController(loop.optimizer, "cosine:peak=0.1", horizon=T).state_dict()
    with pytest.raises(ValueError, match="a controller with agent 'cosine"):
        controller.load_state_dict(other)
    assert controller.last_epoch == 0


def test_the_interval_of_a_state_holds_where_none_was_given() -> None:
    """It is a hundredth of the horizon, and the state's horizon holds, too."""

    def make(horizon: int, **settings: Any) -> LRController:
        loop = Loop([0.1])
        return LRController(loop.optimizer, "plateau:peak=0.1", horizon, evaluate=loop.validate, **settings)

    controller, other = make(300), make(500)
    assert (controller.every, other.every) == (3, 5)
    with pytest.warns(UserWarning, match="horizon=300, which holds from here"):
        other.load_state_dict(controller.state_dict())
    assert (other.every, other.state_dict()) == (3, controller.state_dict())
    with pytest.raises(ValueError, match="a controller with every 3, and this one has 5"):
        make(500, every=5).load_state_dict(controller.state_dict())
    observed = []
    for every in (5, None):  # of which 24 steps are no multiple, and of the agent's own 3 they are
        first, loop = Loop(), Loop()
        state = LRController(first.optimizer, Everything(), T, 5, first.validate).state_dict()
        second = LRController(loop.optimizer, Everything(), T, every, loop.validate)
        second.load_state_dict(state)
        loop.run(second)
        observed.append([decision.observation for decision in second.history])
    assert observed[0] == observed[1]
    assert len(observed[0]) == 5


def test_a_state_of_fewer_groups_is_told() -> None:
    """Not one of more, some of which may be added only later."""
    controller = LRController(Loop([0.1, 0.01]).optimizer, "linear:peak=0.1", T)
    one, three = Loop([0.1]), Loop([0.1, 0.01])
    three.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
    LRController(one.optimizer, "linear:peak=0.1", T).load_state_dict(controller.state_dict())
    with pytest.warns(UserWarning, match="has 3 parameter groups, and that of the state had 2"):
        LRController(three.optimizer, "linear:peak=0.1", T).load_state_dict(controller.state_dict())


def test_rates_that_a_relative_agent_does_not_start_from_are_told() -> None:
    """A scheduler has left others in the groups; those of `hold`, or up to rounding the same, are as they are meant."""
    for agent, rates, held, told in (
        (Everything(), (1e-4, 1e-4), None, True), (Everything(), (1e-4, 2e-5), None, True),
        (Everything(), (0.1, 0.02), None, False), (Everything(), (0.1 * (1 + 1e-7), 0.02), None, False),
        (Everything(), (0.1, 0.02), 0.05, False), ("linear:peak=0.1", (1e-4, 1e-4), None, False),
    ):  # fmt: skip
        loop = Loop([0.1, 0.02])
        LambdaLR(loop.optimizer, lambda t: 1.0)
        for group, rate in zip(loop.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        controller = LRController(loop.optimizer, agent, T, evaluate=loop.validate)
        if held is not None:
            controller.hold(held)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            controller.start(1.0)
        assert ["began with (0.1, 0.02)" in str(x.message) for x in found] == [True] * told


def test_a_first_step_at_a_rate_that_is_far_too_high_is_told() -> None:
    """It is one that the agent had no say in, for it wasn't shown the loss before."""
    for lr, shown in ((1.0, False), (1.0, True), (0.001, False)):
        loop = Loop([lr], torch.optim.Adam)
        controller = LRController(loop.optimizer, "universal", 200, module=loop.model, batch_size=4)
        if shown:
            controller.start(1.0)
        with pytest.warns() if lr == 1.0 and not shown else nullcontext() as found:
            loop.run(controller, 5)
        if found is not None:
            assert ["at the optimizer's own rate of 1, and" in str(x.message) for x in found] == [True]
        assert (controller.history[0].why == (LATE,)) == (not shown)


def test_layers_without_a_size_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="run one batch through it before"):
        LRController(optimizer, "linear:peak=0.1", T)
    model(torch.ones(1, 3))
    LRController(optimizer, "linear:peak=0.1", T)


def test_it_is_exported() -> None:
    assert lrenv.LRController is LRController


def test_nothing_waits_for_the_device_between_decisions() -> None:
    """A tensor without numbers stands for one that is still being computed: to look at it raises."""
    loop = Loop()
    controller = LRController(loop.optimizer, TrainingLosses(), horizon=T, fallback=None)
    controller.start(1.0)
    pending = torch.ones((), device="meta")
    for _ in range(2):
        controller.step(pending, stepped=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        controller.step(pending, stepped=True)


def test_a_loss_is_kept_as_it_was() -> None:
    """Captured graphs write every loss to the same memory."""
    runs = []
    for shared in (False, True):
        loop = Loop()
        controller = LRController(loop.optimizer, TrainingLosses(), horizon=T)
        memory = torch.zeros(1)
        for i in range(9):
            loss = torch.tensor([1.0 + (i % 4)])
            controller.step(memory.copy_(loss) if shared else loss, stepped=True)
        runs.append(controller.get_last_lr())
    assert runs[0] == runs[1]


def test_an_evaluation_that_fails_can_be_tried_again() -> None:
    loop = Loop()
    fails = [True]

    def validate() -> Tensor:
        if fails[0]:
            raise OSError("no disk")
        return loop.validate()

    controller = LRController(loop.optimizer, Everything(), horizon=T, evaluate=validate)
    with pytest.raises(OSError, match="no disk"):
        loop.step(controller)
    assert not controller.history
    fails[0] = False
    loop.step(controller)
    assert [decision.step for decision in controller.history] == [0]


def whatever(observe: Any) -> BaseAgent[tuple[()]]:
    """An agent that reads all of an observation and grows the rate where its first number is above 0."""

    class Whatever(BaseAgent[tuple[()]]):
        def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
            return np.where(observation[:, :1] > 0, 1.0, -1.0), ()

    agent = Whatever()
    agent.view = View("scale", observe, 3)
    return agent


def test_what_an_observation_looks_at_is_measured_though_it_changes_by_a_threshold() -> None:
    loop, calls = Loop(), [0]

    def validate() -> float:
        calls[0] += 1
        return 0.2 if calls[0] < 3 else 0.4

    agent = whatever(lambda d: (d.val_loss < 0.3).double()[:, None])
    with pytest.raises(ValueError, match="observes the validation loss: pass evaluate="):
        LRController(loop.optimizer, agent, horizon=T)
    controller = LRController(loop.optimizer, agent, horizon=T, evaluate=validate, fallback=None)
    rates = [rate for (rate,) in loop.run(controller, 12)]
    assert rates[::3] == pytest.approx([0.2, 0.4, 0.2, 0.1])
    assert calls == [5]  # at steps 0, 3, 6, 9 and 12


EVERYTHING = set(Needs._fields) - {"parts"}


@pytest.mark.parametrize(
    ("observe", "needs"),
    [
        (lambda d: (d.train_loss > 1e6).double()[:, None], {"training"}),
        (lambda d: (d.initial_train_loss > 1e6).double()[:, None], {"training"}),
        (lambda d: (d.inner_step / d.budget)[:, None], set()),
        (lambda d: (d.prediction_change > 9).double()[:, None], {"validation", "predictions"}),
        (lambda d: (d.weight_mean > 9).double()[:, None], {"weights"}),
        ({"up": Signal(0, 1, lambda d: d.first_cosine.sign())}, {"motion", "weights"}),
        (lambda d: (d.batch_size > 9).double()[:, None], {"batch_size"}),
        (lambda d: (d.layers > 9).double()[:, None], {"layers"}),
        (lambda d: (d.weight_size > 9).double()[:, None], {"untrained"}),
        ("untrained", {"training", "untrained", "layers"}),
        (lambda d: torch.stack(d, -1), EVERYTHING),
        (lambda d: d[4][:, None].sign(), EVERYTHING),
        (lambda d: torch.stack([*d], -1).sign(), EVERYTHING),
        (lambda d: d._asdict()["val_loss"][:, None].sign(), EVERYTHING),
        (("clock", "fan_in", "hypergradient"), {"training", "validation", "layers"}),
    ],
)  # fmt: skip
def test_needs_are_what_an_observation_looks_at(observe: Any, needs: set[str]) -> None:
    found = Driver(whatever(observe)).needs
    assert {name for name in EVERYTHING if getattr(found, name)} == needs
    assert found.parts == (("hypergradient",) if isinstance(observe, tuple) else ())


def test_a_shadow_keeps_the_first_rates_though_the_loop_sets_others() -> None:
    loop = Loop([0.1, 0.02])
    controller = LRController(loop.optimizer, "constant:peak=0.1", shadow=True)
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.01
    loop.step(controller)
    assert controller.history[0].rates == (0.01, 0.01)
    assert controller.history[0].proposed == pytest.approx((0.1, 0.02))
    assert controller.base_lrs == [0.1, 0.02]
    assert "initial_lr" not in loop.optimizer.param_groups[0]


@pytest.mark.parametrize("action", ["extend", "hold"])
def test_what_is_set_before_the_optimizers_state_is_loaded_holds(action: str) -> None:
    """The state brings the rate that was set when it was saved; the next step is taken at that of now."""
    loop = Loop([0.1])
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=20, every=5)
    loop.run(controller, 20)
    kept, held = loop.optimizer.state_dict(), controller.state_dict()
    second = Loop([0.1])
    after = LRController(second.optimizer, "linear:peak=0.1", horizon=20, every=5)
    after.load_state_dict(held)
    after.extend(20)
    if action == "hold":
        after.hold(0.003)
    second.optimizer.load_state_dict(kept)
    (rate,) = second.step(after)
    assert rate == pytest.approx(0.05 if action == "extend" else 0.003)


def test_from_a_shadows_state_driving_begins_at_the_rate_that_there_was() -> None:
    class Momentum(BaseAgent[tuple[()]]):
        view = View(control=("scale", "momentum"), observe="clock", interval=5)
        reads = ("inner_step",)

        def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
            return np.array([[0.0, 0.5]] * len(observation)), ()  # the rate as it is

    loop = Loop([0.1])
    shadow = LRController(loop.optimizer, Momentum(), horizon=T, shadow=True)
    for group in loop.optimizer.param_groups:
        group |= {"lr": 0.004, "momentum": 0.7}
    loop.run(shadow, 7)
    second = Loop([0.1])
    driving = LRController(second.optimizer, Momentum(), horizon=T)
    driving.load_state_dict(shadow.state_dict())
    assert second.optimizer.param_groups[0]["momentum"] == pytest.approx(0.7)
    assert second.run(driving, 10) == [pytest.approx([0.004])] * 10


def test_an_optimizers_state_from_elsewhere_keeps_the_ratios() -> None:
    """It brings rates of its own, and no `initial_lr`."""
    loop = Loop([0.1, 0.02])
    controller = LRController(loop.optimizer, "constant:peak=0.1")
    loop.optimizer.load_state_dict(Loop([0.01, 0.01]).optimizer.state_dict())
    loop.step(controller)
    assert controller.get_last_lr() == pytest.approx([0.1, 0.02])


DAMAGES: list[dict[str, Any]] = [
    *({"drop": key} for key in ("said", "losses", "horizon", "first", "due")),
    *({"drop": key, "of": "rates"} for key in ("held", "base", "hyper", "lr", "initial")),
    {"decider": {}}, {"horizon": "long"}, {"last_epoch": -1}, {"losses": 3},
    *({"of": "rates", key: None} for key in ("lr", "initial")), {"of": "rates", "hyper": {"momentum": 0.5}},
    {"part": "rates"}, {"part": "driver"}, {"part": "observing"}, {"part": "fallback"}, {"smaller": True},
]  # fmt: skip


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, Everything(), horizon=T, evaluate=loop.validate, module=loop.model)

    first, loop, peer = Loop(), Loop([0.3]), Loop([0.3])
    source, controller, untouched = make(first), make(loop), make(peer)
    first.run(source, 10)
    assert loop.run(controller, 4) == peer.run(untouched, 4)
    for damage in map(dict, DAMAGES):
        state = source.state_dict()
        damaged = state["decider"][damage.pop("of")] if "of" in damage else state
        if "drop" in damage:
            del damaged[damage["drop"]]
        elif "part" in damage:
            state["decider"][damage["part"]] = {"asked": True}
        elif damage.get("smaller"):
            observing = state["decider"]["observing"]
            observing["first_weights"] = observing["first_weights"][:, :3]
        else:
            damaged |= damage
        with pytest.raises(ValueError, match=r"the state can't be gone on from \(.*pass what state_dict\(\) gave"):
            controller.load_state_dict(state)
    assert controller.base_lrs == untouched.base_lrs
    assert loop.run(controller, 9) == peer.run(untouched, 9)


def test_another_horizon_of_a_state_is_told() -> None:
    loop = Loop()
    state = LRController(loop.optimizer, "linear:peak=0.1", horizon=10).state_dict()
    controller = LRController(loop.optimizer, "linear:peak=0.1", horizon=20)
    with pytest.warns(UserWarning, match=r"the state has horizon=10, .* made with horizon=20: call extend\(10\)"):
        controller.load_state_dict(state)
    controller.extend(10)
    assert controller.horizon == 20
    with pytest.warns(UserWarning, match=r"the state has horizon=10, .* made with horizon=None$"):
        LRController(loop.optimizer, "constant:peak=0.1").load_state_dict(
            LRController(loop.optimizer, "constant:peak=0.1", horizon=10).state_dict()
        )


def test_an_interval_longer_than_the_run_is_that_again_when_it_is_extended() -> None:
    loop = Loop()
    agent = whatever("clock")
    agent.reads = ("interval",)  # type: ignore[attr-defined]
    controller = LRController(loop.optimizer, agent, horizon=5, every=10)
    loop.run(controller, 5)
    controller.extend(100)
    loop.run(controller, 30)
    assert controller.every == 10
    assert [decision.step for decision in controller.history] == [0, 10, 20, 30]
    assert [decision.observation["interval"] for decision in controller.history] == [5, 10, 10, 10]


def test_the_schedule_that_takes_over_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Everything()
    agent.observation_range = np.full(11, 1e3), np.full(11, 1e4)  # type: ignore[attr-defined]

    def make(loop: Loop) -> LRController:
        return LRController(loop.optimizer, agent, horizon=T, evaluate=loop.validate, patience=0)

    loop = Loop()
    controller = make(loop)
    made: list[object] = []
    schedule = fallback.Schedule
    monkeypatch.setattr(fallback, "Schedule", lambda agent: made.append(agent) or schedule(agent))
    with pytest.warns(UserWarning, match="the schedule 'linear' goes on"):
        loop.run(controller, 10)
    assert len(made) == 1
    loop, second = resumed(make, loop, controller, optimizer_first=True)
    made.clear()
    second.load_state_dict(controller.state_dict())
    rates = loop.run(second, 8)
    assert len(made) == 1
    assert rates[-1] == [pytest.approx(0.1 * (1 - 15 / T))]
    other = LRController(Loop().optimizer, agent, horizon=T, evaluate=loop.validate, fallback=None)
    with pytest.raises(ValueError, match="a schedule had taken over, and this controller has fallback=None"):
        other.load_state_dict(controller.state_dict())


@pytest.mark.parametrize("optimizer_first", [False, True])
def test_what_looks_at_a_loss_alone_resumes_from_logits_and_targets(optimizer_first: bool) -> None:
    def make(loop: Loop) -> LRController:
        def evaluate() -> tuple[Tensor, Tensor]:
            return loop.model(loop.x[: 9 + loop.at]), loop.y[: 9 + loop.at]  # nobody compares predictions

        return LRController(loop.optimizer, "plateau:peak=0.1:patience=1", T, 1, evaluate, loss="mse")

    whole, loop = Loop(), Loop()
    expected = whole.run(make(whole), 8)
    controller = make(loop)
    before = loop.run(controller, 4)
    other, going_on = resumed(make, loop, controller, optimizer_first)
    assert before + other.run(going_on, 4) == expected


@pytest.mark.parametrize(("every", "over", "more"), [(1, 2, 6), (3, 2, 6), (3, 3, 9), (1, 1, 8)])
def test_extended_after_its_end_a_schedule_goes_on_at_once(every: int, over: int, more: int) -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", 6, every)
    with pytest.warns(UserWarning, match="training goes on after horizon=6"):
        rates = loop.run(controller, 6 + over)
    last = 0.1 * (1 - (5 - 5 % every) / 6)
    assert [rate for (rate,) in rates[6:]] == pytest.approx([last] * over)
    assert [controller.rate_at(6 + i) for i in range(9)] == pytest.approx([last] * 9)
    controller.extend(more)
    planned = [controller.rate_at(step) for step in range(6 + over, 6 + more)]
    going_on = [0.1 * (1 - (step - step % every) / (6 + more)) for step in range(6 + over, 6 + more)]
    assert [rate for (rate,) in loop.run(controller, more - over)] == pytest.approx(going_on)
    assert planned == pytest.approx(going_on)


def test_extended_after_its_end_by_too_little_it_is_still_over() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", 4)
    with pytest.warns(UserWarning, match="after horizon=4"):
        loop.run(controller, 8)
    for more in (2, 2):  # over before that, and just now
        controller.extend(more)
        assert controller.get_last_lr() == pytest.approx([0.025])
    with pytest.warns(UserWarning, match="after horizon=8"):
        assert loop.step(controller) == pytest.approx([0.025])


def test_extended_after_its_end_training_losses_are_those_of_the_next_step() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, TrainingLosses(), 4, 4)
    with pytest.warns(UserWarning, match="after horizon=4"):
        loop.run(controller, 6)
    controller.extend(10)
    assert controller.history[-1].step == 0
    loop.step(controller)
    decision = controller.history[-1]
    assert decision.step == 7
    assert np.isfinite(decision.train_loss)


def test_a_plan_is_asked_for_at_steps_that_there_are() -> None:
    controller = LRController(Loop().optimizer, "linear:peak=0.1", 4, bounds=(0.03, 0.09))
    assert [controller.rate_at(step) for step in range(6)] == pytest.approx([0.09, 0.075, 0.05, 0.03, 0.03, 0.03])
    with pytest.raises(ValueError, match="step must be at least 0, not -1"):
        controller.rate_at(-1)
    endless = LRController(Loop().optimizer, "inverse-sqrt:peak=0.1:timescale=4")
    assert endless.rate_at(99) == pytest.approx(0.02)


def test_the_rate_of_a_group_that_is_added_counts_as_an_initial_one() -> None:
    loop = Loop((0.1, 0.02))
    controller = LRController(loop.optimizer, "linear:peak=0.1", 10)
    loop.run(controller, 5)
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.03})
    loop.step(controller)
    assert controller.base_lrs == [0.1, 0.02, 0.03]
    assert controller.get_last_lr() == pytest.approx([0.04, 0.008, 0.012])


def test_two_controllers_of_one_optimizer_are_told_but_for_shadows() -> None:
    loop = Loop()
    first = LRController(loop.optimizer, "linear:peak=0.1", 10)
    shadow = LRController(loop.optimizer, "cosine:peak=0.1", 10, shadow=True)
    loop.step(first, shadow)
    StepLR(loop.optimizer, 3)  # wraps `optimizer.step` again
    loop.step(first)
    second = LRController(loop.optimizer, "cosine:peak=0.1", 10)
    with pytest.warns(UserWarning, match="two LRControllers set the rates of this optimizer") as told:
        loop.step(first, second)
    assert len(told) == 1
    loop.step(first, second)
    del first
    third = LRController(loop.optimizer, "cosine:peak=0.1", 10)
    del second
    loop.step(third)
    loop = Loop()
    pair = [LRController(loop.optimizer, "linear:peak=0.1", 10) for _ in range(2)]
    with pytest.warns(UserWarning, match="two LRControllers") as told:
        loop.step(*pair)
    assert len(told) == 1


def test_the_optimizers_step_is_wrapped_once_and_left_as_it_was() -> None:
    loop = Loop()
    plain = loop.optimizer.step
    pair = [LRController(loop.optimizer, "linear:peak=0.1", 10, shadow=bool(i)) for i in range(2)]
    wrapped = loop.optimizer.step
    pair += [LRController(loop.optimizer, "linear:peak=0.1", 10, shadow=True) for _ in range(3)]
    assert loop.optimizer.step is wrapped != plain
    loop.step(*pair)
    assert [each.last_epoch for each in pair] == [1] * 5
    del pair[1:3]
    assert loop.optimizer.step is wrapped
    loop.step(*pair)
    pair.clear()
    assert "step" not in vars(loop.optimizer)
    assert loop.optimizer.step == plain

    StepLR(loop.optimizer, 3)  # has a wrap of its own, and adds none where there is a copy of its mark
    inner = loop.optimizer.step
    controller = LRController(loop.optimizer, "linear:peak=0.1", 10)
    StepLR(loop.optimizer, 3)
    loop.step(controller)
    del controller
    assert loop.optimizer.step is inner


def test_those_who_wrapped_the_step_further_keep_their_wrap() -> None:
    loop = Loop()
    first = LRController(loop.optimizer, "linear:peak=0.1", 10)
    inner, calls = loop.optimizer.step, []

    @wraps(inner)
    def outer(*args: Any) -> Any:
        calls.append(args)
        return inner(*args)

    loop.optimizer.step = outer  # type: ignore[method-assign]
    second = LRController(loop.optimizer, "linear:peak=0.1", 10, shadow=True)
    assert loop.optimizer.step is outer  # it joined those who are told within
    loop.step(first, second)
    del first, second
    assert loop.optimizer.step is outer
    third = LRController(loop.optimizer, "linear:peak=0.1", 10)
    assert loop.optimizer.step is outer
    loop.step(third)
    assert third.last_epoch == 1
    assert len(calls) == 2


def test_of_controllers_that_are_gone_nothing_is_left_beside_one_that_stays() -> None:
    loop = Loop()
    stays = LRController(loop.optimizer, "linear:peak=0.1", T)
    wrapped = loop.optimizer.step
    for _ in range(20):
        LRController(loop.optimizer, "cosine:peak=0.1", T, shadow=True)
    listeners = stepping.listeners_of(loop.optimizer)
    assert listeners is not None
    assert listeners.there() == [stays]
    assert loop.optimizer.step is wrapped
    assert [rate for (rate,) in loop.run(stays)] == pytest.approx([0.1 * (1 - t / T) for t in range(T)])


@pytest.mark.parametrize(("horizon", "every"), [(1000, 10), (250, 2), (99, 1)])
def test_an_agent_without_an_interval_decides_a_hundred_times(horizon: int, every: int) -> None:
    settings: dict[str, Any] = {"evaluate": lambda: 1.0}
    assert LRController(Loop().optimizer, "plateau:peak=0.1", horizon, **settings).every == every
    assert LRController(Loop().optimizer, "plateau:peak=0.1", horizon, 7, **settings).every == 7
    assert LRController(Loop().optimizer, TrainingLosses(), horizon).every == 3
    assert LRController(Loop().optimizer, "linear:peak=0.1", horizon).every == 1


def test_a_single_loss_has_no_spread_and_a_rate_of_0_moves_nothing_which_is_nothing_strange() -> None:
    loop = Loop([0.1])
    controller = LRController(loop.optimizer, TrainingLosses(), T, 1, patience=2)
    loop.run(controller, T // 2)
    controller.hold(0.0)
    loop.run(controller, T // 2)
    assert {why for decision in controller.history for why in decision.why} == {LATE, "held"}
    assert [decision.observation["loss_spread"] for decision in controller.history] == [-6.0] * T
    assert controller.history[-1].observation["last_update"] == -8.0


@pytest.mark.parametrize("mark", [{"_fsdp_flattened": True}, {"ds_id": 0}, {"placements": ("Shard",)}])
def test_weights_that_are_held_in_parts_are_refused_where_they_are_looked_at(mark: dict[str, Any]) -> None:
    loop = Loop()
    for name, value in mark.items():
        setattr(loop.optimizer.param_groups[0]["params"][1], name, value)
    for agent in (TrainingLosses(), "adam-hd", "linear:peak=0.1:fan_in=1"):
        with pytest.raises(ValueError, match="looks at weights, gradients or layers, and of these a process holds"):
            LRController(loop.optimizer, agent, T, module=loop.model)
    assert "step" not in vars(loop.optimizer)
    loop.run(LRController(loop.optimizer, "linear:peak=0.1", T), 2)
    loop.run(LRController(loop.optimizer, "plateau:peak=0.1", T, evaluate=loop.validate), 2)


@pytest.mark.parametrize(
    ("module", "refused"),
    [("deepspeed.runtime.zero.stage3", True), ("accelerate.utils.deepspeed", True), ("deepspeed.ops.adam", False)],
)
def test_the_optimizer_of_deepspeeds_engine_is_refused(module: str, refused: bool) -> None:
    kind = type("Stepper", (torch.optim.SGD,), {"__module__": module})
    optimizer = kind(Loop().model.parameters(), lr=0.1)
    if refused:
        with pytest.raises(ValueError, match="Stepper takes DeepSpeed's steps, .* a controller can't follow: give"):
            LRController(optimizer, "linear:peak=0.1", T)
    else:
        LRController(optimizer, "linear:peak=0.1", T)


class Negative(BaseAgent[tuple[()]]):
    """An agent that asks for rates of both signs."""

    view = View(control="set-raw", observe="clock", interval=1)
    reads = ("inner_step",)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        step = observation[:, :1]
        return np.where(step == 2, -0.5, (1 + step) / 16), ()


def test_a_rate_below_0_is_not_set() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, Negative(), 4)
    with pytest.warns(UserWarning, match=r"agent 'Negative' asked for the rate -0\.5 at step 2: the rate stays"):
        rates = loop.run(controller, 4)
    assert rates == [[1 / 16], [2 / 16], [2 / 16], [4 / 16]]
    assert [decision.why for decision in controller.history] == [(), (), ("below 0",), ()]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(copied: Callable[[Any], Any]) -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "linear:peak=0.1", T)
    with pytest.raises(TypeError, match=r"can't be copied or pickled.*load_state_dict"):
        copied(controller)


def test_rates_and_counts_that_can_not_be_meant_are_refused() -> None:
    loop = Loop()
    for bounds in (("a", "b"), (True, 1), (0.1,), ("a", 0.1), (0.1, torch.tensor([0.1, 0.2]))):
        with pytest.raises(ValueError, match="bounds must be two rates"):
            LRController(loop.optimizer, "linear:peak=0.1", T, bounds=bounds)  # type: ignore[arg-type]
    for patience, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="patience must be"):
            LRController(loop.optimizer, TrainingLosses(), T, patience=patience)  # type: ignore[arg-type]
    controller = LRController(loop.optimizer, "linear:peak=0.1", T)
    for lr in ("a", True, -1, float("nan"), torch.tensor([0.1, 0.2]), 1j, torch.tensor(True)):
        with pytest.raises(ValueError, match="lr must be a rate, one number of 0 or more"):
            controller.hold(lr)  # type: ignore[arg-type]
    controller.hold(torch.tensor(0.25))  # type: ignore[arg-type]
    assert (
        type(controller.state_dict()["decider"]["rates"]["held"][0])
        is type(loop.optimizer.param_groups[0]["lr"])
        is float
    )
    assert loop.run(controller, 2) == [[0.25], [0.25]]


@pytest.mark.parametrize("agent", ["plateau:peak=0.1:patience=3", "greedy:peak=0.1", "greedy-bounded:peak=0.1"])
def test_agents_without_a_horizon_go_on_as_with_a_long_one(agent: str) -> None:
    rates = []
    for horizon in (None, 10_000):
        loop = Loop()
        controller = LRController(loop.optimizer, agent, horizon, every=1, evaluate=loop.validate)
        rates.append(loop.run(controller, 60))
        assert not any(decision.why for decision in controller.history)
    assert rates[0] == rates[1]
    assert len({rate for (rate,) in rates[0]}) > 1


def test_another_scheduler_in_the_loop_is_told() -> None:
    loop = Loop()
    controller = LRController(loop.optimizer, "constant:peak=0.1", 10, every=2)
    other = StepLR(loop.optimizer, 2, gamma=0.5)
    with pytest.warns(UserWarning, match="set the optimizer's rate before step 4.*shadow=True") as told:
        [loop.step(controller, other) for _ in range(8)]
    assert len(told) == 1
    assert told[0].filename.endswith("home_loop.py"), "the line of the loop"
    assert any("something else had set the rate" in decision.why for decision in controller.history)
    alone = Loop()
    shadow = LRController(alone.optimizer, "constant:peak=0.1", 10, every=2, shadow=True)
    other = StepLR(alone.optimizer, 2, gamma=0.5)
    for _ in range(8):
        alone.step(shadow, other)
