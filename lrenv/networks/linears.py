"""Linear layers of n trainees on a CUDA GPU, with or without ReLU, by kernels of lrenv's own.

Batched products of small matrices are bound by their launches and by what they read and write between kernels.
`stacked_linear` runs the kernels of `lrenv.networks.linear_kernels` instead, in eager and in compiled code: one for a
layer and its ReLU, one for all of its gradients. It has first derivatives in reverse mode; second derivatives raise an
error. `suits` tells for which layers and batches it is used.

Activations are stored as (n, features, b) tensors, of which the functions here take and return (n, b, features) views,
as `lrenv.networks.layers` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrenv.networks import kernels
from lrenv.runtime.ambient import products_rounded

MOST_FEATURES = 64
"""The number of inputs and outputs up to which the kernels are used (`benchmarks/stacked_linears.py`): one program
holds a layer's weights in its registers."""
MOST_EXAMPLES = 128
"""The number of examples up to which the kernels compute gradients: one program goes through all examples of a trainee,
and with more of them the library's products fill a GPU."""
WARPS = 2
"""The warps of a program: with two, and the tiles of `_lanes`, it was the fastest, or close to it, in all layers of
`benchmarks/stacked_linears.py`."""


def suits(layer: nn.Linear, x: Tensor) -> bool:
    """Returns whether the kernels can and should run this layer on inputs x (n, b, features).

    They have first derivatives in reverse mode only, and are for CUDA, float32, two trainees or more, at most
    `MOST_FEATURES` inputs and outputs, and at most `MOST_EXAMPLES` examples unless gradients are off.
    """
    if x.ndim != 3 or max(layer.in_features, layer.out_features) > MOST_FEATURES:
        return False
    few = x.shape[1] > 0 and (x.shape[1] <= MOST_EXAMPLES or not torch.is_grad_enabled())
    # Offsets within one trainee's tensors have 31 bits.
    span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    near = max(span, layer.out_features * x.shape[1]) < 2**31
    return few and near and kernels.take(x)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Computes `torch.nn.functional.linear` of each trainee, and its positive part if `relu`.

    Args:
        x: (n, b, i) float32.
        weight: (n, o, i).
        bias: (n, o), if any.
        relu: whether ReLU follows.

    Returns:
        (n, b, o), a view of a (n, o, b) tensor.

    Raises:
        ValueError: shapes, dtypes or devices that don't fit, with which the kernels would read other memory.
    """
    given = [each for each in (x, weight, bias) if each is not None]
    fit = [each.ndim for each in given] == [3, 3, 2][: len(given)]
    fit = fit and weight.shape == (x.shape[0], weight.shape[1], x.shape[2])
    fit = fit and (bias is None or bias.shape == weight.shape[:2])
    if not fit or len({(each.dtype, each.device) for each in given}) > 1:
        told = ", ".join(f"{tuple(each.shape)} {each.dtype} on {each.device}" for each in given)
        raise ValueError(f"inputs (n, b, i), weights (n, o, i) and biases (n, o) don't fit: {told}")
    out: Tensor = _Linear.apply(x.transpose(1, 2), weight, bias, relu)
    return out.transpose(1, 2)


def _side(features: int) -> int:
    """Returns the side of the tiles of so many features: at least 16, below which `tl.dot` has no tiles."""
    return max(16, 1 << (features - 1).bit_length())


def _by_rows(weight: Tensor) -> Tensor:
    """Returns weights (n, o, i) whose rows are contiguous, as those of stacked parameters are."""
    return weight if weight.stride()[1:] == (weight.shape[2], 1) else weight.contiguous()


def _lanes(gradients: bool) -> int:
    """Returns the examples per tile."""
    return 32 if gradients and not products_rounded() else 64


def _constants(x: Tensor, weight: Tensor, gradients: bool) -> dict[str, Any]:
    """Returns the sizes and settings that both kernels have, for x (n, i, b).

    Products round their inputs to TF32 where those of PyTorch do (`precision="tf32"`).
    """
    (_, i, b), o = x.shape, weight.shape[1]
    return {
        "IN": i, "OUT": o, "B": b, "IP": _side(i), "OP": _side(o), "BB": min(_lanes(gradients), _side(b)),
        "PRECISION": "tf32" if products_rounded() else "ieee", "num_warps": WARPS,
    }  # fmt: skip


@torch.library.custom_op(
    "lrenv::stacked_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor",
)
def _applied(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    from lrenv.networks.linear_kernels import linear

    (n, _, b), weight = x.shape, _by_rows(weight)
    out = x.new_empty(n, weight.shape[1], b)
    shift = x.new_empty(1, 1) if bias is None else bias
    constants = _constants(x, weight, False)
    with kernels.on(x.device):
        linear[(n * -(-b // constants["BB"]),)](
            x, weight, shift, out, *x.stride(), weight.stride(0), *shift.stride(),
            BIASED=bias is not None, RELU=relu, **constants,
        )  # fmt: skip
    return out


@_applied.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1], x.shape[2])


@torch.library.custom_op(
    "lrenv::stacked_linear_gradients",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? out, Tensor grad, bool of_x) -> (Tensor, Tensor, Tensor)",
)
def _gradients(
    x: Tensor, weight: Tensor, out: Tensor | None, grad: Tensor, of_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients (n, i, b) of x, empty unless `of_x`, (n, o, i) of the weight and (n, o) of the bias.

    Args:
        x: (n, i, b).
        weight: (n, o, i).
        out: (n, o, b), if ReLU followed.
        grad: (n, o, b), of the outputs.
        of_x: whether that of x is asked for.
    """
    from lrenv.networks.linear_kernels import linear_gradients

    grad, weight = grad.contiguous(), _by_rows(weight)
    found = grad_x, grad_weight, grad_bias = _empty(x, weight, of_x)
    with kernels.on(x.device):
        linear_gradients[(len(x),)](
            x, weight, grad if out is None else out.contiguous(), grad,
            grad_x if of_x else grad, grad_weight, grad_bias, *x.stride(), weight.stride(0),
            RELU=out is not None, OF_X=of_x, **_constants(x, weight, True),
        )  # fmt: skip
    return found


@_gradients.register_fake
def _(x: Tensor, weight: Tensor, out: Tensor | None, grad: Tensor, of_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, weight, of_x)


def _empty(x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns memory for the gradients."""
    n, o, i = weight.shape
    return x.new_empty(x.shape if of_x else 0), x.new_empty(n, o, i), x.new_empty(n, o)


class _Linear(torch.autograd.Function):
    """The function `_applied` with its gradients in reverse mode."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out: Tensor = _applied(x, weight, bias, relu)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, relu = inputs
        ctx.biased = bias is not None
        ctx.save_for_backward(x, weight, output if relu else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x = ctx.needs_input_grad[0]
        grad_x, grad_weight, grad_bias = _LinearGradients.apply(*ctx.saved_tensors, grad, of_x)
        return grad_x if of_x else None, grad_weight, grad_bias if ctx.biased else None, None


class _LinearGradients(kernels.FirstDerivative):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, out: Tensor | None, grad: Tensor, of_x: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _gradients(x, weight, out, grad, of_x)
        return found
