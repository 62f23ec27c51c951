"""Training dynamics: the quantities by which the training of a network is described once per decision.

Agents observe functions of them (`lrenv.envs.observations`), and rewards are made of them (`lrenv.envs.rewards`).
Seven are those of Xu et al. 2019, section 2.2. With w before and w' after an interval of N inner steps,

| quantity | formula |
|---|---|
| `train_loss` | mean of the N batch losses, each before its step |
| `val_loss` | loss of w' on the validation split |
| `prediction_variance` | Var(f(w')), over validation examples and classes |
| `prediction_change` | Var(f(w') - f(w)), over the same |
| `weight_mean`, `weight_variance` | mean and variance of the entries of the last layer's weight matrix in w' |
| `lr` | learning rate of the interval |

where f(w) are the predictions of the task's loss (`lrenv.training.losses`), such as class probabilities. The others say
how the losses of an interval scatter, and how far and in which direction the first and the last layer have moved: with
u = w' - w,

| quantity | formula |
|---|---|
| `loss_spread` | standard deviation of the N batch losses |
| `first_update`, `last_update` | norm(u) / norm(w') |
| `first_cosine`, `last_cosine` | <u, v> / (norm(u) norm(v)), v being the u of the interval before |

Of the untrained network there are the losses on its first batch and on the validation split, the sizes of its weights
and of its first gradient (`Untrained`), and what stays the same throughout is told as well (`Setup`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

NEAR_ZERO = 1e-4
"""The part of the largest layer's root mean square below which a layer says nothing of `Untrained.weight_size`. All
those of drawn tasks, and of the held-out list, are above 0.01. Where layers are scaled by random factors, a bound of
0.01 makes peaks worse (`benchmarks/drawn_layers.py`)."""


class Dynamics(NamedTuple):
    """How the training of n trainees goes, measured once per decision; every leaf is (n,)."""

    inner_step: Tensor  # inner steps taken
    budget: Tensor  # T, inner steps of the episode
    interval: Tensor  # N, inner steps between decisions
    train_loss: Tensor  # mean over the interval's batches
    val_loss: Tensor
    previous_train_loss: Tensor  # at the decision before
    previous_val_loss: Tensor
    initial_train_loss: Tensor  # of the untrained network on its first batch
    initial_val_loss: Tensor  # of the untrained network
    relative_gradient: Tensor  # of the untrained network, as in `Untrained`
    weight_size: Tensor
    loss_spread: Tensor  # standard deviation of the interval's batch losses
    prediction_variance: Tensor  # of predictions on validation examples
    prediction_change: Tensor  # variance of their changes over the interval
    weight_mean: Tensor  # of the last layer's weights
    weight_variance: Tensor
    lr: Tensor  # the rate of the last interval; `one_rate` where there are several
    first_update: Tensor  # length of the first layer's displacement over the interval, relative to its weights'
    last_update: Tensor
    first_cosine: Tensor  # of the angle between the first layer's last two displacements
    last_cosine: Tensor
    adaptive: Tensor  # 1 where the optimizer scales gradients, 0 elsewhere
    momentum: Tensor  # that of the optimizer at the start; beta_1 of Adam
    batch_size: Tensor
    layers: Tensor  # how many the network has


def one_rate(rates: Tensor) -> Tensor:
    """Returns one rate (...) for K of them (..., K): the geometric mean of their sizes; one of 0 counts as 1e-12."""
    return rates[..., 0] if rates.shape[-1] == 1 else rates.abs().clamp(min=1e-12).log().mean(-1).exp()


def one_rate_of(rates: NDArray[Any]) -> NDArray[Any]:
    """Returns the same of arrays (n,), as they are, or (n, K): (n,)."""
    return rates if rates.ndim == 1 else one_rate(torch.from_numpy(rates)).numpy()


class Setup(NamedTuple):
    """What stays the same in a training."""

    adaptive: bool  # whether the optimizer scales gradients (`lrenv.training.optimizers.Optimizer.adaptive`)
    momentum: float  # its first one; 0 of one without
    batch_size: float
    layers: int  # modules of the network that hold parameters (`lrenv.networks.pieces`)


class Untrained(NamedTuple):
    """The sizes of n untrained networks' weights w and of the gradients g on their first batches, each (n,)."""

    relative_gradient: Tensor  # the largest norm(g_k) / norm(w_k) of a layer k, among those whose weights aren't all 0
    weight_size: Tensor  # root mean square of a layer's weights, the geometric mean over layers; 0 if all are 0

    @classmethod
    def of(cls, gradient_squares: Tensor, weight_squares: Tensor, sizes: Sequence[int]) -> Untrained:
        """Returns them for networks of K layers.

        A layer counts in the mean of sizes with the square root of its number of weights. With the number itself, one
        large layer, such as an embedding, would outweigh all others; without it, the gains of a norm would say as much
        as a matrix. Layers that begin at 0, or below a part `NEAR_ZERO` of the largest one, say nothing of the scale of
        weights, and are left out.

        Args:
            gradient_squares: (n, K), the sum of squares for each layer.
            weight_squares: (n, K).
            sizes: weights of each layer.
        """
        still = weight_squares == 0
        ratio = gradient_squares / weight_squares.masked_fill(still, 1)
        numbers = torch.tensor(sizes).to(weight_squares)
        squares = weight_squares / numbers.clamp(min=1)
        silent = still | (squares < NEAR_ZERO**2 * squares.amax(1, keepdim=True))
        counts = numbers.sqrt().masked_fill(silent, 0)
        log_size = (counts * squares.masked_fill(silent, 1).log()).sum(1) / 2 / counts.sum(1).clamp(min=1)
        return cls(ratio.masked_fill(still, 0).amax(1).sqrt(), log_size.exp().masked_fill(still.all(1), 0))


class Trained(NamedTuple):
    """The state of n trainees at one end of an interval, for their dynamics; every leaf has the env axis first."""

    step: Tensor  # (n,) int64, inner steps taken
    layers: tuple[Tensor, Tensor]  # weights (n, size) of the first and of the last layer
    val_loss: Tensor  # (n,), as last measured
    predictions: Tensor  # (n, k, p), on validation examples, as last measured


class DynamicsMeter:
    """Measures the dynamics of trainees.

    Args:
        budget: T, inner steps of an episode; infinity where it has no end.
        interval: N, inner steps between two decisions.
        motion: whether to measure how the first and the last layer move. It takes several passes over the first layer,
            which is often the largest; without it, updates and cosines are 0.
        setup: what stays the same.
    """

    def __init__(self, budget: float, interval: int, motion: bool, setup: Setup) -> None:
        self._budget, self._interval, self._motion, self._setup = budget, interval, motion, setup

    def still(self, layers: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Displacements (n, size) of weights that have not moved yet, per layer whose motion is measured."""
        return tuple(torch.zeros_like(weights) for weights in layers) if self._motion else ()

    def measure(
        self,
        before: Trained,
        after: Trained,
        losses: Tensor,
        lr: Tensor,
        displacements: tuple[Tensor, ...],
        previous: Dynamics | None = None,
        untrained: Untrained | None = None,
    ) -> tuple[Dynamics, tuple[Tensor, ...]]:
        """Returns the dynamics of an interval.

        Untrained networks are at the end of an interval in which nothing has moved: `before` is `after`, and the loss
        of the first batch is that of its only step.

        Args:
            before: the trainees as the interval began.
            after: the trainees at its end.
            losses: (n, N) training losses of its steps. Those beyond the budget don't count.
            lr: (n, K) rates of the interval.
            displacements: of the interval before.
            previous: the dynamics at the decision before; None for untrained networks.
            untrained: of untrained networks; None where nobody looks at it, which gives zeros.

        Returns:
            The dynamics, and the displacements of this interval.
        """
        train_loss, spread = self._moments(losses, before.step)
        last = after.layers[1]
        nothing = torch.zeros_like(train_loss)
        if previous is not None:
            untrained = Untrained(previous.relative_gradient, previous.weight_size)
        elif untrained is None:
            untrained = Untrained(nothing, nothing)
        moved = zip(before.layers, after.layers, displacements, strict=True) if self._motion else ()
        motions = [_motion(*layer) for layer in moved]
        first_motion, last_motion = motions or [Motion(nothing, nothing, nothing)] * 2
        dynamics = Dynamics(
            inner_step=after.step.to(lr.dtype),
            budget=torch.full_like(train_loss, self._budget),
            interval=torch.full_like(train_loss, self._interval),
            train_loss=train_loss,
            val_loss=after.val_loss,
            previous_train_loss=train_loss if previous is None else previous.train_loss,
            previous_val_loss=after.val_loss if previous is None else previous.val_loss,
            initial_train_loss=train_loss if previous is None else previous.initial_train_loss,
            initial_val_loss=after.val_loss if previous is None else previous.initial_val_loss,
            **untrained._asdict(),
            loss_spread=spread,
            prediction_variance=_variance(after.predictions),
            prediction_change=_variance(after.predictions - before.predictions),
            weight_mean=last.mean(1),
            weight_variance=_variance(last),
            lr=one_rate(lr),
            first_update=first_motion.update,
            last_update=last_motion.update,
            first_cosine=first_motion.cosine,
            last_cosine=last_motion.cosine,
            **{name: torch.full_like(train_loss, value) for name, value in self._setup._asdict().items()},
        )
        return dynamics, tuple(motion.displacement for motion in motions)

    def _moments(self, losses: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (n,) of the losses (n, N) of the steps within the budget."""
        if self._budget % self._interval == 0:
            return losses.mean(1), losses.std(1, correction=0)
        taken = start[:, None] + torch.arange(losses.shape[1], device=losses.device) < self._budget
        number = taken.sum(1).clamp(min=1)
        mean = losses.where(taken, 0).sum(1) / number
        squares = ((losses - mean[:, None]) ** 2).where(taken, 0).sum(1) / number
        # As of a single step; the derivative of a root is infinite at 0, and that of this one is 0.
        still = squares == 0
        return mean, squares.masked_fill(still, 1).sqrt().masked_fill(still, 0)


class Motion(NamedTuple):
    """How a layer has moved in an interval."""

    displacement: Tensor  # (n, size)
    update: Tensor  # (n,)
    cosine: Tensor  # (n,)


def _motion(before: Tensor, after: Tensor, last: Tensor) -> Motion:
    """The motion of weights (n, size), `last` being the displacement of the interval before."""
    displacement = after - before
    length = displacement.norm(dim=1)
    update = length / after.norm(dim=1).clamp(min=1e-12)
    cosine = (displacement * last).sum(1) / (length * last.norm(dim=1)).clamp(min=1e-30)
    return Motion(displacement, update, cosine)


def _variance(x: Tensor) -> Tensor:
    """Variance (n,) over everything but the env axis."""
    centred = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
    return centred.square().mean(1)  # passes that vectorise, unlike Tensor.var's on a CPU
