"""Copying any number of tensors from their device to the host in one transfer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def to_host(tree: Any) -> Any:
    """Returns the tree with a NumPy array in the place of every tensor, of the same shape, dtype and numbers.

    The tensors are flattened to bytes, concatenated, copied to the host together, and split there. So the host waits
    for the device once, since waiting takes longer than the copy itself where tensors are small.

    Args:
        tree: nested tuples, dicts and lists of tensors on one device.

    Returns:
        A tree of the same structure. Its arrays share no memory with the tensors or with one another.
    """
    tensors, structure = tree_flatten(tree)
    held = torch.cat([_bytes(x) for x in tensors]).cpu().numpy()
    arrays, start = [], 0
    for x in tensors:
        end = start + x.numel() * x.itemsize
        dtype = str(x.dtype).removeprefix("torch.")
        # A copy: arrays that begin in the middle of others are not aligned to the size of their numbers.
        arrays.append(held[start:end].view(dtype).reshape(x.shape).copy())
        start = end
    return tree_unflatten(arrays, structure)


def _bytes(x: Tensor) -> Tensor:
    # A single number counts as contiguous whatever its stride, but can't be viewed as bytes with every stride.
    return x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8)
