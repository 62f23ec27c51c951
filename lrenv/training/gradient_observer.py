"""An observer of the gradients of the inner loop, for agents that see gradients.

The one-step hypergradient is the derivative of the next loss by the learning rate (Baydin et al. 2018, equation 5),

    h = -<g_(t+1), d_t>,

the product of the direction of a step and the gradient that follows it. An agent that acts before step t + 1 needs
g_(t+1) by then. So with an observer the inner loop computes the gradient of the next batch at the end of a step instead
of the beginning of the next one: the same work, only earlier.

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

from lrenv.runtime.ambient import with_own_settings
from lrenv.training.optimizers import Hyper
from lrenv.training.trainee import Gradient, Observed, Trainee, TraineeState


class Step(NamedTuple):
    """One inner step and the gradients around it; every leaf is (n, P)."""

    direction: Tensor  # d_t
    following: Tensor  # g_(t+1)
    preceding: Tensor  # g'_t: at w_t on the batch of g_(t+1); empty where no product needs it


class Product(NamedTuple):
    """Sums over the steps of an interval of sign * <a, b>, a and b being two tensors (n, P) of a step."""

    sign: int
    factors: Callable[[Step], tuple[Tensor, Tensor]]


CHANGE = "gradient_change_square"
"""The product that takes another gradient at each step: of the next batch, where the step began."""
PRODUCTS: dict[str, Product] = {
    # h = -<g_(t+1), d_t>
    "hypergradient": Product(-1, lambda step: (step.following, step.direction)),
    "gradient_square": Product(1, lambda step: (step.following, step.following)),
    "gradient_absolute": Product(1, lambda step: (step.following, step.following.sign())),
    "direction_square": Product(1, lambda step: (step.direction, step.direction)),
    CHANGE: Product(1, lambda step: (step.following - step.preceding,) * 2),
}
"""Name -> the inner product that each step adds, at the granularity of the rates."""
MEAN = "mean_gradient"
"""The mean of the gradients g_2 ... g_(N+1), one number per parameter."""


class Sums:
    """Sums of products of gradients and directions over the steps of an interval.

    Args:
        parts: what to sum up: names in `PRODUCTS`, and `MEAN`.
        reduce: (n, P) -> (n, K), the sums at the granularity of the rates.
    """

    def __init__(self, parts: Sequence[str], reduce: Callable[[Tensor], Tensor]) -> None:
        self._products = {name: PRODUCTS[name] for name in parts if name != MEAN}
        self._mean, self._reduce = MEAN in parts, reduce

    def zeros(self, params: Tensor) -> dict[str, Tensor]:
        """Returns the sums (n, P) over no step."""
        return {name: torch.zeros_like(params) for name in (*self._products, *[MEAN] * self._mean)}

    def added(self, step: Step, sums: dict[str, Tensor], in_place: bool) -> dict[str, Tensor]:
        """Adds each element's products of a step to the sums (n, P): one pass over the weights each."""
        multiplied, plus = (Tensor.addcmul_, Tensor.add_) if in_place else (Tensor.addcmul, Tensor.add)
        added = {
            name: multiplied(sums[name], *product.factors(step), value=product.sign)
            for name, product in self._products.items()
        }
        return added | ({MEAN: plus(sums[MEAN], step.following)} if self._mean else {})

    def reduced(self, sums: dict[str, Tensor], taken: Tensor | int) -> dict[str, Tensor]:
        """Returns the sums at the granularity of the rates (n, K), and the mean over the steps taken."""
        reduced = {name: self._reduce(sums[name]) for name in self._products}
        return reduced | ({MEAN: sums[MEAN] / taken} if self._mean else {})


class GradientObserver:
    """Sums up products of gradients and directions over an interval.

    Args:
        trainee: what is trained.
        parts: what to sum up: names in `PRODUCTS`, and `MEAN`.
        granularity: of the sums (`lrenv.envs.actions`).
    """

    def __init__(self, trainee: Trainee, parts: Sequence[str], granularity: str) -> None:
        self._trainee, self._changes = trainee, CHANGE in parts
        self._sums = Sums(parts, lambda x: trainee.network.summed(x, granularity))

    @with_own_settings
    def start(self, state: TraineeState, hyper: Hyper) -> Observed:
        """Returns the carry before the first step: g_1, and what is observed before any step has been made.

        These are the products of g_1 with a direction of 0: `gradient_square` and `gradient_absolute` are those of g_1,
        and the mean gradient is g_1, while products with a direction and changes of the gradient are 0.
        """
        gradient = self._trainee.gradient(state, self._trainee.batch_indices(state, 1)[:, 0])
        first = self._regularised(state, gradient, hyper)
        sums = self._sums.added(Step(torch.zeros_like(first), first, first), self._sums.zeros(first), in_place=False)
        return Observed(gradient, self._sums.reduced(sums, 1))

    def begin(self, observed: Observed) -> Observed:
        """Returns the gradient that is carried, and sums (n, P) of each element by itself over no step."""
        return observed._replace(sums=self._sums.zeros(observed.gradient.grads))

    def observe(
        self,
        observed: Observed,
        before: TraineeState,
        direction: Tensor,
        after: TraineeState,
        hyper: Hyper,
        following: Tensor,
        in_place: bool,
    ) -> Observed:
        """Adds a step, and computes the gradient that follows it.

        Args:
            observed: what was carried into the step.
            before: where it began.
            direction: d_t (n, P).
            after: where it ended.
            hyper: hyperparameter -> (n, 1).
            following: (n, b), examples of the next step.
            in_place: nobody else needs the sums of before.
        """
        gradient = self._trainee.gradient(after, following)
        step = Step(direction, self._regularised(after, gradient, hyper), direction.new_zeros(0))
        if self._changes:
            # With the draws of the step that the batch belongs to: of dropout, of augmentation.
            again = self._trainee.gradient(before._replace(step=after.step), following)
            step = step._replace(preceding=self._regularised(before, again, hyper))
        return Observed(gradient, self._sums.added(step, observed.sums, in_place))

    def end(self, observed: Observed, steps: Tensor) -> Observed:
        """Returns the sums at the granularity of the rates, and the mean over the steps (n,) that were taken."""
        number = steps.clamp(min=1).to(observed.gradient.grads.dtype)
        return observed._replace(sums=self._sums.reduced(observed.sums, number[:, None]))

    def _regularised(self, state: TraineeState, gradient: Gradient, hyper: Hyper) -> Tensor:
        return self._trainee.optimizer.regularised(gradient.grads, state.params, hyper)
