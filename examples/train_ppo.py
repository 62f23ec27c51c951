"""Trains a controller with PPO from Python, and drives a loop of one's own with it: `python examples/train_ppo.py`.

`lrenv train ppo` does the same from the command line, and `lrenv compare` compares the controller with schedules.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lrenv
from lrenv.agents.outer.training import train
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.data import load


def main(episodes: int = 512) -> tuple[float, float]:
    """Gives the validation loss that the controller reaches on its task, and the one in the loop."""
    with TemporaryDirectory() as folder:
        settings = PPOSettings(
            task="digits-logreg", budget=100, interval=10, envs=32, episodes=episodes, reward="improvement", gamma=1.0,
            eval_seeds=8, out=Path(folder),
        )  # fmt: skip
        controller = lrenv.make_agent(train(PPOTraining, settings))
    result = lrenv.evaluate(controller, lrenv.make_task("digits-logreg", budget=100), seeds=range(8))
    on_task = float(result.val_loss.mean())

    torch.manual_seed(0)
    data = load("digits")
    x, y = ((data.train.inputs - data.mean) / data.std).flatten(1), data.train.targets
    model = nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    driver = lrenv.LRController(
        optimizer, controller, horizon=100, evaluate=lambda: (model(x[1000:]), y[1000:]), module=model
    )
    for _ in range(100):
        batch = torch.randint(1000, (64,))
        loss = cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        driver.step(loss)
    in_loop = driver.history[-1].val_loss
    print(f"validation loss {on_task:.3f} on its task, {in_loop:.3f} in the loop")
    return on_task, in_loop


if __name__ == "__main__":
    main()
