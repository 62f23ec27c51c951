"""The one loop in which agents are trained: a state that is carried through decisions, differentiable on request.

What a decision does is a function `step(parameters, state, given) -> (output, state)`:

- NOH acts on `lrenv.envs.episode.Episode.step`, and so does whatever acts by what it observes. PPO does through the
  vector environment, which Stable-Baselines3 steps itself.
- A learned optimizer is no agent that acts, but a part of the inner step. Its decisions are those of
  `lrenv.training.trainee.Trainee.unroll`, the inner loop of `Episode.step` by itself: the losses of each inner step are
  what it is trained on, and an episode keeps their mean.
- Schedules (FDS, its rivals, random search) change wherever a value's share of the budget begins, between two decisions
  of an episode, too. In forward mode each tangent is a copy of what it passes through: of weights and optimizer state
  here, and of all that is measured if it passed through an episode. So they, too, go through `Trainee.unroll`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

P = TypeVar("P")
S = TypeVar("S")
I = TypeVar("I")  # noqa: E741 - as in functions of scans: parameters, state, input, output
O = TypeVar("O")  # noqa: E741
Step = Callable[[P, S, I], tuple[O, S]]
"""(what is learned, the state between two decisions, what is given of a decision) -> (what it gives, the state)."""


def rollout(
    step: Step[P, S, I, O], parameters: P, state: S, given: Iterable[I], recompute: bool = False
) -> tuple[list[O], S]:
    """Takes a step for each item of `given`: detached under `torch.no_grad()`, differentiable otherwise.

    Args:
        step: a decision.
        parameters: a tree of tensors that gradients are wanted by.
        state: a tree of tensors before the first decision.
        given: of each decision.
        recompute: keep for the backward pass only the states between decisions, and take each step a second time on the
            way back: memory is that of one decision and all states, for one more pass.

    Returns:
        What each step gave, and the state after the last one.
    """
    outputs = []
    for item in given:
        if recompute and torch.is_grad_enabled():
            output, state = _recomputed(partial(_given, step, item), parameters, state)
        else:
            output, state = step(parameters, state, item)
        outputs.append(output)
    return outputs, state


def _given(step: Step[P, S, I, O], item: I, parameters: P, state: S) -> tuple[O, S]:
    return step(parameters, state, item)


def _recomputed(step: Callable[[P, S], tuple[O, S]], parameters: P, state: S) -> tuple[O, S]:
    """A step that keeps nothing for the backward pass but where it began."""
    leaves, before = tree_flatten((parameters, state))
    after: list[Any] = []

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        results, structure = tree_flatten(step(*tree_unflatten(leaves, before)))
        after[:] = [structure]
        return tuple(results)

    # Reentrant: the other kind needs hooks that gradients within the training, by torch.func.grad, don't support.
    results = checkpoint(run, *leaves, use_reentrant=True, preserve_rng_state=False)
    output: tuple[O, S] = tree_unflatten(results, after[0])
    return output
