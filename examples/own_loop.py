"""A controller drives the rate of a loop of one's own: `python examples/own_loop.py [controller.safetensors]`.

Without a file, a schedule does. Nothing but the lines that name `controller` is particular to lrenv.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lrenv

STEPS = 300


def main(agent: str = "cosine:peak=0.01:warmup=0.05") -> float:
    """Trains a perceptron on handwritten digits; gives its validation loss."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def validate() -> tuple[Tensor, Tensor]:
        return model(x[1200:1500]), y[1200:1500]

    controller = lrenv.LRController(optimizer, agent, horizon=STEPS, evaluate=validate, module=model)
    for _ in range(STEPS):
        batch = torch.randint(1200, (64,))
        loss = cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step(loss)

    with torch.no_grad():
        val_loss = float(cross_entropy(*validate()))
    print(f"validation loss {val_loss:.3f}, last rate {controller.get_last_lr()[0]:.1e}")
    return val_loss


if __name__ == "__main__":
    main(*sys.argv[1:2])
