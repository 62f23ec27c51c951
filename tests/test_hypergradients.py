"""Hypergradients: reverse mode, forward mode, differences and closed forms agree, within the promised memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import LiveBytes, smooth_conv_net
from numpy.typing import NDArray
from reference import fds as reference
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lrenv import networks
from lrenv.data import Data
from lrenv.networks.architectures import Shape
from lrenv.runtime.ambient import products_rounded
from lrenv.training import hypergradients
from lrenv.training.analytic import CURVATURE, optimal_schedule
from lrenv.training.hypergradients import (
    Hypergradient,
    Objective,
    forward,
    next_training_loss,
    reverse,
    train_by_schedule,
    truncated,
)
from lrenv.training.optimizers import adam
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee, TraineeState

F64 = torch.float64
OPTIMIZERS = {"sgd": "sgd", "momentum": "momentum", "nesterov": "nesterov", "adam": adam(eps_root=1e-8)}
METHODS: dict[str, Callable[..., Hypergradient]] = {
    "checkpointed": reverse,
    "plain": partial(reverse, checkpoint=False),
    "forward": forward,
}
Schedule = dict[str, Tensor]


def schedule_of(trainee: Trainee, n: int, steps: int) -> Schedule:
    """Values that all differ: up to three rates, two momenta, one weight decay."""
    schedule = {}
    for name, centre, segments in (("lr", 0.05, 3), ("momentum", 0.6, 2), ("weight_decay", 0.02, 1)):
        if name == "lr" or name in trainee.task.hyper:
            size = (n, min(segments, steps))
            schedule[name] = centre * torch.linspace(0.8, 1.2, size[0] * size[1], dtype=F64).view(size)
    return schedule


@torch.no_grad()
def central_differences(
    trainee: Trainee, seeds: list[int], schedule: Schedule, steps: int, objective: Objective, h: float = 2e-5
) -> Schedule:
    """Of fourth order in h, a fraction of each value. All the trainings that they take run side by side."""
    factors, weights = (1, -1, 2, -2), torch.tensor([8, -8, -1, 1], dtype=F64) / 12
    moves = [(name, s, k) for name in schedule for s in range(schedule[name].shape[1]) for k in factors]
    moved = {name: values.repeat(len(moves), 1) for name, values in schedule.items()}
    for i, (name, s, k) in enumerate(moves):
        moved[name][i * len(seeds) : (i + 1) * len(seeds), s] *= 1 + k * h
    losses = objective(trainee, train_by_schedule(trainee, trainee.init(seeds * len(moves)), moved, steps))
    slopes = (losses.view(-1, 4, len(seeds)).transpose(1, 2) @ weights / h).split(
        [v.shape[1] for v in schedule.values()]
    )
    return {name: slope.T / values for (name, values), slope in zip(schedule.items(), slopes, strict=True)}


def assert_equal(first: Schedule, second: Schedule, rtol: float = 1e-9) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=1e-10)


def test_running_statistics_are_constants(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    """In evaluation mode, the derivatives are those with the statistics held where training has left them."""
    trainee = Trainee(toy(make_blobs((2, 6, 6)), network=smooth_conv_net, optimizer="momentum"), dtype=F64)
    start, schedule = trainee.init([0, 1]), schedule_of(trainee, 2, 10)
    with torch.no_grad():
        held = train_by_schedule(trainee, start, schedule, 10).buffers

    def validation_loss(trainee: Trainee, state: TraineeState) -> Tensor:
        copies = len(state.params) // 2
        buffers = {name: buffer.repeat(copies, *(1,) * (buffer.ndim - 1)) for name, buffer in held.items()}
        return hypergradients.validation_loss(trainee, state._replace(buffers=buffers))

    expected = central_differences(trainee, [0, 1], schedule, 10, validation_loss)
    for method in METHODS.values():
        assert_equal(method(trainee, start, schedule, 10).gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [2, 9, 100])
def test_checkpoints_change_nothing(toy: Callable[..., Task], steps: int) -> None:
    trainee = Trainee(toy(optimizer=adam(eps_root=1e-8)), dtype=F64)
    start, schedule = trainee.init([0, 1]), schedule_of(trainee, 2, steps)
    plain, checkpointed = (reverse(trainee, start, schedule, steps, checkpoint=kept) for kept in (False, True))
    assert_equal(checkpointed.gradient, plain.gradient, rtol=1e-12)
    torch.testing.assert_close(checkpointed[::2], plain[::2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("network", "steps"),
    [
        ("mlp", 1), ("mlp", 10), ("mlp", 100),
        ("conv", 1), ("conv", 10), pytest.param("conv", 100, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reverse_equals_forward_equals_differences(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], optimizer: str, network: str, steps: int
) -> None:
    conv = {"data": make_blobs((2, 6, 6)), "network": smooth_conv_net} if network == "conv" else {}
    trainee = Trainee(toy(optimizer=OPTIMIZERS[optimizer], **conv), dtype=F64)
    start, schedule = trainee.init([0, 1]), schedule_of(trainee, 2, steps)
    expected = central_differences(trainee, [0, 1], schedule, steps, next_training_loss)
    for method in (reverse, forward):
        found = method(trainee, start, schedule, steps, next_training_loss)
        assert_equal(found.gradient, expected, rtol=1e-6)
        assert not any(x.requires_grad for x in tree_leaves(found))
    assert expected["lr"].abs().min() > 1e-4, "a derivative of zero would agree with anything"


def test_both_modes_are_the_recursion_of_tangents(toy: Callable[..., Task]) -> None:
    """Softmax regression by SGD with momentum and weight decay, against Z_(t+1) = A_t Z_t + B_t in NumPy."""
    steps, settings = 11, {"network": networks.logistic_regression, "optimizer": "momentum", "weight_decay": 0.1}
    trainee = Trainee(toy(**settings), dtype=F64)
    start, schedule = trainee.init([0, 1]), schedule_of(trainee, 2, steps)
    inputs, targets = (rows.numpy() for rows in trainee.train)
    validation = reference.SoftmaxRegression(*(rows.numpy() for rows in trainee.val), 3)
    found = [method(trainee, start, schedule, steps) for method in METHODS.values()]
    for i, rows in enumerate(trainee.batch_indices(start, steps).numpy()):
        batches = [reference.SoftmaxRegression(inputs[batch], targets[batch], 3) for batch in rows]
        own = {name: values[i].numpy() for name, values in schedule.items()}
        loss, expected = reference.hypergradients(start.params[i].numpy(), own, batches, validation)
        for result in found:
            np.testing.assert_allclose(result.objective[i], loss, rtol=1e-10)
            for name in reference.NAMES:
                np.testing.assert_allclose(result.gradient[name][i], expected[name], rtol=1e-8, atol=1e-12)


def quadratic(steps: int) -> tuple[Trainee, TraineeState, NDArray[np.float64]]:
    """The noisy quadratic in float64: trainee, two starts, and the mean noise (2, T, d) of their batches."""
    trainee = Trainee(make_task("noisy-quadratic", batch_size=4), dtype=F64)
    start = trainee.init([0, 1])
    return trainee, start, trainee.train.inputs[trainee.batch_indices(start, steps)].mean(2).numpy()


def quadratic_slopes(noise: NDArray[np.float64], lr: NDArray[np.float64], windows: list[range]) -> NDArray[np.float64]:
    """d loss / d lr_t, (n, T), of the expected loss at the end of each window, derived by hand.

    w_(t+1) = w_t - lr_t h (w_t - c_t), so by the chain rule
    d loss / d lr_t = sum_i h_i w_i(end) (-h_i (w_ti - c_ti)) prod_(j > t in the window) (1 - lr_j h_i).
    """
    h = np.array(CURVATURE, np.float32).astype(np.float64)  # as the module holds it
    n, steps, _ = noise.shape
    weights = np.ones((n, steps + 1, len(h)))
    for t in range(steps):
        weights[:, t + 1] = weights[:, t] - lr[:, t, None] * h * (weights[:, t] - noise[:, t])
    slopes = np.zeros((n, steps))
    for window in windows:
        shrunk = h * weights[:, window.stop]
        for t in reversed(window):
            slopes[:, t] = (shrunk * -h * (weights[:, t] - noise[:, t])).sum(1)
            shrunk = shrunk * (1 - lr[:, t, None] * h)
    return slopes


@pytest.mark.parametrize(("steps", "segments"), [(1, 1), (20, 20), (20, 3), (7, 5)])
def test_noisy_quadratic_by_hand(steps: int, segments: int) -> None:
    trainee, start, noise = quadratic(steps)
    schedule = {"lr": torch.linspace(0.1, 1.2, 2 * segments, dtype=F64).view(2, segments)}
    segment = np.arange(steps) * segments // steps
    each = quadratic_slopes(noise, schedule["lr"].numpy()[:, segment], [range(steps)])
    expected = np.stack([each[:, segment == s].sum(1) for s in range(segments)], 1)
    for method in METHODS.values():
        found = method(trainee, start, schedule, steps).gradient["lr"]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("window", [1, 4, 7, 20, 50])
def test_windows_of_the_noisy_quadratic_by_hand(window: int) -> None:
    """Every window's derivative is that of the loss at its end; `reverse` adds them."""
    steps = 20
    trainee, start, noise = quadratic(steps)
    schedule = {"lr": torch.full((2, steps), 0.3, dtype=F64)}
    spans = [range(steps)[i : i + window] for i in range(0, steps, window)]
    expected = quadratic_slopes(noise, schedule["lr"].numpy(), spans)
    windows = list(truncated(trainee, start, schedule, steps, window))
    assert len(windows) == len(spans)
    for found, span in zip(windows, spans, strict=True):
        own = np.zeros_like(expected)
        own[:, span] = expected[:, span]
        np.testing.assert_allclose(found.gradient["lr"], own, rtol=1e-9)
    whole = reverse(trainee, start, schedule, steps, truncation=window)
    np.testing.assert_allclose(whole.gradient["lr"], expected, rtol=1e-9)
    after = train_by_schedule(trainee, start, schedule, steps)
    torch.testing.assert_close((whole.state, whole.objective), (after, hypergradients.validation_loss(trainee, after)))
    full = reverse(trainee, start, schedule, steps)
    if window >= steps:
        assert_equal(whole.gradient, full.gradient)


def test_short_windows_are_biased_against_the_best_schedule() -> None:
    """Where the expected loss is least, hypergradients average to 0; windows that don't see the end want lower rates
    (short-horizon bias: Wu et al. 2018, "Understanding short-horizon bias in stochastic meta-optimization")."""
    n, steps, window = 200, 50, 10
    trainee = Trainee(make_task("noisy-quadratic", batch_size=8), dtype=F64)
    schedule = {"lr": optimal_schedule(steps, 8, interval=window)[::window].expand(n, -1)}
    full, short = (
        reverse(trainee, trainee.init(range(n)), schedule, steps, truncation=t).gradient["lr"] for t in (None, window)
    )
    errors = [gradient.mean(0) / (gradient.std(0) / n**0.5) for gradient in (full, short)]
    assert errors[0].abs().max() < 4
    assert errors[1][:3].min() > 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_step_is_minus_the_product_of_gradient_and_direction(toy: Callable[..., Task], optimizer: str) -> None:
    """Baydin et al. 2018, equation 5: d L(w_(t+1)) / d lr = -<grad L(w_(t+1)), direction_t>."""
    trainee = Trainee(toy(optimizer=OPTIMIZERS[optimizer]), dtype=F64)
    lr = torch.full((2, 1), 0.05, dtype=F64)
    start = train_by_schedule(trainee, trainee.init([0, 1]), {"lr": lr}, 3)
    found = reverse(trainee, start, {"lr": lr}, 1, next_training_loss)
    direction = (start.params - found.state.params) / lr
    weights = found.state.params.requires_grad_()
    (gradient,) = torch.autograd.grad(next_training_loss(trainee, found.state).sum(), weights)
    torch.testing.assert_close(found.gradient["lr"][:, 0], -(gradient * direction).sum(1), rtol=1e-9, atol=1e-12)


def test_what_the_schedule_leaves_out_is_the_task_s_own(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer="momentum", momentum=0.4, weight_decay=0.03), dtype=F64)
    start, lr = trainee.init([0, 1]), torch.full((2, 2), 0.1, dtype=F64)
    own = {"momentum": torch.full((2, 1), 0.4, dtype=F64), "weight_decay": torch.full((2, 1), 0.03, dtype=F64)}
    for method in METHODS.values():
        found = method(trainee, start, {"lr": lr}, 6)
        assert_equal(found.gradient, {"lr": method(trainee, start, {"lr": lr, **own}, 6).gradient["lr"]})


def test_segments_begin_where_the_next_integer_is_reached(toy: Callable[..., Task]) -> None:
    """Step t of 7 is in segment floor(3 t / 7): 3 steps, then 2, then 2."""
    trainee = Trainee(toy(), dtype=F64)
    start, values = trainee.init([0]), torch.tensor([[0.1, 0.2, 0.3]], dtype=F64)
    apart = {"lr": values[:, [0, 0, 0, 1, 1, 2, 2]]}
    together = train_by_schedule(trainee, start, {"lr": values}, 7)
    torch.testing.assert_close(together.params, train_by_schedule(trainee, start, apart, 7).params, rtol=0, atol=0)
    each = reverse(trainee, start, apart, 7).gradient["lr"]
    shared = torch.stack([each[:, :3].sum(1), each[:, 3:5].sum(1), each[:, 5:].sum(1)], 1)
    assert_equal(forward(trainee, start, {"lr": values}, 7).gradient, {"lr": shared})


def test_trainees_do_not_interact(toy: Callable[..., Task]) -> None:
    """One that diverges has no finite derivative, and the other keeps its own."""
    trainee = Trainee(toy(network=networks.mlp(5), optimizer="momentum"), dtype=F64)
    lr = torch.tensor([[0.1, 0.1], [1e200, 1e200]], dtype=F64)
    for method in METHODS.values():
        both = method(trainee, trainee.init([0, 1]), {"lr": lr}, 8)
        alone = method(trainee, trainee.init([0]), {"lr": lr[:1]}, 8)
        assert_equal({"lr": both.gradient["lr"][:1]}, alone.gradient)
        assert not both.gradient["lr"][1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_grad_mode_and_dtype_of_the_caller_do_not_matter(toy: Callable[..., Task], dtype: torch.dtype) -> None:
    """What the caller tracks stays untouched, and single precision gives the same to its own rounding."""
    exact, trainee = (Trainee(toy(optimizer="momentum"), dtype=d) for d in (F64, dtype))
    schedule = {"lr": torch.full((2, 2), 0.1, dtype=F64), "momentum": torch.full((2, 1), 0.5, dtype=F64)}
    expected = reverse(exact, exact.init([0, 1]), schedule, 10).gradient
    tracked = {name: values.clone().requires_grad_() for name, values in schedule.items()}
    for method in METHODS.values():
        for mode in (torch.no_grad(), torch.enable_grad()):
            start = trainee.init([0, 1])
            with mode:
                found = method(trainee, start, tracked, 10)
            assert found.gradient["lr"].dtype == found.objective.dtype == dtype
            assert not any(x.requires_grad for x in (*tree_leaves(found), *tree_leaves(start)))
            assert all(values.grad is None for values in tracked.values())
            assert_equal(
                {k: v.double() for k, v in found.gradient.items()}, expected, rtol=1e-9 if dtype == F64 else 1e-3
            )


@pytest.mark.parametrize("eps_root", [1e-8, 0.0])
def test_adam_at_a_gradient_of_zero(toy: Callable[..., Task], eps_root: float) -> None:
    """Dead units: their weights' gradients are exactly 0, where the root has no derivative without eps_root."""

    def dead(shape: Shape, classes: int) -> nn.Module:
        network = networks.mlp(5)(shape, classes)
        assert isinstance(network[1], nn.Linear)
        nn.init.constant_(network[1].bias, -100.0)
        return network

    trainee = Trainee(toy(network=dead, optimizer=adam(eps_root=eps_root)), dtype=F64)
    start, schedule = trainee.init([0, 1]), {"lr": torch.full((2, 2), 0.01, dtype=F64)}
    expected = central_differences(trainee, [0, 1], schedule, 6, hypergradients.validation_loss)
    for method in METHODS.values():
        assert_equal(method(trainee, start, schedule, 6).gradient, expected, rtol=1e-6)


def test_memory_by_horizon(toy: Callable[..., Task]) -> None:
    """Four times the steps: four times the memory, or twice with checkpoints, or the same in forward mode."""
    trainee = Trainee(toy(network=networks.mlp(20, 20)))
    start, schedule = trainee.init([0]), {"lr": torch.full((1, 3), 0.05)}
    growth = {}
    for name, method in METHODS.items():
        peaks = []
        for steps in (16, 64):
            with LiveBytes() as live:
                method(trainee, start, schedule, steps)
            peaks.append(live.peak)
        growth[name] = peaks[1] / peaks[0]
    assert 3.5 < growth["plain"] < 4.1
    assert 1.5 < growth["checkpointed"] < 2.1
    assert growth["forward"] == 1


def test_tangents_that_have_not_begun_are_not_computed(toy: Callable[..., Task]) -> None:
    """A step costs a + b K with K tangents: from two schedules follow a and b, and from those any other's cost."""
    trainee = Trainee(toy())
    start, steps = trainee.init([0]), 16

    def work(**segments: int) -> int:
        with FlopCounterMode(display=False) as counter:
            forward(trainee, start, {name: torch.full((1, s), 0.1) for name, s in segments.items()}, steps)
        return counter.get_total_flops()

    tangent = (work(lr=2) - work(lr=1)) / (steps / 2)
    assert tangent > 0
    assert work(lr=4) - work(lr=1) == tangent * (steps / 4) * (0 + 1 + 2 + 3)
    assert work(lr=1, weight_decay=1) - work(lr=1) == tangent * steps
    assert work(lr=2, weight_decay=16) - work(lr=1) == tangent * (steps / 2 + sum(range(1, 17)))


def test_one_tangent_after_the_other_gives_the_same(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    trainee = Trainee(toy(make_blobs((2, 6, 6)), network=smooth_conv_net, optimizer="momentum"), dtype=F64)
    start, schedule = trainee.init([0, 1]), schedule_of(trainee, 2, 6)
    together = forward(trainee, start, schedule, 6)
    with mock.patch.object(hypergradients, "vmap", side_effect=RuntimeError("no batching rule")) as vmap:
        apart = forward(trainee, start, schedule, 6)
    assert vmap.call_count == 1, "once is enough to know"
    assert_equal(apart.gradient, together.gradient)


def test_pooling_and_dropout(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    def network(shape: Shape, classes: int) -> nn.Module:
        layers = (
            nn.Conv2d(2, 16, 3),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64, classes),
        )
        return nn.Sequential(*layers)

    trainee = Trainee(toy(make_blobs((2, 6, 6)), network=network, optimizer="momentum"), dtype=F64)
    start, schedule = trainee.init([0]), schedule_of(trainee, 1, 6)
    assert_equal(forward(trainee, start, schedule, 6).gradient, reverse(trainee, start, schedule, 6).gradient)


class Cube(torch.autograd.Function):
    """x^3 with derivatives of every order in reverse mode, and none in forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor) -> tuple[Tensor, int | None]:
        return Cube.apply(x), in_dims[0]  # type: ignore[no-untyped-call]


class Cubes(nn.Module):
    """Outputs that are cubes, by `Cube` or by an operation that has every derivative."""

    def __init__(self, shape: Shape, classes: int, known: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], classes)
        self.known = known

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y**3 if self.known else Cube.apply(y)  # type: ignore[no-untyped-call, no-any-return]


class Distances(nn.Module):
    """`cdist` has no derivative in forward mode; whether it has a second one in reverse mode is up to PyTorch."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres)


@pytest.mark.parametrize("network", [partial(Cubes, known=False), Distances])
def test_an_operation_without_forward_derivative(toy: Callable[..., Task], network: Callable[..., nn.Module]) -> None:
    trainee = Trainee(toy(network=network))
    start, schedule = trainee.init([0, 1]), {"lr": torch.full((2, 1), 0.1)}
    with pytest.raises(ValueError, match=r"no forward mode .* forward .*AD.* Take `reverse`, or another layer"):
        forward(trainee, start, schedule, 3)


def test_reverse_needs_no_forward_derivative(toy: Callable[..., Task]) -> None:
    unknown, known = (Trainee(toy(network=partial(Cubes, known=which)), dtype=F64) for which in (False, True))
    schedule = {"lr": torch.full((2, 1), 0.1, dtype=F64)}
    slopes = [reverse(trainee, trainee.init([0, 1]), schedule, 3).gradient["lr"] for trainee in (unknown, known)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)
    assert (slopes[0] != 0).all()


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ({"lr": (2, 5)}, 4, "'lr' has 5 values for 4 steps; give at most one per step"),
        ({"momentum": (2, 1)}, 4, "no 'lr'"),
        ({"lr": (2, 1), "momentun": (2, 1)}, 4, "unknown hyperparameter 'momentun': did you mean 'momentum'"),
        ({"lr": (3, 1)}, 4, r"'lr' must have shape \(2, S\).*not \(3, 1\)"),
        ({"lr": (2,)}, 4, r"shape \(2, S\)"),
        ({"lr": (2, 0)}, 4, r"shape \(2, S\)"),
        ({"lr": (2, 1)}, 0, "steps must be at least 1"),
    ],
)
@pytest.mark.parametrize("method", [train_by_schedule, reverse, forward, partial(truncated, window=2)])
def test_schedules_that_do_not_fit(
    toy: Callable[..., Task], method: Callable[..., Any], schedule: dict[str, Any], steps: int, message: str
) -> None:
    trainee = Trainee(toy(optimizer="momentum"))
    values = {name: torch.full(shape, 0.1) for name, shape in schedule.items()}
    with pytest.raises(ValueError, match=message):
        method(trainee, trainee.init([0, 1]), values, steps)


def test_sgd_has_no_momentum(toy: Callable[..., Task]) -> None:
    trainee, one = Trainee(toy()), torch.full((1, 1), 0.1)
    with pytest.raises(ValueError, match="unknown hyperparameter 'momentum'"):
        reverse(trainee, trainee.init([0]), {"lr": one, "momentum": one}, 4)


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_has_a_step(toy: Callable[..., Task], window: int) -> None:
    trainee = Trainee(toy())
    start, schedule = trainee.init([0]), {"lr": torch.full((1, 1), 0.1)}
    with pytest.raises(ValueError, match="window must be at least 1"):
        truncated(trainee, start, schedule, 4, window)
    with pytest.raises(ValueError, match="truncation must be at least 1"):
        reverse(trainee, start, schedule, 4, truncation=window)


@pytest.mark.parametrize("ambient", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_windows_hold_their_own_settings(toy: Callable[..., Task], ambient: Callable[[], Any]) -> None:
    trainee = Trainee(toy(), dtype=F64)
    schedule = {"lr": torch.full((1, 3), 0.1, dtype=F64)}
    (expected, *_), found = truncated(trainee, trainee.init([0]), schedule, 6, 3), []
    with ambient():
        found = list(truncated(trainee, trainee.init([0]), schedule, 6, 3))
    torch.testing.assert_close(found[0].gradient["lr"].clone(), expected.gradient["lr"], rtol=1e-12, atol=0)


def test_windows_round_products_as_their_trainee_does(toy: Callable[..., Task]) -> None:
    trainee, rounded = Trainee(toy()), []
    trainee.rounds_products = True

    def objective(trainee: Trainee, state: TraineeState) -> Tensor:
        rounded.append(products_rounded())
        return hypergradients.validation_loss(trainee, state)

    list(truncated(trainee, trainee.init([0]), {"lr": torch.full((1, 1), 0.1)}, 4, 2, objective))
    assert rounded == [True, True]
    assert not products_rounded()
