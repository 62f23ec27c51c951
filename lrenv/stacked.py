"""n copies of one network as stacked tensors: any `torch.nn.Module` becomes a batch of independent trainees.

Layers with an entry in `RULES` are batched by hand (a linear layer of n trainees is one `baddbmm`, a
convolution one grouped convolution); any other module runs under `torch.func.vmap` and
`torch.func.functional_call`. Both give the numbers of the module run alone.

Inputs and outputs have shape (n, b, ...). Images between convolutions are views of a (b, n * channels, height,
width) tensor, so that entering and leaving a layer costs no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lrenv import draws
from lrenv.networks import Residual

Tensors = dict[str, Tensor]
"""Name -> (n, *shape): parameters and buffers."""


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


class Network:
    """n stacked copies of the module that `make` builds, their parameters one tensor (n, P).

    Args:
        make: builds a freshly initialised module, drawing from torch's global generator as modules do.

    Attributes:
        shapes: parameter name -> shape of one copy, in the module's own order, which is that of the P columns.
        size: P, the parameters of one copy.
        layers: the modules that hold parameters, in order.
        layer_of: (P,) int64, the position in `layers` of the module that each parameter belongs to.
        stochastic: whether the module draws random numbers in training (dropout).
        first, last: the columns of the first and the last weight (the tensors with two or more axes; else any).

    Raises:
        ValueError: the module has no parameters, frozen ones, or a kind of dropout that can't be drawn statelessly.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._module = _seeded(make, 0)
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        _check(self._module)
        self._sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self._sizes)
        owners = [name.rpartition(".")[0] for name in self.shapes]
        self.layers = list(dict.fromkeys(owners))
        index = torch.tensor([self.layers.index(owner) for owner in owners])
        self.layer_of = index.repeat_interleave(torch.tensor(self._sizes), output_size=self.size)
        matrices = [name for name, shape in self.shapes.items() if len(shape) > 1] or list(self.shapes)
        self.first, self.last = (self._columns(name) for name in (matrices[0], matrices[-1]))
        _replace_dropout(self._module)
        self._keys = [
            name for name, module in self._module.named_modules(remove_duplicate=False) if isinstance(module, Dropout)
        ]
        self.stochastic = bool(self._keys)
        # A tensor that two modules share has one name: only `functional_call` finds it from both.
        self._run = _vmapped if _shares_tensors(self._module) else _forward

    def init(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensors]:
        """Fresh parameters (n, P) and buffers, one copy a seed.

        The copy with seed s is what `torch.manual_seed(s)` followed by the module's constructor gives, whatever
        the other seeds are; the global generator is left as it was.
        """
        modules = {seed: _seeded(self._make, seed) for seed in set(seeds)}
        flat = {seed: torch.cat([p.detach().flatten() for p in m.parameters()]) for seed, m in modules.items()}
        held = {seed: dict(module.named_buffers()) for seed, module in modules.items()}
        buffers = {name: torch.stack([held[seed][name] for seed in seeds]) for name in held[seeds[0]]}
        return torch.stack([flat[seed] for seed in seeds]).to(device, dtype), {
            name: b.to(device, dtype if b.is_floating_point() else b.dtype) for name, b in buffers.items()
        }

    def named(self, params: Tensor) -> Tensors:
        """The columns of (n, P) parameters, or gradients, as views: name -> (n, *shape)."""
        pieces = params.split(self._sizes, dim=1)
        return {name: x.unflatten(1, shape) for (name, shape), x in zip(self.shapes.items(), pieces, strict=True)}

    def __call__(
        self, params: Tensor, buffers: Tensors, x: Tensor, training: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        """Runs the copies side by side.

        Args:
            params: (n, P).
            buffers: name -> (n, *shape).
            x: (n, b, *example).
            training: whether dropout and batch statistics are in force, as in `torch.nn.Module.train`.
            key: (n,) int64, where dropout masks come from; needed in training where `stochastic`.

        Returns:
            Outputs (n, b, ...), and the buffers after the pass (new running statistics, in training mode).
        """
        self._module.train(training)
        state = dict(buffers)
        if key is not None:
            state |= {f"{name}.key".lstrip("."): draws.fold(key, i) for i, name in enumerate(self._keys)}
        outputs = self._run(self._module, "", self.named(params), state, x)
        return outputs, {name: state[name] for name in buffers}

    def _columns(self, name: str) -> slice:
        position = list(self.shapes).index(name)
        start = sum(self._sizes[:position])
        return slice(start, start + self._sizes[position])


def _check(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError("the network has no parameters, so there is nothing to train")
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"parameters {', '.join(frozen)} are frozen; register what isn't trained as a buffer")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and not isinstance(part, nn.Dropout):
            raise ValueError(f"{name} is a {type(part).__name__}, which draws from a global generator; use nn.Dropout")


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `named_children`, which leaves out a module that stands in several places after the first."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _shares_tensors(module: nn.Module) -> bool:
    tensors: list[Tensor] = [t for _, t in module.named_parameters(remove_duplicate=False)]
    tensors += [t for _, t in module.named_buffers(remove_duplicate=False)]
    return len(set(map(id, tensors))) < len(tensors)


def _replace_dropout(module: nn.Module) -> None:
    for name, child in _children(module):
        if isinstance(child, nn.Dropout):
            setattr(module, name, Dropout(child.p))
        else:
            _replace_dropout(child)


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
        return _vmapped(layer, prefix, parameters, state, x)
    n = x.shape[0]
    weight = parameters[f"{prefix}weight"].flatten(0, 1)
    bias = None if layer.bias is None else parameters[f"{prefix}bias"].flatten()
    padding: Any = layer.padding
    out = F.conv2d(_fold(x), weight, bias, layer.stride, padding, layer.dilation, n * layer.groups)
    return _unfold(out, n)


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


def _vmapped(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
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


def _forward(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Runs `module`, whose tensors carry `prefix` in their names; writes new running statistics to `state`."""
    # Exact types: a subclass may compute something else.
    return RULES.get(type(module), _vmapped)(module, prefix, parameters, state, x)


def _sequential(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    for name, child in _children(module):
        x = _forward(child, f"{prefix}{name}.", parameters, state, x)
    return x


def _residual(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    shortcut, branch = (
        _forward(getattr(module, path), f"{prefix}{path}.", parameters, state, x) for path in ("shortcut", "branch")
    )
    return shortcut + branch


def _flatten(module: nn.Flatten, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    if (module.start_dim, module.end_dim) != (1, -1):
        return _vmapped(module, prefix, parameters, state, x)
    return x.flatten(2)


def _pool(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    pooled: Tensor = module(_fold(x))
    return _unfold(pooled, x.shape[0])


def _elementwise(module: nn.Module, prefix: str, parameters: Tensors, state: Tensors, x: Tensor) -> Tensor:
    out: Tensor = module(x)
    return out


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Sequential: _sequential,
    Residual: _residual,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: _flatten,
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pool),
    **dict.fromkeys(
        (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity), _elementwise
    ),
}
"""Module type -> its batched form (module, prefix of its names, parameters, state, x) -> output."""
