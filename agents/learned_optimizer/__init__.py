"""Learned optimizers (Metz et al. 2019)."""
