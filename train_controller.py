"""Trains agents that learn, from the checkout: `python train_controller.py ppo` is `lrenv train ppo`."""

from __future__ import annotations

import sys

from lrenv.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:], program="train_controller.py"))
