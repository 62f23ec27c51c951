"""Agents that look at training, for tests of loops and trainers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrenv.agents import BaseAgent, View


class Everything(BaseAgent[tuple[Any]]):
    """Looks at all signals and remembers the mean of what it saw."""

    view = View(control="scale", observe="scale-free", interval=3)

    def start(self, observation: Any) -> tuple[Any]:
        """Gives what is carried into the first decision."""
        return (np.zeros(len(observation)),)

    def act(self, observation: Any, carry: tuple[Any]) -> tuple[Any, tuple[Any]]:
        """Gives factors of the rates, and what is carried on."""
        mean = 0.5 * carry[0] + observation.mean(1)
        return np.sin(7 * mean)[:, None], (mean,)


class TrainingLosses(BaseAgent[tuple[()]]):
    """Looks at training losses and at how the last layer moves."""

    view = View(control="scale", observe="scale-free", interval=3)
    reads = ("train_change", "loss_spread", "last_update")

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        """Gives factors of the rates."""
        return np.sin(observation[:, [2, 5, 7]].sum(1, keepdims=True)), ()
