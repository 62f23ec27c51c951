"""Trains agents that learn: `python train_controller.py ppo --task digits-mlp --out runs/ppo-digits`."""

from __future__ import annotations

import sys

from lrenv.cli import run

if __name__ == "__main__":
    from agents.ppo_settings import PPOSettings
    from agents.ppo_training import train

    sys.exit(run({"ppo": (PPOSettings, train)}, "Train an agent that controls learning rates."))
