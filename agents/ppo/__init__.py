"""Controllers trained with PPO (Xu et al. 2019)."""
