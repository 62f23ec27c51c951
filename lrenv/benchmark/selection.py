"""The one rule by which agents, settings and checkpoints are chosen: whoever dies counts as infinitely bad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def selection_losses(losses: NDArray[Any], diverged: NDArray[np.bool_]) -> NDArray[Any]:
    """The losses, infinite where a run diverged or its loss is not finite.

    A run that reached a low loss and then died is no reason to choose what led to it.

    Args:
        losses: of any shape.
        diverged: of the same shape.
    """
    return np.where(diverged | ~np.isfinite(losses), np.inf, losses)


def improves(loss: float, best: float) -> bool:
    """Whether a loss is lower than the best so far; one that is not finite never is."""
    return math.isfinite(loss) and loss < best
