"""Networks in training as batched Gymnasium environments, for agents that control the learning rate.

Importing the package registers `lrenv/<task>-v0` for every task:

    import gymnasium as gym, lrenv
    env = gym.make("lrenv/digits-mlp-v0")
    envs = gym.make_vec("lrenv/digits-mlp-v0", num_envs=64)
"""

from __future__ import annotations

from lrenv.training.tasks import LogUniform, Task, make_task, register_task, tasks

__all__ = ["LogUniform", "Task", "make_task", "register_task", "tasks"]
