"""What an agent would do beside one's own schedule, which it leaves alone: `python examples/shadow.py [agent]`.

The table says at each decision which rate there was, and which one the agent would have set.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lrenv

STEPS = 300


def main(agent: str = "plateau:peak=0.01:patience=2") -> list[float]:
    """Trains a perceptron on handwritten digits by a cosine schedule; gives the rates that it was trained with."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def validate() -> tuple[Tensor, Tensor]:
        return model(x[1200:1500]), y[1200:1500]

    shadow = lrenv.LRController(optimizer, agent, STEPS, every=20, evaluate=validate, module=model, shadow=True)
    rates = []
    for _ in range(STEPS):
        batch = torch.randint(1200, (64,))
        loss = cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
        shadow.step(loss)

    for row in shadow.history.rows():
        print(f"step {row['step']:3}: rate {row['lr.0']:.1e}, would be {row['proposed.0']:.1e}  {row['why']}")
    return rates


if __name__ == "__main__":
    main(*sys.argv[1:2])
