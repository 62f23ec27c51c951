"""RLlib trains a controller with PPO on the vector environment: `python examples/rllib_ppo.py`.

RLlib asks for an older Gymnasium than lrenv does, and works with this one: docs/integrations.md says what to install.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import ray
from ray.rllib.algorithms.ppo import PPOConfig

from lrenv.randomness.seeds import seeds_for  # lrenv registers its environments

ENVS, STEPS = 32, 10


def main(iterations: int = 8) -> list[float]:
    """Trains a controller; gives the mean return of the episodes of each iteration."""
    settings: dict[str, Any] = {"budget": 100, "interval": 10, "reward": "improvement"}
    config = (
        PPOConfig()
        .environment("lrenv/digits-logreg-v0", env_config=settings)
        .env_runners(
            num_env_runners=0,  # in this process: one environment of many trainees is faster than many environments
            num_envs_per_env_runner=ENVS,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,  # the native vector environment
        )
        .training(train_batch_size_per_learner=ENVS * STEPS, minibatch_size=80, num_epochs=10, gamma=1.0, lr=3e-3)
        .debugging(seed=seeds_for("training", 1)[0])
    )
    algorithm = config.build_algo()
    returns = [float(algorithm.train()["env_runners"]["episode_return_mean"]) for _ in range(iterations)]
    algorithm.stop()
    ray.shutdown()
    print(f"mean return {returns[0]:.2f} at first, {returns[-1]:.2f} at last")
    return returns


if __name__ == "__main__":
    main()
