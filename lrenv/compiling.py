"""Compiled functions: static shapes, one graph a shape, captured as a CUDA graph where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_map

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, device: torch.device, **options: Any) -> F:
    """`torch.compile` for the functions that every decision calls with tensors of the same shapes.

    Args:
        function: takes and gives tensors; rates and seeds are tensors, too, or each value would compile anew. What it
            is a method of must not change afterwards.
        device: on CUDA the graph is captured and replayed as a whole, and its outputs, which the next replay would
            overwrite, are copied out.
        **options: of the compiler.
    """

    def entry(*arguments: Any) -> Any:
        return function(*arguments)

    # The compiler allows each code object a few graphs: one that all environments shared would use them up.
    code = entry.__code__.replace(co_name=getattr(function, "__name__", "compiled"))
    own = FunctionType(code, entry.__globals__, code.co_name, None, entry.__closure__)
    on_cuda = device.type == "cuda"
    settings = options | {"triton.cudagraphs": on_cuda, "guard_filter_fn": _of_arguments}
    graph = torch.compile(own, dynamic=False, fullgraph=True, options=settings)
    if not on_cuda:
        return graph  # type: ignore[return-value]

    def replayed(*arguments: Any) -> Any:
        return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, graph(*arguments))

    return replayed  # type: ignore[return-value]


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's assumptions a call checks: those about its arguments, and about the state of PyTorch.

    The others, of which a graph that trains a network has hundreds, would cost time in every call.
    """
    return [guard.name == "" or guard.name.startswith("arguments") for guard in guards]
