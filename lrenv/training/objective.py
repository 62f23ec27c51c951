"""What networks are trained on: the loss of n networks, its gradient, and what they achieve on a split.

Trainees do not interact, so the sum of their losses has all their gradients at once.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from lrenv.data import Split
from lrenv.data.augment import AUGMENTATIONS
from lrenv.lookup import lookup
from lrenv.networks.copies import Tensors
from lrenv.networks.stacked import Network
from lrenv.randomness import draws
from lrenv.runtime.ambient import with_own_settings
from lrenv.training.losses import check_outputs, make_loss
from lrenv.training.optimizers import OptState
from lrenv.training.tasks import Task

PROBE = 1000
"""Predictions are compared from decision to decision on at most this many validation examples: their variance
needs no more, and the memory of it stays a small part of a trainee's."""
NORMALISED_IN_ADVANCE = 2**26
"""Numbers in a data set up to which it is kept in normalised form (256 MiB of float32)."""
PRECISIONS = {"full": None, "tf32": None, "bf16": torch.bfloat16}
"""Name -> what networks are autocast to. Of "tf32" only products are rounded: their inputs, to 10 bits."""


class TraineeState(NamedTuple):
    """n trainees between two inner steps; every leaf has the env axis first."""

    params: Tensor  # (n, P)
    buffers: Tensors  # name -> (n, *shape): running statistics
    opt: OptState  # slot -> (n, P), (n, k, P) or (n, 1)
    step: Tensor  # (n,) int64, inner steps taken
    seed: Tensor  # (n,) int64, of the episode


class Gradient(NamedTuple):
    """The losses and gradients of n trainees on a batch; every leaf has the env axis first."""

    loss: Tensor  # (n,)
    grads: Tensor  # (n, P), of the loss, without weight decay
    buffers: Tensors  # name -> (n, *shape), after the pass


class Measurement(NamedTuple):
    """What n trainees achieve on one split."""

    loss: Tensor  # (n,)
    metric: Tensor  # (n,), what is measured besides the loss (`lrenv.training.losses`); NaN where nothing is
    predictions: Tensor  # (n, k, p) of the first p <= PROBE examples, or places of sequences


class Objective:
    """The data, the network and the loss of one task, on one device.

    Args:
        task: what to train.
        device: where data and trainees live.
        dtype: of weights and losses.
        precision: a name in `PRECISIONS`.

    Attributes:
        network: the task's, for n trainees at once.
        outputs: numbers that the network is asked for, per example or place of a sequence.
        metric: the name of what is measured besides the loss; None if nothing is.
        train, val, test: the splits. Of the validation split these are the task's `val_examples`.
        data_bytes: of the splits as they are kept.
        layers: the number of outputs of each layer for an example, by which memory is predicted.
        piece: how many examples are measured at once.
        rounds_products: whether inputs of float32 products are rounded to TF32 (`lrenv.runtime.ambient`).

    Raises:
        TypeError: the task's data or network give something else than they should.
        ValueError: an unknown precision, one that rounds together with another dtype than float32, tf32 elsewhere than
            on CUDA, targets or outputs that don't fit the loss, or a network that can't be trained as it is; the
            message says what to do.
    """

    def __init__(self, task: Task, device: torch.device, dtype: torch.dtype, precision: str) -> None:
        self.task, self.device, self.dtype = task, device, dtype
        data = task.load()
        self._loss = make_loss(task.loss, data)  # it reads targets, so before they leave the host
        self.metric = self._loss.metric
        self._tokens, self._target_std = data.tokens, data.target_std.to(device, dtype)
        data = data.to(device)
        self.outputs = data.outputs
        self.network = Network(partial(task.make_network, data.train.inputs.shape[1:], data.outputs))
        self._autocast = lookup(PRECISIONS, precision, "precision")
        self.rounds_products = precision == "tf32"
        if self.rounds_products and device.type in ("cpu", "mps", "xpu"):
            raise ValueError(
                f"precision='tf32' is for the tensor cores of CUDA devices; on {device.type} use 'full' or 'bf16'"
            )
        if precision != "full" and dtype != torch.float32:
            raise ValueError(f"precision={precision!r} rounds float32 networks; leave dtype at float32, not {dtype}")
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
        self.data_bytes = sum(x.nbytes for split in (self.train, self.val, self.test) for x in split)
        self.piece = max(task.batch_size, 512)
        examples = self.train.inputs[: min(4, task.batch_size)]
        examples = examples if self._in_advance else self._normalised(examples)
        check_outputs(task.name, self._loss, self.network.dry_run(examples, dtype), data)
        if data.tokens:  # an id beyond the vocabulary is found now, whichever split holds it
            splits = (self.train.inputs, self.val.inputs, self.test.inputs)
            self.network.dry_run(torch.cat([ids[ids.amax(1).argmax()[None]] for ids in splits]), dtype)
        self.layers = self.network.activations(examples, dtype) or [1]
        if task.augment and self.train.inputs.ndim != 4:
            shape = tuple(self.train.inputs.shape[1:])
            raise ValueError(f"task {task.name!r}: augment={task.augment!r} is for images, and examples are {shape}")
        self._augment = AUGMENTATIONS[task.augment] if task.augment else None

    @with_own_settings
    def loss(
        self, params: Tensor, state: TraineeState, indices: Tensor, first_order: bool = False
    ) -> tuple[Tensor, Tensors]:
        """Returns the training loss (n,) of the given examples (n, b), and the buffers after the pass.

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

    @with_own_settings
    def gradient(self, state: TraineeState, indices: Tensor) -> Gradient:
        """Returns the gradient on the examples `indices` (n, b), in training mode."""
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

    @with_own_settings
    def evaluate(self, params: Tensor, buffers: Tensors, split: Split) -> Measurement:
        """Measures the loss, the metric and predictions on a whole split, in evaluation mode.

        The examples go through in pieces of a batch, or of 512 examples, which bounds memory: nothing is kept for a
        backward pass, so a piece takes about what training takes.
        """
        n = params.shape[0]
        pieces = []
        for inputs in split.inputs.split(self.piece):
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
