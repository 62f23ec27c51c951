"""The device of trainees, how much memory it has, and how much memory trainees take, predicted from shapes."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

MOST = 2**31
"""The number up to which an error tells how many trainees fit."""


@dataclass(frozen=True)
class Memory:
    """Bytes that trainees of one task take on their device.

    Attributes:
        data: the data set, shared by all trainees.
        held: bytes per trainee between decisions: weights, those of the best checkpoint, optimizer state, predictions.
        training: further bytes per trainee of the chunk in training: a batch, the outputs of the layers, gradients.
        measuring: the same while a piece of the validation split is measured.
    """

    data: int
    held: int
    training: int
    measuring: int

    def total(self, n: int, chunk_size: int) -> int:
        """Computes the bytes of n trainees in chunks of at most `chunk_size`.

        States exist before a decision, after it and, where there are several chunks, as their parts. The process itself
        takes some hundred MiB more.
        """
        times = 2 if n <= chunk_size else 3
        return self.data + times * n * self.held + min(n, chunk_size) * max(self.training, self.measuring)


def choose_device(device: str | torch.device | None) -> torch.device:
    """Returns the given device; without one, CUDA where there is any, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device).cpu()  # of "meta" there is nothing to copy
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={device!r} can't be used here ({str(error).splitlines()[0]}); try 'cpu'") from error


def available(device: torch.device) -> int | None:
    """Returns the bytes that trainees can take: a GPU's free memory, or all of a machine's; None if it is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def check_fits(what: str, number: int, needed: Callable[[int], int], device: torch.device, instead: str) -> None:
    """Raises an error if something needs more memory than a device has, before any of it is allocated.

    Args:
        what: the things that are asked for, as the subject of a sentence.
        number: how many they are.
        needed: number -> bytes, which grow with it.
        device: where they would be.
        instead: what to do about it.

    Raises:
        ValueError: the device has less memory in all; the message says about how many fit.
    """
    total = available(device)
    if total is not None and needed(number) > total:
        fitting = bisect.bisect_right(range(1, min(number, MOST) + 1), total, key=needed)
        raise ValueError(
            f"{what} need {needed(number) / 2**30:,.0f} GiB, and {device} has {total / 2**30:,.0f}: about {fitting} "
            f"fit; {instead}"
        )
