"""The environment: networks in training as episodes (Xu et al. 2019, "Learning an Adaptive Learning Rate Schedule").

Read in this order:

1. `actions`: the action a scales the rate, lr * 2 ** a (section 2.2), and the other controls.
2. `lrenv.training.dynamics` and `observations`: the paper's seven quantities with their formulas, and what agents see
   (`quantities` tells of which ones an observation is made).
3. `rewards`: the negative validation loss of each decision (section 2.2), and others.
4. `episode`: all of it as pure functions, step(state, action) -> (state, time step).
5. `vector_env` and `env`, the adapters to Gymnasium, and `sb3_vec_env`, that to Stable-Baselines3;
   `multi_task_vec_env` is several of the latter side by side, with a task each.

The others serve the adapters: `episode_seeds`, `snapshots` (environments as values), `rendering`, and `own` (rewards
and observations of one's own, by their file).
"""
