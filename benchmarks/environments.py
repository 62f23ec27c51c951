"""The environment as a contestant: its core alone, whole steps from NumPy to NumPy, and the parts of a decision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from harness import Build, Sized, Turn, rate
from lrenv.envs.episode import Episode
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.runtime.process import keep_memory
from lrenv.runtime.transfer import to_host
from lrenv.training.tasks import make_task

WARM_UP = 2
"""The number of decisions before timing; the second starts from the first one's state, for which graphs may compile."""


def decisions(
    task: str,
    envs: int,
    number: int,
    compile: bool = False,
    precision: str = "full",
    chunk_size: int | None = None,
    control: str = "set-raw",
    observe: str | tuple[str, ...] = "dynamics",
    **options: Any,
) -> Turn:
    """Builds the core of the environment; a turn is in trainee-steps per second, at a rate of 1e-3.

    Args:
        task: a task's name.
        envs: trainees in parallel.
        number: decisions in a turn.
        compile: as of `Episode`.
        precision: as of `Episode`.
        chunk_size: trainees in a group; its own choice if None.
        control: as of `Episode`.
        observe: as of `Episode`.
        **options: settings of the task.
    """
    keep_memory()
    episode = Episode(
        make_task(task, **options), control, observe, compile=compile, precision=precision, chunk_size=chunk_size
    )
    action = torch.full((envs, episode.control.rates), 1e-3)

    @torch.no_grad()
    def run(number: int) -> None:
        # Always from the same state: far beyond the budget, vanishing gradients would be slow denormal numbers.
        state, steps, nobody = start, np.zeros(envs, np.int64), np.zeros(envs, bool)
        for _ in range(number):
            state, time_step = episode.step(state, action, episode.measurement_due(steps, nobody))
            steps += episode.task.interval
            to_host(time_step)

    with torch.no_grad():
        start, _ = episode.reset(range(envs))
    run(WARM_UP)
    return partial(rate, partial(run, number), units=number * envs * episode.task.interval)


def entrants(settings: Sized) -> dict[str, Build]:
    """Returns the contestants of a race: the eager environment and, if asked for, the compiled one."""
    eager = partial(decisions, settings.task, settings.envs, settings.decisions, **settings.options)
    contestants: dict[str, Build] = {"environment": eager}
    if settings.compile:
        contestants["environment, compiled"] = partial(eager, compile=True)
    if settings.bf16:
        contestants["environment, bf16"] = partial(eager, precision="bf16")
    return contestants


def stepping(task: str, envs: int, number: int, compile: bool = False, **options: Any) -> Turn:
    """Builds the vector environment, whose episodes restart as they end; for the rest see `decisions`."""
    keep_memory()
    step, vector_env = stepped(task, envs, compile, options)
    return partial(rate, step, number, envs * vector_env.task.interval)


def parts(
    step: Callable[[], object], vector_env: LearningRateVectorEnv, compile: bool
) -> dict[str, Callable[[], object]]:
    """Returns the parts of an environment's step, each as a function to be timed by itself.

    Returns:
        `training` (draws of batches included) and `measuring` (networks and losses).
    """
    trainee = vector_env.episode.trainee
    # The environment may send its trainees through in groups: the parts work on what it gave to `inner_loop`.
    with mock.patch.object(trainee, "inner_loop", wraps=trainee.inner_loop) as inner_loop:
        step()
    groups = [call.args for call in inner_loop.call_args_list]
    evaluate = torch.compile(trainee.evaluate, dynamic=False) if compile else trainee.evaluate

    def training() -> None:
        for group in groups:
            trainee.inner_loop(*group)

    def measuring() -> None:
        for state, *_ in groups:
            evaluate(state.params, state.buffers, trainee.val)

    calls: dict[str, Callable[[], object]] = {"training": training, "measuring": measuring}
    quiet: dict[str, Callable[[], object]] = {name: torch.no_grad()(call) for name, call in calls.items()}
    for call in quiet.values():
        call()
    return quiet


def stepped(
    task: str, envs: int, compile: bool, options: dict[str, Any]
) -> tuple[Callable[[], object], LearningRateVectorEnv]:
    """Returns a function that takes another step of a warm vector environment, and that environment."""
    vector_env = LearningRateVectorEnv(
        envs, make_task(task, **options), device="cpu", compile=compile, autoreset_mode=AutoresetMode.SAME_STEP
    )
    vector_env.reset(seed=0)
    step = partial(vector_env.step, np.zeros(vector_env.action_space.shape or (), np.float32))
    for _ in range(WARM_UP):
        step()
    return step, vector_env
