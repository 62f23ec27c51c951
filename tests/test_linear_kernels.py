"""The kernels of stacked linear layers, interpreted: PyTorch's numbers, and derivatives by a second method."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers import interpreted


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return interpreted("linear_cases.py")


def test_numbers_and_gradients_are_those_of_float64(results: dict[str, Any]) -> None:
    cases = {name: case for name, case in results.items() if "relu=" in name}
    assert len(cases) == 9
    for name, case in cases.items():
        for part in ("out", "x", "params"):
            assert case[part] < 2e-6, (name, part, case[part])  # some ten roundings of float32
        assert case["same"], name


def test_what_is_not_a_number_stays_with_its_trainee_and_its_example(results: dict[str, Any]) -> None:
    for numbers in results["not a number"].values():
        assert numbers[0] == [2, 2]
        assert math.isnan(numbers[1][0])
        assert numbers[1][1] == 2
        assert numbers[2] == [2, math.inf]


def test_a_network_trains_by_the_kernels_where_first_derivatives_are_enough(results: dict[str, Any]) -> None:
    network = results["network"]
    assert network["plain"] == []
    assert network["used"] == [True, False] * 2  # ReLU within the first layer's kernel; by autograd and torch.func
    assert set(network["errors"]) == {"autograd", "func", "compiled"}
    assert max(network["errors"].values()) < 1e-5


def test_layers_around_them_run_as_they_do_alone(results: dict[str, Any]) -> None:
    networks = results["networks"]
    for name, network in networks.items():
        assert network["error"] < 1e-5, name
    assert networks["images"]["relu"] == networks["pooled first"]["relu"] == [True, False]
    assert networks["ends in ReLU"]["relu"] == [True]
    assert networks["hooked"]["relu"] == [False, False]


def test_transforms_without_rules_for_them_run_plain_layers(results: dict[str, Any]) -> None:
    assert results["transformed"] == dict.fromkeys(("vmap", "jvp", "compiled jvp"), pytest.approx(0, abs=1e-6))


def test_shapes_that_do_not_fit_are_refused(results: dict[str, Any]) -> None:
    assert set(results["refused"]) == {"features", "trainees", "bias", "axes", "dtype"}
    assert "(2, 3, 3) torch.float32 on cpu, (2, 5, 4) torch.float32" in results["refused"]["features"]


def test_second_derivatives_are_refused(results: dict[str, Any]) -> None:
    assert "first derivatives only" in results["network"]["refused"]["twice"]


def test_they_are_for_small_layers_of_several_trainees_on_cuda(results: dict[str, Any]) -> None:
    assert results["elsewhere"] is False
    assert results["chosen"] == {
        "small": [True, True], "many examples": [False, True], "many inputs": [False, False],
        "one trainee": [False, False], "sequences": [False, False], "float64": [False, False],
        "no examples": [False, False], "near": [True], "far apart": [False],
    }  # fmt: skip
