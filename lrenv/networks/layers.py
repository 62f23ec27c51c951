"""Layers of n trainees at once: the hand-batched form of each common module, `vmap` or one after another for the rest.

A linear layer of n trainees is one batched matrix product, a convolution one grouped convolution. Both give the
numbers of the module run alone. Inputs and outputs have shape (n, b, ...). Images between convolutions are views of a
(b, n * channels, height, width) tensor, so that entering and leaving a layer costs no copy.

Only plain layers are batched by hand: what a hook, a parametrisation or a subclass adds is left to PyTorch. No rule
writes in place; an in-place activation gives the numbers of the other kind.

On a CPU the environment sends trainees with convolutions through one by one (`Trainee.groups`); that, and the layouts
and pools below, follow from `benchmarks/layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lrenv.networks import convolutions
from lrenv.networks.architectures import Residual
from lrenv.networks.pooling import max_pool_pairs
from lrenv.randomness import draws

Tensors = dict[str, Tensor]
"""Name -> (n, *shape): parameters and buffers."""
Pass = Callable[[Tensors, Tensors, Any], Any]
"""(parameters, state, inputs (n, b, ...)) -> outputs (n, b, ...); new running statistics are written to `state`.

Between layers may stand whatever PyTorch's modules hand on, such as the tuple of a recurrent layer."""


class FirstOrder(dict[str, Tensor]):
    """Parameters by which nobody differentiates twice, nor in forward mode: layers may use kernels that can't."""


class Dropout(nn.Module):
    """Dropout whose mask is a function of the buffer `key` instead of a global generator.

    Args:
        p: probability of a zero.
        inplace: whether a module of its own (not a rule here) sees its input overwritten, as with `torch.nn.Dropout`.

    Attributes:
        calls: how often it ran in this pass: each time it draws another mask.
    """

    key: Tensor

    def __init__(self, p: float, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.inplace, self.calls = p, inplace, 0
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes each element with probability p while training, and rescales the others."""
        if not self.training or self.p == 0:
            return x
        dropped = self.dropped(self.key, x)
        return x.copy_(dropped) if self.inplace else dropped

    def dropped(self, key: Tensor, x: Tensor) -> Tensor:
        """One call on x, whose first axes are those of the key."""
        key = draws.fold(key, self.calls) if self.calls else key
        self.calls += 1
        keep = draws.uniform(key, x.shape[key.ndim :], x.dtype) >= self.p
        return x * keep / (1 - self.p) if self.p < 1 else x * 0


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `named_children`, which leaves out a module that stands in several places after the first."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def plain(module: nn.Module) -> bool:
    """Whether a module computes what its type says and nothing else, and has a rule.

    Types are exact, for a subclass may compute something else, as `torch.nn.utils.parametrize` makes one.
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
"""Attributes of a module that hold what is run around its passes."""


def all_plain(module: nn.Module) -> bool:
    """Whether rules run the whole of a module, and out of place is what it asks for."""
    if not plain(module) or getattr(module, "inplace", False):
        return False
    return type(module) not in (nn.Sequential, Residual) or all(all_plain(child) for _, child in children(module))


def planned(module: nn.Module, prefix: str = "") -> Pass:
    """How `module`, whose tensors carry `prefix` in their names, runs for n trainees side by side."""
    if not plain(module):
        return partial(vmapped, module, prefix)
    if isinstance(module, nn.Sequential):
        layers = children(module)
        for i, (_, child) in enumerate(layers[:-1]):
            following = layers[i + 1][1]
            # The maximum of the positive parts is the positive part of the maximum: a quarter of the work.
            if type(child) is nn.ReLU and type(following) is nn.MaxPool2d and plain(child) and plain(following):
                layers[i], layers[i + 1] = layers[i + 1], layers[i]
        return partial(_in_turn, _passes(layers, prefix))
    if isinstance(module, Residual):
        shortcut, branch = (planned(getattr(module, name), f"{prefix}{name}.") for name in ("shortcut", "branch"))
        return partial(_added, shortcut, branch)
    return partial(RULES[type(module)], module, prefix)


def _passes(layers: list[tuple[str, nn.Module]], prefix: str) -> list[Pass]:
    """Of consecutive layers; a convolution, a pool over pairs and ReLU are one pass, which may be one kernel."""
    passes = [planned(child, f"{prefix}{name}.") for name, child in layers]
    for i in reversed(range(len(layers) - 2)):
        name, layer = layers[i]
        if isinstance(layer, nn.Conv2d) and _pools_pairs(layer, layers[i + 1][1], layers[i + 2][1]):
            passes[i : i + 3] = [partial(_pooled_pairs, layer, f"{prefix}{name}.", passes[i : i + 3])]
    return passes


def _in_turn(passes: list[Pass], parameters: Tensors, state: Tensors, x: Any) -> Any:
    for each in passes:
        x = each(parameters, state, x)
    return x


def _added(shortcut: Pass, branch: Pass, parameters: Tensors, state: Tensors, x: Any) -> Any:
    return shortcut(parameters, state, x) + branch(parameters, state, x)


def vmapped(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Any) -> Any:
    """Every module without a rule, side by side."""
    weights, buffers = _own(module, prefix, parameters, state)

    outputs, buffers = vmap(partial(alone, module))(weights, buffers, tree_map(_given, x))
    state.update({prefix + name: b for name, b in buffers.items()})
    return outputs


def alone(module: nn.Module, weights: Tensors, buffers: Tensors, x: Any) -> tuple[Any, Tensors]:
    """One copy as PyTorch runs it: its outputs, and its buffers after the pass; those handed over stay as they are."""
    # Modules update buffers in place, or put others there: what then has a buffer's name is its new value.
    held = weights | {name: b.clone() for name, b in buffers.items()}
    outputs = functional_call(module, held, (x,))
    return outputs, {name: held[name] for name in buffers}


def looped(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Any module, one copy after another: for what `vmap` can't run, and for hooks on gradients."""
    weights, buffers = _own(module, prefix, parameters, state)
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
        restart(dropout)
        output, held = alone(module, own, held, _given(part))
        outputs.append(output)
        after.append(held)
    state.update({prefix + name: torch.stack([each[name] for each in after]) for name in buffers})
    return torch.stack(outputs)


def restart(dropout: Iterable[Dropout]) -> None:
    """A new pass begins: dropout counts its calls anew."""
    for part in dropout:
        part.calls = 0


def _given(x: Any) -> Any:
    """What a module gets: to write to as it likes, and in order, for `Tensor.view` depends on that."""
    return x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x


def _own(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """A module's parameters and buffers under its own names."""
    weights = {name: parameters[prefix + name] for name, _ in module.named_parameters()}
    # In evaluation mode a dropout's key is not in the state, and not looked at.
    return weights, {name: state[prefix + name] for name, _ in module.named_buffers() if prefix + name in state}


def _as_it_is(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """A plain layer with settings, or an input, that no rule is made for."""
    outputs: Tensor = vmapped(module, prefix, parameters, state, x)
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
        return _as_it_is(layer, prefix, parameters, state, x)
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
    if layer.padding_mode != "zeros" or x.ndim != 5:
        return _as_it_is(layer, prefix, parameters, state, x)
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


def _pools_pairs(layer: nn.Module, pool: nn.Module, relu: nn.Module) -> bool:
    """Whether these are a convolution, a pool over pairs of its rows and columns, and ReLU, all of them plain."""
    if (type(layer), type(pool), type(relu)) != (nn.Conv2d, nn.MaxPool2d, nn.ReLU):
        return False
    assert isinstance(pool, nn.MaxPool2d)
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation) in _PAIRS
    return pairs and not pool.ceil_mode and not pool.return_indices and all(map(plain, (layer, pool, relu)))


def _pooled_pairs(
    layer: nn.Conv2d, prefix: str, apart: list[Pass], parameters: Tensors, state: Tensors, x: Tensor
) -> Tensor:
    """The three layers that `_pools_pairs` finds, by one kernel or by their passes `apart`."""
    if isinstance(parameters, FirstOrder) and x.ndim == 5 and convolutions.suits(layer, x):
        return _by_kernel(convolutions.stacked_conv2d_relu_max_pool, layer, prefix, parameters, x)
    pooled: Tensor = _in_turn(apart, parameters, state, x)
    return pooled


def _by_kernel(kernel: Callable[..., Tensor], layer: nn.Conv2d, prefix: str, parameters: Tensors, x: Tensor) -> Tensor:
    return kernel(x, parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias"), layer.padding)


def _batch_norm(layer: nn.BatchNorm2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Batch normalisation of every copy at once: its channels are the n * c folded ones.

    `F.batch_norm` would update the running statistics in place, which no functional transform can follow; so
    they are derived from the statistics that the same kernel hands back.
    """
    if x.ndim != 5:
        return _as_it_is(layer, prefix, parameters, state, x)
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


def _flatten(module: nn.Flatten, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if (module.start_dim, module.end_dim) != (1, -1) or x.ndim < 3:
        return _as_it_is(module, prefix, parameters, state, x)
    return x.flatten(2)


def _pool(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if x.ndim != 5 or getattr(module, "return_indices", False):
        return _as_it_is(module, prefix, parameters, state, x)
    pooled: Tensor = module(_fold(x))
    return _unfold(pooled, x.shape[0])


def _max_pool(module: nn.MaxPool2d, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    pairs = (module.kernel_size, module.stride, module.padding, module.dilation) in _PAIRS
    if x.ndim != 5 or module.return_indices:
        return _as_it_is(module, prefix, parameters, state, x)
    even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    # PyTorch's kernel is the faster one on a GPU, in compiled code, and where channels lie innermost.
    if pairs and even and x.stride(-1) == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return max_pool_pairs(x)
    return _pool(module, prefix, parameters, state, x)


_PAIRS = ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1))


def _elementwise(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    function: Callable[[Tensor], Tensor] = module
    if getattr(module, "inplace", False):
        function = OUT_OF_PLACE[type(module)](module)
    if x.ndim != 3:
        return function(x)
    # In the order in which `_linear` leaves them in memory: a compiler would lay them anew.
    return function(x.transpose(1, 2)).transpose(1, 2)


OUT_OF_PLACE: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.ReLU: lambda module: F.relu,
    nn.LeakyReLU: lambda module: partial(F.leaky_relu, negative_slope=module.negative_slope),
    nn.ELU: lambda module: partial(F.elu, alpha=module.alpha),
    nn.SiLU: lambda module: F.silu,
}


def _dropout(module: Dropout, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    return module.dropped(state[f"{prefix}key"], x) if module.training and module.p > 0 else x


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: _flatten,
    nn.MaxPool2d: _max_pool,
    Dropout: _dropout,
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pool),
    **dict.fromkeys(
        (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity), _elementwise
    ),
}
"""Module type -> its batched form (module, prefix of its names, parameters, state, x) -> output."""
_WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
_KINDS: tuple[Any, ...] = (*RULES, nn.Sequential, Residual)
_FORWARDS = {kind: kind.forward for kind in _KINDS}
