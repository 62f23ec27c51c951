"""Rewards: one number per decision from the validation loss, never from the test split.

A loss counts up to a cap of four times that of the untrained network. A run that diverges gets less than the lowest
return, discounted or not, that any run could still collect by going on, so that an agent never gains by making a run
diverge early. Only where the untrained network's loss is 0, and so the cap, `val_loss` and `final` pay just that lowest
return.

`log_val_loss` and `improvement` take a loss of less than 1e-8 for 1e-8: of a loss of one's own that is negative they
show nothing, so add a constant to it, or take another reward.

A reward is a function (dynamics, diverged (n,)) -> (n,), always finite. `register_reward` gives one's own a name;
environments also take the function itself:

    def fall(dynamics, diverged):
        return torch.where(diverged, -10.0, (dynamics.previous_val_loss - dynamics.val_loss).clamp(min=-1))

    gym.make("lrenv/digits-mlp-v0", reward=fall)

`tests/reference/xu2019.py` has the reward `val_loss` in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrenv.lookup import check_arguments, check_new, lookup, what_is
from lrenv.training.dynamics import Dynamics

Reward = Callable[[Dynamics, Tensor], Tensor]
"""(dynamics after a decision, which trainees have diverged (n,)) -> rewards (n,), finite whatever the dynamics are."""
CAP = 4.0
"""The cap, in losses of the untrained network: high enough never to touch a run that learns."""


def val_loss(d: Dynamics, diverged: Tensor) -> Tensor:
    """Returns the negative validation loss of each decision, the reward of Xu et al. 2019, section 2.2."""
    return torch.where(diverged, -_cap(d) * (_decisions_left(d) + 1), -_capped(d.val_loss, d))


def log_val_loss(d: Dynamics, diverged: Tensor) -> Tensor:
    """Returns the negative logarithm of the validation loss."""
    lowest = (-_log(_cap(d)) * _decisions_left(d)).clamp(max=0)  # discounted, what is left may be worth nothing
    return torch.where(diverged, lowest - 1, -_log(_capped(d.val_loss, d)))


def improvement(d: Dynamics, diverged: Tensor) -> Tensor:
    """Returns how far the logarithm of the validation loss has fallen: the return is how far it fell in all."""
    previous = _log(_capped(d.previous_val_loss, d))
    return torch.where(diverged, previous - _log(_cap(d)) - 1, previous - _log(_capped(d.val_loss, d)))


def final(d: Dynamics, diverged: Tensor) -> Tensor:
    """Returns the negative validation loss at the end of the budget, and 0 at every decision before."""
    at_end = (d.inner_step >= d.budget).to(d.val_loss.dtype)
    return torch.where(diverged, -2 * _cap(d), -_capped(d.val_loss, d) * at_end)


def _cap(d: Dynamics) -> Tensor:
    # A network that starts broken ends at its first decision; its reward must be a number nevertheless.
    start = d.initial_val_loss.where(d.initial_val_loss.isfinite(), 1.0)
    return start + (CAP - 1) * start.abs()


def _capped(loss: Tensor, d: Dynamics) -> Tensor:
    # A network whose loss is no number before any step has not diverged yet.
    return torch.minimum(loss.nan_to_num(nan=torch.inf), _cap(d))


def _log(loss: Tensor) -> Tensor:
    return loss.clamp(min=1e-8).log()


def _decisions_left(d: Dynamics) -> Tensor:
    """The number of rewards that a run that goes on collects, this one included."""
    done_before = ((d.inner_step - 1) / d.interval).floor()
    return (d.budget / d.interval).ceil() - done_before


REWARDS: dict[str, Reward] = {
    "val_loss": val_loss, "log_val_loss": log_val_loss, "improvement": improvement, "final": final,
}  # fmt: skip
"""Name -> reward."""
BUILT_IN = frozenset(REWARDS)
OWN = "; one of your own is named in training by its file, --reward my_file.py:name, or registered by register_reward"


def register_reward(name: str, reward: Reward, replace_existing: bool = False) -> Reward:
    """Makes a reward available under a name, wherever one is taken; what raises changes nothing.

    Args:
        name: of letters, digits, "_", "." and "-".
        reward: (dynamics, diverged (n,)) -> (n,), finite also where trainees have diverged.
        replace_existing: overwrite a reward of that name, other than lrenv's own, instead of refusing.

    Raises:
        TypeError: no function, or one that takes other arguments.
        ValueError: the name is taken, or none that specs can hold; or the function gives no rewards (n,).
    """
    check_new("reward", name, REWARDS, BUILT_IN, replace_existing)
    REWARDS[name] = _checked(reward)
    return reward


def make_reward(reward: str | Reward) -> Reward:
    """Returns the reward of that name, or the given function.

    Raises:
        TypeError: neither a name nor a function, or one that takes other arguments.
        ValueError: an unknown name, or a function that gives no rewards (n,).
    """
    return lookup(REWARDS, reward, "reward", OWN) if isinstance(reward, str) else _checked(reward)


def _checked(reward: Reward) -> Reward:
    """The function, if it gives rewards for two trainees of which one has diverged."""
    if not callable(reward):
        raise TypeError(f"a reward is a name or a function (dynamics, diverged) -> (n,), not {what_is(reward)}")
    check_arguments("reward", reward, "dynamics", "diverged")
    trial = reward(Dynamics(*(torch.ones(2) for _ in Dynamics._fields)), torch.tensor([False, True]))
    if not isinstance(trial, Tensor) or trial.shape != (2,):
        shape = tuple(trial.shape) if isinstance(trial, Tensor) else what_is(trial)
        raise ValueError(f"a reward function must give rewards (n,), so (2,) for two trainees, not {shape}")
    return reward
