"""torchrl trains a controller with PPO on the vector environment: `python examples/torchrl_ppo.py`."""

from __future__ import annotations

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, GymWrapper, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from lrenv.randomness.seeds import seeds_for  # lrenv registers its environments

ENVS, STEPS, EPOCHS = 32, 10, 10


def main(iterations: int = 12) -> list[float]:
    """Trains a controller; gives the mean return of each iteration, which is one episode in each environment."""
    torch.manual_seed(0)
    settings = {"budget": 100, "interval": 10, "reward": "improvement", "autoreset_mode": AutoresetMode.DISABLED}
    envs = GymWrapper(gym.make_vec("lrenv/digits-logreg-v0", num_envs=ENVS, **settings))
    envs.set_seed(seeds_for("training", 1)[0])
    size, actions = envs.observation_spec["observation"].shape[-1], envs.action_spec.shape[-1]
    network = nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, 2 * actions), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]), in_keys=["loc", "scale"],
        spec=envs.action_spec, distribution_class=TanhNormal, return_log_prob=True,
    )  # fmt: skip
    critic = ValueOperator(nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, 1)), in_keys=["observation"])
    advantages = GAE(gamma=1.0, lmbda=0.95, value_network=critic, average_gae=True)
    objective = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_bonus=False)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    returns = []
    for _ in range(iterations):
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            batch = envs.rollout(STEPS, actor, break_when_any_done=False)
        returns.append(float(batch["next", "reward"].sum(1).mean()))
        for _ in range(EPOCHS):
            advantages(batch)
            losses = objective(batch)
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            optimizer.step()
    print(f"mean return {returns[0]:.2f} at first, {returns[-1]:.2f} at last")
    return returns


if __name__ == "__main__":
    main()
