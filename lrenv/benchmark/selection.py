"""What is chosen by results: one rule for runs that diverge, and one for what is better than what was best so far."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def selection_losses(losses: NDArray[Any], diverged: NDArray[np.bool_]) -> NDArray[Any]:
    """Returns the losses that something is selected by: infinite where a run diverged, however low it got before.

    Args:
        losses: of runs, of any shape.
        diverged: whether they did, of the same shape.

    Returns:
        The losses, infinite where a run diverged or its loss is not finite; their mean over runs may be compared.
    """
    return np.where(diverged | ~np.isfinite(losses), np.inf, losses)


def improves(loss: float, best: float | None) -> bool:
    """Returns whether `loss` is to take the place of the best one so far.

    NaN never does. The first loss does in any case, so that there is something to take, but a first infinity, or NaN,
    gives way to any number.

    Args:
        loss: the new one.
        best: the lowest so far; None where there is none yet.
    """
    return not math.isnan(loss) and (best is None or math.isnan(best) or loss < best)
