"""Optimizers that find their learning rate themselves, from their authors' packages (`pip install 'lrenv[baselines]'`).

| agent | package | paper | rate |
|---|---|---|---|
| `schedule-free` | `schedulefree` | Defazio et al. 2024, arXiv:2405.15682 | given, no decay; an average is measured |
| `prodigy` | `prodigyopt` | Mishchenko, Defazio 2024, arXiv:2306.06101 | d lr, d an estimate of the distance |
| `d-adaptation` | `dadaptation` | Defazio, Mishchenko 2023, arXiv:2301.07733 | d lr, d a lower bound of the distance |
| `dog` | `dog-optimizer` | Ivgi et al. 2023, arXiv:2302.12022 | distance so far over the root of summed squares |
| `mechanic` | `mechanic-pytorch` | Cutkosky et al. 2023, arXiv:2306.00144 | s lr, s found by online learning |
| `momo` | `momo-opt` | Schaipp et al. 2024, arXiv:2305.07583 | Polyak's step from a model of the loss, capped by lr |

Read `agent.py`; each factory says where its options are recommended. A run has an optimizer of its own
(`lrenv.benchmark.optimizer_runs`), since most of these keep one number for all parameters of a network.

The d is that which the step took, before it is raised; `d-adaptation:base=sgd` divides it by the norm of the first
gradient.

Limits: they are optimizers, and can't be combined with rates that something else sets. Here each run is trained by
itself, not in a batch, so that they take longer than other agents.
"""
