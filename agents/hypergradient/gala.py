"""GALA: the learning rate by online learning, from the alignment of gradients and a local curvature.

Jiang, Kavis and Mokhtari 2025, "Online learning-guided learning rate adaptation via gradient alignment"
(arXiv:2506.08419), bound the loss after a step from w_t along -d_t by a surrogate of its rate eta,

    l_t(eta) = -eta <g_(t+1), d_t> + eta^2 / 2 * L_t |d_t|^2,    L_t = |g_(t+1) - g'_t| / |w_(t+1) - w_t|,

and let follow-the-regularised-leader choose the next rate, the minimiser of all surrogates so far and of a pull
delta / 2 * (eta - eta_0)^2 towards the first rate:

    eta = (delta * eta_0 + sum_t <g_(t+1), d_t>) / (delta + sum_t L_t |d_t|^2).

Theirs: the surrogate, the curvature and the leader. Ours:

- The direction is that of the step's own batch. Both gradients of L_t are on the next one, as in the paper, for another
  gradient per step: between different batches, their noise would count as curvature.
- d_t is the direction of the trainee's optimizer, as it stands in the step: SGD's or Adam's.
- Without a pull, delta = 0, eta_0 is the rate of the first step alone.
- Rates are clipped: a negative sum of alignments gives `low`.

`tests/reference/gala.py` has it in NumPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lrenv.agents.hypergradient.recurrence import INITIAL_LRS, Parts, Recurrence, Values, rates_from
from lrenv.agents.hyperparameters import Array, Hyperparameter, tuned
from lrenv.controllers.agent import View
from lrenv.envs.actions import BOUNDS

VIEW = View("set-raw", ("hypergradient", "direction_square", "gradient_change_square"), interval=1)


class Surrogates(NamedTuple):
    """What GALA carries: the rate, and the sums that the next one follows from."""

    rate: Array  # (n, 1)
    alignment: Array  # (n, 1), sum of <g_(t+1), d_t>
    curvature: Array  # (n, 1), sum of L_t |d_t|^2


class GALA(Recurrence[Surrogates]):
    """Follow the regularised leader: eta = (delta eta_0 + sum of alignments) / (delta + sum of curvatures)."""

    def initial(self, rate: Array) -> Surrogates:
        """Returns the carry at the first rates, with empty sums."""
        return Surrogates(rate, np.zeros(rate.shape), np.zeros(rate.shape))

    def update(self, carry: Surrogates, seen: Parts, values: Values) -> Surrogates:
        """Adds the last step's surrogate, and gives the minimiser of all."""
        # L |d|^2 = |change of g| |d|^2 / (rate |d|). Without a step there is no curvature to be seen.
        lengths = np.sqrt(seen["gradient_change_square"]) * np.sqrt(seen["direction_square"])
        alignment = carry.alignment - seen["hypergradient"]
        curvature = carry.curvature + np.divide(
            lengths, np.abs(carry.rate), out=np.zeros_like(lengths), where=carry.rate != 0
        )
        weight = values["delta"] + curvature
        pulled = values["delta"] * values["initial_lr"] + alignment
        leader: Array = np.divide(pulled, weight, out=np.array(carry.rate), where=weight > 0)
        return Surrogates(leader, alignment, curvature)


@tuned(initial_lr=INITIAL_LRS)
def gala(
    initial_lr: Hyperparameter = 1e-3,
    delta: Hyperparameter = 0.0,
    low: Hyperparameter = BOUNDS[0],
    high: Hyperparameter = BOUNDS[1],
) -> GALA:
    """GALA on the task's own optimizer.

    Args:
        initial_lr: eta_0, the first rate.
        delta: how strongly rates are held at the first one; in units of the curvature L |d|^2 of a step, so that a
            value suits one task. 0, the default, needs no tuning.
        low: rates are not below; above 0, for a step of no length shows no curvature.
        high: rates are not above.

    Raises:
        ValueError: a hyperparameter is wrong.
    """
    return GALA("gala", rates_from(initial_lr, delta=delta, low=low, high=high), VIEW)
