"""Initial weights of many copies of a module, each as if its constructor had run with a seed of its own.

A constructor spends most of its time on building Python objects. So its random draws are recorded once and then
replayed, seed by seed, straight into the rows of one tensor. Whether replaying gives the constructor's numbers is tried
on other seeds; where it doesn't, the constructor runs for every copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrenv.layers import Tensors

TRIALS = (1, 2)
"""Seeds on which a recording is compared with the constructor."""
RANDOM = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)
CONSTANT = (torch.ops.aten.zero_.default, torch.ops.aten.fill_.Scalar)
"""They count, too: a constructor may draw a bias and then set it to zero."""


class Draw(NamedTuple):
    """One fill of a parameter: `fill(row[start:end], *arguments)`."""

    start: int
    end: int
    fill: Callable[..., Any]
    arguments: tuple[Any, ...]


class Initialiser:
    """Draws the initial parameters and buffers of a module's copies.

    Args:
        make: builds a freshly initialised module, drawing from torch's global generator as modules do.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        with _Recorder() as recorder:
            module = build(make, 0)
        self._template = _flat(module)
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._draws = recorder.draws(module)
        if self._draws is not None and not all(self._replays(seed) for seed in TRIALS):
            self._draws = None

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensors]:
        """Parameters (n, P) and buffers name -> (n, *shape), one copy a seed.

        The copy with seed s is what `torch.manual_seed(s)` followed by the module's constructor gives, whatever the
        other seeds are; the global generator is left as it was.
        """
        if self._draws is not None:
            rows = self._template.repeat(len(seeds), 1)
            with torch.random.fork_rng(devices=[]):
                for row, seed in zip(rows, seeds, strict=True):
                    self._fill(row, seed)
            return rows, {name: b.repeat(len(seeds), *(1,) * b.ndim) for name, b in self._buffers.items()}
        modules = [build(self._make, seed) for seed in seeds]
        held = [dict(module.named_buffers()) for module in modules]
        buffers = {name: torch.stack([each[name] for each in held]) for name in self._buffers}
        return torch.stack([_flat(module) for module in modules]), buffers

    def _fill(self, row: Tensor, seed: int) -> None:
        assert self._draws is not None
        torch.default_generator.manual_seed(seed)
        for draw in self._draws:
            draw.fill(row[draw.start : draw.end], *draw.arguments)

    def _replays(self, seed: int) -> bool:
        module = build(self._make, seed)
        row = self._template.clone()
        with torch.random.fork_rng(devices=[]):
            self._fill(row, seed)
        same = (torch.equal(buffer, self._buffers[name]) for name, buffer in module.named_buffers())
        return torch.equal(row, _flat(module)) and all(same)


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `torch.manual_seed(seed)` and `make()` give; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class _Recorder(TorchDispatchMode):
    """Notes how tensors are filled, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: list[tuple[Tensor, Callable[..., Any], tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in RANDOM or func in CONSTANT:
            self._seen.append((args[0], func, args[1:]))
        return func(*args, **(kwargs or {}))

    def draws(self, module: nn.Module) -> list[Draw] | None:
        """The fills as places in the row of all parameters; None if something else was drawn."""
        places, start = {}, 0
        for parameter in module.parameters():
            places[parameter.data_ptr()] = (parameter.shape, start, start + parameter.numel())
            start += parameter.numel()
        found = []
        for tensor, fill, arguments in self._seen:
            place = places.get(tensor.data_ptr())
            if place is not None and tensor.shape == place[0] and tensor.is_contiguous():
                found.append(Draw(*place[1:], fill, arguments))
            elif fill in RANDOM:
                return None
        return found
