"""Schedules of the learning rate: the rate as a function of the inner step t and the budget T, made by hand.

| name | rate at step t | known from |
|---|---|---|
| `constant` | peak | |
| `constant-ema` | peak; measured and tested is an average of the weights | Polyak averaging; arXiv:2602.03702 |
| `step` | peak factor^floor(t / s) | PyTorch's `StepLR` |
| `exponential` | peak decay^(t / T) | `ExponentialLR` |
| `linear` | peak + (floor - peak) t / T | `LinearLR` |
| `cosine` | floor + (peak - floor) (1 + cos(pi t / T)) / 2 | `CosineAnnealingLR`; Loshchilov and Hutter 2016 |
| `wsd` | peak, then a decay to floor in the last steps | Hu et al. 2024, arXiv:2404.06395; decays of arXiv:2405.18392 |
| `power` | floor + (peak - floor) (1 - t / T)^p | `PolynomialLR`; arXiv:2602.06797 |
| `rex` | floor + (peak - floor) z / (1 / 2 + z / 2), z = 1 - t / T | Chen et al. 2022, arXiv:2107.04197 |
| `one-cycle` | half a cosine up, half a cosine down | `OneCycleLR`; Smith and Topin 2017, arXiv:1708.07120 |
| `sgdr` | cosines with restarts | Loshchilov and Hutter 2016, "SGDR", arXiv:1608.03983 |
| `inverse-sqrt` | peak sqrt(s / max(t + 1, s)) | Vaswani et al. 2017, arXiv:1706.03762 |
| `refined` | w_t times the sum of later w, w = G^-2 of a run's gradient norms | Defazio et al. 2023, arXiv:2310.07831 |
| `greedy` | raised while the validation loss improves, lowered while it does not | arXiv:2512.14527 |
| `greedy-bounded` | the same, between a hundredth and ten times of the initial rate | |
| `plateau` | lowered where the validation loss stops improving | `ReduceLROnPlateau` |

Every one can have a rate per layer, in proportion to a power of its fan-in, and a weight decay (`base.py`).

Read `formulas.py` first (the rates), then `base.py` (the clock, the warm-up, the multipliers) and `agent.py` (the names
with their defaults), then `refined.py`, which needs a run, and `plateau.py` and `greedy.py`, which are no functions of
time. A new schedule needs its formula, its name in `agent.py`, the limits of its own hyperparameters in
`lrenv.agents.hyperparameters`, and an entry point in `pyproject.toml`.

Limits: the peak must be tuned for each task, as `lrenv compare` does on seeds of its own. Those that are functions of
time heed nothing of what happens in training.
"""
