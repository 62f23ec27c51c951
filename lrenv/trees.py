"""Nested tuples and dicts of tensors whose first axis is that of the environments: choosing, cutting, joining."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

T = TypeVar("T")


def select(mask: Tensor, yes: T, no: T) -> T:
    """Per env, `yes` where the mask (n,) holds and `no` elsewhere."""
    chosen: T = tree_map(lambda a, b: torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), yes, no)
    return chosen


def scatter(rows: Tensor, new: T, old: T) -> T:
    """`old` with the envs `rows` (m,) replaced by the m envs of `new`."""
    merged: T = tree_map(lambda a, b: b.index_copy(0, rows, a.to(b.dtype)), new, old)
    return merged


def cut(tree: T, sizes: Sequence[int]) -> list[T]:
    """Consecutive groups of envs, as views."""
    if len(sizes) == 1:
        return [tree]
    ends = list(itertools.accumulate(sizes))
    return [tree_map(lambda x: x[end - size : end], tree) for size, end in zip(sizes, ends, strict=True)]  # noqa: B023


def join(trees: Sequence[T]) -> T:
    """The envs of all trees, one after the other; a single tree is handed back as it is."""
    if len(trees) == 1:
        return trees[0]
    joined: T = tree_map(lambda *parts: torch.cat(parts), *trees)
    return joined
