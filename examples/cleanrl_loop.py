"""PPO as in CleanRL's single files, on the vector environment: `python examples/cleanrl_loop.py`.

Episodes end by termination at the budget, so nothing is bootstrapped; with SAME_STEP no row is a reset alone.
"""

from __future__ import annotations

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Normal

from lrenv.randomness.seeds import seeds_for  # lrenv registers its environments

ENVS, STEPS, CLIP, GAMMA, LAMBDA = 32, 10, 0.2, 1.0, 0.95


def main(iterations: int = 12) -> list[float]:
    """Trains a controller; gives the mean return of each iteration, which is one episode in each environment."""
    torch.manual_seed(0)
    settings = {"budget": 100, "interval": 10, "reward": "improvement", "autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gym.make_vec("lrenv/digits-logreg-v0", num_envs=ENVS, **settings)
    size, actions = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    actor = nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, actions))
    critic = nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, 1))
    log_std = nn.Parameter(torch.full((actions,), -0.5))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std], lr=3e-3, eps=1e-5)
    seen, returns = torch.as_tensor(envs.reset(seed=seeds_for("training", 1)[0])[0]), []
    for _ in range(iterations):
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(STEPS):
            with torch.no_grad():
                policy, value = Normal(actor(seen), log_std.exp()), critic(seen).squeeze(1)
            action = policy.sample()
            following, reward, terminated, _, _ = envs.step(action.clamp(-1, 1).numpy())
            reward, done = torch.as_tensor(reward).float(), torch.as_tensor(terminated).float()
            rows.append((seen, action, policy.log_prob(action).sum(1), reward, value, done))
            seen = torch.as_tensor(following)
        observed, acted, log_prob, rewards, values, dones = (torch.stack(x) for x in zip(*rows, strict=True))
        returns.append(float(rewards.sum(0).mean()))
        advantages, last = torch.zeros_like(rewards), torch.zeros(ENVS)
        following_values = torch.cat([values[1:], critic(seen).detach().T])
        for t in reversed(range(STEPS)):
            delta = rewards[t] + GAMMA * following_values[t] * (1 - dones[t]) - values[t]
            last = advantages[t] = delta + GAMMA * LAMBDA * (1 - dones[t]) * last
        targets, scaled = advantages + values, (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(10):
            ratio = (Normal(actor(observed), log_std.exp()).log_prob(acted).sum(2) - log_prob).exp()
            gain = torch.min(ratio * scaled, ratio.clamp(1 - CLIP, 1 + CLIP) * scaled).mean()
            optimizer.zero_grad()
            (0.5 * (critic(observed).squeeze(2) - targets).square().mean() - gain).backward()
            optimizer.step()
    print(f"mean return {returns[0]:.2f} at first, {returns[-1]:.2f} at last")
    return returns


if __name__ == "__main__":
    main()
