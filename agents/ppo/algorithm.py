"""Stable-Baselines3's PPO with a rate each for actor and critic, and what follows it through an iteration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from lrenv.envs.multi_task_vec_env import MultiTaskVecEnv
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.training.dynamics import one_rate

CRITIC = ("value_net", "mlp_extractor.value_net", "critic")
"""Beginnings of the names of the critic's parameters in Stable-Baselines3's policies."""


def two_rates(policy: ActorCriticPolicy, actor_lr: float, critic_lr: float) -> torch.optim.Optimizer:
    """Returns Adam with actor and critic in parameter groups of their own, each at its rate (section 3.3)."""
    groups: dict[str, list[torch.nn.Parameter]] = {"actor": [], "critic": []}
    for name, parameter in policy.named_parameters():
        groups["critic" if name.startswith(CRITIC) else "actor"].append(parameter)
    rates = {"actor": actor_lr, "critic": critic_lr}
    # eps is Stable-Baselines3's for policy gradients.
    return torch.optim.Adam([{"params": groups[name], "lr": rates[name], "name": name} for name in groups], eps=1e-5)


def _log_rates(logger: Logger, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        logger.record(f"train/{group['name']}_lr", group["lr"])


class MLPPPO(PPO):
    """PPO that leaves the rates of `two_rates` alone, where Stable-Baselines3 would set both to one."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        _log_rates(self.logger, optimizers)


class LSTMPPO(RecurrentPPO):
    """Recurrent PPO that leaves the rates of `two_rates` alone."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        _log_rates(self.logger, optimizers)


class Watch(BaseCallback):
    """Follows returns, validation losses and learning rates through an iteration.

    Attributes:
        returns: of the episodes that ended, other than those that were cut off.
        val_losses: at their ends.
        rates: the typical rate of each decision, the geometric mean over environments.
        diverged: how many episodes ended so.
        truncated: how many were cut off.
    """

    def __init__(self, envs: LearningRateVecEnv | MultiTaskVecEnv) -> None:
        super().__init__()
        self.envs = envs
        self.running = np.zeros(envs.num_envs)
        self._clear()

    def _clear(self) -> None:
        self.returns: list[float] = []
        self.val_losses: list[float] = []
        self.rates: list[float] = []
        self.diverged = self.truncated = 0

    def mean_val_loss(self) -> float:
        """The mean of the validation losses that are numbers; NaN if none is."""
        there = [loss for loss in self.val_losses if not np.isnan(loss)]
        return float(np.mean(there)) if there else float("nan")

    def _on_rollout_start(self) -> None:
        self._clear()

    def _on_step(self) -> bool:
        normalised = self.model.get_vec_normalize_env()
        assert normalised is not None
        self.running += normalised.get_original_reward()
        for i in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][i]
            if info["TimeLimit.truncated"]:
                self.truncated += 1
            else:
                self.returns.append(float(self.running[i]))
                self.val_losses.append(float(info["val_loss"]))
                self.diverged += int(info["diverged"])
            self.running[i] = 0.0
        self.rates.append(float(one_rate(torch.from_numpy(self.envs.rates))))
        return True
