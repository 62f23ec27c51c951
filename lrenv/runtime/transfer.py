"""Copying any number of tensors from their device to the host in one transfer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def to_host(tree: Any) -> Any:
    """Returns the tree with a NumPy array in the place of every tensor, of the same shape, dtype and numbers.

    The tensors are flattened to bytes, concatenated, copied to the host together, and split there. So the host waits
    for the device once, since waiting takes longer than the copy itself where tensors are small.

    Args:
        tree: nested tuples, dicts and lists of tensors on one device, or of none. Their dtypes are those that NumPy
            has: bool, integers, float16, float32, float64, complex64 and complex128.

    Returns:
        A tree of the same structure. Its arrays share no memory with the tensors or with one another.

    Raises:
        TypeError: a dtype that NumPy doesn't have, such as bfloat16.
    """
    tensors, structure = tree_flatten(tree)
    if not tensors:
        return tree_unflatten([], structure)
    dtypes = [_numpy_dtype(x) for x in tensors]
    held = torch.cat([_bytes(x) for x in tensors]).cpu().numpy()
    arrays, start = [], 0
    for x, dtype in zip(tensors, dtypes, strict=True):
        end = start + x.numel() * x.itemsize
        # A copy: arrays that begin in the middle of others are not aligned to the size of their numbers.
        arrays.append(held[start:end].view(dtype).reshape(x.shape).copy())
        start = end
    return tree_unflatten(arrays, structure)


def _numpy_dtype(x: Tensor) -> np.dtype[Any]:
    name = str(x.dtype).removeprefix("torch.")
    try:
        return np.dtype(name)
    except TypeError:
        raise TypeError(f"NumPy has no {name}: convert tensors of it, x.float(), ahead of the transfer") from None


def _bytes(x: Tensor) -> Tensor:
    # A single number counts as contiguous whatever its stride, but can't be viewed as bytes with every stride.
    return x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8)
