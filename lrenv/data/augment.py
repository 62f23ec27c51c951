"""Augmentation of image batches, whose random numbers are functions of keys (`lrenv.randomness.draws`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrenv.randomness import draws

PADDING = 4
"""The number of pixels by which an image may move in each direction (He et al. 2016, section 4.2)."""


def crop(key: Tensor, x: Tensor) -> Tensor:
    """Pads each image with zeros by 4 pixels per side and cuts a window of the old size at a random place.

    Args:
        key: (n,) int64.
        x: (n, b, channels, height, width).
    """
    n, b, channels, height, width = x.shape
    shift = (draws.uniform(key, (2, b)) * (2 * PADDING + 1)).long()
    rows = shift[:, 0, :, None] + torch.arange(height, device=x.device)
    columns = shift[:, 1, :, None] + torch.arange(width, device=x.device)
    padded = F.pad(x, (PADDING,) * 4)
    index = (rows[..., None] * (width + 2 * PADDING) + columns[:, :, None, :]).flatten(2)
    index = index[:, :, None].expand(-1, -1, channels, -1)
    return padded.flatten(3).gather(3, index).view(n, b, channels, height, width)


def crop_flip(key: Tensor, x: Tensor) -> Tensor:
    """Mirrors each image left to right with probability 1/2, and crops it as `crop` does.

    Args:
        key: (n,) int64.
        x: (n, b, channels, height, width).
    """
    mirrored = draws.uniform(draws.fold(key, 1), (x.shape[1], 1, 1, 1)) < 0.5
    return crop(key, torch.where(mirrored, x.flip(-1), x))


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"crop": crop, "crop-flip": crop_flip}
"""Name -> function (keys, images) -> images."""
