"""What agents make use of and others go without: the horizon, validation losses, gradients, their own optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrenv.controllers.agent import Agent, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.envs.observations import CLOCK, FAN_IN, OBSERVATIONS, OF_UNTRAINED, WHITE_BOX

VALIDATION = {"val_loss", "val_fall", "val_change", "gap", "prediction_variance", "prediction_change"}
"""Signals that are measured on validation examples."""
Array = NDArray[np.float64]
DECISIONS = 60
"""Decisions that `_heeds_losses` watches."""


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
    """What an agent makes use of, by its view.

    The observation `clock` has validation losses, which most schedules don't heed. So an agent that observes the clock
    alone, or with the fan-in of layers, is asked for its actions on clocks that differ in them.
    """
    view = view_of(agent)
    if isinstance(agent, OptimizerAgent):
        return Privileges(bool(view.horizon), False, True, True)
    observed = view.observe if isinstance(view.observe, tuple | list) else (view.observe,)
    signals: set[str] = set()
    for each in observed:
        table = OBSERVATIONS.get(each, {}) if isinstance(each, str) else each
        signals |= set(table) if isinstance(table, Mapping) else VALIDATION  # a function has all at hand
    # What a network's layers are like is no privilege.
    beside = {part: np.array([[64.0]]) for part in observed if part == FAN_IN}
    measured = tuple(part for part in observed if part != FAN_IN)
    validation = _heeds_losses(agent, beside) if measured == ("clock",) else bool(signals & VALIDATION)
    # "+ema" and the like stand around the task's own.
    own = view.optimizer is not None and not (isinstance(view.optimizer, str) and view.optimizer.startswith("+"))
    gradients = any(isinstance(each, str) and each in WHITE_BOX for each in measured) or bool(signals & OF_UNTRAINED)
    return Privileges(bool(view.horizon), validation, gradients, own)


def _heeds_losses(agent: Agent, beside: Mapping[str, Array]) -> bool:
    """Whether it acts otherwise where validation losses stand still, over as many decisions as make any schedule move.

    Of one that raises, it is taken that it does.

    Args:
        agent: that observes the clock.
        beside: what it observes besides, of one trainee with one rate.
    """
    actions = []
    for factor in (0.9, 1.0):
        steps = np.arange(DECISIONS)
        clock = {
            "inner_step": steps * 10.0, "budget": np.full(DECISIONS, DECISIONS * 10.0),
            "interval": np.full(DECISIONS, 10.0), "train_loss": np.ones(DECISIONS), "val_loss": 3.0 * factor**steps,
        }  # fmt: skip
        rows, state, taken = np.stack([clock[name] for name in CLOCK], 1), None, []
        for i, row in enumerate(rows):
            seen = {"clock": row[None], **beside} if beside else row[None]
            try:
                action, state = agent.predict(seen, state, np.array([i == 0]), deterministic=True)
            except Exception:
                return True
            taken.append(np.array(action))
        actions.append(np.stack(taken))
    return not np.array_equal(actions[0], actions[1])
