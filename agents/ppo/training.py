"""Proximal policy optimisation (Schulman et al. 2017) of a controller, as in Xu et al. 2019, section 3.3.

One iteration is as many decisions as an episode has, in every environment, then ten epochs of PPO on what happened;
where no trainee diverges, iterations are episodes. Everything that the next iteration depends on is in the checkpoint,
so a training that was interrupted ends as one that was not.

`PolicyTraining` is what trainings on one task (`PPOTraining`) and on several (`lrenv.agents.ppo.multi_task`) share.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from lrenv.agents.outer.training import Training, begin_adam
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.agents.ppo.algorithm import LSTMPPO, MLPPPO, Watch, two_rates
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.controllers.agent import View
from lrenv.envs.multi_task_vec_env import MultiTaskVecEnv
from lrenv.envs.own import reward_name
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.training.tasks import Task

COUNTS = ("num_timesteps", "_n_updates")
"""The attributes in which a model of Stable-Baselines3 counts."""
LAST = ("_last_obs", "_last_original_obs", "_last_episode_starts")
"""Its attributes that hold the decision before."""


class PolicyTraining(Training[PPOSettings]):
    """What trainings with PPO have in common, whatever their environments are.

    Args:
        settings: how to train.
        task: what the trainees learn, or the first of several tasks.
        view: what the controller sees and turns.
        envs: where it acts.
        normalised: the same with observations and rewards normalised.
        decisions: per environment and iteration.
    """

    unit = "episodes"

    def __init__(
        self,
        settings: PPOSettings,
        task: Task,
        view: View,
        envs: LearningRateVecEnv | MultiTaskVecEnv,
        normalised: VecNormalize,
        decisions: int,
    ) -> None:
        super().__init__(settings, task)
        self.view, self.normalised = view, normalised
        self.architecture = Architecture.of(envs.observation_space, envs.action_space, settings.hidden, settings.lstm)
        algorithm: Any = LSTMPPO if settings.lstm else MLPPPO
        self.model: Any = algorithm(
            "MlpLstmPolicy" if settings.lstm else "MlpPolicy",
            normalised,
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
        begin_adam(self.model.policy.optimizer)
        self.watch = Watch(envs)

    @abstractmethod
    def summary(self) -> dict[str, float]:
        """Returns what to log of the iteration that `watch` has followed."""

    @abstractmethod
    def environments(self) -> Any:
        """Returns the state of the environments: a tree of tensors, arrays and JSON values."""

    @abstractmethod
    def begin_environments(self, values: dict[str, Any]) -> Any:
        """Begins episodes with shapes of those of the state that has the JSON values `values`; gives observations."""

    @abstractmethod
    def restore_environments(self, state: Any) -> None:
        """Goes on from what `environments` gave."""

    @abstractmethod
    def statistics(self) -> dict[str, RunningMeanStd]:
        """Returns the running statistics of observations and returns, by name."""

    def attach(self, logger: Logger) -> None:
        """Lets Stable-Baselines3 log its losses."""
        self.model.set_logger(logger)

    def iterate(self) -> dict[str, float]:
        """Makes an iteration's decisions in every environment, updates the policy from them, and gives what to log."""
        steps = self.model.n_steps * self.settings.envs
        self.model.learn(steps, callback=self.watch, log_interval=None, reset_num_timesteps=self.iteration == 0)
        return self.summary()

    def controller(self) -> PPOController:
        """Returns the controller as it is now."""
        rms = self.normalised.obs_rms
        assert isinstance(rms, RunningMeanStd)
        policy = self.architecture.build()
        policy.load_state_dict(self.model.policy.state_dict())
        policy.set_training_mode(False)
        std = np.sqrt(rms.var + self.normalised.epsilon)
        return PPOController(policy, rms.mean.copy(), std, self.view, self.architecture)

    def state(self) -> dict[str, Any]:
        """Returns everything that the next iteration depends on."""
        model, normalised = self.model, self.normalised
        _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - Stable-Baselines3 shuffles with it
        return {
            "policy": dict(model.policy.state_dict()),
            "adam": model.policy.optimizer.state_dict()["state"],
            "steps": {name: getattr(model, name) for name in COUNTS},
            "last": {name: getattr(model, name) for name in LAST},
            "memory": tuple(model._last_lstm_states) if self.settings.lstm else (),
            "statistics": {
                name: {"mean": np.asarray(rms.mean), "var": np.asarray(rms.var), "count": float(rms.count)}
                for name, rms in self.statistics().items()
            },
            "returns": normalised.returns,
            "running": self.watch.running,
            "envs": self.environments(),
            "numpy": (np.asarray(keys, dtype=np.int64), int(position)),
            "torch": torch.get_rng_state(),
        }

    def template(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the state at the first decision."""
        observation = self.begin_environments(values)
        self.model._last_obs = self.normalised.normalize_obs(observation)
        self.model._last_original_obs = observation
        self.model._last_episode_starts = np.ones(self.settings.envs, dtype=bool)
        return self.state()

    def restore_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state, exactly."""
        model, normalised, optimizer = self.model, self.normalised, self.model.policy.optimizer
        model.policy.load_state_dict(state["policy"])
        optimizer.load_state_dict({"state": state["adam"], "param_groups": optimizer.state_dict()["param_groups"]})
        for name, value in (state["steps"] | state["last"]).items():
            setattr(model, name, value)
        if self.settings.lstm:
            model._last_lstm_states = RNNStates(*state["memory"])
        for name, rms in self.statistics().items():
            vars(rms).update(state["statistics"][name])
        normalised.returns, self.watch.running = state["returns"], state["running"]
        self.restore_environments(state["envs"])
        keys, position = state["numpy"]
        np.random.set_state(("MT19937", keys.astype(np.uint32), position, 0, 0.0))  # noqa: NPY002
        torch.set_rng_state(state["torch"])


class PPOTraining(PolicyTraining):
    """A training with PPO on one task.

    Args:
        settings: how to train.
    """

    def __init__(self, settings: PPOSettings) -> None:
        task, control, observe = settings.make_task(), settings.controls, settings.observed()
        self.envs = LearningRateVecEnv(
            settings.envs, task, control=control, observe=observe,
            reward=reward_name(settings.reward),
            device=settings.device, compile=settings.compile,
        )  # fmt: skip
        # Rewards are not clipped: a run that diverges must have a lower return than any that goes on.
        normalised = VecNormalize(
            self.envs, gamma=settings.gamma, clip_obs=PPOController.CLIP, clip_reward=float("inf")
        )
        view = View(control, observe, task.interval, settings.optimizer)
        super().__init__(settings, task, view, self.envs, normalised, self.envs.envs.episode.decisions)
        # After the model, whose constructor seeds the environments with its own small seed.
        self.envs.seed(self.training_seeds(1)[0])

    @property
    def iterations(self) -> int:
        """The number of iterations in the whole training."""
        return -(-self.settings.episodes // self.settings.envs)

    @property
    def units(self) -> int:
        """Episodes per iteration."""
        return self.settings.envs

    @property
    def episodes(self) -> int:
        """The number of episodes that were trained so far, in whole ones: others follow where one diverges early."""
        return self.iteration * self.settings.envs

    def summary(self) -> dict[str, float]:
        """Returns means over the iteration's episodes, and the typical rate at its start, middle and end."""
        watch = self.watch
        first, middle, last = (watch.rates[int(at * (len(watch.rates) - 1))] for at in (0, 0.5, 1))
        return {
            "episode/return": float(np.mean(watch.returns or [np.nan])),
            "episode/val_loss": watch.mean_val_loss(),
            "episode/diverged": watch.diverged,
            "episode/lr_first": first,
            "episode/lr_middle": middle,
            "episode/lr_last": last,
        }

    def status(self, row: dict[str, float]) -> str:
        """Returns return, rates and validation loss in a line."""
        rates = " ".join(f"{row[f'episode/lr_{at}']:.1e}" for at in ("first", "middle", "last"))
        return f"return {row['episode/return']:.3f}  lr {rates}  val loss {row['episode/val_loss']:.4f}"

    def environments(self) -> Any:
        """Returns a snapshot without settings, which the file has anyway."""
        return self.envs.envs.snapshot()._replace(settings={})

    def begin_environments(self, values: dict[str, Any]) -> Any:
        """Begins the first episodes."""
        return self.envs.reset()

    def restore_environments(self, state: Any) -> None:
        """Goes on from a snapshot."""
        envs = self.envs.envs
        envs.restore(state._replace(settings=envs.snapshot().settings))

    def statistics(self) -> dict[str, RunningMeanStd]:
        """Returns those of Stable-Baselines3's normalisation."""
        assert isinstance(self.normalised.obs_rms, RunningMeanStd)
        return {"obs_rms": self.normalised.obs_rms, "ret_rms": self.normalised.ret_rms}


def _divisor(total: int, about: int) -> int:
    """The divisor of `total` nearest to `about`: no minibatch is then cut short.

    Raises:
        ValueError: there are fewer than two decisions, which advantages can't be normalised over.
    """
    if total < 2:
        raise ValueError("an iteration needs at least two decisions: raise envs or budget, or lower interval")
    return min((d for d in range(2, total + 1) if total % d == 0), key=lambda d: (abs(d - about), d))
