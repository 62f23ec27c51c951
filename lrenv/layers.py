"""Layers of n trainees at once: the hand-batched form of each common module, and `vmap` for every other.

A linear layer of n trainees is one batched matrix product, a convolution one grouped convolution. Both give the
numbers of the module run alone. Inputs and outputs have shape (n, b, ...). Images between convolutions are views of a
(b, n * channels, height, width) tensor, so that entering and leaving a layer costs no copy.

On a CPU the environment sends trainees with convolutions through one by one (`Trainee.groups`); that, and the layouts
and pools below, follow from `benchmarks/layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lrenv import convolutions, draws
from lrenv.networks import Residual
from lrenv.pooling import max_pool_pairs

Tensors = dict[str, Tensor]
"""Name -> (n, *shape): parameters and buffers."""


class FirstOrder(dict[str, Tensor]):
    """Parameters by which nobody differentiates twice, nor in forward mode: layers may use kernels that can't."""


class Dropout(nn.Module):
    """Dropout whose mask is a function of the buffer `key` instead of a global generator."""

    key: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes each element with probability p while training, and rescales the others."""
        if not self.training or self.p == 0:
            return x
        keep = draws.uniform(self.key, x.shape, x.dtype) >= self.p
        return x * keep / (1 - self.p)


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `named_children`, which leaves out a module that stands in several places after the first."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _fold(x: Tensor) -> Tensor:
    """(n, b, c, ...) -> (b, n * c, ...), a view where `_unfold` made the input."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold(x: Tensor, n: int) -> Tensor:
    """(b, n * c, ...) -> (n, b, c, ...), a view."""
    out: Tensor = x.unflatten(1, (n, -1))
    return out.transpose(0, 1)


def _linear(layer: nn.Linear, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    # Activations lie in memory as (n, features, b): the gradients of weights then come out laid as the weights are,
    # and a sum over examples runs along memory.
    columns = x.flatten(1, -2).transpose(1, 2)
    weight = parameters[f"{prefix}weight"]
    if layer.bias is None:
        out = torch.bmm(weight, columns)
    else:
        out = torch.baddbmm(parameters[f"{prefix}bias"].unsqueeze(2), weight, columns)
    out = out.transpose(1, 2)
    return out.unflatten(1, x.shape[1:-1]) if x.ndim > 3 else out


def _conv2d(layer: nn.Conv2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if layer.padding_mode != "zeros":
        return vmapped(layer, prefix, parameters, state, x)
    if isinstance(parameters, FirstOrder) and convolutions.suits(layer, x):
        return _by_kernel(convolutions.stacked_conv2d, layer, prefix, parameters, x)
    n = x.shape[0]
    weight = parameters[f"{prefix}weight"].flatten(0, 1)
    if n == 1 and _fills_vectors(layer):
        weight = weight.contiguous(memory_format=torch.channels_last)  # the output then has this format, too
    bias = None if layer.bias is None else parameters[f"{prefix}bias"].flatten()
    padding: Any = layer.padding
    out = F.conv2d(_fold(x), weight, bias, layer.stride, padding, layer.dilation, n * layer.groups)
    return _unfold(out, n)


def _by_kernel(kernel: Callable[..., Tensor], layer: nn.Conv2d, prefix: str, parameters: Tensors, x: Tensor) -> Tensor:
    return kernel(x, parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias"), layer.padding)


def _batch_norm(layer: nn.BatchNorm2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Batch normalisation of every copy at once: its channels are the n * c folded ones.

    `F.batch_norm` would update the running statistics in place, which no functional transform can follow; so
    they are derived from the statistics that the same kernel hands back.
    """
    n = x.shape[0]
    folded = _fold(x)
    weight = parameters[f"{prefix}weight"].flatten() if layer.affine else None
    bias = parameters[f"{prefix}bias"].flatten() if layer.affine else None
    mean, var = (state.get(f"{prefix}running_{name}") for name in ("mean", "var"))
    if not layer.training and mean is not None and var is not None:
        return _unfold(F.batch_norm(folded, mean.flatten(), var.flatten(), weight, bias, eps=layer.eps), n)
    out, batch_mean, inverse_std = torch.native_batch_norm(folded, weight, bias, None, None, True, 0.0, layer.eps)
    if layer.training and mean is not None and var is not None:
        count = folded.numel() // folded.shape[1]
        unbiased = (inverse_std.detach() ** -2 - layer.eps) * (count / max(count - 1, 1))
        seen = state[f"{prefix}num_batches_tracked"] + 1
        # momentum=None asks for the plain average over all batches so far (torch.nn.BatchNorm2d).
        share: Any = layer.momentum if layer.momentum is not None else (1 / seen.to(mean.dtype)).unsqueeze(-1)
        state[f"{prefix}running_mean"] = mean + share * (batch_mean.detach().view_as(mean) - mean)
        state[f"{prefix}running_var"] = var + share * (unbiased.view_as(var) - var)
        state[f"{prefix}num_batches_tracked"] = seen
    return _unfold(out, n)


def _fills_vectors(layer: nn.Conv2d) -> bool:
    """Whether a convolution is faster with its channels innermost.

    It is where the channels that it writes, and those that it reads unless they are an image's, fill vectors of 16.
    """
    return layer.out_channels % 16 == 0 and (layer.in_channels % 16 == 0 or layer.in_channels <= 4)


def vmapped(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """The fallback for every module without a rule."""
    weights = {name: parameters[prefix + name] for name, _ in module.named_parameters()}
    # In evaluation mode a dropout's key is not in the state, and not looked at.
    buffers = {name: state[prefix + name] for name, _ in module.named_buffers() if prefix + name in state}

    def single(weights: Tensors, buffers: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        # Modules update their buffers in place; the caller's must stay as they are.
        buffers = {name: b.clone() for name, b in buffers.items()}
        return functional_call(module, (weights, buffers), (x,)), buffers

    outputs, buffers = vmap(single)(weights, buffers, x)
    state.update({prefix + name: b for name, b in buffers.items()})
    return outputs


def forward(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Runs `module`, whose tensors carry `prefix` in their names; writes new running statistics to `state`."""
    # Exact types: a subclass may compute something else.
    return RULES.get(type(module), vmapped)(module, prefix, parameters, state, x)


def _sequential(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    layers = children(module)
    for i, (_, child) in enumerate(layers[:-1]):
        # The maximum of the positive parts is the positive part of the maximum: a quarter of the work.
        if type(child) is nn.ReLU and type(layers[i + 1][1]) is nn.MaxPool2d:
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    while layers:
        name, child = layers.pop(0)
        if isinstance(parameters, FirstOrder) and _pools_pairs(child, [following for _, following in layers[:2]], x):
            x = _by_kernel(convolutions.stacked_conv2d_relu_max_pool, child, f"{prefix}{name}.", parameters, x)
            del layers[:2]
        else:
            x = forward(child, f"{prefix}{name}.", parameters, state, x)
    return x


def _pools_pairs(layer: nn.Module, following: list[nn.Module], x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether one kernel computes this convolution, a pool over pairs of its rows and columns, and ReLU."""
    if type(layer) is not nn.Conv2d or [type(module) for module in following] != [nn.MaxPool2d, nn.ReLU]:
        return False
    pool = following[0]
    assert isinstance(pool, nn.MaxPool2d)
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation) in _PAIRS and not pool.ceil_mode
    return pairs and convolutions.suits(layer, x)


def _residual(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    shortcut, branch = (
        forward(getattr(module, path), f"{prefix}{path}.", parameters, state, x) for path in ("shortcut", "branch")
    )
    return shortcut + branch


def _flatten(module: nn.Flatten, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if (module.start_dim, module.end_dim) != (1, -1):
        return vmapped(module, prefix, parameters, state, x)
    return x.flatten(2)


def _pool(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    pooled: Tensor = module(_fold(x))
    return _unfold(pooled, x.shape[0])


def _max_pool(module: nn.MaxPool2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    pairs = (module.kernel_size, module.stride, module.padding, module.dilation) in _PAIRS
    even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    # PyTorch's kernel is the faster one on a GPU, in compiled code, and where channels lie innermost.
    if pairs and even and x.stride(-1) == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return max_pool_pairs(x)
    return _pool(module, prefix, parameters, state, x)


_PAIRS = ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1))


def _elementwise(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if x.ndim != 3:
        out: Tensor = module(x)
        return out
    # In the order in which `_linear` leaves them in memory: a compiler would lay them anew.
    out = module(x.transpose(1, 2))
    return out.transpose(1, 2)


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Sequential: _sequential,
    Residual: _residual,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: _flatten,
    nn.MaxPool2d: _max_pool,
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pool),
    **dict.fromkeys(
        (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity), _elementwise
    ),
}
"""Module type -> its batched form (module, prefix of its names, parameters, state, x) -> output."""
