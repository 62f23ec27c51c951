"""The forward pass of n copies of a module: a batched rule for each common layer, `vmap` or a loop for the others.

A linear layer of n copies is one batched matrix product, a convolution one grouped convolution. Both give the numbers
that each copy gives by itself, up to rounding. Inputs and outputs have shape (n, b, ...). Images between convolutions
are views of a (b, n * channels, height, width) tensor, so that a layer's inputs and outputs need no copy.

`RULES` has the batched rules; they run plain layers alone (`is_plain`), and PyTorch runs what hooks, parametrisations
and subclasses add. No rule writes in place; an in-place activation gives the numbers of the other kind.

On a CPU the environment computes trainees with convolutions one by one (`Trainee.chunks`); that, and the layouts and
pools below, follow from `benchmarks/layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrenv.networks import convolutions, linears
from lrenv.networks.architectures import Residual
from lrenv.networks.copies import Dropout, Tensors, run_vmapped
from lrenv.networks.pooling import max_pool_pairs

Pass = Callable[[Tensors, Tensors, Any], Any]
"""A forward pass (parameters, state, inputs (n, b, ...)) -> outputs (n, b, ...).

It writes new running statistics to `state`. Inputs and outputs may be trees of tensors, such as the tuple of a
recurrent layer."""


class FirstOrder(dict[str, Tensor]):
    """Parameters for which first derivatives in reverse mode are enough, so layers may use kernels without others."""


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns names and children; modules that occur several times too, which `named_children` lists once."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def is_plain(module: nn.Module) -> bool:
    """Returns whether a module is of a type that has a rule and computes what that type computes, and nothing else.

    Subclasses don't count, since they may compute something else (`torch.nn.utils.parametrize` makes such), nor do
    modules with hooks, with a `forward` of their own, or with a computed weight.
    """
    kind = type(module)
    if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or "forward" in module.__dict__:
        return False
    if any(getattr(module, hooks) for hooks in HOOKS):
        return False
    if kind in _WEIGHTED:
        # What takes a weight's place: a tensor that a hook computes, or a parameter under another name.
        return module._parameters.keys() == {"weight", "bias"} and not {"weight", "bias"} & module.__dict__.keys()
    return not module._parameters


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Attributes of a module that hold the hooks that run before and after its passes."""


def is_all_plain(module: nn.Module) -> bool:
    """Returns whether rules run the whole of a module, and none of its parts is to work in place."""
    if not is_plain(module) or getattr(module, "inplace", False):
        return False
    return type(module) not in (nn.Sequential, Residual) or all(is_all_plain(child) for _, child in children(module))


def batched_pass(module: nn.Module, prefix: str = "") -> Pass:
    """Returns the forward pass of n copies of a module: by its rule if it is plain, by `vmap` otherwise.

    Args:
        module: the module.
        prefix: what the names of its tensors begin with in the parameters and the state.
    """
    if not is_plain(module):
        return partial(run_vmapped, module, prefix)
    if isinstance(module, nn.Sequential):
        layers = children(module)
        for i, (_, child) in enumerate(layers[:-1]):
            following = layers[i + 1][1]
            # The maximum of the positive parts is the positive part of the maximum: a quarter of the work.
            if type(child) is nn.ReLU and type(following) is nn.MaxPool2d and is_plain(child) and is_plain(following):
                layers[i], layers[i + 1] = layers[i + 1], layers[i]
        return partial(_run_in_order, _batched_passes(layers, prefix))
    if isinstance(module, Residual):
        shortcut, branch = (batched_pass(getattr(module, name), f"{prefix}{name}.") for name in ("shortcut", "branch"))
        return partial(_run_residual, shortcut, branch)
    return partial(RULES[type(module)], module, prefix)


def _batched_passes(layers: list[tuple[str, nn.Module]], prefix: str) -> list[Pass]:
    """Returns the passes of consecutive layers.

    A convolution, a pool over pairs and ReLU are one pass, and so are a linear layer and ReLU.
    """
    passes: list[Pass] = []
    while layers:
        number, fused = _fused([layer for _, layer in layers])
        each = [batched_pass(layer, f"{prefix}{name}.") for name, layer in layers[:number]]
        name, first = layers[0]
        passes.append(each[0] if fused is None else partial(fused, first, f"{prefix}{name}.", each))
        layers = layers[number:]
    return passes


def _fused(layers: list[nn.Module]) -> tuple[int, Callable[..., Any] | None]:
    """Returns how many layers, from the first on, are one pass, and the function that is, if they are several."""
    if len(layers) > 2 and _is_conv_pool_relu(*layers[:3]):
        return 3, _conv_pool_relu
    if len(layers) > 1 and all(map(is_plain, layers[:2])) and list(map(type, layers[:2])) == [nn.Linear, nn.ReLU]:
        return 2, _linear_relu
    return 1, None


def _run_in_order(passes: list[Pass], parameters: Tensors, state: Tensors, x: Any) -> Any:
    for each in passes:
        x = each(parameters, state, x)
    return x


def _run_residual(shortcut: Pass, branch: Pass, parameters: Tensors, state: Tensors, x: Any) -> Any:
    return shortcut(parameters, state, x) + branch(parameters, state, x)


def _fallback(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Runs a plain layer whose settings or input its rule doesn't cover."""
    outputs: Tensor = run_vmapped(module, prefix, parameters, state, x)
    return outputs


def _fold(x: Tensor) -> Tensor:
    """(n, b, c, ...) -> (b, n * c, ...), a view where `_unfold` made the input."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold(x: Tensor, n: int) -> Tensor:
    """(b, n * c, ...) -> (n, b, c, ...), a view."""
    out: Tensor = x.unflatten(1, (n, -1))
    return out.transpose(0, 1)


def _linear(layer: nn.Linear, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if x.ndim < 3:
        return _fallback(layer, prefix, parameters, state, x)
    if isinstance(parameters, FirstOrder) and linears.suits(layer, x):
        return _linear_by_kernel(prefix, parameters, x, relu=False)
    # Activations lie in memory as (n, features, b): the gradients of weights then have the layout of the weights, and
    # sums over examples run along memory.
    columns = x.flatten(1, -2).transpose(1, 2)
    weight = parameters[f"{prefix}weight"]
    if layer.bias is None:
        out = torch.bmm(weight, columns)
    else:
        out = torch.baddbmm(parameters[f"{prefix}bias"].unsqueeze(2), weight, columns)
    out = out.transpose(1, 2)
    return out.unflatten(1, x.shape[1:-1]) if x.ndim > 3 else out


def _linear_relu(
    layer: nn.Linear, prefix: str, passes: list[Pass], parameters: Tensors, state: Tensors, x: Tensor
) -> Tensor:
    """Runs a linear layer and the ReLU that follows it, by one kernel or by their two passes."""
    if isinstance(parameters, FirstOrder) and linears.suits(layer, x):
        return _linear_by_kernel(prefix, parameters, x, relu=True)
    activated: Tensor = _run_in_order(passes, parameters, state, x)
    return activated


def _linear_by_kernel(prefix: str, parameters: Tensors, x: Tensor, relu: bool) -> Tensor:
    return linears.stacked_linear(x, parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias"), relu)


def _conv2d(layer: nn.Conv2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if layer.padding_mode != "zeros" or x.ndim != 5:
        return _fallback(layer, prefix, parameters, state, x)
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


def _is_conv_pool_relu(layer: nn.Module, pool: nn.Module, relu: nn.Module) -> bool:
    """Returns whether these are a convolution, a pool over pairs of its rows and columns, and ReLU, all plain."""
    if (type(layer), type(pool), type(relu)) != (nn.Conv2d, nn.MaxPool2d, nn.ReLU):
        return False
    assert isinstance(pool, nn.MaxPool2d)
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation) in _PAIRS
    return pairs and not pool.ceil_mode and not pool.return_indices and all(map(is_plain, (layer, pool, relu)))


def _conv_pool_relu(
    layer: nn.Conv2d, prefix: str, passes: list[Pass], parameters: Tensors, state: Tensors, x: Tensor
) -> Tensor:
    """Runs the three layers that `_is_conv_pool_relu` finds, by one kernel or by their three passes."""
    if isinstance(parameters, FirstOrder) and x.ndim == 5 and convolutions.suits(layer, x):
        return _by_kernel(convolutions.stacked_conv2d_relu_max_pool, layer, prefix, parameters, x)
    pooled: Tensor = _run_in_order(passes, parameters, state, x)
    return pooled


def _by_kernel(kernel: Callable[..., Tensor], layer: nn.Conv2d, prefix: str, parameters: Tensors, x: Tensor) -> Tensor:
    return kernel(x, parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias"), layer.padding)


def _batch_norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor
) -> Tensor:
    """Normalises the batches of all copies in one call, with n * c channels.

    `F.batch_norm` would update the running statistics in place, which functional transforms don't allow; so they are
    computed from the batch statistics that the same kernel returns.
    """
    if x.ndim not in ((5,) if isinstance(layer, nn.BatchNorm2d) else (3, 4)):
        return _fallback(layer, prefix, parameters, state, x)
    # Of vectors, channels go before examples, in the order in which `_linear` leaves them in memory.
    folded = _fold(x) if x.ndim > 3 else x.transpose(1, 2).flatten(0, 1)[None]
    weight = parameters[f"{prefix}weight"].flatten() if layer.affine else None
    bias = parameters[f"{prefix}bias"].flatten() if layer.affine else None
    mean, var = (state.get(f"{prefix}running_{name}") for name in ("mean", "var"))
    if not layer.training and mean is not None and var is not None:
        out = F.batch_norm(folded, mean.flatten(), var.flatten(), weight, bias, eps=layer.eps)
        return _unfolded(out, x)
    out, batch_mean, inverse_std = torch.native_batch_norm(folded, weight, bias, None, None, True, 0.0, layer.eps)
    if layer.training and mean is not None and var is not None:
        count = folded.numel() // folded.shape[1]
        unbiased = (inverse_std.detach() ** -2 - layer.eps) * (count / max(count - 1, 1))
        seen = state[f"{prefix}num_batches_tracked"] + 1
        # momentum=None stands for the plain average over all batches so far (torch.nn.BatchNorm2d).
        share: Any = layer.momentum if layer.momentum is not None else (1 / seen.to(mean.dtype)).unsqueeze(-1)
        state[f"{prefix}running_mean"] = mean + share * (batch_mean.detach().view_as(mean) - mean)
        state[f"{prefix}running_var"] = var + share * (unbiased.view_as(var) - var)
        state[f"{prefix}num_batches_tracked"] = seen
    return _unfolded(out, x)


def _unfolded(out: Tensor, x: Tensor) -> Tensor:
    """What batch norm gave of a folded x, in its shape."""
    n = x.shape[0]
    return _unfold(out, n) if x.ndim > 3 else out[0].unflatten(0, (n, -1)).transpose(1, 2)


def _fills_vectors(layer: nn.Conv2d) -> bool:
    """Returns whether a convolution is faster with its channels innermost.

    This is so where its output channels, and its input channels unless they are those of an image, fill vectors of 16.
    """
    return layer.out_channels % 16 == 0 and (layer.in_channels % 16 == 0 or layer.in_channels <= 4)


def _flatten(module: nn.Flatten, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if (module.start_dim, module.end_dim) != (1, -1) or x.ndim < 3:
        return _fallback(module, prefix, parameters, state, x)
    return x.flatten(2)


def _pool(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if x.ndim != 5 or getattr(module, "return_indices", False):
        return _fallback(module, prefix, parameters, state, x)
    pooled: Tensor = module(_fold(x))
    return _unfold(pooled, x.shape[0])


def _max_pool(module: nn.MaxPool2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    pairs = (module.kernel_size, module.stride, module.padding, module.dilation) in _PAIRS
    if x.ndim != 5 or module.return_indices:
        return _fallback(module, prefix, parameters, state, x)
    even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    # PyTorch's kernel is the faster one on a GPU, in compiled code, and where channels lie innermost.
    if pairs and even and x.stride(-1) == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return max_pool_pairs(x)
    return _pool(module, prefix, parameters, state, x)


_PAIRS = ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1))
"""Kernel, stride, padding and dilation of a pool over pairs of rows and columns."""


def _elementwise(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    function: Callable[[Tensor], Tensor] = module
    if getattr(module, "inplace", False):
        function = OUT_OF_PLACE[type(module)](module)
    if x.ndim != 3:
        return function(x)
    # In the order in which `_linear` leaves them in memory: a compiler would change the layout.
    return function(x.transpose(1, 2)).transpose(1, 2)


OUT_OF_PLACE: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.ReLU: lambda module: F.relu,
    nn.LeakyReLU: lambda module: partial(F.leaky_relu, negative_slope=module.negative_slope),
    nn.ELU: lambda module: partial(F.elu, alpha=module.alpha),
    nn.SiLU: lambda module: F.silu,
}
"""Type of an activation that may work in place -> (module -> the function that does the same out of place)."""


def _dropout(module: Dropout, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    return module.drop(state[f"{prefix}key"], x) if module.training and module.p > 0 else x


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    nn.Flatten: _flatten,
    nn.MaxPool2d: _max_pool,
    Dropout: _dropout,
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pool),
    **dict.fromkeys(
        (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity), _elementwise
    ),
}
"""Module type -> its batched rule (module, prefix of its names, parameters, state, x) -> output."""
_WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
"""Types with a rule that have a weight and a bias."""
_KINDS: tuple[Any, ...] = (*RULES, nn.Sequential, Residual)
_FORWARDS = {kind: kind.forward for kind in _KINDS}
