"""Controllers trained with PPO: the learning rate as a reinforcement learning problem.

Xu, Dai, Kemp, Metz and Sun 2019, "Learning an adaptive learning rate schedule" (arXiv:1909.09712), section 2.2. At
every decision t, which is every N inner steps:

- observation s_t: training loss, validation loss, variance of the predictions, variance of their changes, mean and
  variance of the last layer's weights, and the learning rate (`lrenv.envs.observations`; raw as "paper", on a log scale
  with the share of the budget as "dynamics", the default);
- action a_t: the rate becomes lr * 2^a_t, with a_t in [-1, 1] (`lrenv.envs.actions`, "scale");
- reward r_t: minus the validation loss (`lrenv.envs.rewards`, "val_loss").

The controller maximises the sum of gamma^t r_t by proximal policy optimisation (Schulman, Wolski, Dhariwal, Radford and
Klimov 2017, arXiv:1707.06347). With w_t the ratio of an action's probabilities under the new and the old policy, and
A_t its advantage, equation 1 is

    J = E[min(w_t A_t, clip(w_t, 1 - epsilon, 1 + epsilon) A_t)].

Read `agent.py` first (the trained controller and its file), then `settings.py`, `algorithm.py` (Stable-Baselines3's,
with a rate each for actor and critic) and `training.py`. `multi_task.py` trains one policy on several tasks: `tasks.py`
says which come, and `lrenv.agents.outer.validation` how its controllers are compared.

Limits: a controller is about as good as a tuned schedule on the task that it was trained on, and mostly poor on others
(`docs/carries-over.md`). Training one takes about a thousand runs of the task. Those trained on many drawn tasks are
ahead of an untuned linear decay on further ones, in the mean, and behind `universal` (`docs/universal.md`).
"""
