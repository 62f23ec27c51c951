"""A task of one's own, from arrays, a module and a loss, for every agent and command: `python examples/own_task.py`.

`lrenv compare --task examples/own_task.py:diabetes` compares agents on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from torch import nn

import lrenv
from lrenv.data import Data, from_arrays


def patients() -> Data:
    """Ten measurements of 442 patients, and how far their diabetes had gone a year later."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), (y[order, None] / 100).astype(np.float32)
    return from_arrays(x[:282], y[:282], x[282:362], y[282:362], x[362:], y[362:])


def network(shape: Any, outputs: int) -> nn.Module:
    """A perceptron with a norm: any module does that takes a batch of examples."""
    return nn.Sequential(nn.Linear(shape[0], 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, outputs))


diabetes = lrenv.Task(
    "diabetes", patients, network, "progression of a disease from ten measurements", loss="huber", optimizer="adamw",
    batch_size=32, budget=200, interval=10, initial_lr=(1e-2, 1e-3),
)  # fmt: skip


def main() -> dict[str, float]:
    """Gives the test loss of two agents."""
    losses = {}
    for agent in ("constant:peak=0.003", "cosine:peak=0.01"):
        result = lrenv.evaluate(lrenv.make_agent(agent), diabetes, seeds=range(4))
        losses[agent] = float(result.test_loss.mean())
        print(f"{agent}: Huber loss {losses[agent]:.3f} on the test split, the mean of four trainings")
    return losses


if __name__ == "__main__":
    main()
