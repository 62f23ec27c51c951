"""Callbacks without the packages that they are for; what they have in common."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from reacting import Everything
from torch import nn

import lrenv
from lrenv.home.integrations.callback import ControllerCallback

EXTRAS = {"lightning": ("lightning", "pytorch_lightning"), "transformers": ("transformers",)}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_told_by_the_name_of_its_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in EXTRAS[extra]:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"lrenv.home.integrations.{extra}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'lrenv\[{extra}\]'"):
        importlib.import_module(f"lrenv.home.integrations.{extra}")


def test_settings_are_checked_before_training_begins() -> None:
    with pytest.raises(ValueError, match="unknown agent 'cosin'"):
        ControllerCallback("cosin:peak=0.1")
    with pytest.raises(TypeError, match="unexpected keyword argument 'patince'"):
        ControllerCallback("cosine:peak=0.1", patince=3)
    with pytest.raises(TypeError, match="evaluate must be a function of the model"):
        ControllerCallback("plateau:peak=0.1", evaluate=0.3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="module= is the trainer's own model"):
        ControllerCallback("cosine:peak=0.1", module=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        ControllerCallback("cosine:peak=0.1", horizon=0)
    with pytest.raises(ValueError, match="is an optimizer itself"):
        ControllerCallback("schedule-free")


def begun(steps: int | None, done: int = 0, saved: object = None, **settings: object) -> ControllerCallback:
    callback = ControllerCallback("linear:peak=0.1", **settings)  # type: ignore[arg-type]
    model = nn.Linear(2, 1)
    callback._begin(torch.optim.SGD(model.parameters(), 0.1), model, steps, done, saved)  # type: ignore[arg-type]
    callback._extend()
    return callback


def test_the_horizon_is_the_trainers_if_none_is_given() -> None:
    for callback, horizon in ((begun(20), 20), (begun(20, horizon=12), 12), (begun(None, horizon=12), 12)):
        assert callback.controller is not None
        assert callback.controller.horizon == horizon
    with pytest.raises(ValueError, match="pass horizon="):
        begun(None)


def test_a_run_that_goes_on_for_longer_is_extended() -> None:
    first = begun(20).controller
    assert first is not None
    for steps, horizon in ((20, 20), (30, 30)):
        second = begun(steps, 5, first.state_dict()).controller
        assert second is not None
        assert second.horizon == horizon
    with pytest.warns(
        UserWarning, match="this run ends after 10 steps, and the controller goes on with its horizon of 20"
    ):
        second = begun(10, 5, first.state_dict()).controller
    assert second is not None
    assert second.horizon == 20


def test_a_checkpoint_without_a_controller_leaves_the_steps_that_are_left() -> None:
    with pytest.warns(UserWarning, match="begins at step 5 as if it were the first one"):
        callback = begun(20, 5)
    assert callback.controller is not None
    assert callback.controller.horizon == 15
    with pytest.raises(ValueError, match="no step of 4 is left after 5"):
        begun(20, 5, horizon=4)


def test_evaluation_is_of_the_model() -> None:
    model = nn.Linear(2, 1)
    seen = []

    def evaluate(module: nn.Module) -> float:
        seen.append((module, module.training, torch.is_grad_enabled()))
        return 1.0

    with pytest.raises(ValueError, match="observes the validation loss: pass evaluate="):
        ControllerCallback(Everything())._begin(torch.optim.SGD(model.parameters(), 0.1), model, 9, 0, None)
    callback = ControllerCallback(Everything(), evaluate=evaluate)
    controller = callback._begin(torch.optim.SGD(model.parameters(), 0.1), model, 9, 0, None)
    controller.start()
    assert seen == [(model, False, False)]
    assert controller.history[0].val_loss == 1.0


def test_a_wrapped_optimizer_is_refused() -> None:
    """Accelerate's does nothing while gradients are accumulated, though its step is called."""

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self) -> None:
            pass

    wrapped = Wrapper(torch.optim.SGD(nn.Linear(2, 1).parameters(), 0.1))
    with pytest.raises(ValueError, match="Wrapper wraps an optimizer"):
        lrenv.LRController(wrapped, "linear:peak=0.1", 9)  # type: ignore[arg-type]


def test_a_run_is_extended_more_than_once() -> None:
    """Agents without an interval decide a hundred times in the first run, and go on at that pace."""
    saved, total = None, 0
    for _ in range(3):
        done, total = total, total + 200
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callback = ControllerCallback("plateau:peak=0.1", evaluate=lambda model: torch.tensor(0.5))
        controller = callback._begin(optimizer, model, total, done, saved)
        callback._extend()
        assert (controller.horizon, controller.every) == (total, 2)
        while controller.last_epoch < total:
            optimizer.step()
            controller.step(0.5)
        saved = controller.state_dict()
