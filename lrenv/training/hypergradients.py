"""Hypergradients as values: derivatives of what n trainees achieve by the hyperparameters that they were trained with.

`forward` is forward-mode differentiation (Franceschi et al. 2017, arXiv:1703.01785, section 3.2), as FDS uses it
(Micaelli & Storkey 2021, arXiv:2007.07869): it advances Z_t = ds_t / dlambda, the tangents of weights and optimizer
state s_t by each value of the schedule lambda,

    Z_(t+1) = A_t Z_t + B_t,    A_t = ds_(t+1) / ds_t,    B_t = ds_(t+1) / dlambda at fixed s_t.

Its memory does not depend on the number of steps, its cost grows with the number of values. `reverse` is reverse mode:
its cost does not depend on the number of values, its memory grows with the number of steps. Both are exact and agree to
rounding. `tests/reference/fds.py` has the recursion in NumPy.

Derivatives pass through weights and optimizer state. Buffers are constants: `lrenv.networks.layers` cuts off the
running statistics of batch normalisation, so the derivative of an objective that reads them, as evaluation mode does,
is the one by the weights alone. Where gradients have been exactly 0, Adam's root has no derivative; 0 stands for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from lrenv.lookup import count
from lrenv.runtime.ambient import own_settings, with_own_settings
from lrenv.training.optimizers import Hyper, OptState
from lrenv.training.scheduled import Schedule, ScheduledTraining
from lrenv.training.trainee import Trainee, TraineeState

T = TypeVar("T")
Objective = Callable[[Trainee, TraineeState], Tensor]
"""What training is to make small: (trainee, state of n) -> (n,)."""
InnerState = tuple[Tensor, OptState]
"""s_t, what derivatives pass through: weights and optimizer state."""
Tangents = tuple[InnerState, Hyper]
"""Tangents of s_t and of the hyperparameters, in one direction; or in K directions, where each leaf is (K, ...)."""
Jvp = Callable[[Tangents], tuple[InnerState, TraineeState]]
"""A Jacobian-vector product of some inner steps: tangents in one direction before them -> the tangent of the inner
state, and the state, after them."""
BatchedJvp = Callable[[Jvp, Tangents], tuple[InnerState, TraineeState]]
"""A way to take a Jacobian-vector product in K directions."""


class Hypergradient(NamedTuple):
    """An objective of n trainees and its derivatives; nothing in it requires a gradient."""

    objective: Tensor  # (n,)
    gradient: dict[str, Tensor]  # name -> (n, S), by the schedule
    state: TraineeState  # after the last step


def validation_loss(trainee: Trainee, state: TraineeState) -> Tensor:
    """Returns the loss (n,) on the validation split in evaluation mode. The task's `val_examples` bounds its memory."""
    return trainee.evaluate(trainee.optimizer.evaluated(state.params, state.opt), state.buffers, trainee.val).loss


def next_training_loss(trainee: Trainee, state: TraineeState) -> Tensor:
    """Returns the loss (n,) on the batch of the next inner step, in training mode.

    After a single step, its derivative by the learning rate is -<g_(t+1), direction_t> (Baydin et al. 2018, equation
    5), if batches do not depend on the weights.
    """
    return trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])[0]


@with_own_settings
def train_by_schedule(trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int) -> TraineeState:
    """Trains for `steps` inner steps: detached under `torch.no_grad()`, differentiable by the schedule otherwise.

    Raises:
        ValueError: the schedule does not fit the trainee, the number of trainees or that of steps.
    """
    return ScheduledTraining.of(trainee, start, schedule, steps).train(start, range(steps))


@with_own_settings
def forward(
    trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int, objective: Objective = validation_loss
) -> Hypergradient:
    """Returns the hypergradient in forward mode, dL/ds_T Z_T, by the recursion Z_(t+1) = A_t Z_t + B_t.

    Z has a column for each value of the schedule, which is 0 until the segment of that value begins, and is left out of
    computations until then. The others advance together under `vmap`, or one after the other where an operation does
    not support it. For the arguments see `reverse`.

    Raises:
        ValueError: as `reverse`, or an operation of the network has no derivative in forward mode.
    """
    training = ScheduledTraining.of(trainee, start, _detached(dict(schedule)), steps)
    state = _detached(start)
    columns: list[tuple[str, int]] = []  # the values, by name and segment, that Z has columns for
    z: InnerState = tree_map(lambda x: x.new_zeros(0, *x.shape), _inner(state))  # Z_t: each leaf (columns, n, ...)
    methods: list[BatchedJvp] = [_vmapped, _one_by_one]
    for constant in training.constant_ranges(range(steps)):
        values = training.values(constant.start)
        current = {name: (name, training.segment(name, constant.start)) for name in values}
        begun = [value for value in current.values() if value not in columns]
        columns += begun
        z = tree_map(lambda x: torch.cat([x, x.new_zeros(len(begun), *x.shape[1:])]), z)  # noqa: B023
        # The JVP of the inner steps in the direction (Z_t e_k, e_k) is A_t Z_t e_k + B_t e_k, column k of Z_(t+1).
        unit = {name: _unit(len(columns), columns.index(current[name]), value) for name, value in values.items()}
        product = partial(_jvp, training, state, values, len(constant))
        z, state = _advanced(product, (z, unit), methods)
    value, slope = _objective_gradient(trainee, state, objective)
    products = sum((own * x).flatten(2).sum(2) for own, x in zip(slope, tree_leaves(z), strict=True))
    each = dict(zip(columns, products, strict=True))
    gradient = {
        name: torch.stack([each[name, s] for s in range(values.shape[1])], 1)
        for name, values in training.schedule.items()
    }
    return Hypergradient(value, gradient, state)


@with_own_settings
def reverse(
    trainee: Trainee,
    start: TraineeState,
    schedule: Schedule,
    steps: int,
    objective: Objective = validation_loss,
    truncation: int | None = None,
    checkpoint: bool = True,
) -> Hypergradient:
    """Returns the hypergradient in reverse mode.

    Args:
        trainee: what is trained.
        start: n trainees before the first step; taken as given.
        schedule: what to differentiate by.
        steps: T, inner steps.
        objective: what to differentiate.
        truncation: number of steps of a window that no derivative leaves. The objective then counts at the end of every
            window, and the derivatives of the windows are added (Metz et al. 2019, section 2.4): short windows are
            cheap, do not explode, and are biased towards what helps soon. The objective given back is that after the
            last step.
        checkpoint: keep the states after every sqrt(T) steps only, and train from each of them again on the way back:
            memory grows with sqrt(T) instead of T, for one more pass over the steps.

    Raises:
        ValueError: the schedule does not fit the trainee, the number of trainees or that of steps.
    """
    window = steps if truncation is None else count("truncation", truncation)
    windows = truncated(trainee, start, schedule, steps, window, objective, checkpoint)
    total = next(windows)
    for own in windows:
        total = own._replace(gradient={name: total.gradient[name] + more for name, more in own.gradient.items()})
    return total


@with_own_settings
def truncated(
    trainee: Trainee,
    start: TraineeState,
    schedule: Schedule,
    steps: int,
    window: int,
    objective: Objective = validation_loss,
    checkpoint: bool = True,
) -> Iterator[Hypergradient]:
    """Returns the hypergradients of successive windows of the training, which `reverse(truncation=window)` adds.

    Each is that of the objective at its window's end, by the whole schedule: 0 for segments that don't meet the
    window. The last window is shorter where `window` does not divide `steps`. For the arguments see `reverse`.

    Raises:
        ValueError: as `reverse`.
    """
    training = ScheduledTraining.of(trainee, start, _detached(dict(schedule)), steps)
    return _windows(training, _detached(start), count("window", window), objective, checkpoint)


def _windows(
    training: ScheduledTraining, state: TraineeState, window: int, objective: Objective, checkpoint: bool
) -> Iterator[Hypergradient]:
    for steps in _split(range(training.steps), window):
        with own_settings(training.trainee.rounds_products):  # a caller's hold between two windows
            result = _backward(training, state, steps, objective, checkpoint)
        yield result
        state = result.state


def _backward(
    training: ScheduledTraining, start: TraineeState, window: range, objective: Objective, checkpoint: bool
) -> Hypergradient:
    """The hypergradient of a window, by vector-Jacobian products from one checkpoint back to the one before."""
    parts = _split(window, math.isqrt(len(window) - 1) + 1 if checkpoint else len(window))
    checkpoints = [start]
    with torch.no_grad():
        for steps in parts[:-1]:
            checkpoints.append(training.train(checkpoints[-1], steps))
    schedule = {name: values.detach().requires_grad_() for name, values in training.schedule.items()}
    gradient = {name: torch.zeros_like(values) for name, values in training.schedule.items()}
    for begin, steps in zip(reversed(checkpoints), reversed(parts), strict=True):
        inputs = list(schedule.values())
        if steps.start > window.start:  # else it is given: derivatives by it would cost as much as by the schedule
            begin = _tracked(begin)
            inputs += tree_leaves(_inner(begin))
        with torch.enable_grad():
            end = replace(training, schedule=schedule).train(begin, steps)
            if steps.stop == window.stop:
                state = _detached(end)
                value, slope = _objective_gradient(training.trainee, state, objective)
            product = sum((x * own).sum() for x, own in zip(tree_leaves(_inner(end)), slope, strict=True))
        slopes = torch.autograd.grad(product, inputs, materialize_grads=True)
        for own, more in zip(gradient.values(), slopes, strict=False):
            own += more
        slope = slopes[len(schedule) :]
        del end, product  # or they would hold this graph while the next one grows
    return Hypergradient(value, gradient, state)


def _objective_gradient(
    trainee: Trainee, state: TraineeState, objective: Objective
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The objective (n,) and its derivatives by the inner state of a detached state, leaf by leaf."""
    state = _tracked(state)
    with torch.enable_grad():
        value = objective(trainee, state)
        total = value.sum()
    return value.detach(), torch.autograd.grad(total, tree_leaves(_inner(state)), materialize_grads=True)


def _jvp(
    training: ScheduledTraining, state: TraineeState, values: Hyper, steps: int, tangents: Tangents
) -> tuple[InnerState, TraineeState]:
    """The tangent of the inner state, and the state, after inner steps under constant values (n, 1)."""

    def train(inner: InnerState, values: Hyper) -> tuple[InnerState, TraineeState]:
        end = training.unroll(_with_inner(state, inner), values, steps)
        return _inner(end), end

    _, tangent, end = jvp(train, (_inner(state), values), tangents, has_aux=True)  # type: ignore[misc]
    return tangent, end


def _unit(directions: int, own: int, value: Tensor) -> Tensor:
    """Tangents (K, *shape) of a hyperparameter: 1 in the direction of its own value, 0 in all others."""
    along = value.new_zeros(directions, 1, 1)
    along[own] = 1
    return along.expand(-1, *value.shape)


def _vmapped(product: Jvp, tangents: Tangents) -> tuple[InnerState, TraineeState]:
    advanced: tuple[InnerState, TraineeState] = vmap(product, out_dims=(0, None))(tangents)  # type: ignore[arg-type]
    return advanced


def _one_by_one(product: Jvp, tangents: Tangents) -> tuple[InnerState, TraineeState]:
    directions = len(tree_leaves(tangents)[0])
    advanced = [product(tree_map(lambda x: x[k], tangents)) for k in range(directions)]  # noqa: B023
    after: InnerState = tree_map(lambda *parts: torch.stack(parts), *(own for own, _ in advanced))
    return after, advanced[0][1]


def _advanced(product: Jvp, tangents: Tangents, methods: list[BatchedJvp]) -> tuple[InnerState, TraineeState]:
    """The tangents (K, ...) and the state after some steps, by the first method that works; drops those before."""
    while True:
        try:
            with torch.enable_grad():  # without it, inner steps detach
                return methods[0](product, tangents)
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            if re.search("forward (mode )?AD", reason):
                raise ValueError(
                    f"no forward mode for this network: {reason} Take `reverse`, or another layer"
                ) from error
            if len(methods) == 1:
                raise
            del methods[0]


def _inner(state: TraineeState) -> InnerState:
    return state.params, state.opt


def _with_inner(state: TraineeState, inner: InnerState) -> TraineeState:
    return state._replace(params=inner[0], opt=inner[1])


def _tracked(state: TraineeState) -> TraineeState:
    return _with_inner(state, tree_map(lambda x: x.detach().requires_grad_(), _inner(state)))


def _detached(tree: T) -> T:
    detached: T = tree_map(Tensor.detach, tree)
    return detached


def _split(steps: range, size: int) -> list[range]:
    return [steps[i : i + size] for i in range(0, len(steps), size)]
