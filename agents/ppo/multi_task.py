"""PPO of one policy on several tasks at a time, so that it is good on tasks that it never saw.

Groups of trainees learn a task each (`lrenv.envs.multi_task_vec_env`); when its cohort has ended, a group goes on with
another task. An iteration is a fixed number of decisions in every environment, wherever in its episode each is; the
critic's values stand for what comes after the cut, and for what trainees would have got that were cut off because the
others of their cohort had ended.

**Rewards** are divided by the running standard deviation of discounted returns, as `VecNormalize` does: one for each
listed task, and one for all drawn ones (`lrenv.agents.ppo.tasks` says why). Of drawn tasks the division is by a number
that soon hardly changes, and the advantages are normalised anyway, so that it decides how fast the critic learns, and
no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from lrenv.agents.outer.training import Controller
from lrenv.agents.outer.validation import Validation
from lrenv.agents.ppo.agent import PPOController
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.tasks import Listed, Tasks, tasks_of
from lrenv.agents.ppo.training import PolicyTraining, PPOTraining
from lrenv.controllers.agent import View
from lrenv.envs.multi_task_vec_env import MultiTaskSnapshot, MultiTaskVecEnv
from lrenv.envs.own import reward_name
from lrenv.training.tasks import Task

Array = NDArray[Any]


class TaskNormalize(VecNormalize):
    """Observations normalised together, and rewards by the returns of their own task.

    Args:
        envs: the environments of several tasks.
        tasks: which statistic a cohort's rewards belong to.
        gamma: the discount of returns.
    """

    def __init__(self, envs: MultiTaskVecEnv, tasks: Tasks, gamma: float) -> None:
        # Rewards are not clipped: a run that diverges must have a lower return than any that goes on.
        super().__init__(envs, gamma=gamma, clip_obs=PPOController.CLIP, clip_reward=float("inf"))
        self._envs, self._tasks = envs, tasks
        self.scales = [RunningMeanStd(shape=()) for _ in range(tasks.scales)]

    def _update_reward(self, reward: Array) -> None:
        self.returns = self.returns * self.gamma + reward
        owners = self._owners()
        for owner in np.unique(owners):
            self.scales[owner].update(self.returns[owners == owner])

    def normalize_reward(self, reward: Array) -> Array:
        """Returns the rewards of the last decision, divided by the standard deviations of their tasks' returns."""
        variances = np.array([float(scale.var) for scale in self.scales])[self._owners()]
        scaled: Array = (reward / np.sqrt(variances + self.epsilon)).astype(np.float32)
        return scaled

    def _owners(self) -> NDArray[np.int64]:
        """The statistic (n,) of each environment's last decision."""
        return np.array([self._tasks.scale(int(place)) for place in self._envs.places])


class MultiTaskTraining(PolicyTraining):
    """A training with PPO on several tasks.

    Args:
        settings: how to train.
        tasks: what on, in the place of what the settings name.

    Raises:
        ValueError: tasks that can't be trained on, or not together.
    """

    def __init__(self, settings: PPOSettings, tasks: Tasks | None = None) -> None:
        own = {name: getattr(settings, name) for name in ("budget", "interval", "optimizer", "val_examples")}
        reward, observe, control = reward_name(settings.reward), settings.observed(), settings.controls
        given = {name: value for name, value in own.items() if value is not None}
        self.tasks = tasks or tasks_of(settings.tasks, settings.seed, reward, control, given)
        trainees = settings.envs // settings.groups

        def seeds(place: int) -> list[int]:
            return self.training_seeds(trainees, place * trainees)

        self.envs = MultiTaskVecEnv(
            settings.groups, trainees, self.tasks.task, seeds, control=control, observe=observe,
            reward=reward, device=settings.device,
        )  # fmt: skip
        if isinstance(self.tasks, Listed):
            for task in self.tasks.tasks[1:]:
                self.envs.check(task)
        self.scaled = TaskNormalize(self.envs, self.tasks, settings.gamma)
        self.validation = Validation(self.tasks.validation(settings.eval_tasks), settings.eval_seeds, settings.device)
        view = View(control, observe, None, settings.optimizer)
        super().__init__(settings, self.tasks.task(0), view, self.envs, self.scaled, settings.rollout)

    @property
    def tasks_trained_on(self) -> Sequence[Task]:
        """Those of a list; drawn ones make their data themselves."""
        return self.tasks.tasks if isinstance(self.tasks, Listed) else []

    @property
    def iterations(self) -> int:
        """One more than are done, until enough trainees have been trained: how many that takes depends on the tasks."""
        return self.iteration + (self.episodes < self.settings.episodes)

    @property
    def length(self) -> int:
        """The number of trainees to train."""
        return self.settings.episodes

    @property
    def done(self) -> int:
        """The number that are trained."""
        return min(self.episodes, self.length)

    @property
    def episodes(self) -> int:
        """The number of trainees whose episodes have ended."""
        return max(0, self.envs.begun - self.envs.num_envs)

    @property
    def runs(self) -> dict[str, int]:
        """As of every training, with the trainees that have begun."""
        return super().runs | {"training": self.envs.begun}

    @property
    def runs_per_validation(self) -> int:
        """The number of trainees that a comparison trains."""
        return self.validation.runs

    def held_out_loss(self, controller: Controller) -> float:
        """Returns the controller's score, a mean logarithm (`lrenv.agents.outer.validation`)."""
        return self.validation.score(controller)

    def summary(self) -> dict[str, float]:
        """Returns the mean return of the episodes that ended, how many did and how, and the typical rate."""
        watch = self.watch
        return {
            "episode/return": float(np.mean(watch.returns or [np.nan])),
            "episode/ended": len(watch.returns),
            "episode/diverged": watch.diverged,
            "episode/truncated": watch.truncated,
            "episode/lr": float(np.exp(np.log(watch.rates).mean())),
        }

    def status(self, row: dict[str, float]) -> str:
        """Returns the return, how many trainees diverged, the typical rate, and the tasks at work in a line."""
        names = " ".join(task.name.partition("number=")[2].partition(":")[0] or task.name for task in self.envs.at_work)
        died = f"{row['episode/diverged']:.0f} of {row['episode/ended']:.0f} diverged"
        return f"return {row['episode/return']:.3f}  {died}  lr {row['episode/lr']:.1e}  tasks {names}"

    def environments(self) -> Any:
        """Returns a snapshot without settings, which the file has anyway."""
        return _with_settings(self.envs.snapshot(), [{}] * self.settings.groups)

    def begin_environments(self, values: dict[str, Any]) -> Any:
        """Begins the cohorts that were at work."""
        return self.envs.begin_at([values[f"envs.groups.{i}.place"] for i in range(self.settings.groups)])

    def restore_environments(self, state: Any) -> None:
        """Goes on from a snapshot."""
        now = self.envs.snapshot()
        self.envs.restore(_with_settings(state, [group.envs.settings for group in now.groups]))

    def statistics(self) -> dict[str, RunningMeanStd]:
        """Returns the statistics of observations, and those of returns by the place of their task."""
        assert isinstance(self.scaled.obs_rms, RunningMeanStd)
        return {"obs_rms": self.scaled.obs_rms} | {f"returns {i}": rms for i, rms in enumerate(self.scaled.scales)}


def _with_settings(snapshot: MultiTaskSnapshot, settings: Sequence[dict[str, Any]]) -> MultiTaskSnapshot:
    """The snapshot with other settings of its groups: a checkpoint holds those of the training instead."""
    groups = zip(snapshot.groups, settings, strict=True)
    return snapshot._replace(groups=tuple(group._replace(envs=group.envs._replace(settings=s)) for group, s in groups))


def ppo_training(settings: PPOSettings) -> PolicyTraining:
    """Returns the training on one task or on several, as the settings have it."""
    return MultiTaskTraining(settings) if settings.tasks else PPOTraining(settings)
