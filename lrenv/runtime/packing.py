"""Many small tensors of n envs side by side in one, so that they cross to the host in a single transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HOST_DTYPES = {"reward": np.float64, "terminated": np.bool_, "diverged": np.bool_, "inner_step": np.int64}
"""Everything crosses in one floating-point dtype; these arrive as something else."""


def pack(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Parts (n, ...) as one tensor (n, width)."""
    return torch.cat([part.reshape(len(part), -1).to(dtype) for part in parts.values()], 1)


def unpack(packed: NDArray[Any], shapes: Mapping[str, torch.Size]) -> dict[str, NDArray[Any]]:
    """The parts (n, *shape) of an array (n, width), by their names and shapes."""
    parts, start = {}, 0
    for name, shape in shapes.items():
        end = start + shape.numel()
        column = packed[:, start:end].reshape(len(packed), *shape)
        parts[name] = column.astype(HOST_DTYPES.get(name, column.dtype))
        start = end
    return parts
