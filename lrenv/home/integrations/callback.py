"""What callbacks of trainers share: a controller that is made when a run begins, and that goes on from its state."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrenv.controllers.agent import Agent
from lrenv.home.controller import LRController
from lrenv.home.driver import Driver
from lrenv.home.processes import is_first
from lrenv.home.stepping import loss_of
from lrenv.lookup import count

EvaluateModel = Callable[[Any], Any]
"""model -> its validation loss; or (logits, targets)."""


class ControllerCallback:
    """Drives the rates of a trainer's one optimizer by an `lrenv.LRController`.

    Args:
        agent: a name (`cosine:peak=0.01`), the path of a controller file, an agent, or a model of Stable-Baselines3.
        horizon: T, steps of the optimizer in all; by default the trainer's own number, as far as it knows one.
        every: N, steps between two decisions; by default the agent's own interval, 1 for schedules, and a hundredth of
            the horizon for others.
        evaluate: called with the model at decisions, in evaluation mode and without gradients: gives the validation
            loss, or (logits, targets) of the same examples each time.
        bounds: the rate that the agent sets is kept between these two; see `LRController`.
        shadow: whether to change nothing, and only keep in `controller.history` what would be done to the rates.
        settings: the other settings of `LRController` (`fallback`, `loss`, ...).

    Attributes:
        controller: of the latest run; None before the first one.

    Raises:
        ValueError: the agent can't be made, or drives no loop.
        TypeError: an unknown setting.
        FileNotFoundError: no such controller file.
    """

    def __init__(
        self,
        agent: str | Path | Agent,
        horizon: int | None = None,
        every: int | None = None,
        evaluate: EvaluateModel | None = None,
        bounds: tuple[float, float] | None = None,
        shadow: bool = False,
        **settings: Any,
    ) -> None:
        driver = Driver(agent)
        self._agent, self._looks_at_training = driver.agent, driver.needs.training
        self._granularity = driver.granularity
        self._horizon = None if horizon is None else count("horizon", horizon)
        if evaluate is not None and not callable(evaluate):
            raise TypeError("evaluate must be a function of the model that gives a loss, or (logits, targets)")
        if "module" in settings:
            raise TypeError("module= is the trainer's own model: leave it away")
        self._evaluate, self._shadow = evaluate, shadow
        self._settings = {"every": every, "bounds": bounds, "shadow": shadow, **settings}
        inspect.signature(LRController).bind(None, driver.agent, **self._settings)
        self._losses: list[Tensor] = []
        self.controller: LRController | None = None
        self._goes_on = False
        self._planned: int | None = None  # the steps of a run, as planned when it begins or goes on

    def _begin(
        self, optimizer: Any, model: nn.Module, steps: int | None, done: int, saved: Mapping[str, Any] | None
    ) -> LRController:
        """Makes the controller as a run begins; `_extend` follows, once the optimizer's state is there.

        Args:
            optimizer: whose rates are driven.
            model: what it trains.
            steps: of the optimizer in all, as far as the trainer knows.
            done: how many of them were taken before, where the run is one that goes on.
            saved: the controller's state where it goes on from; None if there is none.
        """
        total = steps if self._horizon is None else self._horizon
        horizon, settings = total, dict(self._settings)
        if saved is not None:
            horizon = saved.get("horizon")
            if settings["every"] is None and horizon is None:  # there is no horizon to divide
                settings["every"] = saved.get("every")
        elif done and total is not None:
            horizon = total - done
        if horizon is not None and horizon < 1:
            raise ValueError(f"no step of {total} is left after {done}: pass a longer horizon=")
        controller = LRController(
            optimizer,
            self._agent,
            horizon,
            evaluate=None if self._evaluate is None else lambda: self._measured(model),
            module=model,
            **settings,
        )
        if saved is not None:
            controller.load_state_dict(saved)
        elif done and is_first():
            warnings.warn(
                f"there is no state of this callback's controller, which begins at step {done} as if it were the first "
                "one",
                stacklevel=2,
            )
        self._losses, self._goes_on = [], saved is not None
        self.controller, self._planned = controller, total
        return controller

    def _extend(self) -> None:
        """Moves the horizon of a run that goes on to the end that is planned now; a decision may follow at once."""
        assert self.controller is not None
        horizon, total = self.controller.horizon, self._planned
        if not self._goes_on or horizon is None or total is None:
            return
        if total > horizon:
            self.controller.extend(total - horizon)
        elif total < horizon and is_first():
            warnings.warn(
                f"this run ends after {total} steps, and the controller goes on with its horizon of {horizon}, "
                "for steps that were planned can't be taken back",
                stacklevel=2,
            )

    def _measured(self, model: Any) -> Any:
        assert self._evaluate is not None
        return self._evaluate(model)

    def _record(self, loss: Any) -> None:
        """Keeps the loss of a part of the batch that the next step is for."""
        self._losses.append(loss_of(loss))

    def _taken(self) -> Tensor | None:
        """The mean of the losses since the last call; None if there are none."""
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None
