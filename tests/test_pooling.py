"""The pool over pairs: PyTorch's numbers in every mode of differentiation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

from lrenv.networks.pooling import max_pool_pairs


def numbers(ties: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64)
    return x.round() if ties else x


def loss(pool: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: (pool(x) * torch.arange(12.0, dtype=x.dtype).view(3, 4)).square().sum()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_it_is_pytorchs_pool(ties: bool, memory: torch.memory_format) -> None:
    x = numbers(ties).contiguous(memory_format=memory)
    ours, theirs = loss(max_pool_pairs), loss(lambda x: F.max_pool2d(x, 2))
    with torch.no_grad():
        assert torch.equal(max_pool_pairs(x), F.max_pool2d(x, 2))
    assert torch.equal(max_pool_pairs(x.requires_grad_()), F.max_pool2d(x, 2))
    assert torch.equal(grad(ours)(x), grad(theirs)(x))
    direction = numbers(False).roll(1)
    for a, b in zip(jvp(grad(ours), (x,), (direction,)), jvp(grad(theirs), (x,), (direction,)), strict=True):
        torch.testing.assert_close(a, b)  # forward over reverse: the second derivative along a direction


def test_its_derivatives_are_those_of_finite_differences() -> None:
    x = numbers(False).requires_grad_()
    assert torch.autograd.gradcheck(max_pool_pairs, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss(max_pool_pairs), x)
