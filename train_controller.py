"""Trains agents that learn: `python train_controller.py ppo --task digits-mlp --out runs/ppo-digits`."""

from __future__ import annotations

import sys
from functools import partial

from lrenv.cli import run

if __name__ == "__main__":
    from agents.outer_training import train
    from agents.ppo_learner import PPOTraining
    from agents.ppo_settings import PPOSettings

    sys.exit(run({"ppo": (PPOSettings, partial(train, PPOTraining))}, "Train an agent that controls learning rates."))
