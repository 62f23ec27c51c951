"""Trees of tensors, arrays and JSON values in files, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.controllers import controller_file
from lrenv.controllers.controller_file import ControllerFileError
from lrenv.controllers.state_file import restored, stored


class Part(NamedTuple):
    """Some of a state."""

    count: int
    weights: Tensor
    rest: tuple[Any, ...]


def tree(scale: float = 1.0) -> dict[str, Any]:
    """Everything that a tree may hold."""
    return {
        "parts": [Part(3, scale * torch.arange(4.0), ()), Part(5, scale * torch.ones(2, 1), (torch.tensor(7),))],
        "slots": {0: {"step": torch.tensor(scale)}},
        "array": np.arange(3) * int(scale),
        "number": np.asarray(scale),
        "lowest": float("inf") if scale == 1 else 0.1,
        "text": "x",
        "flag": True,
        "nothing": None,
        "bits": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, Tensor | np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert (one == other).all()
    else:
        assert one == other


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_tree_comes_back_from_its_file(tmp_path: Path, scale: float) -> None:
    path, template = tmp_path / "x.safetensors", tree(2.0)
    tensors, values = stored(tree(scale))
    assert {"parts.1.rest.0", "slots.0.step", "array", "number"} < tensors.keys()
    json.dumps(values, allow_nan=False)
    controller_file.write(path, tensors, {"values": values, "settings": {}, "iteration": 1})
    held, metadata = controller_file.read(path)
    assert_equal(restored(template, held, metadata["values"], path), tree(scale))
    assert_equal(template, tree(2.0))


def test_what_is_stored_and_restored_are_copies() -> None:
    state = {"x": torch.zeros(2), "y": np.zeros(2)}
    tensors, values = stored(state)
    state["x"] += 1
    state["y"] += 1
    assert not tensors["x"].any()
    assert not tensors["y"].any()
    back = restored(state, tensors, values, "it")
    back["x"] += 1
    back["y"] += 1
    assert not tensors["x"].any()
    assert not tensors["y"].any()


def test_what_is_restored_is_aligned() -> None:
    """Products may be rounded differently where memory does not begin at a multiple of 64 bytes."""
    misaligned = torch.empty(65, dtype=torch.uint8)[1:].view(torch.uint8)[:64]
    template = {"x": misaligned.clone(), "y": misaligned.numpy().copy()}
    assert misaligned.data_ptr() % 64
    back = restored(template, {"x": misaligned, "y": misaligned}, {}, "it")
    assert back["x"].data_ptr() % 64 == 0
    assert torch.from_numpy(back["y"]).data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 1)}, r"it has float32 \(2, 1\) as 'x', where float32 \(2,\) is wanted"),
        ({"x": torch.zeros(2).double()}, r"it has float64 \(2,\) as 'x', where float32"),
        ({"x": None}, "it lacks 'x'"),
        ({"more": torch.zeros(1)}, "it holds 'more'"),
        ({"x": None, "z": torch.zeros(2)}, "it lacks 'x' and holds 'z'"),
    ],
)
def test_what_differs_is_told(change: dict[str, Tensor | None], message: str) -> None:
    template = {"x": torch.zeros(2), "n": 3}
    tensors, values = stored(template)
    changed = {name: x for name, x in (tensors | change).items() if x is not None}
    with pytest.raises(ControllerFileError, match=f"{message}.*start anew elsewhere"):
        restored(template, changed, values, "it")


@pytest.mark.parametrize("value", ["3", 3.5, None, True])
def test_values_of_another_type(value: Any) -> None:
    with pytest.raises(ControllerFileError, match="as 'n', where 3 stands at the beginning"):
        restored({"n": 3}, {}, {"n": value}, "it")


def test_a_tensor_where_a_number_is_wanted() -> None:
    with pytest.raises(ControllerFileError, match="has None as 'n'"):
        restored({"n": 3}, {"n": torch.tensor(3)}, {}, "it")
    with pytest.raises(ControllerFileError, match="has no tensor as 'x'"):
        restored({"x": torch.zeros(2)}, {}, {"x": 3}, "it")
