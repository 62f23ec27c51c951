"""An agent of one's own, in a benchmark and in a loop of one's own: `python examples/own_agent.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

import lrenv
from lrenv.agents import BaseAgent, View


class BoldDriver(BaseAgent[tuple[Any]]):
    """Raises the rate by 5 % while the validation loss falls, and halves it when it rises (Vogl et al. 1988)."""

    view = View(control="set-raw", observe="clock", interval=10, horizon=False)
    reads = ("val_loss",)

    def __init__(self, first_rate: float) -> None:
        self.first_rate = first_rate

    def start(self, observation: Any) -> tuple[Any]:
        """Gives what is carried into the first decision: the rate and the loss of n trainees."""
        return (np.stack([np.full(len(observation), self.first_rate), observation[:, 4]], 1),)

    def act(self, observation: Any, carry: tuple[Any]) -> tuple[Any, tuple[Any]]:
        """Gives the rates (n, 1), and what is carried on."""
        rate, before = carry[0].T
        rate = rate * np.where(observation[:, 4] > before, 0.5, 1.05)
        return rate[:, None], (np.stack([rate, observation[:, 4]], 1),)


def main() -> tuple[float, float]:
    """Gives the validation loss that the agent reaches on a task of lrenv's, and the one in a loop."""
    result = lrenv.evaluate(BoldDriver(1e-3), "digits-logreg", seeds=range(4))
    in_benchmark = float(result.val_loss.mean())

    torch.manual_seed(0)
    x = torch.randn(200, 5)
    y = x.sin().sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = lrenv.LRController(optimizer, BoldDriver(0.01), evaluate=lambda: mse_loss(model(x[100:]), y[100:]))
    for _ in range(300):
        loss = mse_loss(model(x[:100]), y[:100])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step(loss)
    in_loop = controller.history[-1].val_loss
    print(f"digits-logreg: {in_benchmark:.3f}; the loop: {in_loop:.3f} at rate {controller.get_last_lr()[0]:.2f}")
    return in_benchmark, in_loop


if __name__ == "__main__":
    main()
