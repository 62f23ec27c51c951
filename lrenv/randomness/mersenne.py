"""The generator of torch's CPU draws, for many seeds in parallel on any device: MT19937 (Matsumoto and Nishimura 1998).

`torch.manual_seed(s)` followed by `Tensor.uniform_` on the CPU draws one 32-bit word per float32 and keeps its lower 24
bits. Each trainee's initial weights are such a sequence from its own seed. Seeding and twisting are sequential within a
sequence, but not across seeds: here every operation is on (n, ...) tensors, one row per seed. Words are stored in
int64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WORDS = 624
"""The number of words of the state, all of which a twist replaces."""
MIDDLE = 397
"""The distance of the two words from which a twist computes the new one (m in the paper)."""
MANTISSA = 24
"""The number of random bits of a float32 in [0, 1)."""


def uniform(seed: Tensor, count: int) -> Tensor:
    """Returns the first numbers that `Tensor.uniform_` draws after `torch.manual_seed`, as float32 in [0, 1).

    Args:
        seed: (n,) int64; torch seeds with the lower 32 bits.
        count: numbers per seed.

    Returns:
        (n, count).
    """
    blocks = [_tempered(state) for state, _ in zip(_states(seed), range(-(-count // WORDS)), strict=False)]
    words = torch.cat(blocks, 1)[:, :count] & ((1 << MANTISSA) - 1)
    return words.float() * 2.0**-MANTISSA


def _states(seed: Tensor) -> Iterator[Tensor]:
    """Yields the state (n, 624) after each twist."""
    state = _seeded(seed)
    while True:
        state = _twisted(state)
        yield state


def _seeded(seed: Tensor) -> Tensor:
    word = seed & 0xFFFFFFFF
    words = [word]
    for i in range(1, WORDS):
        word = (1812433253 * (word ^ (word >> 30)) + i) & 0xFFFFFFFF
        words.append(word)
    return torch.stack(words, 1)


def _twisted(old: Tensor) -> Tensor:
    """Returns the next state; a word depends on that `MIDDLE` words later, which near the end is already a new one."""
    following = old.roll(-1, 1)
    size = WORDS - MIDDLE
    first = old[:, MIDDLE:] ^ _mixed(old[:, :size], following[:, :size])
    second = first ^ _mixed(old[:, size : 2 * size], following[:, size : 2 * size])
    following = torch.cat([following[:, :-1], first[:, :1]], 1)  # the last word is followed by a renewed one
    third = second[:, : WORDS - 2 * size] ^ _mixed(old[:, 2 * size :], following[:, 2 * size :])
    return torch.cat([first, second, third], 1)


def _mixed(word: Tensor, following: Tensor) -> Tensor:
    joined = (word & 0x80000000) | (following & 0x7FFFFFFF)
    return (joined >> 1) ^ ((joined & 1) * 0x9908B0DF)


def _tempered(word: Tensor) -> Tensor:
    word = word ^ (word >> 11)
    word = word ^ ((word << 7) & 0x9D2C5680)
    word = word ^ ((word << 15) & 0xEFC60000)
    return word ^ (word >> 18)
