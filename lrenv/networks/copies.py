"""n copies of any module: under `vmap`, or one after another; and the dropout that copies can have.

They give the numbers that each copy gives by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lrenv.randomness import draws

Tensors = dict[str, Tensor]
"""Name -> (n, *shape): parameters and buffers."""


class Dropout(nn.Module):
    """Dropout whose mask is a function of the buffer `key` instead of a global generator.

    Args:
        p: probability of a zero.
        inplace: whether `forward` overwrites its input, as `torch.nn.Dropout` does; the batched rule never does.

    Attributes:
        calls: how often it has run in this pass; the mask depends on it, so that each call has another one.
    """

    key: Tensor

    def __init__(self, p: float, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.inplace, self.calls = p, inplace, 0
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sets each element of x to 0 with probability p in training mode, and divides the others by 1 - p."""
        if not self.training or self.p == 0:
            return x
        dropped = self.drop(self.key, x)
        return x.copy_(dropped) if self.inplace else dropped

    def drop(self, key: Tensor, x: Tensor) -> Tensor:
        """Does the same out of place in any mode, and counts the call.

        Args:
            key: (...) int64.
            x: (..., *shape), whose first axes are those of the key.
        """
        key = draws.fold(key, self.calls) if self.calls else key
        self.calls += 1
        # In float32 at least: of numbers rounded to fewer bits, another share than p would lie below p.
        keep = draws.uniform(key, x.shape[key.ndim :], torch.promote_types(x.dtype, torch.float32)) >= self.p
        return x * keep / (1 - self.p) if self.p < 1 else x * 0


def run_vmapped(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Any) -> Any:
    """Runs n copies of any module by `vmap`."""
    weights, buffers = _tensors_of(module, prefix, parameters, state)

    outputs, buffers = vmap(partial(run_copy, module))(weights, buffers, tree_map(_contiguous_copy, x))
    state.update({prefix + name: b for name, b in buffers.items()})
    return outputs


def run_copy(module: nn.Module, weights: Tensors, buffers: Tensors, x: Any) -> tuple[Any, Tensors]:
    """Runs one copy as PyTorch does.

    Returns:
        Its outputs, and its buffers after the pass; the arguments stay as they are.
    """
    # Modules update buffers in place or replace them: what has a buffer's name afterwards is its new value.
    held = weights | {name: b.clone() for name, b in buffers.items()}
    outputs = functional_call(module, held, (x,))
    return outputs, {name: held[name] for name in buffers}


def run_sequentially(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Runs n copies of any module one after another, for modules that `vmap` can't run and for hooks on gradients."""
    weights, buffers = _tensors_of(module, prefix, parameters, state)
    hooks = {name: tuple((p._backward_hooks or {}).values()) for name, p in module.named_parameters()}
    # Unbound, not indexed: the gradients of n copies then come together in one pass.
    rows = [{name: w.unbind() for name, w in each.items()} for each in (weights, buffers)]
    dropout = [part for part in module.modules() if isinstance(part, Dropout)]
    outputs, after = [], []
    for i, part in enumerate(x.unbind()):
        own, held = ({name: w[i] for name, w in each.items()} for each in rows)
        for name, w in own.items():
            for hook in hooks[name] if w.requires_grad else ():
                w.register_hook(hook)
        reset_calls(dropout)
        output, held = run_copy(module, own, held, _contiguous_copy(part))
        outputs.append(output)
        after.append(held)
    state.update({prefix + name: torch.stack([each[name] for each in after]) for name in buffers})
    return torch.stack(outputs)


def reset_calls(dropout: Iterable[Dropout]) -> None:
    """Sets the number of calls to 0, as a pass begins."""
    for part in dropout:
        part.calls = 0


def _contiguous_copy(x: Any) -> Any:
    """Copies a tensor, so that a module may write to it, into contiguous memory, on which `Tensor.view` depends."""
    return x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x


def _tensors_of(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """Returns a module's parameters and buffers under its own names."""
    weights = {name: parameters[prefix + name] for name, _ in module.named_parameters()}
    # In evaluation mode a dropout's key is not in the state, and is not used.
    return weights, {name: state[prefix + name] for name, _ in module.named_buffers() if prefix + name in state}
