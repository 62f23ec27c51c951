"""How much memory trainees take, predicted from the shapes alone, and how much a GPU has free."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes that trainees of one task take on their device.

    Attributes:
        data: the data set, shared by all trainees.
        held: what each trainee keeps between decisions: weights, those of the best checkpoint, optimizer state,
            predictions.
        training: what each trainee of the group at work takes on top: a batch, the outputs of the layers, gradients.
        measuring: the same for a piece of the validation split.
    """

    data: int
    held: int
    training: int
    measuring: int

    def total(self, n: int, at_once: int) -> int:
        """Bytes of n trainees in groups of at most `at_once`; the process itself takes some hundred MiB more.

        What is held exists before a decision, after it and, where there are several groups, as their parts.
        """
        times = 2 if n <= at_once else 3
        return self.data + times * n * self.held + min(n, at_once) * max(self.training, self.measuring)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a CUDA device; None on any other, which can't be asked."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
