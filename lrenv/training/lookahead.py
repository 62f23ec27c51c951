"""Inner steps that look one gradient ahead, for agents that see gradients.

A one-step hypergradient is -<g_(t+1), d_t>: the direction of a step and the gradient that follows it (Baydin et al.
2018, equation 5). An agent that acts before step t + 1 needs g_(t+1) by then. So the gradient of the next batch is
computed at the end of an interval instead of the beginning of the next one: the same work, only earlier.

    before the interval:   w_1, g_1
    its steps:             d_1, w_2, g_2 | d_2, w_3, g_3 | ... | d_N, w_(N+1), g_(N+1)

Each step, with the gradient that follows it, adds to the sums that are observed. Gradients and directions are those of
what is minimised, L2 penalty included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrenv.runtime.ambient import settled
from lrenv.runtime.compiling import Compile, compiled
from lrenv.runtime.trees import select
from lrenv.training.optimizers import Hyper
from lrenv.training.trainee import Gradient, Trainee, TraineeState


class Step(NamedTuple):
    """One inner step, seen from behind; every leaf is (n, P)."""

    direction: Tensor  # d_t
    after: Tensor  # g_(t+1)
    before: Tensor  # g'_t: at w_t on the batch of g_(t+1); empty where nobody asks for it


CHANGE = "gradient_change_square"
"""The product that takes another gradient at each step: of the next batch, where the step began."""
PRODUCTS: dict[str, tuple[int, Callable[[Step], tuple[Tensor, Tensor]]]] = {
    "hypergradient": (-1, lambda step: (step.after, step.direction)),
    "gradient_square": (1, lambda step: (step.after, step.after)),
    "direction_square": (1, lambda step: (step.direction, step.direction)),
    CHANGE: (1, lambda step: (step.after - step.before,) * 2),
}
"""Name -> the sign and the two tensors of the inner product that each step adds, at the granularity of the rates."""
MEAN = "mean_gradient"
"""The mean of the gradients g_2 ... g_(N+1), one number per parameter."""


class Ahead(NamedTuple):
    """What n trainees know of their next step, and of the last interval."""

    gradient: Gradient  # on the batch of the next step
    sums: dict[str, Tensor]  # name -> (n, K), `mean_gradient` (n, P)


class Lookahead:
    """Trains like `Trainee.unroll`, with the same numbers, one gradient ahead.

    Args:
        trainee: what is trained.
        parts: what to sum up: names in `PRODUCTS`, and `MEAN`.
        granularity: of the sums (`lrenv.envs.actions`).
        compile: True compiles detached steps.
    """

    def __init__(self, trainee: Trainee, parts: Sequence[str], granularity: str, compile: Compile = False) -> None:
        self._trainee = trainee
        self._products = {name: PRODUCTS[name] for name in parts if name != MEAN}
        self._mean = MEAN in parts
        self._granularity = granularity
        self._fast_steps = compiled(self._steps) if compile is True else self._steps

    @settled
    def start(self, state: TraineeState, hyper: Hyper) -> Ahead:
        """Before the first step: sums over no step, but for the gradient that is there already."""
        indices = self._trainee.batch_indices(state, 1)[:, 0]
        gradient = self._trainee.gradient(state, indices)
        seen = self._trainee.optimizer.regularised(gradient.grads, state.params, hyper)
        nothing = torch.zeros_like(seen)
        return Ahead(gradient, self._reduced(self._added(Step(nothing, seen, seen), self._zeros(seen), False), 1))

    @settled
    def unroll(
        self, state: TraineeState, ahead: Ahead, lr: Tensor, hyper: Hyper, steps: int, until: int | None = None
    ) -> tuple[TraineeState, Ahead, Tensor]:
        """Inner steps at a constant rate.

        Args:
            state: n trainees.
            ahead: what `start` or the last call gave.
            lr: (n, K) rates, as `Trainee.spread` takes them.
            hyper: hyperparameter -> (n, 1).
            steps: how many.
            until: trainees that have taken this many inner steps stand still.

        Returns:
            The state after the steps, what is known of the next one, and the training losses (n, steps), each before
            its step.
        """
        rates = self._trainee.spread(lr)
        take = self._steps if torch.is_grad_enabled() else self._fast_steps
        following = self._trainee.batch_indices(state._replace(step=state.step + 1), steps)
        ahead = ahead._replace(sums=self._zeros(state.params))
        start, losses = state.step, []
        for indices in following.split(self._trainee.steps_a_graph, 1):
            state, ahead, loss = take(state, ahead, rates, hyper, indices, until)
            losses.append(loss)
        taken = (state.step - start).clamp(min=1).to(lr.dtype)
        return state, ahead._replace(sums=self._reduced(ahead.sums, taken[:, None])), torch.cat(losses, 1)

    def _steps(
        self, state: TraineeState, ahead: Ahead, rates: Tensor, hyper: Hyper, indices: Tensor, until: int | None
    ) -> tuple[TraineeState, Ahead, Tensor]:
        """One inner step before each of the batches `indices` (n, k, b); gives the losses (n, k).

        The sums are those of each element by itself, (n, P), until the interval ends.
        """
        trainee, losses = self._trainee, []
        in_place = until is None and not (torch.is_grad_enabled() or torch.compiler.is_compiling())

        def regularised(state: TraineeState, gradient: Gradient) -> Tensor:
            return trainee.optimizer.regularised(gradient.grads, state.params, hyper)

        for batch in indices.unbind(1):
            losses.append(ahead.gradient.loss)
            moved, direction = trainee.descended(state, rates, hyper, ahead.gradient)
            gradient = trainee.gradient(moved, batch)
            step = Step(direction, regularised(moved, gradient), direction.new_zeros(0))
            if CHANGE in self._products:
                # With the draws of the step that the batch belongs to: of dropout, of augmentation.
                again = trainee.gradient(state._replace(step=moved.step), batch)
                step = step._replace(before=regularised(state, again))
            then = Ahead(gradient, self._added(step, ahead.sums, in_place))
            if until is not None:
                moved, then = select(state.step < until, (moved, then), (state, ahead))
            state, ahead = moved, then
        return state, ahead, torch.stack(losses, 1)

    def _zeros(self, params: Tensor) -> dict[str, Tensor]:
        """Sums (n, P) over no step."""
        return {name: torch.zeros_like(params) for name in (*self._products, *[MEAN] * self._mean)}

    def _added(self, step: Step, sums: dict[str, Tensor], in_place: bool) -> dict[str, Tensor]:
        """Adds each element's products of a step to the sums (n, P): one pass over the weights each."""
        multiplied, plus = (Tensor.addcmul_, Tensor.add_) if in_place else (Tensor.addcmul, Tensor.add)
        added = {
            name: multiplied(sums[name], *factors(step), value=sign) for name, (sign, factors) in self._products.items()
        }
        return added | ({MEAN: plus(sums[MEAN], step.after)} if self._mean else {})

    def _reduced(self, sums: dict[str, Tensor], taken: Tensor | int) -> dict[str, Tensor]:
        """The sums at the granularity of the rates (n, K), and the mean over the steps taken."""
        reduced = {name: self._trainee.network.summed(sums[name], self._granularity) for name in self._products}
        return reduced | ({MEAN: sums[MEAN] / taken} if self._mean else {})
