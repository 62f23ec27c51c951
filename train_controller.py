"""Trains agents that learn: `python train_controller.py ppo --task digits-mlp --out runs/ppo-digits`."""

from __future__ import annotations

import sys
from functools import partial

from lrenv.cli import run

if __name__ == "__main__":
    from lrenv.agents.fds.random_search import schedule_training
    from lrenv.agents.fds.settings import FDSSettings
    from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
    from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining
    from lrenv.agents.noh.agent import NOH, DMopt
    from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
    from lrenv.agents.noh.training import NOHTraining
    from lrenv.agents.outer.training import train
    from lrenv.agents.ppo.settings import PPOSettings
    from lrenv.agents.ppo.training import PPOTraining

    commands = {
        "ppo": (PPOSettings, partial(train, PPOTraining)),
        "fds": (FDSSettings, partial(train, schedule_training)),
        "learned-optimizer": (LearnedOptimizerSettings, partial(train, LearnedOptimizerTraining)),
        "noh": (NOHSettings, partial(train, partial(NOHTraining, NOH))),
        "dmopt": (DMoptSettings, partial(train, partial(NOHTraining, DMopt))),
    }
    sys.exit(run(commands, "Train an agent that controls learning rates."))
