"""What agents remember from decision to decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.controllers.agent import State

Memory = tuple[NDArray[Any], ...]
"""Arrays with the env axis first."""


def recalled(state: State, fresh: Memory, episode_start: NDArray[np.bool_] | None) -> Memory:
    """The memory with which n envs go into a decision.

    Args:
        state: what the last decision left, None before the first.
        fresh: the memory at the start of an episode.
        episode_start: (n,), True where an episode starts.

    Raises:
        ValueError: the state is that of another batch.
    """
    if state is None:
        return fresh
    check_batch(state, fresh)
    if episode_start is None:
        return state
    starts = [np.reshape(episode_start, (-1, *(1,) * (new.ndim - 1))) for new in fresh]
    return tuple(np.where(start, new, old) for start, new, old in zip(starts, fresh, state, strict=True))


def check_batch(state: Sequence[Any], fresh: Sequence[Any]) -> None:
    """Raises ValueError if the state is that of another batch than the fresh memory; arrays or tensors."""
    held, needed = tuple(state[0].shape), tuple(fresh[0].shape)
    if held != needed:
        raise ValueError(f"the state is that of {held[0]} envs (arrays {held}, here {needed}): pass None to restart")
