"""What a controller costs in a loop of one's own: `python benchmarks/controller_step.py`.

Microseconds per call of `LRController.step` between decisions and at decisions, the evaluation left out (it is the
user's own), beside a step of torch's `CosineAnnealingLR` and the training step of a small perceptron. Agents that
observe gradients look at them in `optimizer.step`: that of Adam is measured with Adam-HD, which decides at each step,
and without, for the perceptron and for a wider one of a million weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lrenv
from lrenv.agents import BaseAgent, View

CALLS = 2000
ROUNDS = 7


class Steady(BaseAgent[tuple[()]]):
    """Looks at all that controllers can look at, and leaves the rate as it is; what it computes itself is its own."""

    view = View(control="scale", observe=("dynamics", "scale-free"), interval=10)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        """Gives no change."""
        return np.zeros((len(observation), 1)), carry


def perceptron(width: int = 32) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network of the task digits-mlp, and its optimizer."""
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def microseconds(call: Callable[[], Any], calls: int = CALLS) -> tuple[float, float, float]:
    """Median, lowest and highest time of a call over some rounds."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(rounds), min(rounds), max(rounds)


def controller(every: int, agent: Any = None) -> Callable[[], None]:
    """A call of `step` of a controller that decides so often."""
    model, optimizer = perceptron()
    x, y = torch.randn(100, 64), torch.arange(100) % 10
    with torch.no_grad():
        logits = model(x)
    horizon = 10**9
    made = lrenv.LRController(
        optimizer, Steady() if agent is None else agent, horizon, every, lambda: (logits, y), module=model,
        fallback=None,
    )  # fmt: skip
    loss = torch.tensor(1.0)
    made.start(loss)
    return lambda: made.step(loss, stepped=True)


def optimizer_step(width: int, agent: str | None) -> Callable[[], None]:
    """A call of `optimizer.step`, and of the controller's where there is an agent."""
    model, optimizer = perceptron(width)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if agent is None:
        return optimizer.step
    made = lrenv.LRController(optimizer, agent, module=model)

    def step() -> None:
        optimizer.step()
        made.step()

    return step


def main() -> None:
    """Measures and prints a table."""
    torch.set_num_threads(1)
    model, optimizer = perceptron()
    x, y = torch.randn(64, 64), torch.arange(64) % 10

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(perceptron()[1], 10**9)
    scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
    rows = {
        "a training step of the perceptron": microseconds(train, CALLS // 4),
        "torch's CosineAnnealingLR, a step": microseconds(scheduler.step),
        "LRController.step, between decisions": microseconds(controller(10**8)),
        "a decision of a schedule (cosine)": microseconds(controller(1, "cosine:peak=0.001"), CALLS // 4),
        "a decision of an agent that looks at everything": microseconds(controller(1), CALLS // 4),
    }
    layers = "adam-hd:granularity=layer:low=0"
    for width, calls in ((32, CALLS // 4), (960, CALLS // 40)):
        for agent, name in ((None, "Adam alone"), ("adam-hd:low=0", "with Adam-HD"), (layers, "with a rate per layer")):
            rows[f"optimizer.step, width {width}, {name}"] = microseconds(optimizer_step(width, agent), calls)
    table = Table("call", "median us", "range")
    for name, (median, low, high) in rows.items():
        table.add_row(name, f"{median:.1f}", f"{low:.1f} to {high:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
