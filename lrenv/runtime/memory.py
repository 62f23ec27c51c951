"""Which device trainees live on, how much memory it has, and how much they take, predicted from the shapes alone."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

MOST = 2**31
"""How many fit is not told beyond this number."""


@dataclass(frozen=True)
class Memory:
    """Bytes that trainees of one task take on their device.

    Attributes:
        data: the data set, shared by all trainees.
        held: what each trainee keeps between decisions: weights, those of the best checkpoint, optimizer state,
            predictions.
        training: what each trainee of the chunk at work takes on top: a batch, the outputs of the layers, gradients.
        measuring: the same for a piece of the validation split.
    """

    data: int
    held: int
    training: int
    measuring: int

    def total(self, n: int, chunk_size: int) -> int:
        """Bytes of n trainees in chunks of at most `chunk_size`; the process itself takes some hundred MiB more.

        What is held exists before a decision, after it and, where there are several chunks, as their parts.
        """
        times = 2 if n <= chunk_size else 3
        return self.data + times * n * self.held + min(n, chunk_size) * max(self.training, self.measuring)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The given device; without one, CUDA where there is any, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={device!r} can't be used here ({str(error).splitlines()[0]}); try 'cpu'") from error


def available(device: torch.device) -> int | None:
    """Bytes that trainees can take: what a GPU has free, or a machine has in all; None where that can't be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def check_fits(what: str, number: int, needed: Callable[[int], int], device: torch.device, instead: str) -> None:
    """Refuses more than a device's memory holds, before anything of that size is made.

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
