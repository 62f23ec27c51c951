"""The native Gymnasium vector environment: n episodes on one device behind NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from lrenv.envs.episode import Episode, EpisodeState, TimeStep
from lrenv.envs.episode_seeds import EpisodeSeeds
from lrenv.envs.observations import Observe
from lrenv.envs.rendering import History
from lrenv.envs.rewards import Reward
from lrenv.envs.snapshots import Snapshot, differences, settings_of
from lrenv.lookup import count, lookup, what_is
from lrenv.runtime.ambient import without_gradients
from lrenv.runtime.compiling import Compile
from lrenv.runtime.memory import check_fits, choose_device
from lrenv.runtime.transfer import to_host
from lrenv.runtime.trees import replace_rows, scatter, select
from lrenv.training.optimizers import Optimizer, OptimizerFactory
from lrenv.training.tasks import InitialLR, Task, initial_rates, make_task

Array = NDArray[Any]
Now = tuple[EpisodeState, TimeStep]
"""All environments between two decisions."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Prepared(NamedTuple):
    """Episodes that have not begun yet, one per env."""

    seeds: NDArray[np.int64]  # (n,)
    begun: Now


class LearningRateVectorEnv(VectorEnv[Array, Array, Array]):
    """n networks in training, whose learning rates the actions set.

    Env i started with `reset(seed=s)` has the seed s + i, a list of seeds is taken as it stands, and the seeds of
    later episodes are a function of the env's seed and the episode's number: env i of a batch is the same run as
    that env alone, up to rounding. The same calls give the same numbers to the last bit on the same machine, with the
    same number of threads and the same build of PyTorch.

    `info` holds batched arrays `train_loss`, `val_loss`, `val_accuracy`, `lr`, `inner_step`, `diverged`; at the end
    of an episode also `test_loss` and `test_accuracy` of the checkpoint with the best validation loss, and
    `final_test_loss` and `final_test_accuracy` of the last network (infinite and NaN if it diverged); they are NaN and
    masked by `_test_loss` and so on elsewhere. Tasks of other losses have another metric, such as `val_r2`, or none
    (`lrenv.training.losses`).

    Args:
        num_envs: n.
        task: a name in `lrenv.tasks()`, or a `Task`.
        interval: N, inner steps between two actions; the task's own if None, as for the next four. An interval beyond
            the budget is the budget, for observations, too.
        budget: T, inner steps of an episode. If N does not divide T, the last interval is shorter.
        batch_size: examples an inner step.
        optimizer: the trainee's: a name, an `Optimizer`, or an `OptimizerFactory`.
        initial_lr: the rate before the first action: one, several to draw from, or a `LogUniform`.
        control: what an action sets, see `lrenv.envs.actions`.
        observe: what is observed: names, or observations of one's own, see `lrenv.envs.observations`.
        reward: a name, or a function of one's own, see `lrenv.envs.rewards`.
        device: where the trainees live; CUDA where there is any, else the CPU.
        dtype: "float32", or "float64" for exact comparisons; of trainees, observations and Box actions.
        val_examples: validation examples that a decision measures, always the same; the task's own if None, and all if
            the task has none or there are fewer.
        measure_interval: inner steps between two measurements on the validation split, see `lrenv.training.tasks.Task`.
        compile: True compiles decisions with `torch.compile`: small perceptrons train twice as fast on a CPU, after
            about half a minute for the first decision. Needs a C++ compiler on a CPU, Triton on CUDA. On CUDA, True and
            "graph" replay each decision as one CUDA graph; "graph" compiles nothing.
        precision: "full" computes in `dtype`; "tf32" rounds the inputs of products and convolutions on CUDA to TF32;
            "bf16" runs networks in bfloat16 by `torch.autocast`, for hardware that multiplies it faster. Weights,
            optimizer and losses stay in `dtype`.
        chunk_size: trainees that go through a decision together at most; by default what a CPU's caches, or half of a
            GPU's free memory, hold.
        autoreset_mode: Gymnasium's. In DISABLED mode an ended episode stands still, with reward 0, until it is
            reset with `options={"reset_mask": mask}`.
        render_mode: "rgb_array" draws losses and rates of the first 16 envs, and leaves the images of the others white;
            "human" prints a line per decision.

    Attributes:
        asked: the observation as it was given, and the optimizer that was asked for in the place of the task's.

    Raises:
        ValueError, TypeError: settings that cannot be meant, or that no memory of this device holds; the message says
            what to do.
        FileNotFoundError: the task's data set is missing; the message says what brings it.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 10}

    @without_gradients
    def __init__(
        self,
        num_envs: int = 1,
        task: str | Task = "digits-mlp",
        *,
        interval: int | None = None,
        budget: int | None = None,
        batch_size: int | None = None,
        optimizer: str | Optimizer | OptimizerFactory | None = None,
        initial_lr: InitialLR | None = None,
        control: str | tuple[str, ...] = "scale",
        observe: Observe = "dynamics",
        reward: str | Reward = "val_loss",
        device: str | torch.device | None = None,
        dtype: str = "float32",
        val_examples: int | None = None,
        measure_interval: int | None = None,
        compile: Compile = False,
        precision: str = "full",
        chunk_size: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        own = {
            "interval": interval, "budget": budget, "batch_size": batch_size, "optimizer": optimizer,
            "initial_lr": initial_lr, "val_examples": val_examples, "measure_interval": measure_interval,
        }  # fmt: skip
        task = make_task(task, **{name: value for name, value in own.items() if value is not None})
        if render_mode is not None:
            lookup(dict.fromkeys(self.metadata["render_modes"]), render_mode, "render_mode")
        self.num_envs = num_envs = int(count("num_envs", num_envs))
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.episode = Episode(
            task, control, observe, reward, choose_device(device), lookup(DTYPES, dtype, "dtype"), compile, precision,
            chunk_size,
        )  # fmt: skip
        self._view = {"control": control, "observe": observe, "reward": reward, "precision": precision}
        self.asked: dict[str, Any] = {"observe": observe, "optimizer": optimizer}
        _check_memory(self.episode, num_envs)
        self.single_observation_space = self.episode.observer.space
        self.single_action_space = self.episode.control.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._now: Now | None = None
        self._prepared: Prepared | None = None
        self._inner_step = np.zeros(num_envs, dtype=np.int64)
        self._seeds = EpisodeSeeds(num_envs)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._history = History(num_envs, task) if render_mode else None

    def __reduce__(self) -> NoReturn:
        """Refuses `copy.copy`, `copy.deepcopy` and `pickle`: what is compiled and captured belongs to one process."""
        raise TypeError(
            "an environment can't be copied or pickled, for it holds functions made for this process: make another one "
            "with the same settings, and give it what snapshot() gives by restore()"
        )

    @property
    def task(self) -> Task:
        """The task, with this environment's settings."""
        return self.episode.task

    @without_gradients
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: s, for seeds s, s + 1, ...; or a list, one per env; None goes on to each env's next episode.
            options: `initial_lr` overrides the task's for these episodes; `reset_mask` (n,) bool restarts some
                envs and leaves the others alone.

        Returns:
            Observations (n, ...) and info.

        Raises:
            ValueError: an unknown option, a mask or seeds of the wrong length, a negative seed.
        """
        options = dict(options or {})
        everyone = np.ones(self.num_envs, dtype=bool)
        mask = np.asarray(options.pop("reset_mask", everyone))
        initial_lr = options.pop("initial_lr", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; known: initial_lr, reset_mask")
        if mask.shape != everyone.shape or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask must be {self.num_envs} booleans, at least one of them True")
        if self._now is None and not mask.all():
            raise ValueError("the first reset must start every environment: leave reset_mask out")
        if initial_lr is not None:
            initial_rates(initial_lr)  # before anything has changed
        first = self._seeds.give(seed, mask)
        if first is not None:
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(first)
        elif seed is not None:
            self._np_random_seed = -1  # Gymnasium's word for: no one seed
        self._now = self._begin(mask, initial_lr)
        host = self._fetch()
        self._record(host.info, mask, host.info)
        return host.observation, host.info

    @without_gradients
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Makes one decision in every environment: act, train for an interval, measure.

        Args:
            actions: (n, ...), inside the action space.

        Returns:
            Observations, rewards (n,), terminated (n,), truncated (n,) (never True: the budget is part of the
            task), info.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was never called.
            ValueError: actions of the wrong shape, not finite, or out of bounds.
        """
        if self._now is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        checked = self.episode.control.check(actions, self.num_envs)
        waiting, before = self._ended, self._now
        restarts = waiting & (self.autoreset_mode == AutoresetMode.NEXT_STEP)
        if not restarts.all():
            due = self.episode.measurement_due(self._inner_step, waiting)
            if waiting.any() and self.episode.holds(before):
                before = tree_map(torch.clone, before)
            self._now = self.episode.step(before[0], torch.from_numpy(checked).to(self._device), due, donate=True)
        if restarts.any():
            self._now = self._restarted(restarts, before)
        elif waiting.any():
            self._now = select(torch.from_numpy(waiting).to(self._device), before, self._now)
        host = self._fetch()
        observation, reward, terminated, info = host.observation, host.reward, host.terminated, host.info
        reward[waiting] = 0.0
        ending, decided = terminated & ~waiting, info
        if ending.any():
            self._add_test(info, ending)
        self._ended = terminated.copy()
        if ending.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            observation, info = self._restart_within_step(observation, info, ending, before)
            restarts = ending
        self._record(info, restarts, decided)
        return observation, reward, terminated, np.zeros_like(terminated), info

    def snapshot(self) -> Snapshot:
        """Returns everything on which the future of this environment depends.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._now is None:
            raise gym.error.ResetNeeded("call reset() before snapshot()")
        state = self._now[0]
        state = tree_map(torch.clone, state) if self.episode.holds(state) else state
        return Snapshot(state, *self._seeds.copied(), self._ended.copy(), self._settings.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot of an environment with the same settings, of this device or another.

        Raises:
            TypeError: no snapshot.
            ValueError: the snapshot is of an environment with other settings; the message says which.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore takes what snapshot() gave, not {what_is(snapshot)}")
        if differ := differences(snapshot.settings, self._settings):
            raise ValueError(f"the snapshot is of an environment with {', '.join(differ)}; restore it to one like it")
        state = tree_map(lambda x: x.to(self._device), snapshot.state)
        self._now = state, self.episode.time_step(state)
        self._seeds.restore(snapshot.env_seeds, snapshot.episodes)
        self._ended = snapshot.ended.copy()
        info = self._fetch().info
        if self._history is not None:
            self._history.add(info, np.ones(self.num_envs, dtype=bool))

    def render(self) -> Any:
        """Returns a tuple of images (height, width, 3), one per env, for "rgb_array"; None for "human".

        The first 16 are drawn; the others have one white image.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._history is None:
            gym.logger.warn("render() needs render_mode='rgb_array' or 'human' when the environment is made")
            return None
        if self._now is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self._history.draw() if self.render_mode == "rgb_array" else None

    @cached_property
    def _settings(self) -> dict[str, Any]:
        shared = {"num_envs": self.num_envs, "autoreset_mode": self.autoreset_mode.value}
        return shared | settings_of(self.episode, self._view)

    @property
    def _device(self) -> torch.device:
        return self.episode.trainee.device

    def _begin(self, mask: NDArray[np.bool_], initial_lr: InitialLR | None = None) -> Now:
        """All environments, with new episodes where the mask holds."""
        fresh = self.episode.reset(self._seeds.present()[mask].tolist(), initial_lr)
        self._ended = self._ended & ~mask
        if self._now is None or mask.all():
            return fresh
        return scatter(torch.from_numpy(np.flatnonzero(mask)).to(self._device), fresh, self._now)

    def _restarted(self, mask: NDArray[np.bool_], before: Now) -> Now:
        """All environments, with the next episodes where the mask holds; this decision began in `before`.

        Beginning a few episodes takes nearly as long as beginning all. So where episodes end at different times, the
        next ones of all envs are prepared together, and again when half of them are used.
        """
        self._seeds.advance(mask)
        if mask.all():
            return self._begin(mask)
        assert self._now is not None
        following = self._seeds.upcoming(mask)
        if self._prepared is None or (self._prepared.seeds == following).sum() <= self.num_envs // 2:
            self._prepared = Prepared(following, self.episode.reset(following.tolist()))
        if not (self._prepared.seeds == following)[mask].all():
            return self._begin(mask)
        self._ended = self._ended & ~mask
        rows = torch.from_numpy(np.flatnonzero(mask)).to(self._device)
        return replace_rows(rows, self._prepared.begun, self._now, before)

    def _restart_within_step(
        self, observation: Array, info: dict[str, Any], mask: NDArray[np.bool_], before: Now
    ) -> tuple[Array, dict[str, Any]]:
        """SAME_STEP: what ended goes to `final_obs` and `final_info`, new episodes take its place."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(mask):
            final_obs[i] = row(observation, i)
        final = {
            # What has a mask of its own, test results, is NaN elsewhere already.
            name: x if f"_{name}" in info else np.where(_along(mask, x), x, np.zeros_like(x))
            for name, x in info.items()
            if name[0] != "_"
        }
        self._now = self._restarted(mask, before)
        host = self._fetch()
        info = host.info
        masks = {f"_{name}": mask.copy() for name in final}
        info |= {"final_obs": final_obs, "_final_obs": mask.copy(), "final_info": final | masks}
        return host.observation, info | {"_final_info": mask.copy()}

    def _fetch(self) -> Any:
        """The present time step with arrays in the place of tensors; rewards are float64, as Gymnasium's are."""
        assert self._now is not None
        host = to_host(self._now[1])
        if not np.isfinite(host.reward).all():  # lrenv's own rewards are finite
            broken = np.flatnonzero(~np.isfinite(host.reward)).tolist()
            raise ValueError(
                f"reward {self._view['reward']!r} of environments {broken} is NaN or infinite: it must be finite, also "
                "where trainees have diverged"
            )
        self._inner_step = host.info["inner_step"].copy()
        return host._replace(reward=host.reward.astype(np.float64))

    def _add_test(self, info: dict[str, Any], mask: NDArray[np.bool_]) -> None:
        assert self._now is not None
        rows = torch.from_numpy(np.flatnonzero(mask)).to(self._device)
        for name, result in to_host(self.episode.test(self._now[0], rows)).items():
            info[name] = np.full(self.num_envs, np.nan, result.dtype)
            info[name][mask] = result
            info[f"_{name}"] = mask.copy()

    def _record(self, info: dict[str, Any], restarted: NDArray[np.bool_], decided: dict[str, Any]) -> None:
        """Draws what is shown, and prints what a decision led to before the restarts within its step."""
        if self._history is not None:
            self._history.add(info, restarted)
            if self.render_mode == "human":
                print(self._history.line(decided), flush=True)


def _check_memory(episode: Episode, n: int) -> None:
    """Refuses more trainees than the device's memory holds."""
    task, trainee = episode.task, episode.trainee

    def needed(n: int) -> int:
        together = min(n, trainee.chunk_size)
        indices = 2 * 8 * together * task.interval * task.batch_size  # of an interval's examples, and as they are drawn
        return trainee.memory.total(n, together) + indices

    what = f"num_envs={n} of task {task.name!r} with batch_size={task.batch_size} and interval={task.interval}"
    check_fits(what, n, needed, trainee.device, "make fewer, or smaller ones")


def row(observation: Any, i: Any) -> Any:
    """Returns the observation of env i: an array, or a dict of them."""
    if isinstance(observation, dict):
        return {name: x[i].copy() for name, x in observation.items()}
    return observation[i].copy()


def _along(mask: NDArray[np.bool_], x: Array) -> NDArray[np.bool_]:
    return mask.reshape(-1, *(1,) * (x.ndim - 1))
