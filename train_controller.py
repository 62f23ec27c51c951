"""Trains agents that learn: `python train_controller.py ppo --task digits-mlp --out runs/ppo-digits`."""

from __future__ import annotations

import sys
from functools import partial

from lrenv.cli import run

if __name__ == "__main__":
    from agents.fds_settings import FDSSettings
    from agents.learned_optimizer_settings import LearnedOptimizerSettings
    from agents.learned_optimizer_training import LearnedOptimizerTraining
    from agents.lstm_policies import NOH, DMopt
    from agents.noh_settings import DMoptSettings, NOHSettings
    from agents.noh_training import NOHTraining
    from agents.outer_training import train
    from agents.ppo_learner import PPOTraining
    from agents.ppo_settings import PPOSettings
    from agents.search import schedule_training

    commands = {
        "ppo": (PPOSettings, partial(train, PPOTraining)),
        "fds": (FDSSettings, partial(train, schedule_training)),
        "learned-optimizer": (LearnedOptimizerSettings, partial(train, LearnedOptimizerTraining)),
        "noh": (NOHSettings, partial(train, partial(NOHTraining, NOH))),
        "dmopt": (DMoptSettings, partial(train, partial(NOHTraining, DMopt))),
    }
    sys.exit(run(commands, "Train an agent that controls learning rates."))
