"""An agent drives the rate of a loop with Accelerate: `accelerate launch examples/accelerate_loop.py`.

Make the controller for the plain optimizer, before `prepare`, and don't prepare it: Accelerate steps a prepared
scheduler once per process. It counts the steps that the optimizer took, also where batches are accumulated.
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lrenv

EPOCHS, BATCH, ACCUMULATE = 8, 16, 4


def main(agent: str = "linear:peak=0.03", folder: str | None = None) -> tuple[int, float]:
    """Gives the steps that were counted, and the validation loss; all processes must see the checkpoint's folder."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE)
    x_val, y_val = (part[1200:1500].to(accelerator.device) for part in (x, y))
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x[:1200], y[:1200]), BATCH, shuffle=True)
    steps = EPOCHS * -(-len(loader) // (ACCUMULATE * accelerator.num_processes))

    def validate() -> tuple[Tensor, Tensor]:
        return model(x_val), y_val

    controller = lrenv.LRController(optimizer, agent, horizon=steps, evaluate=validate, module=model)
    accelerator.register_for_checkpointing(controller)  # so that save_state and load_state know it
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            with accelerator.accumulate(trained):
                loss = cross_entropy(trained(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                controller.step(loss)
                optimizer.zero_grad()
    if folder is not None:
        accelerator.save_state(folder)
        accelerator.load_state(folder)
    val_loss = cross_entropy(*validate()).item()
    accelerator.print(f"validation loss {val_loss:.3f} after {controller.last_epoch} of {steps} steps")
    return controller.last_epoch, val_loss


if __name__ == "__main__":
    main(*sys.argv[1:3])
