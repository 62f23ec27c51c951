"""The kernels of stacked convolutions, interpreted: PyTorch's numbers, and derivatives by a second method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import interpreted
from torch import nn

from lrenv.networks import convolutions


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return interpreted("convolution_cases.py")


def test_numbers_and_gradients_are_pytorchs(results: dict[str, Any]) -> None:
    cases = {name: case for name, case in results.items() if "pooled=" in name}
    assert len(cases) == 12
    for name, case in cases.items():
        assert all(case["shape"]), name
        for part in ("out", "x", "weight", "bias"):
            assert case[part] < 2e-6, (name, part, case[part])  # some ten roundings of float32


def test_of_equal_pixels_the_first_is_the_maximum(results: dict[str, Any]) -> None:
    assert [results["ties"][part] for part in ("out", "x", "weight", "bias")] == [pytest.approx(0, abs=1e-6)] * 4


def test_gradients_are_the_adjoints_of_the_convolution(results: dict[str, Any]) -> None:
    """A convolution without its bias is linear in images and in weights: <g, f> = <df/dx g, x> = <df/dw g, w>."""
    cases = [case for name, case in results.items() if "pooled=False" in name]
    for case in cases:
        scale = max(1.0, abs(case["product"]))
        assert abs(case["by_x"]) < 2e-5 * scale
        assert abs(case["by_weight"]) < 2e-5 * scale


def test_the_same_twice_bit_for_bit(results: dict[str, Any]) -> None:
    assert [case["same"] for case in results.values() if "same" in case] == [True] * 7


def test_what_is_not_a_number_stays_with_its_trainee(results: dict[str, Any]) -> None:
    windows = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert results["not a number"] == {"out": windows, "gradient": [False, True]}


def test_images_that_all_trainees_share_are_not_copied_for_each(results: dict[str, Any]) -> None:
    assert results["shared"] == {"equal": True}


def test_a_network_trains_by_the_kernels_where_first_derivatives_are_enough(results: dict[str, Any]) -> None:
    network = results["network"]
    assert network["plain"] == []
    assert network["used"] == ["stacked_conv2d_relu_max_pool", "stacked_conv2d"] * 2  # by autograd and torch.func
    assert set(network["errors"]) == {"autograd", "func", "compiled"}
    assert max(network["errors"].values()) < 1e-5


def test_second_derivatives_are_refused_and_forward_mode_takes_plain_layers(results: dict[str, Any]) -> None:
    refused = results["network"]["refused"]
    assert "first derivatives only" in refused["twice"]
    assert "first derivatives only" in refused["create_graph"]
    assert results["network"]["forward"] < 1e-6


def test_kernels_are_for_cuda_alone() -> None:
    assert not convolutions.suits(nn.Conv2d(1, 2, 3), torch.zeros(2, 64, 1, 8, 8))
