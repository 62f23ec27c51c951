"""Losses: what is minimised, what of a network's outputs is compared between decisions, and what is measured beside it.

| name | targets | outputs | loss per example | metric |
|---|---|---|---|---|
| `cross_entropy` | classes (b,) | (b, k) scores | -log softmax(outputs)[target] | accuracy |
| | classes (b, L) | (b, L, k) | the mean over the L places | bits per character |
| `mse` | numbers (b,) or (b, d) | (b, d) | the mean of (output - target)^2 | R^2 |
| `huber` | as `mse` | (b, d) | the mean of e^2 / 2 where abs(e) < 1, of abs(e) - 1/2 elsewhere | R^2 |
| `bce` | numbers from 0 to 1, as `mse` | (b, d) log odds | the mean of -t log p - (1 - t) log(1 - p) | accuracy |
| `poisson` | counts, as `mse` | (b, d) log rates | the mean of r - t log r + log t!, which is never negative | D^2 |
| `given` | none | (b, 1) | the network's output | none |

The variance of predictions, which agents observe, is that of probabilities (`cross_entropy`, `bce`), and else that of
outputs (`poisson`: rates) in units of the standard deviation of the training targets: so it doesn't change with the
unit of the targets. A loss of one's own is a function (outputs, targets) -> losses (b,) for one network; its
predictions are outputs in these units.

R^2 = 1 - sum (t - f)^2 / sum (t - mean t)^2, and D^2 is the same of the Poisson deviance 2 sum (t log(t / r) - t + r).
Both are NaN where the targets of a split don't vary, for there is nothing to explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from lrenv.data import Data
from lrenv.lookup import lookup, what_is

PerExample = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> a loss per example."""


@dataclass(frozen=True)
class Loss:
    """A loss of n networks side by side.

    Attributes:
        name: what it is called.
        per_example: (outputs (n, b, ...), targets (n, b, ...)) -> (n, b).
        predictions: (outputs (n, b, ...), standard deviation of the targets) -> (n, p, b), whose variance is observed.
        metric: the name of what is measured beside the loss; None if nothing is.
        measure: (outputs (n, m, ...), targets (n, m, ...), losses (n, m)) -> the metric (n,).
        targets: whether they are classes, numbers, or whatever they may be.
    """

    name: str
    per_example: PerExample
    predictions: Callable[[Tensor, Tensor], Tensor]
    metric: str | None = None
    measure: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    targets: Literal["classes", "numbers", "any"] = "any"


def _as_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (n, b, d) in the shape of the targets, (n, b) or (n, b, d)."""
    return outputs.reshape(targets.shape)


def _mean_of_example(losses: Tensor) -> Tensor:
    """(n, b) or (n, b, ...) -> (n, b)."""
    return losses if losses.ndim == 2 else losses.flatten(2).mean(2)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    # With the classes ahead of the examples the CPU kernels vectorise.
    scores = outputs.movedim(-1, 1).contiguous()
    return _mean_of_example(F.cross_entropy(scores, targets, reduction="none"))


def _probabilities(outputs: Tensor, _std: Tensor) -> Tensor:
    """(n, b, ..., k) -> (n, k, places)."""
    return outputs.flatten(1, -2).transpose(1, 2).contiguous().softmax(1)


def _in_deviations(outputs: Tensor, std: Tensor) -> Tensor:
    """(n, b) or (n, b, ...) -> (n, d, b), in units of the deviation of each target.

    Where a loss of one's own takes other numbers than targets, such as means and variances, nobody knows which belongs
    to which, and all are in units of the root mean square.
    """
    outputs = outputs.reshape(*outputs.shape[:2], -1)
    units = std.reshape(-1) if std.numel() in (1, outputs.shape[2]) else std.square().mean().sqrt()
    return (outputs / units).transpose(1, 2).contiguous()


def _accuracy(outputs: Tensor, targets: Tensor, _losses: Tensor) -> Tensor:
    hits = outputs.contiguous().argmax(-1) == targets  # argmax over a strided axis is slow on a CPU
    return hits.to(outputs.dtype).mean(1)


def _bits_per_character(_outputs: Tensor, _targets: Tensor, losses: Tensor) -> Tensor:
    return losses.mean(1) / math.log(2)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return _mean_of_example((_as_targets(outputs, targets) - targets) ** 2)


def _huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return _mean_of_example(F.huber_loss(_as_targets(outputs, targets), targets, reduction="none"))


def _r_squared(outputs: Tensor, targets: Tensor, _losses: Tensor) -> Tensor:
    left = ((_as_targets(outputs, targets) - targets) ** 2).flatten(1).sum(1)
    whole = ((targets - targets.mean(1, keepdim=True)) ** 2).flatten(1).sum(1)
    return _where_targets_vary(1 - left / whole, targets)


def _where_targets_vary(metric: Tensor, targets: Tensor) -> Tensor:
    """The metric (n,), but NaN where the targets (n, m, ...) of all examples are the same."""
    return metric.where((targets != targets[:, :1]).flatten(1).any(1), math.nan)


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(_as_targets(outputs, targets), targets, reduction="none")
    return _mean_of_example(losses)


def _binary_accuracy(outputs: Tensor, targets: Tensor, _losses: Tensor) -> Tensor:
    hits = (_as_targets(outputs, targets) > 0) == (targets > 0.5)
    return hits.to(outputs.dtype).flatten(1).mean(1)


def _poisson(outputs: Tensor, targets: Tensor) -> Tensor:
    log_rate = _as_targets(outputs, targets)
    return _mean_of_example(log_rate.exp() - targets * log_rate + (targets + 1).lgamma())


def _deviance_explained(outputs: Tensor, targets: Tensor, _losses: Tensor) -> Tensor:
    def deviance(explained: Tensor, rate: Tensor) -> Tensor:
        """From t log r and r."""
        return (torch.xlogy(targets, targets) - explained - targets + rate).flatten(1).sum(1)

    log_rate, mean = _as_targets(outputs, targets), targets.mean(1, keepdim=True).expand_as(targets)
    whole = deviance(torch.xlogy(targets, mean), mean)  # the logarithm of a mean of 0 isn't asked for
    return _where_targets_vary(1 - deviance(targets * log_rate, log_rate.exp()) / whole, targets)


_LOSSES = (
    Loss("cross_entropy", _cross_entropy, _probabilities, "accuracy", _accuracy, "classes"),
    Loss("mse", _squares, _in_deviations, "r2", _r_squared, "numbers"),
    Loss("huber", _huber, _in_deviations, "r2", _r_squared, "numbers"),
    Loss("bce", _binary_cross_entropy, lambda x, _: _in_deviations(x.sigmoid(), x.new_ones(1)), "accuracy",
         _binary_accuracy, "numbers"),
    Loss("poisson", _poisson, lambda x, std: _in_deviations(x.exp(), std), "d2", _deviance_explained, "numbers"),
    Loss("given", lambda outputs, _: outputs.squeeze(-1), _in_deviations),
)  # fmt: skip
LOSSES = {loss.name: loss for loss in _LOSSES}
"""Name -> loss."""


def make_loss(loss: str | PerExample, data: Data) -> Loss:
    """Returns the loss by name, or that of a function (outputs (b, ...), targets (b, ...)) -> (b,), for some data.

    Raises:
        ValueError: an unknown name, or targets that don't fit the loss; the message says what to do.
    """
    if not isinstance(loss, str):
        return Loss(getattr(loss, "__name__", type(loss).__name__), vmap(loss), _in_deviations)
    known = lookup(LOSSES, loss, "loss")
    numbers = data.train.targets.is_floating_point()
    if known.targets == "numbers" and not numbers:
        raise ValueError(
            f"loss {loss!r} needs targets that are numbers, but those of this data are classes: give float targets, "
            "or take loss='cross_entropy'"
        )
    if known.targets == "classes" and (numbers or not data.classes):
        held = "numbers" if numbers else "none"
        raise ValueError(
            f"loss {loss!r} needs targets that are classes, but those of this data are {held}: give integer targets, "
            "or take loss='mse'"
        )
    low, high = (0, 1) if loss == "bce" else (0, math.inf) if loss == "poisson" else (-math.inf, math.inf)
    if any(bool((split.targets < low).any() or (split.targets > high).any()) for split in data[:3]):
        raise ValueError(f"loss {loss!r} needs targets {f'from 0 to {high}' if high == 1 else 'of 0 or more'}")
    if loss == "cross_entropy" and data.train.targets.ndim > 1:  # of a sequence
        return Loss(loss, known.per_example, known.predictions, "bits_per_character", _bits_per_character, "classes")
    return known


def check_outputs(task: str, loss: Loss, shape: torch.Size, data: Data) -> None:
    """Checks the outputs (b, ...) of a network against what the loss and the targets need.

    Args:
        task: its name, for errors.
        loss: as `make_loss` gives it.
        shape: of outputs for b examples.
        data: whose targets they are to meet.

    Raises:
        ValueError: another shape; the message says which is needed.
    """
    b, targets = shape[0], data.train.targets.shape[1:]
    if loss.targets == "any":
        if loss is LOSSES["given"]:
            fits, needed = tuple(shape) == (b, 1), f"({b}, 1)"
        else:
            fits, needed = len(shape) > 1 and shape[-1] >= 1, f"({b}, ...)"
    elif loss.targets == "classes":
        fits = len(shape) == 2 + len(targets) and shape[1:-1] == targets and shape[-1] >= data.classes
        needed = f"({', '.join(map(str, (b, *targets, data.classes)))}): a number for each of {data.classes} classes"
    else:
        fits = math.prod(shape[1:]) == math.prod(targets)
        needed = f"({b}, {data.outputs}): as many numbers as a target has"
    if not fits:
        raise ValueError(
            f"task {task!r}: for {b} examples its network gives {tuple(shape)}, but loss {loss.name!r} needs {needed}"
        )
    if loss.targets == "any" and loss is not LOSSES["given"]:
        _try(task, loss, shape, data)


def _try(task: str, loss: Loss, shape: torch.Size, data: Data) -> None:
    """Calls a loss of one's own on outputs that are 0."""
    outputs = torch.zeros(1, *shape, requires_grad=True)
    try:
        with torch.enable_grad():
            given = loss.per_example(outputs, data.train.targets[: shape[0]].cpu()[None])
    except Exception as error:
        raise ValueError(
            f"task {task!r}: loss {loss.name} can't take outputs {tuple(shape)} and targets "
            f"{(shape[0], *data.train.targets.shape[1:])} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(given, Tensor) or given.shape != (1, shape[0]):
        held = f"a tensor {tuple(given.shape[1:])}" if isinstance(given, Tensor) else what_is(given)
        raise ValueError(f"task {task!r}: loss {loss.name} must give a loss per example, ({shape[0]},), not {held}")
    if given.dtype != outputs.dtype or not given.requires_grad:
        held = f"numbers of type {given.dtype}" if given.dtype != outputs.dtype else "numbers without a gradient"
        raise ValueError(f"task {task!r}: loss {loss.name} must be differentiable by the outputs, but it gives {held}")
