"""The Stable-Baselines3 vector environment, over the same batch of trainees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.dynamics import one_rate_of
from lrenv.training.tasks import Task

Array = NDArray[Any]


class LearningRateVecEnv(VecEnv):
    """n networks in training, as Stable-Baselines3 wants them: ended episodes restart within the same step.

    The info of an env whose episode ended holds `terminal_observation`, and what `LearningRateVectorEnv` reports
    at that point; the other envs' infos are empty, since building them costs more than all else here.

    Args:
        num_envs: n.
        task: a name in `lrenv.tasks()`, or a `Task`.
        **settings: those of `LearningRateVectorEnv`.

    Attributes:
        info: the batched info of the present time step.
        rates: (n,), the learning rate of each environment's last decision, in ended episodes, too; of several rates per
            trainee, their geometric mean.
    """

    def __init__(self, num_envs: int, task: str | Task = "digits-mlp", **settings: Any) -> None:
        self.envs = LearningRateVectorEnv(num_envs, task, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        self.render_mode = self.envs.render_mode
        self.metadata = self.envs.metadata
        super().__init__(num_envs, self.envs.single_observation_space, self.envs.single_action_space)
        self._actions: Array = np.zeros(0)
        self.info: dict[str, Any] = {}
        self.rates: Array = np.zeros(num_envs)

    @property
    def task(self) -> Task:
        """The task, with this environment's settings."""
        return self.envs.task

    def reset(self) -> Array:
        """Starts new episodes; `seed` and `set_options` say which."""
        seeded = any(seed is not None for seed in self._seeds)
        # SB3 keeps options per env; ours (the initial rate) hold for all of a reset.
        options, *others = self._options
        if any(other != options for other in others):
            raise ValueError(
                "options hold for all environments of a reset, and these differ from one to another: give set_options "
                "one dictionary"
            )
        observation, self.info = self.envs.reset(seed=self._seeds if seeded else None, options=options)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: Array) -> None:
        """Takes the actions (n, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes one decision in every environment.

        Returns:
            Observations, rewards (n,) float32, dones (n,), and a list of n infos. `self.info` is the batched info.
        """
        observation, reward, terminated, _, self.info = self.envs.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        lr = self.info["lr"].copy()
        if terminated.any():
            lr[terminated] = self.info["final_info"]["lr"][terminated]
            final = {name: x for name, x in self.info["final_info"].items() if not name.startswith("_")}
            for i in np.flatnonzero(terminated):
                infos[i] = {name: values[i] for name, values in final.items()}
                infos[i] |= {"terminal_observation": self.info["final_obs"][i], "TimeLimit.truncated": False}
        self.rates = one_rate_of(lr)
        return observation, reward.astype(np.float32), terminated, infos

    def close(self) -> None:
        """Does nothing, as nothing is open."""

    def render(self, mode: str | None = None) -> Array | None:
        """Returns the images of all envs as one, for "rgb_array"; None for "human", which prints as it goes."""
        if self.render_mode == "human" and mode in (None, "human"):
            self.envs.render()
            return None
        return super().render(mode)

    def get_images(self) -> Sequence[Array | None]:
        """Returns one image per env, for "rgb_array"; see `LearningRateVectorEnv.render`."""
        images: Sequence[Array | None] = self.envs.render() or [None] * self.num_envs
        return images

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns the attribute of the batch, once for each index."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute of the batch."""
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Raises an error, since the envs are one batch, and none has methods of its own.

        Raises:
            AttributeError: always; call the method of `self.envs`.
        """
        raise AttributeError(f"there is no env to call {method_name} on: all are one batch, call envs.{method_name}")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Returns False per index, as no env is wrapped."""
        chosen: Iterable[int] = self._get_indices(indices)
        return [False for _ in chosen]
