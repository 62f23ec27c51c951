"""The trainee: n networks in training as one value, and the pure functions that train them.

Everything here is detached when called under `torch.no_grad()`, as the adapters do, and differentiable otherwise: call
`unroll` with rates that require a gradient for reverse mode, or inside `torch.func.jvp` for forward mode.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lrenv.lookup import count
from lrenv.randomness import draws
from lrenv.runtime.ambient import with_own_settings, without_gradients
from lrenv.runtime.compiling import Compile, checked, compiled
from lrenv.runtime.memory import Memory, available
from lrenv.runtime.trees import select
from lrenv.training.objective import PROBE, Gradient, Measurement, Objective, TraineeState
from lrenv.training.optimizers import Hyper, descend, make_optimizer
from lrenv.training.tasks import Task

__all__ = ["Gradient", "Measurement", "Observed", "StepObserver", "Trainee", "TraineeState"]

TENSORS_PER_GRAPH = 60
"""Inner steps are compiled several at a time, so that calling the graph weighs little: as many as update this many
tensors, ten of a perceptron with three layers, one of a ResNet-18. More of them only compile longer."""
CACHED = 2**24
"""Bytes that a chunk of trainees works on, on a CPU: more of them push one another out of the caches, fewer leave the
machine waiting for the next call (`benchmarks/groups.py`)."""


class Observed(NamedTuple):
    """What an observer of gradients carries from one inner step to the next."""

    gradient: Gradient  # on the batch of the next step
    sums: dict[str, Tensor]  # name -> (n, P) within an interval, (n, K) between two


class StepObserver(Protocol):
    """An observer of each inner step and the gradient that follows it (`lrenv.training.gradient_observer`)."""

    def begin(self, observed: Observed) -> Observed:
        """Returns the carry into the first step of an interval."""

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
        """Returns the carry after a step along `direction` (n, P), which the batch `following` (n, b) follows."""

    def end(self, observed: Observed, steps: Tensor) -> Observed:
        """Returns the carry after an interval in which trainees have taken so many steps (n,)."""


class Trainee(Objective):
    """One task on one device: the parts of its training that never change (`lrenv.training.objective.Objective`).

    Args:
        task: what to train.
        device: where data and trainees live.
        dtype: of weights and losses; float64 for tests of gradients, float32 otherwise.
        compile: True compiles the draws of batches and detached inner steps with `torch.compile`.
        precision: "tf32" rounds the inputs of matrix products and convolutions to TF32 (10 bits instead of 23), as JAX
            does by default, on CUDA alone; "bf16" runs networks in bfloat16 by `torch.autocast`. Weights and losses
            stay float32.
        chunk_size: how many trainees go through a decision together at most. By default, on a CPU, what its caches
            hold, and one where there are convolutions: there is more work in a batch of images than a call costs, and
            grouped convolutions are slower (`benchmarks/layers.py`). On a GPU, what half of its free memory holds.

    Attributes:
        memory: how many bytes trainees take.
        chunk_size: how many of them go through a decision together at most.
        steps_per_graph: how many inner steps are compiled together.
        rates: granularity -> K, how many learning rates a trainee has where each such piece has its own.

    Raises:
        TypeError: the task's data or network give something else than they should.
        ValueError: an unknown precision, one that rounds beside another dtype than float32, tf32 elsewhere, targets or
            outputs that don't fit the loss, or a network that can't be trained as it is; the message says what to do.
    """

    @without_gradients
    def __init__(
        self,
        task: Task,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: Compile = False,
        precision: str = "full",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(task, torch.device(device), dtype, precision)
        pieces = self.network.pieces
        self.rates = {name: len(sizes) for name, sizes in pieces.items()} | {"parameter": self.network.size}
        self._piece_of = {
            len(sizes): torch.arange(len(sizes))
            .repeat_interleave(torch.tensor(sizes), output_size=sum(sizes))
            .to(device)
            for sizes in pieces.values()
        }
        self.optimizer = make_optimizer(task.optimizer, pieces["tensor"])
        if compile is True and (reason := self.network.why_sequential):
            raise ValueError(f"the copies of this network run one after another ({reason}): compile=False")
        self.memory = self._memory()
        self.chunk_size = self._default_chunk_size() if chunk_size is None else count("chunk_size", chunk_size)
        self._compile = checked(compile, self.device)
        self._draw = compiled(draws.epoch_indices, compile, self.device, **draws.COMPILER_OPTIONS)
        self._takers: dict[StepObserver | None, Callable[..., Any]] = {}
        self.steps_per_graph = task.interval
        if compile is True:
            graphs = math.ceil(task.interval * len(self.network.shapes) / TENSORS_PER_GRAPH)
            # Where decisions are captured, calls cost nothing.
            self.steps_per_graph = 1 if self.device.type == "cuda" else math.ceil(task.interval / graphs)

    def chunks(self, n: int) -> list[int]:
        """Returns the sizes of the chunks, at most `chunk_size` each, in which n trainees go through a decision."""
        if n <= self.chunk_size:
            return [n]
        least = math.ceil(n / self.chunk_size)
        # Chunks of one size need one compiled graph: a few more of them may divide n.
        number = next((k for k in range(least, 2 * least) if n % k == 0), least)
        return [n // number + (i < n % number) for i in range(number)]

    def _default_chunk_size(self) -> int:
        if self.device.type != "cpu":
            free = available(self.device)
            return (
                sys.maxsize if free is None else max(1, free // 2 // max(self.memory.training, self.memory.measuring))
            )
        return 1 if self.network.has_convolutions else max(1, CACHED // self.memory.training)

    def _memory(self) -> Memory:
        layers = self.layers
        shape = self.train.inputs.shape[1:]
        weights, inputs = self.network.size, shape.numel()
        # On their device, so that an optimizer creates its constants there before anything is compiled or captured.
        slots = self.optimizer.init(torch.zeros(1, weights, dtype=self.dtype, device=self.device))
        predictions = max(self.outputs, 1) * min(PROBE, self.val.targets.numel())
        # A layer's output waits for the backward pass, which holds two gradients at a time.
        training = 2 * weights + self.task.batch_size * (inputs + sum(layers) + 2 * max(layers))
        measuring = min(self.piece, len(self.val.targets)) * (inputs + 3 * max(layers))
        held = 2 * weights + sum(x.numel() for x in slots.values()) + predictions
        return Memory(self.data_bytes, *(self.dtype.itemsize * numbers for numbers in (held, training, measuring)))

    @with_own_settings
    def init(self, seeds: Sequence[int]) -> TraineeState:
        """Returns untrained networks, one per seed."""
        params, buffers = self.network.init(seeds, self.device, self.dtype)
        seed = torch.tensor(seeds, dtype=torch.int64).to(self.device)
        return TraineeState(params, buffers, self.optimizer.init(params), torch.zeros_like(seed), seed)

    def hyper(self, n: int, controlled: Collection[str] = ()) -> Hyper:
        """Returns the task's hyperparameters besides the learning rate, name -> (n, 1).

        A weight decay of 0 is left out, unless it is `controlled` and may become another.
        """
        return {
            name: torch.full((n, 1), value, dtype=self.dtype, device=self.device)
            for name, value in self.task.hyper.items()
            if value or name != "weight_decay" or name in controlled
        }

    @with_own_settings
    def batch_indices(self, state: TraineeState, steps: int) -> Tensor:
        """Indices (n, steps, b) of the training examples of the next inner steps."""
        step = state.step[:, None] + torch.arange(steps, device=self.device)
        size = len(self.train.targets)
        # Other numbers of steps would each be compiled anew.
        draw = self._draw if steps == self.task.interval else draws.epoch_indices
        return draw(state.seed, step, self.task.batch_size, size, self.task.replacement)

    def inner_step(
        self, state: TraineeState, rates: Tensor, hyper: Hyper, gradient: Gradient
    ) -> tuple[TraineeState, Tensor]:
        """Takes one gradient step on the weights.

        Args:
            state: n trainees.
            rates: (n, 1) or (n, P), as `descend` takes them.
            hyper: hyperparameter -> (n, 1).
            gradient: of the step's batch.

        Returns:
            The state after the step, and the optimizer's direction (n, P) along which it went.
        """
        direction, opt = self.optimizer.direction(gradient.grads, state.opt, state.params, hyper)
        params = descend(state.params, direction, rates)
        return TraineeState(params, gradient.buffers, opt, state.step + 1, state.seed), direction

    def unroll(
        self, state: TraineeState, lr: Tensor, hyper: Hyper, steps: int, until: int | None = None
    ) -> tuple[TraineeState, Tensor]:
        """Runs the inner loop without an observer; returns the state afterwards, and training losses (n, steps)."""
        after, _, losses = self.inner_loop(state, lr, hyper, steps, until)
        return after, losses

    @with_own_settings
    def inner_loop(
        self,
        state: TraineeState,
        lr: Tensor,
        hyper: Hyper,
        steps: int,
        until: int | None = None,
        observer: StepObserver | None = None,
        observed: Observed | tuple[()] = (),
    ) -> tuple[TraineeState, Observed | tuple[()], Tensor]:
        """Takes inner steps at constant rates: one interval, or a window to differentiate through.

        With an observer, the gradient of each step is computed at the end of the step before, for the observer to see,
        and carried. The work is the same, and so are the weights and the losses, bit for bit.

        Args:
            state: n trainees.
            lr: (n, K) rates, as `spread` takes them.
            hyper: hyperparameter -> (n, 1).
            steps: how many.
            until: trainees that have taken this many inner steps stand still.
            observer: of gradients.
            observed: what the observer carries, as it or the last call gave it.

        Returns:
            The state after the steps, what the observer carries, and the training losses (n, steps), each before its
            step.
        """
        rates = self.spread(lr)
        take = self._taker(observer)
        start, losses = state.step, []
        if observer is None:
            batches = self.batch_indices(state, steps)
        else:
            assert isinstance(observed, Observed)
            batches = self.batch_indices(state._replace(step=state.step + 1), steps)
            observed = observer.begin(observed)
        for indices in batches.split(self.steps_per_graph, 1):
            state, observed, loss = take(state, observed, rates, hyper, indices, until)
            losses.append(loss)
        if observer is not None:
            assert isinstance(observed, Observed)
            observed = observer.end(observed, state.step - start)
        return state, observed, torch.cat(losses, 1)

    def _taker(self, observer: StepObserver | None) -> Callable[..., Any]:
        """`_steps` with this observer, compiled at most once."""
        if observer not in self._takers:
            self._takers[observer] = compiled(partial(self._steps, observer), self._compile, self.device)
        return self._takers[observer]

    def _steps(
        self,
        observer: StepObserver | None,
        state: TraineeState,
        observed: Observed | tuple[()],
        rates: Tensor,
        hyper: Hyper,
        indices: Tensor,
        until: int | None,
    ) -> tuple[TraineeState, Observed | tuple[()], Tensor]:
        """An inner step for each of the batches `indices` (n, k, b); gives the losses (n, k).

        The batches are those of the steps themselves, or with an observer those of the steps that follow them.
        """
        losses = []
        for batch in indices.unbind(1):
            after, seen, loss = self._step(observer, state, observed, rates, hyper, batch, until is None)
            if until is not None:
                after, seen = select(state.step < until, (after, seen), (state, observed))
            state, observed = after, seen
            losses.append(loss)
        return state, observed, torch.stack(losses, 1)

    def _step(
        self,
        observer: StepObserver | None,
        state: TraineeState,
        observed: Observed | tuple[()],
        rates: Tensor,
        hyper: Hyper,
        batch: Tensor,
        all_move: bool,
    ) -> tuple[TraineeState, Observed | tuple[()], Tensor]:
        if observer is None or not isinstance(observed, Observed):
            gradient = self.gradient(state, batch)
            return self.inner_step(state, rates, hyper, gradient)[0], (), gradient.loss
        after, direction = self.inner_step(state, rates, hyper, observed.gradient)
        in_place = all_move and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        seen = observer.observe(observed, state, direction, after, hyper, batch, in_place)
        return after, seen, observed.gradient.loss

    def spread(self, lr: Tensor) -> Tensor:
        """Converts rates (n, K) to the form that `descend` takes.

        Args:
            lr: K = 1 rate per trainee, one per layer of the network, per tensor, or per parameter.

        Returns:
            (n, 1) or (n, P).
        """
        per_piece = 1 < lr.shape[1] < self.network.size
        return lr[:, self._piece_of[lr.shape[1]]] if per_piece else lr
