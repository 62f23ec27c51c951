"""The trainee: n networks in training as one value, and the pure functions that train and measure them.

Everything here is detached when called under `torch.no_grad()`, as the adapters do, and differentiable
otherwise: call `unroll` with rates that require a gradient for reverse mode, or inside `torch.func.jvp` for
forward mode. Trainees do not interact, so the sum of their losses has all their gradients at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from lrenv.data import Split
from lrenv.data.augment import AUGMENTATIONS
from lrenv.lookup import lookup
from lrenv.networks.layers import Tensors
from lrenv.networks.stacked import Network
from lrenv.randomness import draws
from lrenv.runtime.ambient import detached, settled
from lrenv.runtime.compiling import Compile, checked, compiled
from lrenv.runtime.memory import Memory, available
from lrenv.runtime.trees import select
from lrenv.training.losses import check_outputs, make_loss
from lrenv.training.optimizers import Hyper, OptState, descend, make_optimizer
from lrenv.training.tasks import Task, count

PROBE = 1000
"""Predictions are compared from decision to decision on at most this many validation examples: their variance
needs no more, and the memory of it stays a small part of a trainee's."""
NORMALISED_IN_ADVANCE = 2**26
"""Numbers in a data set up to which it is kept in normalised form (256 MiB of float32)."""
TENSORS_A_GRAPH = 60
"""Inner steps are compiled several at a time, so that calling the graph weighs little: as many as update this many
tensors, ten of a perceptron with three layers, one of a ResNet-18. More of them only compile longer."""
CACHED = 2**24
"""Bytes that a group of trainees works on, on a CPU: more of them push one another out of the caches, fewer leave the
machine waiting for the next call (`benchmarks/groups.py`)."""
PRECISIONS = {"full": None, "bf16": torch.bfloat16}
"""Name -> what networks are autocast to."""


class TraineeState(NamedTuple):
    """n trainees between two inner steps; every leaf has the env axis first."""

    params: Tensor  # (n, P)
    buffers: Tensors  # name -> (n, *shape): running statistics
    opt: OptState  # slot -> (n, P), (n, k, P) or (n, 1)
    step: Tensor  # (n,) int64, inner steps taken
    seed: Tensor  # (n,) int64, of the episode


class Gradient(NamedTuple):
    """What a batch says about n trainees; every leaf has the env axis first."""

    loss: Tensor  # (n,)
    grads: Tensor  # (n, P), of the loss, without weight decay
    buffers: Tensors  # name -> (n, *shape), after the pass


class Measurement(NamedTuple):
    """What n trainees achieve on one split."""

    loss: Tensor  # (n,)
    metric: Tensor  # (n,), what is measured beside the loss (`lrenv.training.losses`); NaN where nothing is
    predictions: Tensor  # (n, k, p) of the first p <= PROBE examples, or places of sequences


class Trainee:
    """One task on one device: the parts of its training that never change.

    Args:
        task: what to train.
        device: where data and trainees live.
        dtype: of weights and losses; float64 for tests of gradients, float32 otherwise.
        compile: True compiles the draws of batches and detached inner steps with `torch.compile`.
        precision: "bf16" runs networks in bfloat16 by `torch.autocast`; weights and losses stay float32.
        at_once: how many trainees go through a decision together at most. By default, on a CPU, what its caches hold,
            and one where there are convolutions: there is more work in a batch of images than a call costs, and grouped
            convolutions are slower (`benchmarks/layers.py`). On a GPU, what half of its free memory holds.

    Attributes:
        memory: how many bytes trainees take.
        outputs: numbers that the network is asked for, per example or place of a sequence.
        metric: the name of what is measured beside the loss; None if nothing is.
        at_once: how many of them go through a decision together at most.
        steps_a_graph: how many inner steps are compiled together.
        rates: granularity -> K, how many learning rates a trainee has where each such piece has its own.

    Raises:
        TypeError: the task's data or network give something else than they should.
        ValueError: an unknown precision, bf16 beside another dtype than float32, targets or outputs that don't fit the
            loss, or a network that can't be trained as it is; the message says what to do.
    """

    @detached
    def __init__(
        self,
        task: Task,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: Compile = False,
        precision: str = "full",
        at_once: int | None = None,
    ) -> None:
        self.task = task
        self.device = torch.device(device)
        self.dtype = dtype
        data = task.load().to(self.device)
        self.outputs = data.outputs
        self._loss = make_loss(task.loss, data)
        self.metric = self._loss.metric
        self._tokens, self._target_std = data.tokens, data.target_std.to(dtype)
        self.network = Network(partial(task.network, data.train.inputs.shape[1:], data.outputs))
        self._autocast = lookup(PRECISIONS, precision, "precision")
        if self._autocast is not None and dtype != torch.float32:
            raise ValueError(f"precision={precision!r} rounds float32 networks; leave dtype at float32, not {dtype}")
        pieces = self.network.pieces
        self.rates = {name: len(sizes) for name, sizes in pieces.items()} | {"parameter": self.network.size}
        self._piece_of = {
            len(sizes): torch.arange(len(sizes))
            .repeat_interleave(torch.tensor(sizes), output_size=sum(sizes))
            .to(device)
            for sizes in pieces.values()
        }
        self.optimizer = make_optimizer(task.optimizer, pieces["tensor"])
        self._mean, self._std = data.mean.to(dtype), data.std.to(dtype)
        # Small data sets are normalised once; large ones stay as they are stored, often a quarter of the memory.
        self._in_advance = sum(split.inputs.numel() for split in data[:3]) <= NORMALISED_IN_ADVANCE
        self.train, self.val, self.test = (
            Split(
                (self._normalised(split.inputs) if self._in_advance else split.inputs).contiguous(),
                split.targets.to(dtype) if split.targets.is_floating_point() else split.targets,
            )
            for split in (data.train, _first(data.val, task.val_examples), data.test)
        )
        self._rows = max(task.batch_size, 512)
        examples = self.train.inputs[: min(4, task.batch_size)]
        examples = examples if self._in_advance else self._normalised(examples)
        check_outputs(task.name, self._loss, self.network.dry_run(examples, dtype), data)
        if compile is True and (reason := self.network.why_sequential):
            raise ValueError(f"the copies of this network run one after another ({reason}): compile=False")
        layers = self.network.activations(examples, dtype) or [1]
        self.memory = self._memory(sum(x.nbytes for split in data[:3] for x in split), layers)
        self.at_once = self._at_once() if at_once is None else count("at_once", at_once)
        self._augment = AUGMENTATIONS[task.augment] if task.augment else None
        self._draw, self._fast_steps, self.steps_a_graph = draws.epoch_indices, self._steps, task.interval
        if checked(compile, self.device) is True:
            self._draw = compiled(draws.epoch_indices, **draws.COMPILER_OPTIONS)
            self._fast_steps = compiled(self._steps)
            graphs = math.ceil(task.interval * len(self.network.shapes) / TENSORS_A_GRAPH)
            # Where decisions are captured, calls cost nothing.
            self.steps_a_graph = 1 if self.device.type == "cuda" else math.ceil(task.interval / graphs)

    def groups(self, n: int) -> list[int]:
        """The sizes of the groups, at most `at_once`, in which n trainees go through a decision one after another."""
        if n <= self.at_once:
            return [n]
        least = math.ceil(n / self.at_once)
        # Groups of one size need one compiled graph: a few more of them may divide n.
        number = next((k for k in range(least, 2 * least) if n % k == 0), least)
        return [n // number + (i < n % number) for i in range(number)]

    def _at_once(self) -> int:
        if self.device.type != "cpu":
            free = available(self.device)
            return (
                sys.maxsize if free is None else max(1, free // 2 // max(self.memory.training, self.memory.measuring))
            )
        return 1 if self.network.has_convolutions else max(1, CACHED // self.memory.training)

    def _memory(self, data: int, layers: list[int]) -> Memory:
        shape = self.train.inputs.shape[1:]
        weights, inputs = self.network.size, shape.numel()
        # On their device, so that an optimizer brings its constants there before anything is compiled or captured.
        fresh = [self.optimizer.init(torch.zeros(1, p, dtype=self.dtype, device=self.device)) for p in (1, 2)]
        one, two = (sum(x.numel() for x in slots.values()) for slots in fresh)
        slots = two - one  # numbers per weight: counters don't grow with the weights
        predictions = max(self.outputs, 1) * min(PROBE, self.val.targets.numel())
        # A layer's output waits for the backward pass, which holds two gradients at a time.
        training = 2 * weights + self.task.batch_size * (inputs + sum(layers) + 2 * max(layers))
        measuring = min(self._rows, len(self.val.targets)) * (inputs + 3 * max(layers))
        held = (2 + slots) * weights + predictions
        return Memory(data, *(self.dtype.itemsize * numbers for numbers in (held, training, measuring)))

    @settled
    def init(self, seeds: Sequence[int]) -> TraineeState:
        """Untrained networks, one per seed."""
        params, buffers = self.network.init(seeds, self.device, self.dtype)
        seed = torch.tensor(seeds, dtype=torch.int64).to(self.device)
        return TraineeState(params, buffers, self.optimizer.init(params), torch.zeros_like(seed), seed)

    def hyper(self, n: int, controlled: Collection[str] = ()) -> Hyper:
        """The task's hyperparameters besides the learning rate, name -> (n, 1).

        A weight decay of 0 is left out, unless it is `controlled` and may become another.
        """
        return {
            name: torch.full((n, 1), value, dtype=self.dtype, device=self.device)
            for name, value in self.task.hyper.items()
            if value or name != "weight_decay" or name in controlled
        }

    @settled
    def batch_indices(self, state: TraineeState, steps: int) -> Tensor:
        """Indices (n, steps, b) of the training examples of the next inner steps."""
        step = state.step[:, None] + torch.arange(steps, device=self.device)
        size = len(self.train.targets)
        fast = steps == self.task.interval and not torch.is_grad_enabled()
        draw = self._draw if fast else draws.epoch_indices
        return draw(state.seed, step, self.task.batch_size, size, self.task.replacement)

    @settled
    def loss(
        self, params: Tensor, state: TraineeState, indices: Tensor, first_order: bool = False
    ) -> tuple[Tensor, Tensors]:
        """Training loss (n,) of the given examples (n, b), and the buffers after the pass.

        Args:
            params: (n, P).
            state: buffers, seeds and steps of n trainees.
            indices: rows of the training split.
            first_order: whether first derivatives in reverse mode are all that will be asked for.
        """
        inputs, targets = (rows.index_select(0, indices.flatten()).unflatten(0, indices.shape) for rows in self.train)
        inputs = inputs if self._in_advance else self._normalised(inputs)
        if self._augment is not None:
            inputs = self._augment(self._key(state, draws.AUGMENT), inputs)
        key = self._key(state, draws.DROPOUT) if self.network.stochastic else None
        outputs, buffers = self._run(params, state.buffers, inputs, True, key, first_order)
        return self._loss.per_example(outputs, targets).mean(1), buffers

    @settled
    def train_step(self, state: TraineeState, lr: Tensor, hyper: Hyper, indices: Tensor) -> tuple[TraineeState, Tensor]:
        """One inner step on the examples `indices` (n, b); gives the loss (n,) before the step.

        Args:
            state: n trainees.
            lr: (n, 1) or (n, P), as `descend` takes it.
            hyper: hyperparameter -> (n, 1).
            indices: rows of the training split.
        """
        gradient = self.gradient(state, indices)
        return self.descended(state, lr, hyper, gradient)[0], gradient.loss

    @settled
    def gradient(self, state: TraineeState, indices: Tensor) -> Gradient:
        """The gradient on the examples `indices` (n, b), in training mode."""
        detached = not torch.is_grad_enabled()
        if not detached or torch.compiler.is_compiling():

            def total(params: Tensor) -> tuple[Tensor, tuple[Tensor, Tensors]]:
                loss, buffers = self.loss(params, state, indices, detached)
                return loss.sum(), (loss, buffers)

            grads, (loss, buffers) = grad(total, has_aux=True)(state.params)
            return Gradient(loss, grads, buffers)
        # The same numbers from autograd itself, which has less overhead where nothing is compiled.
        with torch.enable_grad():
            leaf = state.params.detach().requires_grad_()
            loss, buffers = self.loss(leaf, state, indices, detached)
            (grads,) = torch.autograd.grad(loss.sum(), leaf)
        return Gradient(loss.detach(), grads, {name: buffer.detach() for name, buffer in buffers.items()})

    def descended(
        self, state: TraineeState, lr: Tensor, hyper: Hyper, gradient: Gradient
    ) -> tuple[TraineeState, Tensor]:
        """The state after a step along the optimizer's direction (n, P), and that direction."""
        direction, opt = self.optimizer.direction(gradient.grads, state.opt, state.params, hyper)
        params = descend(state.params, direction, lr)
        return TraineeState(params, gradient.buffers, opt, state.step + 1, state.seed), direction

    @settled
    def unroll(
        self, state: TraineeState, lr: Tensor, hyper: Hyper, steps: int, until: int | None = None
    ) -> tuple[TraineeState, Tensor]:
        """Inner steps at a constant rate: one interval, or a window to differentiate through.

        Args:
            state: n trainees.
            lr: (n, K) rates, as `spread` takes them.
            hyper: hyperparameter -> (n, 1).
            steps: how many.
            until: trainees that have taken this many inner steps stand still.

        Returns:
            The state after the steps, and the training losses (n, steps), each before its step.
        """
        rates = self.spread(lr)
        take = self._steps if torch.is_grad_enabled() else self._fast_steps
        losses = []
        for indices in self.batch_indices(state, steps).split(self.steps_a_graph, 1):
            state, loss = take(state, rates, hyper, indices, until)
            losses.append(loss)
        return state, torch.cat(losses, 1)

    def _steps(
        self, state: TraineeState, rates: Tensor, hyper: Hyper, indices: Tensor, until: int | None
    ) -> tuple[TraineeState, Tensor]:
        """Inner steps on the examples `indices` (n, k, b); gives the losses (n, k)."""
        losses = []
        for batch in indices.unbind(1):
            after, loss = self.train_step(state, rates, hyper, batch)
            state = after if until is None else select(state.step < until, after, state)
            losses.append(loss)
        return state, torch.stack(losses, 1)

    def spread(self, lr: Tensor) -> Tensor:
        """Brings rates (n, K) to the form that `descend` takes.

        Args:
            lr: K = 1 rate per trainee, one per layer of the network, per tensor, or per parameter.

        Returns:
            (n, 1) or (n, P).
        """
        per_piece = 1 < lr.shape[1] < self.network.size
        return lr[:, self._piece_of[lr.shape[1]]] if per_piece else lr

    @settled
    def evaluate(self, params: Tensor, buffers: Tensors, split: Split) -> Measurement:
        """Measures the loss, the metric and predictions on a whole split, in evaluation mode.

        The examples go through in pieces of a batch, or of 512 examples, which bounds memory: nothing is kept for a
        backward pass, so a piece takes about what training takes.
        """
        n = params.shape[0]
        pieces = []
        for inputs in split.inputs.split(self._rows):
            x = (inputs if self._in_advance else self._normalised(inputs)).expand(n, *inputs.shape)
            pieces.append(self._run(params, buffers, x, False, first_order=not torch.is_grad_enabled())[0])
        outputs = torch.cat(pieces, 1)
        targets = split.targets.expand(n, *split.targets.shape)
        losses = self._loss.per_example(outputs, targets)
        loss = losses.mean(1)
        measure = self._loss.measure
        metric = torch.full_like(loss, torch.nan) if measure is None else measure(outputs, targets, losses)
        probed = max(1, PROBE // math.prod(outputs.shape[2:-1]))
        return Measurement(loss, metric, self._loss.predictions(outputs[:, :probed], self._target_std))

    def _run(
        self,
        params: Tensor,
        buffers: Tensors,
        inputs: Tensor,
        training: bool,
        key: Tensor | None = None,
        first_order: bool = False,
    ) -> tuple[Tensor, Tensors]:
        if self._autocast is None:
            return self.network(params, buffers, inputs, training, key, first_order)
        # Weights change with every step: casts of them are not worth keeping.
        with torch.autocast(self.device.type, self._autocast, cache_enabled=False):
            outputs, buffers = self.network(params, buffers, inputs, training, key)
        return outputs.to(self.dtype), buffers

    def _normalised(self, inputs: Tensor) -> Tensor:
        return inputs if self._tokens else (inputs.to(self.dtype) - self._mean) / self._std

    def _key(self, state: TraineeState, stream: int) -> Tensor:
        return draws.fold(draws.fold(state.seed, stream), state.step)


def _first(split: Split, examples: int | None) -> Split:
    """The first examples of a split; splits are shuffled once for all, so these are a fair sample."""
    return Split(split.inputs[:examples], split.targets[:examples])
