"""Choosing, cutting and joining envs in nested tuples and dicts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lrenv.runtime.trees import cut, join, replace_rows, scatter, select


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


def test_rows_are_replaced_in_place_where_nobody_looks() -> None:
    before, new = tree(3), tree(3, 20.0)
    fresh, shared = torch.zeros(3), torch.ones(3, 2)
    old = (Tree(before.vector, {"matrix": fresh[:, None]}), Tree(shared[:, 0], {"matrix": shared}))
    first, second = replace_rows(
        torch.tensor([2, 0]), (Tree(new.vector, {"matrix": new.vector[:, None]}), new), old, before
    )
    assert first.vector.tolist() == [20, 1, 22]
    assert before.vector.tolist() == [0, 1, 2], "what must stay was copied"
    assert fresh.tolist() == [20, 0, 22], "what nobody else holds was not"
    assert second.vector.tolist() == [20, 1, 22]
    assert second.named["matrix"].tolist() == [[20, 20], [1, 1], [22, 22]]


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 3]])
def test_what_was_cut_can_be_joined(sizes: list[int]) -> None:
    whole = tree(5)
    parts = cut(whole, sizes)
    assert [len(part.vector) for part in parts] == sizes
    assert torch.equal(join(parts).vector, whole.vector)
    assert torch.equal(join(parts).named["matrix"], whole.named["matrix"])
