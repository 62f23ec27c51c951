"""LSTM policies that set a rate per parameter (Fu et al. 2017)."""
