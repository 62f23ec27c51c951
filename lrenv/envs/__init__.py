"""The environment: actions, observations, rewards, episodes, and the adapters to Gymnasium and Stable-Baselines3."""
