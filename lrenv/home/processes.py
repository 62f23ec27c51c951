"""Several processes that train one model: all observe the same, so that all decide the same."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lrenv.training.dynamics import Dynamics


def together() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    return not together() or dist.get_rank() == 0


def mean_of_processes(losses: Tensor) -> Tensor:
    """The losses of the whole batches, of which each process has a share of equal size."""
    if not together():
        return losses
    total = _sendable(losses)
    dist.all_reduce(total)
    return total.to(losses.device) / dist.get_world_size()


def agreed(dynamics: Dynamics) -> Dynamics:
    """What the first process has measured, in all of them."""
    return Dynamics(*from_first(torch.stack(dynamics, -1)).unbind(-1)) if together() else dynamics


def from_first(values: Tensor) -> Tensor:
    """The numbers of the first process, in all of them."""
    if not together():
        return values
    held = _sendable(values)
    dist.broadcast(held, 0)
    return held.to(values.device)


def _sendable(values: Tensor) -> Tensor:
    """A copy on a device that the processes can send from: NCCL sends from GPUs alone."""
    devices = [device.type for device in getattr(dist.group.WORLD, "_device_types", ())]
    there = not devices or values.device.type in devices
    return values.clone() if there else values.to(devices[0])
