"""Maximum pooling over pairs of rows and columns, faster on a CPU than PyTorch's kernel where rows lie innermost.

Maxima of strided views vectorise, and the place of each maximum is computed again in the backward pass. Of equal
numbers the first of the window counts, row by row, as in `torch.nn.functional.max_pool2d(x, 2)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def max_pool_pairs(x: Tensor) -> Tensor:
    """Returns the maxima (..., h, w) of windows of 2 x 2 of x (..., 2h, 2w).

    It can be differentiated in reverse and in forward mode, and in one through the other.
    """
    if not torch.is_grad_enabled():
        return torch.maximum(*_rows(torch.maximum(*_columns(x))))  # has its own forward derivative
    pooled: Tensor = _MaxPoolPairs.apply(x)[0]
    return pooled


def _columns(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0::2], x[..., 1::2]


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0::2, :], x[..., 1::2, :]


class _MaxPoolPairs(torch.autograd.Function):
    """The two maxima, and those over columns as well, with which the derivatives compare."""

    generate_vmap_rule = True  # forward mode stacks its tangents by vmap

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.maximum(*_columns(x))
        return torch.maximum(*_rows(wide)), wide

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        pooled, wide = output
        ctx.mark_non_differentiable(wide)
        ctx.save_for_backward(*inputs, pooled, wide)
        ctx.save_for_forward(*inputs, pooled, wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        x, pooled, wide = ctx.saved_tensors
        upper = grad * (_rows(wide)[0] == pooled)
        grad_wide = torch.stack((upper, grad - upper), -2).flatten(-3, -2)
        left = grad_wide * (_columns(x)[0] == wide)
        return torch.stack((left, grad_wide - left), -1).flatten(-2)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        x, pooled, wide = ctx.saved_tensors
        along = torch.where(_columns(x)[0] == wide, *_columns(tangent))
        return torch.where(_rows(wide)[0] == pooled, *_rows(along)), None
