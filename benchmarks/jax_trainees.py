"""The environment's work in JAX: a decision is `jit` of `vmap` over trainees of `lax.scan` over inner steps.

Batches are drawn with replacement, which spares JAX the shuffle that the environment does. This file is imported in
the contestant's own process alone, so that JAX is loaded nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from torch import nn
from torch.nn.modules.utils import _pair

from harness import Turn, rate
from loops import LR, normalised, piece, plain_task
from lrenv.training.tasks import Task

Params = list[tuple[Array, ...]]
"""Weight and bias of each layer that has them."""
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's."""


class Seen(NamedTuple):
    """The measurements of one trainee besides its losses, as in `lrenv.envs.episode`."""

    predictions: Array  # class probabilities on the validation examples
    best_loss: Array
    best: Params
    observation: Array


class State(NamedTuple):
    """One trainee."""

    params: Params
    mean: Params
    square: Params
    step: Array
    key: Array
    seen: Seen


def trainees(
    name: str, envs: int, number: int, sequential: bool = False, observed: bool = False, **options: Any
) -> Turn:
    """Builds trainees in JAX; a turn is in trainee-steps per second.

    Args:
        name: a task's name.
        envs: trainees in parallel.
        number: decisions in a turn.
        sequential: one trainee after the other, instead of all together by `vmap`.
        observed: also measure what the environment observes, and keep the best checkpoint.
        **options: settings of the task.

    Raises:
        ValueError: the task is not plain classification with Adam, or its network has a layer of another kind.
    """
    task = plain_task(name, "adam", **options)
    decide = jax.jit(_decision(task, observed) if sequential else jax.vmap(_decision(task, observed)))
    networks = [_weights(task.module()) for _ in range(envs)]
    keys = jax.random.split(jax.random.key(0), envs)
    fresh = partial(_fresh, examples=len(normalised(task)[1].targets), classes=task.load().classes)
    if sequential:
        start = [fresh(jax.tree.map(jnp.asarray, params), key) for params, key in zip(networks, keys, strict=True)]
    else:  # stacked on the host: thousands of small transfers take minutes
        start = [jax.vmap(fresh)(jax.tree.map(lambda *copies: jnp.asarray(np.stack(copies)), *networks), keys)]

    def run(number: int) -> None:
        states = start
        for _ in range(number):
            states = [decide(state)[0] for state in states]
        jax.block_until_ready(states)

    run(2)  # the second starts from what a decision made, for which JAX may compile once more
    return partial(rate, partial(run, number), units=number * envs * task.interval)


def _decision(task: Task, observed: bool) -> Callable[[State], tuple[State, tuple[Array, Array]]]:
    """Returns one trainee's decision: an interval of training, then the mean training loss and the validation loss."""
    (inputs, targets), (val_inputs, val_targets) = ((jnp.asarray(x.numpy()) for x in s) for s in normalised(task))
    layers = list(_sequential(task.module()))

    def loss(params: Params, inputs: Array, targets: Array) -> Array:
        scores = jax.nn.log_softmax(_forward(layers, params, inputs))
        return -jnp.take_along_axis(scores, targets[:, None], 1)[:, 0]

    def mean_loss(params: Params, inputs: Array, targets: Array) -> Array:
        return loss(params, inputs, targets).mean()

    def inner_step(state: State, rows: Array) -> tuple[State, Array]:
        value, grads = jax.value_and_grad(mean_loss)(state.params, inputs[rows], targets[rows])
        count = state.step + 1
        mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state.mean, grads)
        square = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state.square, grads)
        c1, c2 = 1 - BETA1**count, 1 - BETA2**count
        params = jax.tree.map(lambda p, m, v: p - LR * (m / c1) / (jnp.sqrt(v / c2) + EPS), state.params, mean, square)
        return State(params, mean, square, count, state.key, state.seen), value

    def decision(state: State) -> tuple[State, tuple[Array, Array]]:
        key, drawn = jax.random.split(state.key)
        rows = jax.random.randint(drawn, (task.interval, task.batch_size), 0, len(targets))
        state, losses = lax.scan(inner_step, state._replace(key=key), rows)

        # Not by `lax.map`: inside XLA's loops its convolutions are slower on a CPU.
        pieces = (slice(first, first + piece(task)) for first in range(0, len(val_targets), piece(task)))
        outputs = jnp.concatenate([_forward(layers, state.params, val_inputs[rows]) for rows in pieces])
        scores = jax.nn.log_softmax(outputs)
        val_loss = -jnp.take_along_axis(scores, val_targets[:, None], 1).mean()
        if observed:
            state = state._replace(seen=_seen(state, scores, losses, val_loss, val_targets))
        return state, (losses.mean(), val_loss)

    return decision


def _seen(state: State, scores: Array, losses: Array, val_loss: Array, targets: Array) -> Seen:
    """The paper's quantities, the accuracy, the reward and the best checkpoint."""
    predictions, last = jnp.exp(scores), state.params[-1][0]
    quantities = jnp.stack(
        [
            *(jnp.log10(jnp.maximum(x, 1e-12)) for x in (losses.mean(), val_loss, predictions.var(), last.var())),
            jnp.log10(jnp.maximum((predictions - state.seen.predictions).var(), 1e-12)),
            jnp.arcsinh(last.mean() / 1e-3), state.step, (scores.argmax(1) == targets).mean(), -val_loss, losses.std(),
        ]
    )  # fmt: skip
    better = val_loss < state.seen.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.seen.best)
    return Seen(predictions, jnp.minimum(val_loss, state.seen.best_loss), best, quantities)


def _fresh(params: Params, key: Array, examples: int, classes: int) -> State:
    zeros = jax.tree.map(jnp.zeros_like, params)
    seen = Seen(jnp.zeros((examples, classes)), jnp.full((), jnp.inf), params, jnp.zeros(10))
    return State(params, zeros, zeros, jnp.zeros(()), key, seen)


def _sequential(module: nn.Module) -> nn.Sequential:
    if not isinstance(module, nn.Sequential):
        raise ValueError(f"only plain sequences of layers are written in JAX, not {type(module).__name__}")
    return module


def _weights(module: nn.Module) -> list[tuple[Any, ...]]:
    layers = (layer for layer in _sequential(module) if isinstance(layer, nn.Linear | nn.Conv2d))
    return [tuple(x.detach().numpy() for x in layer.parameters()) for layer in layers]


def _forward(layers: Sequence[nn.Module], params: Params, x: Array) -> Array:
    """Computes a torch network in JAX."""
    weights = iter(params)
    for layer in layers:
        match layer:
            case nn.Linear():
                weight, bias = next(weights)
                x = x @ weight.T + bias
            case nn.Conv2d():
                weight, bias = next(weights)
                sides = [(side, side) for side in _pair(layer.padding)]
                images = ("NCHW", "OIHW", "NCHW")
                x = lax.conv_general_dilated(x, weight, layer.stride, sides, dimension_numbers=images)
                x = x + bias[:, None, None]
            case nn.MaxPool2d():
                window, strides = ((1, 1, *_pair(sides)) for sides in (layer.kernel_size, layer.stride))
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
            case nn.Flatten():
                x = x.reshape(len(x), -1)
            case nn.ReLU():
                x = jax.nn.relu(x)
            case _:
                raise ValueError(f"the layer {type(layer).__name__} is not written in JAX")
    return x
