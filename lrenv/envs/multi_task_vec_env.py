"""Several tasks side by side as one vector environment of Stable-Baselines3: groups of trainees, a task per group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.snapshots import Snapshot
from lrenv.lookup import count
from lrenv.training.tasks import Task

Array = NDArray[Any]


@dataclass
class _Cohort:
    """The trainees of a group that began together, and those that took the place of some that diverged.

    Attributes:
        place: k, how many cohorts began before this one, in all groups.
        envs: its trainees.
        decisions: how many each of its environments has made.
    """

    place: int
    envs: LearningRateVecEnv
    decisions: int = 0


class GroupSnapshot(NamedTuple):
    """A group between two decisions."""

    place: int  # of its cohort
    decisions: int  # that the cohort has made
    envs: Snapshot


class MultiTaskSnapshot(NamedTuple):
    """The whole between two decisions; `restore` continues from it."""

    begun: int  # trainees since the first reset
    groups: tuple[GroupSnapshot, ...]


class MultiTaskVecEnv(VecEnv):
    """Groups of trainees with a task each, in one vector environment with one observation and one action space.

    A group is a `LearningRateVecEnv`, whose trainees begin together: a cohort. Its episodes have the length of its own
    task's, so those of different groups end at different times. A trainee that diverges terminates and is followed by
    another of the same task, as there. After as many decisions as an episode of its task has, a cohort ends: those that
    began with it terminate, and those that took the place of diverged ones are cut off, which their info tells by
    `TimeLimit.truncated`, so that learners add the value of `terminal_observation`. Within the same step the group
    goes on with the next cohort, of another task.

    Cohort k is the one that begins after k others, of those that begin at the same time in the order of their groups.
    Its task and the seeds of its trainees are functions of k. As no cohort's length depends on actions, so is the
    decision at which it begins: two runs with other actions see the same tasks, in the same groups, at the same
    decisions. The seeds that `seed` gives have no effect.

    Args:
        groups: how many tasks are at work at a time.
        trainees: per group.
        tasks: k -> the task of cohort k.
        seeds: k -> the seeds of its trainees, as many as there are.
        **settings: those of `LearningRateVectorEnv`, other than what a task says.

    Attributes:
        places: (groups x trainees,), the cohort in which each environment made its last decision.
        rates: (groups x trainees,), the learning rate of each environment's last decision; of several rates per
            trainee, their geometric mean.
        begun: how many trainees have begun since the first reset.

    Raises:
        ValueError: the tasks of two cohorts have other observations or actions; the message says what to do.
    """

    def __init__(
        self,
        groups: int,
        trainees: int,
        tasks: Callable[[int], Task],
        seeds: Callable[[int], Sequence[int]],
        **settings: Any,
    ) -> None:
        self.groups, self.trainees = int(count("groups", groups)), int(count("trainees", trainees))
        self._tasks, self._seeds_of, self._settings = tasks, seeds, settings
        first = LearningRateVecEnv(self.trainees, tasks(0), **settings)
        self._first_task = first.task.name
        self.render_mode = None
        super().__init__(self.groups * self.trainees, first.observation_space, first.action_space)
        self.begun = 0
        self.places = np.zeros(self.num_envs, dtype=np.int64)
        self.rates: Array = np.zeros(self.num_envs)
        self._cohorts: list[_Cohort] = []
        self._next = 0
        self._actions: Array = np.zeros(0)

    @property
    def at_work(self) -> tuple[Task, ...]:
        """The task of each group."""
        return tuple(cohort.envs.task for cohort in self._cohorts)

    def check(self, task: Task) -> None:
        """Checks that a task has the observations and actions of the first one.

        Raises:
            ValueError: it has others.
        """
        self._made(task, 1)

    def reset(self) -> Array:
        """Begins a cohort in every group, those that come next."""
        observations = self.begin_at(range(self._next, self._next + self.groups))
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Takes the actions (groups x trainees, ...) for `step_wait`, group after group."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes one decision in every environment.

        Returns:
            Observations, rewards (n,) float32, dones (n,), and a list of n infos, as `LearningRateVecEnv` gives them.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was never called.
            ValueError: actions of the wrong shape, not finite, or out of bounds; no group has moved.
        """
        if not self._cohorts:
            raise gym.error.ResetNeeded("call reset() before step()")
        control = self._cohorts[0].envs.envs.episode.control
        control.check(self._actions, self.num_envs)
        actions = np.split(np.asarray(self._actions), self.groups)
        parts = [self._stepped(group, part) for group, part in enumerate(actions)]
        observations, rewards, dones, infos = zip(*parts, strict=True)
        listed = [info for each in infos for info in each]
        return np.concatenate(observations), np.concatenate(rewards), np.concatenate(dones), listed

    def snapshot(self) -> MultiTaskSnapshot:
        """Returns everything on which the future depends, besides the functions that give tasks and seeds."""
        groups = [GroupSnapshot(each.place, each.decisions, each.envs.envs.snapshot()) for each in self._cohorts]
        return MultiTaskSnapshot(self.begun, tuple(groups))

    def restore(self, snapshot: MultiTaskSnapshot) -> None:
        """Continues from a snapshot of an environment with the same arguments.

        Raises:
            ValueError: the snapshot is of an environment with other ones; the message says which.
        """
        if len(snapshot.groups) != self.groups:
            raise ValueError(f"the snapshot is of {len(snapshot.groups)} groups, and here are {self.groups}")
        cohorts = []
        for group in snapshot.groups:
            envs = self._made(self._tasks(group.place))
            envs.envs.restore(group.envs)
            cohorts.append(_Cohort(group.place, envs, group.decisions))
        self._cohorts, self.begun = cohorts, snapshot.begun
        self._next = 1 + max(cohort.place for cohort in cohorts)

    def begin_at(self, places: Sequence[int]) -> Array:
        """Begins the cohorts of these places, one per group, and returns their observations.

        Raises:
            ValueError: there are more or fewer places than groups.
        """
        if len(places) != self.groups:
            raise ValueError(f"there are {self.groups} groups, so give {self.groups} places, not {len(places)}")
        begun = [self._begun(place) for place in places]
        self._cohorts, self._next = [cohort for cohort, _ in begun], 1 + max(places)
        return np.concatenate([observation for _, observation in begun])

    def close(self) -> None:
        """Does nothing, as nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns the attribute of the whole, once for each index."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute of the whole."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Raises an error, since no environment has methods of its own.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"there is no env to call {method_name} on: those of a task are one batch")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Returns False per index, as no env is wrapped."""
        chosen: Iterable[int] = self._get_indices(indices)
        return [False for _ in chosen]

    def _made(self, task: Task, trainees: int | None = None) -> LearningRateVecEnv:
        """The environment of a group with this task."""
        envs = LearningRateVecEnv(self.trainees if trainees is None else trainees, task, **self._settings)
        theirs, ours = (each.observation_space for each in (envs, self)), (each.action_space for each in (envs, self))
        for what, (found, wanted) in (("observations", theirs), ("actions", ours)):
            if found != wanted:
                raise ValueError(
                    f"tasks {self._first_task!r} and {task.name!r} can't be trained on together, as their {what} "
                    f"differ: {wanted} and {found}; observe no gradients and parameters, and control one rate per "
                    "trainee, or choose tasks whose networks have equally many"
                )
        return envs

    def _begun(self, place: int) -> tuple[_Cohort, Array]:
        """A cohort before its first decision, and its observations."""
        envs = self._made(self._tasks(place))
        envs._seeds = list(self._seeds_of(place))
        self.begun += self.trainees
        return _Cohort(place, envs), envs.reset()

    def _stepped(self, group: int, actions: Array) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """A decision of a group, after whose end it goes on with the next cohort."""
        cohort = self._cohorts[group]
        envs, own = cohort.envs, slice(group * self.trainees, (group + 1) * self.trainees)
        observation, rewards, dones, infos = envs.step(actions)
        assert isinstance(observation, np.ndarray)
        cohort.decisions += 1
        self.places[own], self.rates[own] = cohort.place, envs.rates
        if cohort.decisions < envs.envs.episode.decisions:
            self.begun += int(dones.sum())
            return observation, rewards, dones, infos
        for i in np.flatnonzero(~dones):
            infos[i] = {name: envs.info[name][i] for name in ("val_loss", "diverged")}
            infos[i] |= {"terminal_observation": observation[i], "TimeLimit.truncated": True}
        self._cohorts[group], observation = self._begun(self._next)
        self._next += 1
        return observation, rewards, np.ones_like(dones), infos
