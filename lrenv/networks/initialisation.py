"""Initial weights of many copies of a module, each as if its constructor had run with a seed of its own.

A constructor spends most of its time on building Python objects. So its random draws are recorded once and then
repeated, seed by seed, in the rows of one tensor. Whether this gives the constructor's numbers is tested on the seeds
`TRIALS`; if it doesn't, the constructor runs for every copy.

Constructors draw from torch's global generator, which belongs to the program and to its other threads. While one runs
here, its draws come from a generator of lrenv's own instead (`Drawing`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from lrenv.lookup import what_is
from lrenv.networks.copies import Tensors
from lrenv.randomness import mersenne

TRIALS = (1, 2)
"""Seeds on which a recording is compared with the constructor."""
RANDOM = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)
"""The random operations that can be repeated."""
CONSTANT = (torch.ops.aten.zero_.default, torch.ops.aten.fill_.Scalar)
"""The constant fills that are recorded as well, since a constructor may draw a bias and then set it to zero."""
UNIFORM = RANDOM[0]
MANY = 256
"""The number of copies from which on they are drawn on a CUDA device, where time hardly depends on their number."""
CPU = torch.device("cpu")
Scaled = Callable[[Tensor, np.float32, np.float32], Tensor]
"""A function (numbers in [0, 1), low, high) -> numbers in [low, high)."""
SCALED: tuple[Scaled, ...] = (
    lambda x, low, high: torch.add(torch.full_like(x, float(low)), x, alpha=float(high - low)),
    lambda x, low, high: x * float(high - low) + float(low),
)
"""The same scaling with one rounding and with two, in which the kernels of devices differ."""


class Draw(NamedTuple):
    """One operation that fills a parameter, `fill(row[start:end], *arguments)`."""

    start: int
    end: int
    fill: Callable[..., Any]
    arguments: tuple[Any, ...]


class Initialiser:
    """A function (seeds, device) -> initial parameters and buffers of copies of a module.

    Args:
        make: builds a freshly initialised module, drawing from torch's global generator as modules do.

    Attributes:
        module: one of those that `make` built.

    Raises:
        TypeError: `make` returns something else than a module.
        ValueError: the module can't be trained as it is, `make` returns the same one each time, or weights depend on
            something else than the seed.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        with _Recorder(0) as recorder:
            self.module = make()
        _check(self.module)
        self._template = _flat(self.module)
        self._buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self._draws = recorder.draws(self.module)
        self._arithmetic: dict[torch.device, Scaled | None] = {}
        if self._draws is not None and not all(self._replays(seed) for seed in TRIALS):
            self._draws = None
        if self._draws is None and not _same(self.another(0), self.another(0)):
            raise ValueError(
                "the network has other weights each time it is built with the same torch.manual_seed; draw them with "
                "torch, not with numpy or random"
            )

    def __call__(self, seeds: Sequence[int], device: torch.device = CPU) -> tuple[Tensor, Tensors]:
        """Draws parameters (n, P) and buffers name -> (n, *shape), one copy per seed.

        The copy with seed s has the weights that the module's constructor draws on a CPU after `torch.manual_seed(s)`,
        whatever the other seeds are; the global generator is neither read nor changed.

        Args:
            seeds: one per copy.
            device: where `MANY` copies or more with uniform weights are drawn, if the numbers are those of the CPU;
                others are drawn, and returned, on the CPU.
        """
        scaled = self._scaled(device) if device.type == "cuda" and len(seeds) >= MANY else None
        if scaled is not None:
            rows = self._drawn_on(torch.tensor(seeds).to(device), scaled)
            return rows, {name: b.repeat(len(seeds), *(1,) * b.ndim) for name, b in self._buffers.items()}
        if self._draws is not None:
            rows = self._template.repeat(len(seeds), 1)
            for row, seed in zip(rows, seeds, strict=True):
                self._fill(row, seed)
            return rows, {name: b.repeat(len(seeds), *(1,) * b.ndim) for name, b in self._buffers.items()}
        modules = [self.another(seed) for seed in seeds]
        held = [dict(module.named_buffers()) for module in modules]
        buffers = {name: torch.stack([each[name] for each in held]) for name in self._buffers}
        return torch.stack([_flat(module) for module in modules]), buffers

    def _scaled(self, device: torch.device) -> Scaled | None:
        """Returns the scaling by which a device's numbers are those of the CPU; None if there is none."""
        if device not in self._arithmetic:
            self._arithmetic[device] = self._tried(device)
        return self._arithmetic[device]

    def _tried(self, device: torch.device) -> Scaled | None:
        if self._draws is None or self._template.dtype != torch.float32:
            return None
        if any(draw.fill in RANDOM and draw.fill != UNIFORM for draw in self._draws):
            return None
        expected = self._template.repeat(len(TRIALS), 1)
        for row, seed in zip(expected, TRIALS, strict=True):
            self._fill(row, seed)
        for scaled in SCALED:
            if torch.equal(self._drawn_on(torch.tensor(TRIALS).to(device), scaled).cpu(), expected):
                return scaled
        return None

    def _drawn_on(self, seeds: Tensor, scaled: Scaled) -> Tensor:
        """Does what `_fill` does for each of the seeds (n,), on their device; returns the rows (n, P)."""
        assert self._draws is not None
        number = sum(draw.end - draw.start for draw in self._draws if draw.fill == UNIFORM)
        numbers = mersenne.uniform(seeds, number)
        rows, taken = self._template.to(seeds.device).repeat(len(seeds), 1), 0
        for draw in self._draws:
            piece = rows[:, draw.start : draw.end]
            if draw.fill == UNIFORM:
                own = numbers[:, taken : taken + draw.end - draw.start]
                taken += draw.end - draw.start
                piece.copy_(scaled(own, *(np.float32(x) for x in draw.arguments or (0.0, 1.0))))
            else:
                draw.fill(piece, *draw.arguments)
        return rows

    def another(self, seed: int) -> nn.Module:
        """Builds the module with the weights of a seed.

        Raises:
            ValueError: `make` returned a module with the same parameters as before.
        """
        module = build(self._make, seed)
        if set(map(id, module.parameters())) & set(map(id, self.module.parameters())):
            raise ValueError(
                "the network function gives the same parameters each time it is called, but every trainee needs its "
                "own: build a new module in each call"
            )
        return module

    def _fill(self, row: Tensor, seed: int) -> None:
        assert self._draws is not None
        generator = torch.Generator().manual_seed(seed)
        for draw in self._draws:
            source = {"generator": generator} if draw.fill in RANDOM else {}
            draw.fill(row[draw.start : draw.end], *draw.arguments, **source)

    def _replays(self, seed: int) -> bool:
        module = self.another(seed)
        row = self._template.clone()
        self._fill(row, seed)
        same = (torch.equal(buffer, self._buffers[name]) for name, buffer in module.named_buffers())
        return torch.equal(row, _flat(module)) and all(same)


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Returns the module that `make()` builds after `torch.manual_seed(seed)`; the global generator is not changed."""
    with Drawing(seed):
        return make()


class Drawing(TorchDispatchMode):
    """A context in which draws come from a generator of its own instead of torch's global one.

    It holds for the thread that enters it. The numbers are those that follow `torch.manual_seed(seed)`. Draws with a
    generator of their own are not affected.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs | {"generator": self._generator})
        name = "generator" if func._overloadname == "default" else f"{func._overloadname}_generator"
        if name in func.overloadpacket.overloads():
            return getattr(func.overloadpacket, name)(*args, **kwargs, generator=self._generator)
        with _GLOBAL:  # the few that take no generator, such as dropout's own kernel
            held = torch.default_generator.get_state()
            torch.default_generator.set_state(self._generator.get_state())
            try:
                return func(*args, **kwargs)
            finally:
                self._generator.set_state(torch.default_generator.get_state())
                torch.default_generator.set_state(held)


_GLOBAL = threading.Lock()
"""The lock under which the global generator's state is exchanged."""


class _Recorder(Drawing):
    """A `Drawing` that records how tensors are filled, in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seen: list[tuple[Tensor, Callable[..., Any], tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in RANDOM or func in CONSTANT:
            self._seen.append((args[0], func, args[1:]))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def draws(self, module: nn.Module) -> list[Draw] | None:
        """Returns the fills by their places in the row of all parameters; None if something else was drawn."""
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


def _check(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"the network function must give a torch.nn.Module, not {what_is(module)}")
    named = dict(module.named_parameters())
    lazy = [name for name, tensor in (*named.items(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} get their shapes in a first forward pass only; replace lazy layers by those that name "
            "their sizes, such as nn.Linear(inputs, outputs)"
        )
    if not named:
        raise ValueError("the network has no parameters, so there is nothing to train")
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"parameters {', '.join(frozen)} are frozen; register what isn't trained as a buffer")
    hooked = [name for name, parameter in named.items() if getattr(parameter, "_post_accumulate_grad_hooks", None)]
    if hooked:
        raise ValueError(
            f"parameters {', '.join(hooked)} have hooks for after their gradients are accumulated, which nothing does "
            "here: give the factor or the change of a gradient by Tensor.register_hook"
        )
    elsewhere = [name for name, parameter in named.items() if parameter.device.type != "cpu"]
    if elsewhere:
        raise ValueError(
            f"parameters {', '.join(elsewhere)} are on {named[elsewhere[0]].device}; build the network on the CPU: its "
            "copies are moved to their device from there"
        )


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip((*one.parameters(), *one.buffers()), (*other.parameters(), *other.buffers()), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
