"""An agent drives the rate inside PyTorch Lightning's Trainer: `python examples/lightning_callback.py [agent]`."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrenv.home.integrations.lightning import LRControllerCallback


class Digits(L.LightningModule):
    """A perceptron on handwritten digits; it gives no scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss of a batch."""
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer alone; the agent sets its rate."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(agent: str = "plateau:peak=0.03:patience=1:factor=0.3") -> list[tuple[int, float, float]]:
    """Gives the decisions: step, rate and validation loss."""
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

    def validate(module: Digits) -> tuple[Tensor, Tensor]:
        return module.network(x[1200:1500].to(module.device)), y[1200:1500].to(module.device)

    callback = LRControllerCallback(agent, every=10, evaluate=validate)
    trainer = L.Trainer(
        max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Digits(), DataLoader(TensorDataset(x[:1200], y[:1200]), 64, shuffle=True))
    history = callback.controller.history
    for decision in history:
        print(f"step {decision.step:3}: rate {decision.rates[0]:.1e}, validation loss {decision.val_loss:.3f}")
    return [(decision.step, decision.rates[0], decision.val_loss) for decision in history]


if __name__ == "__main__":
    main(*sys.argv[1:2])
