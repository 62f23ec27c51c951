"""n copies of one network as stacked tensors: any `torch.nn.Module` becomes a batch of independent trainees.

The parameters of n copies are one tensor (n, P); `lrenv.layers` says how each layer runs for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lrenv import draws
from lrenv.initialisation import Initialiser, build
from lrenv.layers import Dropout, FirstOrder, Tensors, children, forward, vmapped


class Network:
    """n stacked copies of the module that `make` builds, their parameters one tensor (n, P).

    Args:
        make: builds a freshly initialised module, drawing from torch's global generator as modules do.

    Attributes:
        shapes: parameter name -> shape of one copy, in the module's own order, which is that of the P columns.
        size: P, the parameters of one copy.
        layers: the modules that hold parameters, in order.
        pieces: granularity -> how many consecutive columns each piece has: all of them are one ("trainee"), or a piece
            is a layer, or a tensor.
        stochastic: whether the module draws random numbers in training (dropout).
        first, last: the columns of the first and the last weight (the tensors with two or more axes; else any).

    Raises:
        ValueError: the module has no parameters, frozen ones, or a kind of dropout that can't be drawn statelessly.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._module = build(make, 0)
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        _check(self._module)
        self._initial = Initialiser(make)
        self._sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self._sizes)
        owners = [name.rpartition(".")[0] for name in self.shapes]
        self.layers = list(dict.fromkeys(owners))
        sizes = dict.fromkeys(self.layers, 0)
        for owner, size in zip(owners, self._sizes, strict=True):
            sizes[owner] += size
        self.pieces = {"trainee": [self.size], "layer": list(sizes.values()), "tensor": self._sizes}
        matrices = [name for name, shape in self.shapes.items() if len(shape) > 1] or list(self.shapes)
        self.first, self.last = (self._columns(name) for name in (matrices[0], matrices[-1]))
        _replace_dropout(self._module)
        self._keys = [
            name for name, module in self._module.named_modules(remove_duplicate=False) if isinstance(module, Dropout)
        ]
        self.stochastic = bool(self._keys)
        # A tensor that two modules share has one name: only `functional_call` finds it from both.
        self._run = vmapped if _shares_tensors(self._module) else forward

    def init(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensors]:
        """Fresh parameters (n, P) and buffers, one copy a seed.

        The copy with seed s is what `torch.manual_seed(s)` followed by the module's constructor gives, whatever
        the other seeds are; the global generator is left as it was.
        """
        params, buffers = self._initial(seeds)
        return params.to(device, dtype), {
            name: b.to(device, dtype if b.is_floating_point() else b.dtype) for name, b in buffers.items()
        }

    @property
    def has_convolutions(self) -> bool:
        """Whether a convolution is among the layers."""
        return any(isinstance(part, nn.modules.conv._ConvNd) for part in self._module.modules())

    def activations(self, shape: Sequence[int]) -> list[int]:
        """How many numbers each layer puts out for one example of the given shape; views don't count."""
        counts: list[int] = []
        hooks = [
            part.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
            for part in self._module.modules()
            if not children(part) and not isinstance(part, nn.Flatten | nn.Identity)
        ]
        with torch.no_grad():
            self._module.train(False)(torch.zeros(1, *shape))
        for hook in hooks:
            hook.remove()
        return counts

    def named(self, params: Tensor) -> Tensors:
        """The columns of (n, P) parameters, or gradients, as views: name -> (n, *shape)."""
        pieces = params.split(self._sizes, dim=1)
        return {name: x.unflatten(1, shape) for (name, shape), x in zip(self.shapes.items(), pieces, strict=True)}

    def summed(self, x: Tensor, granularity: str) -> Tensor:
        """Sums (n, K) over the K pieces of a tensor (n, P); at granularity "parameter", the tensor itself."""
        if granularity == "parameter":
            return x
        return torch.stack([piece.sum(1) for piece in x.split(self.pieces[granularity], 1)], 1)

    def __call__(
        self,
        params: Tensor,
        buffers: Tensors,
        x: Tensor,
        training: bool,
        key: Tensor | None = None,
        first_order: bool = False,
    ) -> tuple[Tensor, Tensors]:
        """Runs the copies side by side.

        Args:
            params: (n, P).
            buffers: name -> (n, *shape).
            x: (n, b, *example).
            training: whether dropout and batch statistics are in force, as in `torch.nn.Module.train`.
            key: (n,) int64, where dropout masks come from; needed in training where `stochastic`.
            first_order: whether first derivatives in reverse mode are all that will be asked for.

        Returns:
            Outputs (n, b, ...), and the buffers after the pass (new running statistics, in training mode).
        """
        self._module.train(training)
        state = dict(buffers)
        if key is not None:
            state |= {f"{name}.key".lstrip("."): draws.fold(key, i) for i, name in enumerate(self._keys)}
        parameters = self.named(params)
        outputs = self._run(self._module, "", FirstOrder(parameters) if first_order else parameters, state, x)
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


def _shares_tensors(module: nn.Module) -> bool:
    tensors: list[Tensor] = [t for _, t in module.named_parameters(remove_duplicate=False)]
    tensors += [t for _, t in module.named_buffers(remove_duplicate=False)]
    return len(set(map(id, tensors))) < len(tensors)


def _replace_dropout(module: nn.Module) -> None:
    for name, child in children(module):
        if isinstance(child, nn.Dropout):
            setattr(module, name, Dropout(child.p))
        else:
            _replace_dropout(child)
