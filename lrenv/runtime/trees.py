"""Nested tuples and dicts of tensors whose first axis is that of the environments: choosing, cutting, joining."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")


def select(mask: Tensor, yes: T, no: T) -> T:
    """Returns, per environment, the leaves of `yes` where the mask (n,) is true and those of `no` elsewhere."""
    chosen: T = tree_map(lambda a, b: torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), yes, no)
    return chosen


def scatter(rows: Tensor, new: T, old: T) -> T:
    """Returns `old` with its environments `rows` (m,) replaced by the m environments of `new`."""
    merged: T = tree_map(lambda a, b: b.index_copy(0, rows, a.to(b.dtype)), new, old)
    return merged


def replace_rows(rows: Tensor, new: T, old: T, keep: Any) -> T:
    """Returns what `scatter(rows, new[rows], old)` returns, in place, for few environments of large trees.

    Args:
        rows: (m,), the indices of the environments.
        new: a tree of all n environments.
        old: a tree that is overwritten.
        keep: a tree that is not overwritten: leaves that share memory with it, or with one another, are copied.
    """
    taken = {x.untyped_storage().data_ptr() for x in tree_leaves(keep)}

    def placed(a: Tensor, b: Tensor) -> Tensor:
        memory = b.untyped_storage().data_ptr()
        own = b.clone() if memory in taken else b
        taken.add(memory)
        return own.index_copy_(0, rows, a[rows].to(own.dtype))

    replaced: T = tree_map(placed, new, old)
    return replaced


def cut(tree: T, sizes: Sequence[int]) -> list[T]:
    """Cuts the environments of a tree into consecutive parts of the given sizes; returns views."""
    if len(sizes) == 1:
        return [tree]
    ends = list(itertools.accumulate(sizes))
    return [tree_map(lambda x: x[end - size : end], tree) for size, end in zip(sizes, ends, strict=True)]  # noqa: B023


def join(trees: Sequence[T]) -> T:
    """Joins the environments of all trees, one after the other; a single tree is returned as it is."""
    if len(trees) == 1:
        return trees[0]
    joined: T = tree_map(lambda *parts: torch.cat(parts), *trees)
    return joined
