"""What agents make use of and others go without: the horizon, validation losses, gradients, their own optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from lrenv.controllers.agent import Agent, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.envs.observations import FAN_IN, WHITE_BOX, parts_of, quantities_of
from lrenv.envs.quantities import UNTRAINED, VALIDATION


@dataclass(frozen=True)
class Privileges:
    """What an agent makes use of.

    Attributes:
        horizon: how many steps there will be.
        validation: losses or predictions on validation examples, while training goes on.
        gradients: gradients or weights themselves, be they those of the untrained network alone.
        optimizer: an optimizer of its own, in the place of the task's.
    """

    horizon: bool
    validation: bool
    gradients: bool
    optimizer: bool

    def __str__(self) -> str:
        return ", ".join(name for name, has in vars(self).items() if has and name != "horizon") or "-"


def privileges_of(agent: Agent) -> Privileges:
    """What an agent makes use of, by its view and the signals that it reads (`lrenv.controllers.agent.Agent`)."""
    view = view_of(agent)
    if isinstance(agent, OptimizerAgent):
        return Privileges(bool(view.horizon), False, True, True)
    quantities = quantities_of(view.observe, getattr(agent, "reads", None))
    # What a network's layers are like is no privilege.
    parts = {x for x in parts_of(view.observe) if isinstance(x, str) and x in WHITE_BOX} - {FAN_IN}
    # "+ema" and the like stand around the task's own.
    own = view.optimizer is not None and not (isinstance(view.optimizer, str) and view.optimizer.startswith("+"))
    gradients = bool(parts) or bool(quantities & UNTRAINED)
    return Privileges(bool(view.horizon), bool(quantities & VALIDATION), gradients, own)
