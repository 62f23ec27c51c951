"""The Gymnasium environment: one trainee."""

from __future__ import annotations

from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from lrenv.envs.snapshots import Snapshot
from lrenv.envs.vector_env import LearningRateVectorEnv, row
from lrenv.training.tasks import Task

Array = NDArray[Any]


class LearningRateEnv(gym.Env[Array, Array]):
    """One network in training, whose learning rate the actions set: a vector environment of one.

    Args:
        task: a name in `lrenv.tasks()`, or a `Task`.
        render_mode: "rgb_array" or "human".
        **settings: those of `LearningRateVectorEnv`.
    """

    metadata: dict[str, Any] = LearningRateVectorEnv.metadata

    def __init__(self, task: str | Task = "digits-mlp", *, render_mode: str | None = None, **settings: Any) -> None:
        self._envs = LearningRateVectorEnv(
            1, task, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **settings
        )
        self.render_mode = render_mode
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self._terminated = False

    def __reduce__(self) -> NoReturn:
        """Refuses to be copied and pickled; see `LearningRateVectorEnv`."""
        self._envs.__reduce__()

    @property
    def task(self) -> Task:
        """The task, with this environment's settings."""
        return self._envs.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Starts an episode; see `LearningRateVectorEnv.reset`.

        Where no seed was ever given, one is drawn. `np_random_seed` tells it: `reset(seed=it)` begins the same episode.
        """
        observation, info = self._envs.reset(seed=seed, options=options)
        self._np_random, self._np_random_seed = self._envs.np_random, self._envs.np_random_seed
        self._terminated = False
        return row(observation, 0), _first(info)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Takes one decision; see `LearningRateVectorEnv.step`.

        Raises:
            gymnasium.error.ResetNeeded: the episode has not begun, or has ended.
            ValueError: an action of the wrong shape, not finite, or out of bounds.
        """
        if self._terminated:
            raise gym.error.ResetNeeded("the episode has ended: call reset()")
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"the action must have shape {self.action_space.shape}, not {np.shape(action)}")
        batch = action[None] if isinstance(action, Tensor) else np.asarray(action)[None]
        observation, reward, terminated, _, info = self._envs.step(batch)
        self._terminated = bool(terminated[0])
        return row(observation, 0), float(reward[0]), self._terminated, False, _first(info)

    def snapshot(self) -> Snapshot:
        """Returns everything on which the future of this environment depends."""
        return self._envs.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot; see `LearningRateVectorEnv.restore`."""
        self._envs.restore(snapshot)
        self._terminated = bool(snapshot.ended[0])

    def render(self) -> Any:
        """Returns an image (height, width, 3) for "rgb_array"; None for "human", which prints as it goes."""
        images = self._envs.render()
        return None if images is None else images[0]


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """A batch's info for its only env; masks say nothing there."""
    return {name: _plain(values[0]) for name, values in info.items() if not name.startswith("_")}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value.copy()
