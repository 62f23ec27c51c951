"""What lrenv's own kernels for CUDA share: when Triton can build them, and how they are called and derived.

The kernels themselves are in `convolution_kernels.py` and `linear_kernels.py`, in Triton's language.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"
"""The type of device whose tensors the kernels take."""
TRITON = find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang")))
"""Whether kernels can be built: Triton needs a C compiler."""


def take(x: Tensor) -> bool:
    """Returns whether kernels can take these numbers: float32 on CUDA, for two trainees or more.

    They have no rules for autocast, for `vmap`, and for forward mode.
    """
    there = TRITON and x.device.type == DEVICE and x.dtype == torch.float32
    return there and x.shape[0] > 1 and not torch.is_autocast_enabled(DEVICE) and not _transformed()


def _transformed() -> bool:
    """Returns whether a transform of `torch.func` other than `grad` is under way."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():  # code that is being compiled can't look at the transforms around it
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(each.key() != torch._C._functorch.TransformType.Grad for each in stack)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device the current one, on which Triton launches kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class FirstDerivative(torch.autograd.Function):
    """A gradient without a derivative of its own: taking one raises an error, where it would otherwise count as 0."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuses.

        Raises:
            NotImplementedError: always; the message says what to do.
        """
        raise NotImplementedError(
            "lrenv's kernels have first derivatives only; take the operations of torch.nn.functional"
        )
