"""Rewards: one number per decision from the validation loss, never from the test split.

A loss counts up to a cap of four times that of the untrained network. A diverged run is charged more than the
worst that any run could still collect by living on, so that dying early never pays.

`tests/reference/xu2019.py` has the reward `val_loss` in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lrenv.lookup import lookup
from lrenv.training.dynamics import Dynamics

CAP = 4.0
"""The cap, in losses of the untrained network: high enough never to touch a run that learns."""


class Reward(NamedTuple):
    """A reward, and that of a decision in which a trainee diverges; both give (n,) from `Dynamics`."""

    living: Callable[[Dynamics], Tensor]
    diverged: Callable[[Dynamics], Tensor]


def _cap(d: Dynamics) -> Tensor:
    # A network that starts broken ends at its first decision; its reward must be a number nevertheless.
    start = d.initial_val_loss.where(d.initial_val_loss.isfinite(), 1.0)
    return start + (CAP - 1) * start.abs()


def _loss(d: Dynamics) -> Tensor:
    return torch.minimum(d.val_loss, _cap(d))


def _log(loss: Tensor) -> Tensor:
    return loss.clamp(min=1e-8).log()


def _previous(d: Dynamics) -> Tensor:
    # Behind a divergence the previous loss is NaN as well.
    return _log(torch.minimum(d.previous_val_loss.nan_to_num(nan=torch.inf), _cap(d)))


def _left(d: Dynamics) -> Tensor:
    """Rewards that a living run collects from this one on."""
    done_before = ((d.inner_step - 1) / d.interval).floor()
    return (d.budget / d.interval).ceil() - done_before


def _at_end(d: Dynamics) -> Tensor:
    return (d.inner_step >= d.budget).to(d.val_loss.dtype)


REWARDS: dict[str, Reward] = {
    "val_loss": Reward(lambda d: -_loss(d), lambda d: -_cap(d) * (_left(d) + 1)),
    "log_val_loss": Reward(lambda d: -_log(_loss(d)), lambda d: -_log(_cap(d)) * _left(d) - 1),
    "improvement": Reward(lambda d: _previous(d) - _log(_loss(d)), lambda d: _previous(d) - _log(_cap(d)) - 1),
    "final": Reward(lambda d: -_loss(d) * _at_end(d), lambda d: -2 * _cap(d)),
}
"""Name -> reward. `val_loss` is the paper's (Xu et al. 2019, section 2.2); `improvement` is the fall of the log
loss, whose return is the log of how far it fell; `final` pays at the end of the budget alone."""


def make_reward(reward: str) -> Callable[[Dynamics, Tensor], Tensor]:
    """The reward of that name as a function (dynamics, diverged (n,)) -> (n,), always finite.

    Raises:
        ValueError: an unknown name.
    """
    living, diverged = lookup(REWARDS, reward, "reward")
    return lambda d, dead: torch.where(dead, diverged(d), living(d))
