"""Networks in training as batched Gymnasium environments, for agents that control the learning rate.

Importing the package registers `lrenv/<task>-v0` for every task:

    import gymnasium as gym, lrenv
    env = gym.make("lrenv/digits-mlp-v0")
    envs = gym.make_vec("lrenv/digits-mlp-v0", num_envs=64)
"""

from __future__ import annotations

import gymnasium as gym

from lrenv.tasks import LogUniform, Task, make_task, on_register, register_task, tasks

__all__ = ["LogUniform", "Task", "make_task", "register_task", "tasks"]


def _register(task: Task) -> None:
    name = f"lrenv/{task.name}-v0"
    gym.registry.pop(name, None)  # a task that replaces another, which Gymnasium would warn of
    gym.register(
        name,
        entry_point="lrenv.env:LearningRateEnv",
        vector_entry_point="lrenv.vector_env:LearningRateVectorEnv",
        kwargs={"task": task.name},
    )


on_register(_register)
