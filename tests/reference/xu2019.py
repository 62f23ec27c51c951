"""Observation, action and reward of Xu et al. 2019, section 2.2. The modules are `lrenv/envs/observations.py`,
`lrenv/envs/actions.py` and `lrenv/envs/rewards.py`.

The factor 2 and the bounds of the rate are lrenv's: the paper has a scaling factor, and gives no range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def observation(
    train_losses: Array, val_loss: float, logits: Array, logits_before: Array, last_layer: Array, lr: float
) -> Array:
    """The seven features in the paper's order.

    Args:
        train_losses: (N,), of the interval's batches.
        val_loss: after the interval.
        logits: (examples, classes), on the validation split after the interval.
        logits_before: the same before the interval.
        last_layer: weights of the final dense layer.
        lr: of the interval.
    """
    predictions, before = softmax(logits), softmax(logits_before)
    return np.array(
        [
            train_losses.mean(),  # current train loss
            val_loss,  # validation loss
            predictions.var(),  # variance of network predictions
            (predictions - before).var(),  # variance of network prediction changes
            last_layer.mean(),  # mean of the weight matrix of the final dense layer
            last_layer.var(),  # variance of the weight matrix of the final dense layer
            lr,  # the previous step learning rate
        ]
    )


def scaled(lr: float, action: float) -> float:
    """The next rate: the last one times 2^a, a in [-1, 1]."""
    return float(np.clip(lr * 2**action, 1e-7, 10))


def reward(val_loss: float) -> float:
    """Of every decision: the lower the validation loss, the better."""
    return -val_loss
