"""Choosing, cutting and joining envs in nested tuples and dicts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lrenv.trees import cut, join, scatter, select


class Tree(NamedTuple):
    vector: Tensor
    named: dict[str, Tensor]


def tree(n: int, offset: float = 0.0) -> Tree:
    numbers = torch.arange(n) + offset
    return Tree(numbers, {"matrix": numbers[:, None] + torch.zeros(n, 2)})


def test_select_and_scatter_choose_by_env() -> None:
    mask = torch.tensor([True, False, True])
    chosen = select(mask, tree(3), tree(3, 10))
    assert chosen.vector.tolist() == [0, 11, 2]
    assert chosen.named["matrix"][:, 1].tolist() == [0, 11, 2]
    merged = scatter(torch.tensor([2, 0]), tree(2, 20), tree(3))
    assert merged.vector.tolist() == [21, 1, 20]
    assert merged.named["matrix"][:, 0].tolist() == [21, 1, 20]


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 3]])
def test_what_was_cut_can_be_joined(sizes: list[int]) -> None:
    whole = tree(5)
    parts = cut(whole, sizes)
    assert [len(part.vector) for part in parts] == sizes
    assert torch.equal(join(parts).vector, whole.vector)
    assert torch.equal(join(parts).named["matrix"], whole.named["matrix"])
