"""Trees of tensors on the host: the same numbers, in arrays of their own, brought there in one transfer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.runtime.transfer import to_host


class Pair(NamedTuple):
    numbers: Any
    rest: dict[str, Any]


def tree() -> Pair:
    whole = torch.arange(12).reshape(3, 4)
    return Pair(
        torch.tensor([True, False, True]),  # three bytes, so that what follows begins in the middle of a number
        {
            "step": torch.tensor([2**62 + 1, -1, 3]),
            "lr": torch.tensor([[0.1], [float("nan")], [float("inf")]]),
            "exact": torch.tensor([0.1, -0.0], dtype=torch.float64),
            "columns": whole[:, 1:3],
            "repeated": torch.tensor([1.0]).expand(5),
            "none": torch.zeros(0, 3),
            "single": torch.tensor(7, dtype=torch.int32),
        },
    )


def test_every_number_shape_and_dtype_arrives() -> None:
    given = tree()
    got = to_host(given)
    assert type(got) is Pair
    np.testing.assert_array_equal(got.numbers, given.numbers.numpy())
    assert got.rest.keys() == given.rest.keys()
    for name, x in given.rest.items():
        np.testing.assert_array_equal(got.rest[name], x.numpy(), strict=True)
        assert got.rest[name].flags.aligned
        assert got.rest[name].flags.writeable
    assert np.signbit(got.rest["exact"][1])


def test_a_single_number_arrives_whatever_its_stride() -> None:
    one = torch.arange(6.0).reshape(2, 3)[1:, 2]
    assert one.stride() == (3,)
    (found,) = to_host([one])
    assert found.tolist() == [5.0]
    assert found.shape == (1,)


def test_arrays_are_their_own() -> None:
    given = tree()
    got = to_host(given)
    got.rest["step"][:] = 0
    assert given.rest["step"][1] == -1
    assert got.numbers.tolist() == [True, False, True]


def test_it_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, cpu = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda x: calls.append(x) or cpu(x))
    to_host(tree())
    assert len(calls) == 1


def test_a_tree_without_tensors_stays() -> None:
    for nothing in ((), {}, {"a": [], "b": ()}):
        assert to_host(nothing) == nothing


def test_dtypes_that_numpy_does_not_have_are_told() -> None:
    with pytest.raises(TypeError, match=r"NumPy has no bfloat16: convert tensors of it, x\.float\(\)"):
        to_host((torch.ones(2), torch.ones(2, dtype=torch.bfloat16)))
    (got,) = to_host((torch.tensor([1 + 2j]),))
    assert got.tolist() == [1 + 2j]
