"""Proximal policy optimisation (Schulman et al. 2017) of a controller, as in Xu et al. 2019, section 3.3.

One iteration is as many decisions as an episode has, in every environment, then ten epochs of PPO on what happened;
where no trainee diverges, iterations are episodes. Everything that the next iteration depends on is in the checkpoint,
so a training that was interrupted ends as one that was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from agents.outer_training import TRAINING_SEEDS, Training
from agents.ppo import Architecture, PPOController
from agents.ppo_settings import PPOSettings
from lrenv.benchmark.agent import View
from lrenv.sb3_vec_env import LearningRateVecEnv

CRITIC = ("value_net", "mlp_extractor.value_net", "critic")
"""Beginnings of the names of the critic's parameters in Stable-Baselines3's policies."""


def two_rates(policy: ActorCriticPolicy, actor_lr: float, critic_lr: float) -> torch.optim.Optimizer:
    """Adam with actor and critic in parameter groups of their own, each at its rate (section 3.3)."""
    groups: dict[str, list[torch.nn.Parameter]] = {"actor": [], "critic": []}
    for name, parameter in policy.named_parameters():
        groups["critic" if name.startswith(CRITIC) else "actor"].append(parameter)
    rates = {"actor": actor_lr, "critic": critic_lr}
    # eps is Stable-Baselines3's for policy gradients.
    return torch.optim.Adam([{"params": groups[name], "lr": rates[name], "name": name} for name in groups], eps=1e-5)


def _log_rates(logger: Logger, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        logger.record(f"train/{group['name']}_lr", group["lr"])


class _MLPPPO(PPO):
    """PPO that leaves the rates of `two_rates` alone, where Stable-Baselines3 would set both to one."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        _log_rates(self.logger, optimizers)


class _LSTMPPO(RecurrentPPO):
    """Recurrent PPO that leaves the rates of `two_rates` alone."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        _log_rates(self.logger, optimizers)


class _Watch(BaseCallback):
    """Follows returns, validation losses and learning rates through an iteration."""

    def __init__(self, envs: LearningRateVecEnv) -> None:
        super().__init__()
        self.envs = envs
        self.running = np.zeros(envs.num_envs)
        self.returns: list[float] = []
        self.val_losses: list[float] = []
        self.rates: list[float] = []
        self.diverged = 0

    def _on_rollout_start(self) -> None:
        self.returns, self.val_losses, self.rates, self.diverged = [], [], [], 0

    def _on_step(self) -> bool:
        normalised = self.model.get_vec_normalize_env()
        assert normalised is not None
        self.running += normalised.get_original_reward()
        for i in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][i]
            self.returns.append(float(self.running[i]))
            self.val_losses.append(float(info["val_loss"]))
            self.diverged += int(info["diverged"])
            self.running[i] = 0.0
        info = self.envs.info
        lr = info["lr"].copy()
        if "final_info" in info:
            lr[self.locals["dones"]] = info["final_info"]["lr"][self.locals["dones"]]
        self.rates.append(float(np.exp(np.log(np.abs(lr).clip(1e-12)).mean())))
        return True

    def summary(self) -> dict[str, float]:
        """Means over the iteration's episodes, and the typical rate at its start, middle and end."""
        first, middle, last = (self.rates[int(at * (len(self.rates) - 1))] for at in (0, 0.5, 1))
        return {
            "episode/return": float(np.mean(self.returns or [np.nan])),
            "episode/val_loss": float(np.nanmean(self.val_losses or [np.nan])),
            "episode/diverged": self.diverged,
            "episode/lr_first": first,
            "episode/lr_middle": middle,
            "episode/lr_last": last,
        }


class PPOTraining(Training[PPOSettings]):
    """A training with PPO.

    Args:
        settings: how to train.
    """

    unit = "episodes"

    def __init__(self, settings: PPOSettings) -> None:
        super().__init__(settings, settings.make_task())
        self.view = View(settings.control, settings.observe, self.task.interval, settings.optimizer)
        self.envs = LearningRateVecEnv(
            settings.envs, self.task, control=settings.control, observe=settings.observe, reward=settings.reward,
            device=settings.device, compile=settings.compile,
        )  # fmt: skip
        # Rewards are not clipped: the price of divergence must stay above that of any living on.
        self.normalised = VecNormalize(
            self.envs, gamma=settings.gamma, clip_obs=PPOController.CLIP, clip_reward=float("inf")
        )
        self.architecture = Architecture.of(
            self.envs.observation_space, self.envs.action_space, settings.hidden, settings.lstm
        )
        decisions = self.envs.envs.episode.decisions
        algorithm: Any = _LSTMPPO if settings.lstm else _MLPPPO
        self.model: Any = algorithm(
            "MlpLstmPolicy" if settings.lstm else "MlpPolicy",
            self.normalised,
            n_steps=decisions,
            batch_size=_divisor(decisions * settings.envs, settings.minibatch),
            n_epochs=settings.epochs,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            clip_range=settings.clip,
            ent_coef=settings.entropy,
            policy_kwargs=self.architecture.policy_kwargs(),
            seed=settings.seed,
            device="cpu",  # perceptrons of this size lose time on an accelerator
        )
        self.model.policy.optimizer = two_rates(self.model.policy, settings.actor_lr, settings.critic_lr)
        # After the model, whose constructor seeds the environments with its own small seed.
        self.envs.seed(TRAINING_SEEDS * (settings.seed + 1))
        self.watch = _Watch(self.envs)

    @property
    def iterations(self) -> int:
        """Of the whole training."""
        return -(-self.settings.episodes // self.settings.envs)

    @property
    def units(self) -> int:
        """Episodes an iteration."""
        return self.settings.envs

    @property
    def episodes(self) -> int:
        """Trainees that were trained so far."""
        return self.iteration * self.settings.envs

    def attach(self, logger: Logger) -> None:
        """Lets Stable-Baselines3 log its losses."""
        self.model.set_logger(logger)

    def iterate(self) -> dict[str, float]:
        """An episode's decisions in every environment, and the policy's updates from them; gives what to log."""
        steps = self.model.n_steps * self.settings.envs
        self.model.learn(steps, callback=self.watch, log_interval=None, reset_num_timesteps=self.iteration == 0)
        return self.watch.summary()

    def status(self, row: dict[str, float]) -> str:
        """Return, validation loss and rates."""
        rates = " ".join(f"{row[f'episode/lr_{at}']:.1e}" for at in ("first", "middle", "last"))
        return f"return {row['episode/return']:.3f}  lr {rates}  val loss {row['episode/val_loss']:.4f}"

    def controller(self) -> PPOController:
        """The controller as it is now."""
        rms = self.normalised.obs_rms
        assert isinstance(rms, RunningMeanStd)
        policy = self.architecture.build()
        policy.load_state_dict(self.model.policy.state_dict())
        policy.set_training_mode(False)
        std = np.sqrt(rms.var + self.normalised.epsilon)
        return PPOController(policy, rms.mean.copy(), std, self.view, self.architecture)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next iteration depends on: tensors, and JSON values."""
        model, normalised, snapshot = self.model, self.normalised, self.envs.envs.snapshot()
        arrays: dict[str, Any] = {
            "last_obs": model._last_obs, "last_episode_starts": model._last_episode_starts,
            "last_original_obs": model._last_original_obs, "returns": normalised.returns, "running": self.watch.running,
            "env_seeds": snapshot.env_seeds, "env_episodes": snapshot.episodes, "env_ended": snapshot.ended,
        }  # fmt: skip
        for name, rms in _statistics(normalised).items():
            arrays |= {f"{name}.mean": rms.mean, f"{name}.var": rms.var, f"{name}.count": rms.count}
        _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - Stable-Baselines3 shuffles with it
        arrays["numpy_state"] = np.append(np.asarray(keys, dtype=np.int64), position)
        tensors = {name: torch.as_tensor(np.array(array)) for name, array in arrays.items()}
        tensors["torch_state"] = torch.get_rng_state()
        tensors |= {f"policy.{name}": x.clone() for name, x in model.policy.state_dict().items()}
        for i, slots in model.policy.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{slot}": torch.as_tensor(x).clone() for slot, x in slots.items()}
        tensors |= {f"env.{i}": x.clone() for i, x in enumerate(tree_flatten(snapshot.state)[0])}
        if self.settings.lstm:
            tensors |= {f"lstm.{i}": x.clone() for i, x in enumerate(tree_flatten(tuple(self._lstm_states))[0])}
        return tensors, {"num_timesteps": model.num_timesteps, "n_updates": model._n_updates}

    def restore_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Goes on from a state, exactly."""
        model = self.model
        self.normalised.reset()
        arrays = {name: x.numpy() for name, x in tensors.items() if "." not in name}
        model._last_obs, model._last_original_obs = arrays["last_obs"], arrays["last_original_obs"]
        model._last_episode_starts = arrays["last_episode_starts"]
        self.normalised.returns, self.watch.running = arrays["returns"], arrays["running"]
        for name, rms in _statistics(self.normalised).items():
            rms.mean, rms.var = tensors[f"{name}.mean"].numpy(), tensors[f"{name}.var"].numpy()
            rms.count = tensors[f"{name}.count"].item()
        model.policy.load_state_dict(_group(tensors, "policy."))
        optimizer = model.policy.optimizer
        slots: dict[int, dict[str, Tensor]] = {}
        for name, x in _group(tensors, "optimizer.").items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = x
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        fresh = self.envs.envs.snapshot()
        leaves, structure = tree_flatten(fresh.state)
        state = tree_unflatten([tensors[f"env.{i}"].to(x.device) for i, x in enumerate(leaves)], structure)
        self.envs.envs.restore(
            fresh._replace(
                state=state, env_seeds=arrays["env_seeds"], episodes=arrays["env_episodes"], ended=arrays["env_ended"]
            )
        )
        if self.settings.lstm:
            leaves, structure = tree_flatten(tuple(self._lstm_states))
            loaded = tree_unflatten([tensors[f"lstm.{i}"] for i in range(len(leaves))], structure)
            model._last_lstm_states = RNNStates(*loaded)
        model.num_timesteps, model._n_updates = values["num_timesteps"], values["n_updates"]
        keys = arrays["numpy_state"]
        np.random.set_state(("MT19937", keys[:-1].astype(np.uint32), int(keys[-1]), 0, 0.0))  # noqa: NPY002
        torch.set_rng_state(tensors["torch_state"])

    @property
    def _lstm_states(self) -> RNNStates:
        states: RNNStates = self.model._last_lstm_states
        return states


def _statistics(normalised: VecNormalize) -> dict[str, RunningMeanStd]:
    assert isinstance(normalised.obs_rms, RunningMeanStd)
    return {"obs_rms": normalised.obs_rms, "ret_rms": normalised.ret_rms}


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _divisor(total: int, about: int) -> int:
    """The divisor of `total` nearest to `about`: no minibatch is then cut short."""
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: (abs(d - about), d))
