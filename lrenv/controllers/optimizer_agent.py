"""Agents that are optimizers of PyTorch: `lrenv.evaluate` and `lrenv.compare` run them beside agents that set rates.

Many optimizers keep numbers that belong to one network, such as an estimate of its distance from the solution, so they
can't train stacked networks. Each run gets an optimizer of its own instead (`lrenv.benchmark.optimizer_runs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lrenv.controllers.agent import AgentError, View, called
from lrenv.training.tasks import Task


class OptimizerAgent(ABC):
    """An agent that brings the optimizer of each run, in place of the task's.

    Its author writes `optimizer`:

        >>> class Adagrad(OptimizerAgent):
        ...     def optimizer(self, parameters, task):
        ...         return torch.optim.Adagrad(parameters, lr=0.01)
        >>> from lrenv.benchmark import evaluate
        >>> evaluate(Adagrad(), "noisy-quadratic", seeds=range(2)).agent
        'Adagrad'

    An optimizer with methods `eval()` and `train()` is one whose network is not to be measured at the weights that it
    trains, such as an average of them: `eval()` brings the parameters to the others, and `train()` back.
    """

    view = View(control="set-raw", observe="clock", horizon=False)
    """What stands for it in tables; nothing is observed or set. One whose `step` heeds `progress`, or whose `optimizer`
    heeds the task's budget, knows the horizon and must say so: `view = View("set-raw", "clock", horizon=True)`."""

    @abstractmethod
    def optimizer(self, parameters: list[nn.Parameter], task: Task) -> torch.optim.Optimizer:
        """Makes the optimizer of one run.

        Args:
            parameters: of the untrained network, in the module's order.
            task: what it trains on.
        """

    def step(self, optimizer: Any, loss: Tensor, progress: float) -> None:
        """Makes an inner step; parameters have their gradients.

        Args:
            optimizer: of the run.
            loss: of the batch, without a graph.
            progress: the part of the budget that has passed, from 0 to below 1.
        """
        optimizer.step()

    def rate(self, optimizer: Any) -> float:
        """Returns the learning rate of the last step, for tables and figures; before any step, that of the first."""
        return float(optimizer.param_groups[0]["lr"])

    def source(self) -> str:
        """Returns what package the optimizer is from, and in which version, for results."""
        return f"torch {torch.__version__}"

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses to act.

        Raises:
            AgentError: always.
        """
        raise AgentError(
            f"agent {called(self)!r} is an optimizer and sets no learning rates in an environment: run it by "
            "lrenv.evaluate or lrenv.compare, or use its package in your own training loop"
        )
