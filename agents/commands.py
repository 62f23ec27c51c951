"""What `lrenv train NAME` does: a function per training, whose settings are the command's.

They are advertised as entry points of the group `lrenv.trainings`; a package with an agent of its own that learns
advertises its function there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lrenv.agents.fds.random_search import schedule_training
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining
from lrenv.agents.noh.agent import NOH, DMopt
from lrenv.agents.noh.evolution import lstm_training
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.outer.training import Training, train
from lrenv.agents.ppo.multi_task import ppo_training
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining


def ppo(settings: PPOSettings) -> Path:
    """Trains a controller by proximal policy optimisation (Xu et al. 2019), on one task or on several."""
    return train(ppo_training, settings)


def fds(settings: FDSSettings) -> Path:
    """Searches for a schedule by forward-mode differentiation (Micaelli and Storkey 2021), or at random."""
    return train(schedule_training, settings)


def learned_optimizer(settings: LearnedOptimizerSettings) -> Path:
    """Trains an optimizer that is a network, by evolution strategies and reparameterisation (Metz et al. 2019)."""
    return train(LearnedOptimizerTraining, settings)


def noh(settings: NOHSettings) -> Path:
    """Trains an LSTM that sets a learning rate per parameter, or per layer (Fu et al. 2017)."""
    return train(partial(lstm_training, NOH), settings)


def dmopt(settings: DMoptSettings) -> Path:
    """Trains an LSTM that puts out the update of each parameter (Andrychowicz et al. 2016)."""
    kind: Callable[[DMoptSettings], Training[Any]] = partial(lstm_training, DMopt)
    return train(kind, settings)


def universal(settings: UniversalSettings) -> Path:
    """Trains a controller for any task, by evolution strategies over drawn tasks."""
    return train(UniversalTraining, settings)
