"""Schedules of the learning rate: the rate as a function of the inner step t and the budget T, made by hand.

| name | rate at step t | known from |
|---|---|---|
| `constant` | peak | |
| `step` | peak factor^floor(t / s) | PyTorch's `StepLR` |
| `exponential` | peak decay^(t / T) | `ExponentialLR` |
| `linear` | peak + (floor - peak) t / T | `LinearLR` |
| `cosine` | floor + (peak - floor) (1 + cos(pi t / T)) / 2 | `CosineAnnealingLR`; Loshchilov and Hutter 2016 |
| `one-cycle` | half a cosine up, half a cosine down | `OneCycleLR`; Smith and Topin 2017, arXiv:1708.07120 |
| `sgdr` | cosines with restarts | Loshchilov and Hutter 2016, "SGDR", arXiv:1608.03983 |
| `inverse-sqrt` | peak sqrt(s / max(t + 1, s)) | Vaswani et al. 2017, arXiv:1706.03762 |
| `plateau` | lowered where the validation loss stops improving | `ReduceLROnPlateau` |

Read `formulas.py` first (the rates), then `agent.py` (the clock, the warm-up, and the names with their defaults), then
`plateau.py`, which is no function of time. A new schedule needs its formula, its name in `agent.py`, the limits of its
own hyperparameters in `lrenv.agents.hyperparameters`, and an entry point in `pyproject.toml`.
"""
