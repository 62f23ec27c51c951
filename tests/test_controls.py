"""Controls: every kind by its formula, and every action that cannot be meant is refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from lrenv.controllers.schema import check_view
from lrenv.envs.actions import BOUNDS, KINDS, Control, is_relative

F64 = torch.float64
SIZES = {"trainee": 1, "layer": 3, "tensor": 5, "parameter": 7}
LR = torch.tensor([[0.1], [0.01], [1e-3]], dtype=F64)


def make(control: str | tuple[str, ...], hyper: tuple[str, ...] = ("momentum", "weight_decay")) -> Control:
    return Control(control, SIZES, hyper, F64)


def apply(control: Control, actions: Any, lr: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    checked = control.check(actions, len(lr))
    hyper = {"momentum": torch.full((len(lr), 1), 0.9, dtype=F64)}
    return control.apply(torch.from_numpy(checked), lr, hyper)


def test_scale_multiplies_by_powers_of_two() -> None:
    lr, hyper = apply(make("scale"), np.array([[1.0], [-1.0], [0.5]]), LR)
    torch.testing.assert_close(lr, torch.tensor([[0.2], [0.005], [1e-3 * 2**0.5]], dtype=F64))
    assert hyper["momentum"].tolist() == [[0.9]] * 3


@pytest.mark.parametrize(("control", "factor"), [("scale10", 10.0), ("scale1.5", 1.5), ("scale2", 2.0)])
def test_a_factor_behind_scale_is_what_powers_are_taken_of(control: str, factor: float) -> None:
    lr, _ = apply(make(control), np.array([[1.0], [-1.0], [0.5]]), LR)
    torch.testing.assert_close(lr, LR * torch.tensor([[factor], [1 / factor], [factor**0.5]], dtype=F64))
    assert is_relative(control)
    assert is_relative((f"{control}/layer", "momentum"))
    assert make(control).space == make("scale").space
    assert make(f"{control}/layer").rates == 3


def test_which_controls_are_relative() -> None:
    assert [kind for kind in KINDS if is_relative(kind)] == ["scale", "discrete"]


def test_a_view_with_a_factor_passes_the_schema() -> None:
    view = {"control": "scale10", "observe": "scale-free", "interval": None, "optimizer": None}
    check_view("view", view)
    check_view("view", view | {"control": ["scale1.5/layer", "momentum"]})
    for wrong in ("scale0.5", "scale1e400"):
        with pytest.raises(ValueError, match="factor behind scale"):
            check_view("view", view | {"control": wrong})


def test_set_is_a_place_on_a_log_scale() -> None:
    lr, _ = apply(make("set"), np.array([[-1.0], [1.0], [0.0]]), LR)
    low, high = BOUNDS
    torch.testing.assert_close(lr, torch.tensor([[low], [high], [(low * high) ** 0.5]], dtype=F64))


def test_set_raw_is_the_number_itself() -> None:
    lr, _ = apply(make("set-raw"), np.array([[0.0], [-3.0], [1e30]]), LR)
    assert lr.tolist() == [[0.0], [-3.0], [1e30]]


def test_discrete_halves_keeps_and_doubles() -> None:
    control = make("discrete")
    assert control.space == gym.spaces.Discrete(3)
    lr, _ = apply(control, np.array([0, 1, 2]), LR)
    torch.testing.assert_close(lr, torch.tensor([[0.05], [0.01], [2e-3]], dtype=F64))


@pytest.mark.parametrize(("control", "down", "up"), [("scale", -1.0, 1.0), ("scale100", -1.0, 1.0), ("discrete", 0, 2)])
def test_rates_stay_between_the_bounds(control: str, down: Any, up: Any) -> None:
    controlled = make(control)
    lr = LR
    shape = (3, *(controlled.space.shape or ()))
    for action, bound in ((down, BOUNDS[0]), (up, BOUNDS[1])):
        for _ in range(60):
            lr, _ = apply(controlled, np.full(shape, action), lr)
        assert lr.tolist() == [[bound]] * 3


@pytest.mark.parametrize("kind", ["scale", "set", "set-raw", "discrete"])
@pytest.mark.parametrize(("granularity", "rates"), [("", 1), ("/layer", 3), ("/parameter", 7)])
def test_granularities_set_each_rate_on_its_own(kind: str, granularity: str, rates: int) -> None:
    control = make(kind + granularity)
    assert control.rates == rates
    control.space.seed(0)
    actions = np.stack([control.space.sample() for _ in range(3)])
    lr = LR.expand(3, rates)
    controlled, _ = apply(control, actions, lr)
    assert controlled.shape == (3, rates)
    single = make(kind)
    for k in range(rates):
        column = actions.reshape(3, rates)[:, k]
        alone, _ = apply(single, column if kind == "discrete" else column[:, None], LR)
        torch.testing.assert_close(controlled[:, k], alone[:, 0])


def test_momentum_and_weight_decay_together_with_the_rate() -> None:
    control = make(("momentum", "scale", "weight_decay"))
    assert control.space.shape == (3,)
    actions = np.array([[0.0, -1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 1 / 3, 0.0]])
    lr, hyper = apply(control, actions, LR)
    torch.testing.assert_close(lr, LR * torch.tensor([[1.0], [2.0], [0.5]], dtype=F64))
    # The actions of hyperparameters come after the rate's, in the order of their names in the control.
    torch.testing.assert_close(hyper["momentum"], torch.tensor([[0.0], [0.999], [0.99]], dtype=F64))
    torch.testing.assert_close(
        hyper["weight_decay"], torch.tensor([[0.0], [0.1], [10**-3.5]], dtype=F64), rtol=1e-12, atol=0
    )


def test_beside_a_layerwise_rate() -> None:
    control = make(("set-raw/layer", "momentum"))
    actions = np.array([[0.1, 0.2, 0.3, 0.0]] * 2)
    lr, hyper = apply(control, actions, LR[:2].expand(2, 3))
    torch.testing.assert_close(lr[0], torch.tensor([0.1, 0.2, 0.3], dtype=F64))
    torch.testing.assert_close(hyper["momentum"][:, 0], torch.full((2,), 1 - 10**-1.5, dtype=F64))
    assert np.isinf(control.space.high[:3]).all()
    assert control.space.high[3] == 1


def test_the_space_has_the_dtype_of_the_environment() -> None:
    assert make("scale").space.dtype == np.float64
    assert Control("scale", SIZES, ()).space == gym.spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize(
    ("control", "actions", "message"),
    [
        ("scale", np.zeros(2), r"shape \(2, 1\).*not \(2,\)"),
        ("scale", np.zeros((3, 1)), r"shape \(2, 1\)"),
        ("scale/layer", np.zeros((2, 1)), r"shape \(2, 3\)"),
        ("discrete", np.zeros((2, 1), int), r"shape \(2,\)"),
        ("scale", np.array([[0.0], [np.nan]]), r"environments \[1\] are NaN"),
        ("set-raw", np.array([[np.inf], [1.0]]), r"environments \[0\] are NaN or infinite"),
        ("scale", np.array([[1.5], [-2.0]]), r"environments \[0, 1\] lie outside"),
        ("scale/layer", np.array([[0, 0, 0], [0, 0, -1.01]]), r"environments \[1\] lie outside"),
        (("set-raw", "momentum"), np.array([[9.0, 0.0], [9.0, 1.1]]), r"environments \[1\] lie outside"),
        ("discrete", np.array([0, 3]), r"environments \[1\] lie outside"),
        ("discrete/layer", np.array([[0, 1, 2], [-1, 0, 0]]), r"environments \[1\] lie outside"),
        ("discrete", np.array([0.0, 1.0]), "must be integers"),
        ("discrete", np.array([True, False]), "must be integers"),
        ("scale", np.array([["a"], ["b"]]), "must be numbers"),
        ("scale", np.array([[None], [0.0]]), "must be numbers"),
        ("scale", np.array([[1j], [0.0]]), "must be numbers"),
    ],
)
def test_bad_actions_are_refused(control: Any, actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(control).check(actions, 2)


def test_actions_are_judged_in_the_dtype_of_the_space() -> None:
    single = Control("set-raw", SIZES, ())
    with pytest.raises(ValueError, match=r"environments \[1\] are NaN or infinite in float32"):
        single.check(np.array([[1.0], [1e300]]), 2)
    assert Control("scale", SIZES, ()).check(np.array([[1 + 1e-12]]), 1).tolist() == [[1.0]], "a rounding of float64"
    for dtype in (">f8", "f2", "u1", "bool", np.longdouble):
        checked = make("scale").check(np.ones((2, 1), dtype), 2)
        assert torch.from_numpy(checked).tolist() == [[1.0], [1.0]]
    for dtype in (">i4", "u1", "u8"):
        lr, _ = apply(make("discrete"), np.array([0, 1, 2], dtype), LR)
        assert lr[0, 0] == 0.05


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("scael", "unknown control 'scael'.*'scale'"),
        ("scale/layers", "granularity.*'layer'"),
        ("scale10/layers", "granularity.*'layer'"),
        ("scale10/", "unknown granularity of control 'scale10' ''"),
        ("scale1", "'scale1': the factor behind scale must be a decimal number above 1 and at most 100000000, as in"),
        ("scale0.5", "above 1"),
        ("scale-3", "above 1"),
        ("scale1e3", "above 1"),
        ("scale1_0", "above 1"),
        ("scale10.", "above 1"),
        ("scale100000001", "at most 100000000"),
        ("scale" + "9" * 400, "at most 100000000"),
        ("scalenan", "unknown control 'scalenan'.*'scale'.*is written scale10"),
        ("discrete10", "unknown control 'discrete10'.*'discrete'"),
        (("scale10", "scale"), "must name one way to set the rate"),
        ("momentum", "must name one way to set the rate"),
        (("scale", "set"), "must name one way to set the rate"),
        ((), "must name one way to set the rate"),
        (("discrete", "momentum"), "can't be combined with momentum"),
        (("scale", "momentum", "momentum"), "names momentum more than once; name each once"),
        (("scale", "momentun"), "must name one way|unknown"),
    ],
)
def test_bad_controls_are_refused(control: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(control)


def test_a_control_that_the_optimizer_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="this optimizer has no momentum; it has weight_decay"):
        make(("scale", "momentum"), hyper=("weight_decay",))
