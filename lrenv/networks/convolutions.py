"""Convolutions of n trainees on a CUDA GPU, by kernels of lrenv's own.

cuDNN's grouped convolutions with few channels per group leave most of a GPU idle. `stacked_conv2d` and
`stacked_conv2d_relu_max_pool` run the kernels of `lrenv.networks.convolution_kernels` instead, in eager and in compiled
code. They have first derivatives in reverse mode; second derivatives raise an error. `suits` tells for which layers and
images they are used.

Images are stored as (n, c, h, w, b) tensors, of which the functions here take and return (n, b, c, h, w) views. So no
copy is needed between convolutions, nor for `flatten(2)`, the input of linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrenv.networks import kernels

LEAST_BATCH = 32
"""The number of examples from which on the kernels are used, since their vectors run along the batch."""
MOST_CHANNELS = 32
"""The number of input and output channels up to which the kernels are used; with more, cuDNN's matrix products fill."""
PROGRAMS = 4096
"""The number of programs among which a weight gradient is divided: some per multiprocessor of the largest GPUs."""


def suits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Returns whether the kernels can and should run this layer on images x (n, b, c, h, w).

    They have first derivatives in reverse mode only, and are for CUDA, float32, stride 1, no dilation, two trainees or
    more, at least `LEAST_BATCH` examples and at most `MOST_CHANNELS` channels.
    """
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    if not plain or isinstance(layer.padding, str) or not kernels.take(x):
        return False
    channels = max(layer.in_channels, layer.out_channels)
    if channels > MOST_CHANNELS or x.shape[1] < LEAST_BATCH:
        return False
    # Offsets within one trainee's tensors have 31 bits.
    (h, w), (rows, columns) = x.shape[-2:], layer.padding
    padded = channels * x.shape[1] * (h + 2 * int(rows)) * (w + 2 * int(columns))
    return padded < 2**31


def stacked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Computes `torch.nn.functional.conv2d` of each trainee, with stride 1.

    Args:
        x: (n, b, c, h, w) float32; copied unless its examples lie innermost.
        weight: (n, o, c, kh, kw).
        bias: (n, o), if any.
        padding: rows and columns of zeros on each side.

    Returns:
        (n, b, o, h', w'), a view of a (n, o, h', w', b) tensor.
    """
    laid, (rows, columns) = _laid(x, padding)
    out: Tensor = _Convolution.apply(laid, weight, bias, rows, columns, False)[0]
    return out.permute(0, 4, 1, 2, 3)


def stacked_conv2d_relu_max_pool(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Computes `stacked_conv2d`, ReLU and maxima over windows of 2 x 2 in one kernel, which writes the maxima only.

    Args:
        x: (n, b, c, h, w) float32.
        weight: (n, o, c, kh, kw).
        bias: (n, o), if any.
        padding: rows and columns of zeros on each side.

    Returns:
        (n, b, o, h' // 2, w' // 2), a view of a tensor with the examples innermost.
    """
    laid, (rows, columns) = _laid(x, padding)
    out: Tensor = _Convolution.apply(laid, weight, bias, rows, columns, True)[0]
    return out.permute(0, 4, 1, 2, 3)


def _laid(x: Tensor, padding: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Returns images (n, c, h, w, b) and the padding to be added: where a copy is needed, it holds the padding as well.

    Images that all trainees share become (1, c, h, w, b) where gradients are off.
    """
    x = x.permute(0, 2, 3, 4, 1)
    if x.stride(0) == 0 and not torch.is_grad_enabled():
        x = x[:1]
    rows, columns = padding
    if x.is_contiguous() or rows == columns == 0:
        return x.contiguous(), padding
    return F.pad(x, (0, 0, columns, columns, rows, rows)).contiguous(), (0, 0)


def _block(channels: int) -> int:
    """Returns how many output channels a thread holds."""
    return 8 if channels <= 8 else 16


def _out_shape(x: Tensor, weight: Tensor, rows: int, columns: int, pooled: bool) -> tuple[int, int, int, int, int]:
    _, _, h, w, b = x.shape
    n, o, _, kh, kw = weight.shape
    side = 2 if pooled else 1
    return n, o, (h + 2 * rows - kh + 1) // side, (w + 2 * columns - kw + 1) // side, b


@torch.library.custom_op(
    "lrenv::stacked_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int rows, int columns, bool pooled) -> (Tensor, Tensor)",
)
def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, pooled: bool
) -> tuple[Tensor, Tensor]:
    """Convolves images (n, c, h, w, b) to (n, o, h', w', b); images (1, c, h, w, b) are the same for all trainees.

    If pooled, the second output has the places of the maxima; else it is empty.
    """
    from lrenv.networks.convolution_kernels import convolve

    x = x.contiguous()
    images, c, h, w, b = x.shape
    n, o, _, kh, kw = weight.shape
    shape = _out_shape(x, weight, rows, columns, pooled)
    out = x.new_empty(shape)
    which = torch.empty(shape if pooled else 0, dtype=torch.int8, device=x.device)
    block = _block(o)
    padded = -(-o // block) * block
    taps = F.pad(weight.permute(0, 3, 4, 2, 1), (0, padded - o)).contiguous()
    oh, ow = shape[2:4]
    # 128 sums per thread: of four pixels, a block of channels, and four or two examples.
    warps = min((4, 2, 1), key=lambda warps: -(-b // (1024 // block * warps)) * warps)
    lanes = 1024 // block * warps
    windows = oh * ow if pooled else -(-oh // 2) * -(-ow // 2)
    inside = rows == columns == 0 and (pooled or oh % 2 == ow % 2 == 0)
    with kernels.on(x.device):
        convolve[(n * (padded // block) * -(-b // lanes) * windows,)](
            x, taps, x if bias is None else bias.contiguous(), out, which if pooled else out,
            C=c, H=h, W=w, B=b, OC=o, OP=padded, OH=oh, OW=ow, KH=kh, KW=kw, PH=rows, PW=columns,
            SHARED=images < n, BIASED=bias is not None, POOLED=pooled, MASKED=not inside,
            UNROLL=max(k for k in range(1, 5 if block == 8 else 4) if c % k == 0), BO=block, BB=lanes,
            num_warps=warps,
        )  # fmt: skip
    return out, which


@_convolved.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, pooled: bool) -> tuple[Tensor, Tensor]:
    shape = _out_shape(x, weight, rows, columns, pooled)
    return x.new_empty(shape), x.new_empty(shape if pooled else 0, dtype=torch.int8)


@torch.library.custom_op(
    "lrenv::stacked_conv2d_weight_gradient",
    mutates_args=(),
    schema="(Tensor x, Tensor grad, Tensor which, int height, int width, int rows, int columns) -> (Tensor, Tensor)",
)
def _weight_gradient(
    x: Tensor, grad: Tensor, which: Tensor, height: int, width: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Computes the gradients (n, o, c, height, width) of the weights and (n, o) of the bias."""
    from lrenv.networks.convolution_kernels import weight_gradient

    x, grad = x.contiguous(), grad.contiguous()
    n, c, h, w, b = x.shape
    o, oh, ow = grad.shape[1:4]
    pooled = which.numel() > 0
    block = _block(o)
    padded = -(-o // block) * block
    size, taps = c * height * width, 8
    warps = next((warps for warps in (1, 2) if size < taps * warps), 4)
    chunks = size // (taps * warps) + 1  # the bias has a column, too
    splits = max(1, min(oh * -(-b // 32), PROGRAMS // (n * chunks * (padded // block))))
    partial = x.new_empty(n, splits, padded, chunks * taps * warps)
    with kernels.on(x.device):
        weight_gradient[(n * splits * (padded // block) * chunks,)](
            x, grad, which if pooled else grad, partial,
            C=c, H=h, W=w, B=b, OC=o, OP=padded, OH=oh, OW=ow, KH=height, KW=width, PH=rows, PW=columns,
            POOLED=pooled, KP=partial.shape[3], SPLITS=splits, BO=block, BK=taps, WARPS=warps, num_warps=warps,
        )  # fmt: skip
    total = partial.sum(1)[:, :o]
    plain = torch.contiguous_format
    weight = total[..., :size].clone(memory_format=plain).view(n, o, c, height, width)
    return weight, total[..., size].clone(memory_format=plain)


@_weight_gradient.register_fake
def _(
    x: Tensor, grad: Tensor, which: Tensor, height: int, width: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    return x.new_empty(n, grad.shape[1], c, height, width), x.new_empty(n, grad.shape[1])


@torch.library.custom_op(
    "lrenv::unpooled",
    mutates_args=(),
    schema="(Tensor grad, Tensor which, int height, int width) -> Tensor",
)
def _unpooled(grad: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """Computes the gradient (n, o, height, width, b) of pixels from that of their windows, (n, o, h, w, b)."""
    from lrenv.networks.convolution_kernels import unpool

    grad = grad.contiguous()
    n, o, h, w, b = grad.shape
    out = (grad.new_empty if (height, width) == (2 * h, 2 * w) else grad.new_zeros)((n, o, height, width, b))
    lanes = 128 if b <= 128 else 512
    with kernels.on(grad.device):
        unpool[(n * o * h * w * -(-b // lanes),)](
            grad, which, out, H=height, W=width, B=b, OH=h, OW=w, BB=lanes, num_warps=4
        )
    return out


@_unpooled.register_fake
def _(grad: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    n, o, _, _, b = grad.shape
    return grad.new_empty(n, o, height, width, b)


class _Convolution(torch.autograd.Function):
    """The function `_convolved` with its gradient in reverse mode."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, pooled: bool
    ) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = _convolved(x, weight, bias, rows, columns, pooled)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, ctx.rows, ctx.columns, ctx.pooled = inputs
        ctx.biased = bias is not None
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, which = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _InputGradient.apply(grad, weight, which, *x.shape[2:4], ctx.rows, ctx.columns, ctx.pooled)
        grad_weight, grad_bias = _WeightGradient.apply(x, grad, which, *weight.shape[3:], ctx.rows, ctx.columns)
        return grad_x, grad_weight, grad_bias if ctx.biased else None, None, None, None


class _InputGradient(kernels.FirstDerivative):
    @staticmethod
    def forward(
        grad: Tensor, weight: Tensor, which: Tensor, h: int, w: int, rows: int, columns: int, pooled: bool
    ) -> Tensor:
        kh, kw = weight.shape[3:]
        spread = _unpooled(grad, which, h + 2 * rows - kh + 1, w + 2 * columns - kw + 1) if pooled else grad
        mirrored = weight.flip(3, 4).transpose(1, 2)
        out: Tensor = _convolved(spread, mirrored, None, kh - 1 - rows, kw - 1 - columns, False)[0]
        return out


class _WeightGradient(kernels.FirstDerivative):
    @staticmethod
    def forward(
        x: Tensor, grad: Tensor, which: Tensor, height: int, width: int, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = _weight_gradient(x, grad, which, height, width, rows, columns)
        return out
