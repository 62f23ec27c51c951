"""Hypergradients as values: derivatives of what n trainees achieve by the hyperparameters that they were trained with.

`reverse` goes back through the training: its cost does not depend on how many hyperparameters there are, its memory
grows with the number of steps. `forward` carries a tangent for each hyperparameter along with the training, as FDS does
(Micaelli & Storkey 2021): its memory does not depend on the number of steps, its cost grows with the hyperparameters.
Both are exact and agree to rounding.

Derivatives pass through weights and optimizer state. Buffers are constants: `lrenv.networks.layers` cuts off the
running statistics of batch normalisation, so the derivative of an objective that reads them, as evaluation mode does,
is the one by the weights alone. Where gradients have been exactly 0, Adam's root has no derivative; 0 stands for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from lrenv.lookup import count, lookup
from lrenv.runtime.ambient import with_own_settings
from lrenv.training import rollout as loop
from lrenv.training.optimizers import Hyper, OptState
from lrenv.training.trainee import Trainee, TraineeState

T = TypeVar("T")
Schedule = Mapping[str, Tensor]
"""Hyperparameter -> (n, S) values, each held for a stretch of the training: of T inner steps, step t belongs to stretch
floor(t S / T). S may differ from one hyperparameter to the next; those left out are the task's own. Hypergradients of
long horizons are noisy, and sharing a value among contiguous steps averages them (Micaelli & Storkey 2021)."""
Objective = Callable[[Trainee, TraineeState], Tensor]
"""What training is to make small: (trainee, state of n) -> (n,)."""
Moving = tuple[Tensor, OptState]
"""What derivatives pass through in a state: weights and optimizer state."""
Tangents = tuple[Moving, Hyper]
"""Of what moves and of the values in force; of K directions at once, each leaf is (K, ...)."""
Push = Callable[[Tangents], tuple[Moving, TraineeState]]
"""Tangents of one direction -> the tangent of what moves, and the state, after some inner steps."""
Way = Callable[[Push, Tangents], tuple[Moving, TraineeState]]
"""How to push K tangents at once."""


class Hypergradient(NamedTuple):
    """An objective of n trainees and its derivatives; nothing in it requires a gradient."""

    objective: Tensor  # (n,)
    gradient: dict[str, Tensor]  # name -> (n, S), by the schedule
    state: TraineeState  # after the last step


def validation_loss(trainee: Trainee, state: TraineeState) -> Tensor:
    """The loss (n,) on the whole validation split, in evaluation mode. The task's `val_examples` bounds its memory."""
    return trainee.evaluate(state.params, state.buffers, trainee.val).loss


def next_training_loss(trainee: Trainee, state: TraineeState) -> Tensor:
    """The loss (n,) on the batch of the next inner step, in training mode.

    After a single step, its derivative by the learning rate is -<g_(t+1), direction_t> (Baydin et al. 2018, equation
    5), if batches do not depend on the weights.
    """
    return trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])[0]


@with_own_settings
def rollout(trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int) -> TraineeState:
    """Trains for `steps` inner steps: detached under `torch.no_grad()`, differentiable by the schedule otherwise.

    Raises:
        ValueError: the schedule does not fit the trainee, the number of trainees or that of steps.
    """
    return _Course.of(trainee, start, schedule, steps).train(start, range(steps))


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
    """The hypergradient in reverse mode.

    Args:
        trainee: what is trained.
        start: n trainees before the first step; taken as given.
        schedule: what to differentiate by.
        steps: T, inner steps.
        objective: what to differentiate.
        truncation: steps in a window that no derivative leaves. The objective then counts at the end of every window,
            and the derivatives of the windows are added (Metz et al. 2019, section 2.4): short windows are cheap, do
            not explode, and are biased towards what helps soon. The objective given back is that after the last step.
        checkpoint: keep the states between pieces of sqrt(T) steps only, and train each piece again on the way back:
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


def truncated(
    trainee: Trainee,
    start: TraineeState,
    schedule: Schedule,
    steps: int,
    window: int,
    objective: Objective = validation_loss,
    checkpoint: bool = True,
) -> Iterator[Hypergradient]:
    """The hypergradients of successive windows of the training, which `reverse(truncation=window)` adds.

    Each is that of the objective at its window's end, by the whole schedule: 0 for stretches that don't meet the
    window. The last window is shorter where `window` does not divide `steps`. For the arguments see `reverse`.

    Raises:
        ValueError: as `reverse`.
    """
    course = _Course.of(trainee, start, _detached(dict(schedule)), steps)
    return _windows(course, _detached(start), count("window", window), objective, checkpoint)


@with_own_settings
def forward(
    trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int, objective: Objective = validation_loss
) -> Hypergradient:
    """The hypergradient in forward mode: a tangent of weights and optimizer state for each value of the schedule.

    Tangents are 0 until their stretch begins, and not computed until then. Those alive go through a step together under
    `vmap`, or one after the other where an operation does not support it. For the arguments see `reverse`.

    Raises:
        ValueError: as `reverse`, or an operation of the network has no derivative in forward mode.
    """
    course = _Course.of(trainee, start, _detached(dict(schedule)), steps)
    state = _detached(start)
    tangents: Moving = tree_map(lambda x: x.new_zeros(0, *x.shape), _moving(state))
    live: list[tuple[str, int]] = []
    ways: list[Way] = [_together, _one_by_one]
    for piece in course.pieces(range(steps)):
        values = course.values(piece.start)
        now = {name: (name, course.stretch(name, piece.start)) for name in values}
        begun = [value for value in now.values() if value not in live]
        live += begun
        tangents = tree_map(lambda x: torch.cat([x, x.new_zeros(len(begun), *x.shape[1:])]), tangents)  # noqa: B023
        along = {name: _unit(len(live), live.index(now[name]), value) for name, value in values.items()}
        push = partial(course.push, state, values, len(piece))
        tangents, state = _pushed(push, (tangents, along), ways)
    value, slope = _slope(trainee, state, objective)
    products = sum((own * x).flatten(2).sum(2) for own, x in zip(slope, tree_leaves(tangents), strict=True))
    each = dict(zip(live, products, strict=True))
    gradient = {
        name: torch.stack([each[name, s] for s in range(values.shape[1])], 1)
        for name, values in course.schedule.items()
    }
    return Hypergradient(value, gradient, state)


def _unit(directions: int, own: int, value: Tensor) -> Tensor:
    """Tangents (K, *shape) of a value in force, which moves by 1 along its own and along no other."""
    along = value.new_zeros(directions, 1, 1)
    along[own] = 1
    return along.expand(-1, *value.shape)


@dataclass(frozen=True)
class _Course:
    """T inner steps of a trainee under a schedule."""

    trainee: Trainee
    schedule: dict[str, Tensor]
    steps: int

    @classmethod
    def of(cls, trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int) -> _Course:
        """Checks that the parts fit."""
        count("steps", steps)
        if "lr" not in schedule:
            raise ValueError("the schedule has no 'lr', which the task does not set either; add values of it")
        n = len(start.params)
        for name, values in schedule.items():
            lookup({"lr": None, **trainee.task.hyper}, name, "hyperparameter")
            if values.ndim != 2 or len(values) != n or not values.shape[1]:
                raise ValueError(
                    f"values of {name!r} must have shape ({n}, S), one per trainee and "
                    f"stretch, not {tuple(values.shape)}"
                )
            if values.shape[1] > steps:
                raise ValueError(f"{name!r} has {values.shape[1]} values for {steps} steps; give at most one per step")
        # Copies, for no gradient can be asked for tensors from `torch.inference_mode`.
        own = {name: values.to(start.params, copy=True) for name, values in schedule.items()}
        return cls(trainee, own, steps)

    def stretch(self, name: str, step: int) -> int:
        """Which value of a hyperparameter is in force."""
        return step * self.schedule[name].shape[1] // self.steps

    def values(self, step: int) -> Hyper:
        """The values in force, name -> (n, 1)."""
        return {name: values[:, self.stretch(name, step), None] for name, values in self.schedule.items()}

    def pieces(self, span: range) -> list[range]:
        """`span`, cut wherever a stretch begins and after each interval of the task, which bounds what is drawn."""
        cuts = {span.start, span.stop, *range(0, self.steps, self.trainee.task.interval)}
        for values in self.schedule.values():
            cuts |= {-(-s * self.steps // values.shape[1]) for s in range(values.shape[1])}
        return [range(*pair) for pair in pairwise(sorted(cut for cut in cuts if span.start <= cut <= span.stop))]

    def unroll(self, state: TraineeState, values: Hyper, steps: int) -> TraineeState:
        """Inner steps under constant values (n, 1)."""
        hyper = self.trainee.hyper(len(state.params)) | values
        return self.trainee.unroll(state, hyper.pop("lr"), hyper, steps)[0]

    def train(self, state: TraineeState, span: range) -> TraineeState:
        """The inner steps `span`."""

        def step(course: _Course, state: TraineeState, piece: range) -> tuple[tuple[()], TraineeState]:
            return (), course.unroll(state, course.values(piece.start), len(piece))

        return loop.rollout(step, self, state, self.pieces(span))[1]

    def push(self, state: TraineeState, values: Hyper, steps: int, tangents: Tangents) -> tuple[Moving, TraineeState]:
        """The tangent of what moves, and the state, after inner steps under constant values (n, 1)."""

        def train(moving: Moving, values: Hyper) -> tuple[Moving, TraineeState]:
            end = self.unroll(_with(state, moving), values, steps)
            return _moving(end), end

        _, tangent, end = jvp(train, (_moving(state), values), tangents, has_aux=True)  # type: ignore[misc]
        return tangent, end


def _detached(tree: T) -> T:
    detached: T = tree_map(Tensor.detach, tree)
    return detached


def _moving(state: TraineeState) -> Moving:
    return state.params, state.opt


def _with(state: TraineeState, moving: Moving) -> TraineeState:
    return state._replace(params=moving[0], opt=moving[1])


def _cut(span: range, size: int) -> list[range]:
    return [span[i : i + size] for i in range(0, len(span), size)]


def _windows(
    course: _Course, state: TraineeState, window: int, objective: Objective, checkpoint: bool
) -> Iterator[Hypergradient]:
    for span in _cut(range(course.steps), window):
        result = _back(course, state, span, objective, checkpoint)
        yield result
        state = result.state


def _back(course: _Course, start: TraineeState, span: range, objective: Objective, checkpoint: bool) -> Hypergradient:
    """The hypergradient of the steps `span`, by vector-Jacobian products of one piece after the other."""
    pieces = _cut(span, math.isqrt(len(span) - 1) + 1 if checkpoint else len(span))
    starts = [start]
    with torch.no_grad():
        for piece in pieces[:-1]:
            starts.append(course.train(starts[-1], piece))
    schedule = {name: values.detach().requires_grad_() for name, values in course.schedule.items()}
    gradient = {name: torch.zeros_like(values) for name, values in course.schedule.items()}
    for begin, piece in zip(reversed(starts), reversed(pieces), strict=True):
        inputs = list(schedule.values())
        if piece.start > span.start:  # else it is given: derivatives by it would cost as much as those by the schedule
            begin = _tracked(begin)
            inputs += tree_leaves(_moving(begin))
        with torch.enable_grad():
            end = replace(course, schedule=schedule).train(begin, piece)
            if piece.stop == span.stop:
                state = _detached(end)
                value, slope = _slope(course.trainee, state, objective)
            product = sum((x * own).sum() for x, own in zip(tree_leaves(_moving(end)), slope, strict=True))
        slopes = torch.autograd.grad(product, inputs, materialize_grads=True)
        for own, more in zip(gradient.values(), slopes, strict=False):
            own += more
        slope = slopes[len(schedule) :]
        del end, product  # or they would hold this graph while the next one grows
    return Hypergradient(value, gradient, state)


def _slope(trainee: Trainee, state: TraineeState, objective: Objective) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The objective (n,) and its derivatives by what moves in a detached state, leaf by leaf."""
    state = _tracked(state)
    with torch.enable_grad():
        value = objective(trainee, state)
        total = value.sum()
    return value.detach(), torch.autograd.grad(total, tree_leaves(_moving(state)), materialize_grads=True)


def _tracked(state: TraineeState) -> TraineeState:
    return _with(state, tree_map(lambda x: x.detach().requires_grad_(), _moving(state)))


def _together(push: Push, tangents: Tangents) -> tuple[Moving, TraineeState]:
    pushed: tuple[Moving, TraineeState] = vmap(push, out_dims=(0, None))(tangents)  # type: ignore[arg-type]
    return pushed


def _one_by_one(push: Push, tangents: Tangents) -> tuple[Moving, TraineeState]:
    number = len(tree_leaves(tangents)[0])
    pushed = [push(tree_map(lambda x: x[k], tangents)) for k in range(number)]  # noqa: B023
    after: Moving = tree_map(lambda *parts: torch.stack(parts), *(own for own, _ in pushed))
    return after, pushed[0][1]


def _pushed(push: Push, tangents: Tangents, ways: list[Way]) -> tuple[Moving, TraineeState]:
    """The tangents (K, ...) after some steps, and the state; drops the ways that fail, all but the last."""
    while True:
        try:
            with torch.enable_grad():  # without it, inner steps detach
                return ways[0](push, tangents)
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            if re.search("forward (mode )?AD", reason):
                raise ValueError(
                    f"no forward mode for this network: {reason} Take `reverse`, or another layer"
                ) from error
            if len(ways) == 1:
                raise
            del ways[0]
