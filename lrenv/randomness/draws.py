"""Stateless random draws: every random number is a function of (seed, stream, step).

Hashing is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators",
figure 15) on int64 tensors, whose products wrap around modulo 2**64 as the method needs. Shuffling is the swap-or-not
network (Hoang, Morris & Rogaway 2012, "An enciphering scheme based on a card shuffle", figure 1): a permutation of any
size that is evaluated at single positions, so that the time of a batch without replacement does not depend on the size
of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer
# In each round a position is swapped with probability 1/2, so 16 rounds leave 1.5e-5 of the positions as they are;
# tests/test_draws.py checks that positions and pairs are uniform.
SHUFFLE_ROUNDS = 16

# Each round uses the one before several times, so a compiler that inlines cheap operations would repeat the code of
# every round a thousand times.
COMPILER_OPTIONS = {"realize_opcount_threshold": 8}

BATCH, DROPOUT, AUGMENT, INITIAL_LR, EPISODE, SCHEDULE, POLICY = range(7)
"""The streams: draws for different purposes from the same seed must not share numbers."""


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(bits: Tensor) -> Tensor:
    """Hashes int64 to int64, bijectively; every output bit depends on every input bit."""
    bits = (bits ^ _shift(bits, 30)) * -4658895280553007687
    bits = (bits ^ _shift(bits, 27)) * -7723592293110705685
    return bits ^ _shift(bits, 31)


def fold(key: Tensor, data: Tensor | int) -> Tensor:
    """Derives an independent key from `key` and `data` (a stream, a step, an index); shapes broadcast."""
    # (data + 1) * GOLDEN. The complement keeps a compiler from multiplying an index in advance, in 32 bits.
    offset = ~data * -GOLDEN
    if isinstance(offset, int):  # tensors wrap around by themselves
        offset = (offset + 2**63) % 2**64 - 2**63
    return mix(mix(key) + offset)


def uniform(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws uniform numbers in [0, 1).

    Args:
        key: (...) int64.
        shape: of the numbers per key.
        dtype: float32 for 24 random bits, float64 for 53.

    Returns:
        (..., *shape).
    """
    count = math.prod(shape)
    # Hashed, not multiplied: the compiler computes products of an index in advance, and they overflow.
    bits = mix(mix(key).unsqueeze(-1) + mix(torch.arange(count, device=key.device)))
    mantissa = 24 if dtype == torch.float32 else 53
    return (_shift(bits, 64 - mantissa).to(dtype) * 2.0**-mantissa).reshape(*key.shape, *shape)


def permuted(key: Tensor, position: Tensor, size: int) -> Tensor:
    """Returns the elements at `position` of the random permutation of range(size) that belongs to `key`.

    Args:
        key: int64, broadcasts against `position`; there is one permutation per key.
        position: int64 in [0, size).
        size: how many elements are permuted; below 2**31.
    """
    # The rounds run on 32-bit integers, which halves their cost; a shift brings 64 random bits into their range.
    multipliers = fold(key.unsqueeze(-1), torch.arange(SHUFFLE_ROUNDS, device=key.device))
    offsets = mix(multipliers)
    pivots = _shift(mix(offsets), 1) % size
    rounds = ((multipliers >> 32 | 1).int(), (offsets >> 32).int(), pivots.int())
    position = position.int()
    for multiplier, offset, pivot in zip(*(x.unbind(-1) for x in rounds), strict=True):
        partner = pivot - position
        partner = partner + (partner >> 31 & size)  # modulo size
        # The pair {position, partner} must agree on whether to swap: hash its larger member. The top bit of
        # a * x + b is a universal hash for random odd a and random b; shifted down, it is a mask of all bits.
        swap = torch.maximum(position, partner) * multiplier + offset >> 31
        position = position ^ ((position ^ partner) & swap)
    return position.long()


def epoch_indices(seed: Tensor, step: Tensor, batch_size: int, size: int, replacement: bool = False) -> Tensor:
    """Returns the indices of the examples in the batches of the given inner steps.

    Without replacement, each epoch is a fresh permutation cut into `size // batch_size` full batches; the
    remainder of an epoch is left out, as with `DataLoader(drop_last=True)`, and differs from epoch to epoch.

    Args:
        seed: (n,) int64.
        step: (n, s) int64, inner steps.
        batch_size: b, at most `size`.
        size: examples in the data set.
        replacement: draw every example independently.

    Returns:
        (n, s, b) int64 in [0, size).
    """
    key = fold(seed, BATCH)[:, None]
    if replacement:
        bits = uniform(fold(key, step), (batch_size,), torch.float64)
        return (bits * size).long()
    batches = size // batch_size
    epoch = fold(key, step // batches)
    first = (step % batches) * batch_size
    position = first.unsqueeze(-1) + torch.arange(batch_size, device=seed.device)
    return permuted(epoch.unsqueeze(-1), position, size)


def episode_seeds(seeds: NDArray[np.int64], episodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the seeds of the given episodes of envs with the given seeds, (n,) each.

    Episode 0 has the environment's own seed; those of later episodes are hashed from it.
    """
    folded = fold(fold(torch.from_numpy(seeds), EPISODE), torch.from_numpy(episodes)) & (2**62 - 1)
    return np.where(episodes == 0, seeds, folded.numpy())


def generator(seed: int, *numbers: int) -> torch.Generator:
    """Returns torch's generator on the CPU for what a seed and further numbers stand for, as for `POLICY, update`."""
    key = torch.tensor(seed)
    for number in numbers:
        key = fold(key, number)
    return torch.Generator().manual_seed(int(key) & (2**62 - 1))
