"""n copies of one network as stacked tensors: any `torch.nn.Module` becomes a batch of independent trainees.

The parameters of n copies are one tensor (n, P), whose columns are those of `torch.nn.utils.parameters_to_vector`;
`lrenv.networks.layers` runs each layer for all copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_leaves

from lrenv.lookup import what_is
from lrenv.networks.copies import Dropout, Tensors, reset_calls, run_copy, run_sequentially, run_vmapped
from lrenv.networks.initialisation import Drawing, Initialiser
from lrenv.networks.layers import HOOKS, FirstOrder, Pass, batched_pass, children, is_all_plain
from lrenv.networks.pieces import Pieces, outer_weights
from lrenv.randomness import draws
from lrenv.runtime.ambient import with_own_settings, without_gradients

T = TypeVar("T")


class Network:
    """n stacked copies of the module that `make` builds, their parameters one tensor (n, P).

    Every parameter has a gradient in every step. If a step does not use a parameter, its gradient is 0, and moments and
    weight decay of the optimizer still change it, where `torch.optim` would not.

    Args:
        make: builds a freshly initialised module, drawing from torch's global generator as modules do.

    Attributes:
        shapes: parameter name -> shape of one copy, in the module's own order, which is that of the P columns.
        size: P, the number of parameters of one copy.
        layers: the names of the modules that hold parameters, in order.
        pieces: granularity -> how many consecutive columns each piece has (`lrenv.networks.pieces.Pieces`).
        stochastic: whether the module draws random numbers in training (dropout).
        first, last: the columns of the first and the last weight, the tensors with two or more axes; if there are none,
            of the first and the last parameter.
        why_sequential: why the copies run one after another; empty where they run side by side, which is faster.

    Raises:
        TypeError: `make` returns something else than a module.
        ValueError: the module has no parameters, frozen ones, or a kind of dropout that can't be drawn statelessly, or
            can't be trained for another reason (`lrenv.networks.initialisation.Initialiser`); the message says what to
            do.
    """

    @without_gradients
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._initial = Initialiser(make)
        self._module = self._initial.module
        _check_dropout(self._module)
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self._pieces = Pieces(self.shapes)
        self.layers, self.pieces = self._pieces.layers, self._pieces.sizes
        self._sizes = self.pieces["tensor"]
        self.size = sum(self._sizes)
        self.first, self.last = (self._columns(name) for name in outer_weights(self.shapes))
        _replace_dropout(self._module)
        named = self._module.named_modules(remove_duplicate=False)
        self._dropout = {name: part for name, part in named if isinstance(part, Dropout)}
        self.stochastic = bool(self._dropout)
        self._module.train()
        self._lock = threading.RLock()
        # A tensor that two modules share has one name: only `functional_call` finds it from both.
        shared = _shares_tensors(self._module)
        self._all_plain = is_all_plain(self._module) and not shared
        self._run = partial(run_vmapped, self._module, "") if shared else batched_pass(self._module)
        self.why_sequential = ""
        if any(parameter._backward_hooks for parameter in self._module.parameters()):
            self._run_sequentially("parameters have hooks on their gradients")

    @with_own_settings
    def init(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensors]:
        """Draws initial parameters (n, P) and buffers, one copy per seed.

        The copy with seed s has the weights that the module's constructor draws after `torch.manual_seed(s)`, whatever
        the other seeds are; the global generator is neither read nor changed.
        """
        params, buffers = self._initial(seeds, device)
        return params.to(device, dtype), {
            name: b.to(device, dtype if b.is_floating_point() else b.dtype) for name, b in buffers.items()
        }

    @property
    def has_convolutions(self) -> bool:
        """Whether a convolution is among the layers."""
        return any(isinstance(part, nn.modules.conv._ConvNd) for part in self._module.modules())

    @without_gradients
    def dry_run(self, x: Tensor, dtype: torch.dtype) -> torch.Size:
        """Runs the network on a few examples before anything is trained, to see whether it can be trained, and how.

        Unless rules run the whole of it, outputs and gradients of n copies side by side are compared with those of each
        copy by itself, in training and in evaluation mode. Where they differ, or `vmap` can't run the network, its
        copies run one after another from then on (`why_sequential`).

        Args:
            x: (b, ...), of the training split, as trainees see them.
            dtype: of the weights.

        Returns:
            The shape (b, ...) of the outputs.

        Raises:
            ValueError: the network can't take such examples, returns something else than one tensor (b, ...), changes
                its own weights, or returns other outputs when it runs again; the message says what to do.
        """
        x = x.cpu()
        params, buffers = self.init([0, 1], x.device, dtype)
        with self._lock, Drawing(0):  # what it draws must not come from the global generator, even if it is refused
            shape = self._check_copy(params, buffers, x, True)
            self._check_copy(params, buffers, x, False)
            if self._all_plain or self.why_sequential:
                return shape
            each = self._results(partial(run_sequentially, self._module, ""), params, buffers, x)
            try:
                together = self._results(self._run, params, buffers, x)
            except Exception as error:
                self._run_sequentially(str(error).strip().split("\n")[0])
                return shape
            if not all(_near(a, b) for a, b in zip(together, each, strict=True)):
                self._run_sequentially("side by side their numbers differ from those of the module alone")
        return shape

    def _run_sequentially(self, reason: str) -> None:
        self._run, self.why_sequential, self._all_plain = partial(run_sequentially, self._module, ""), reason, False

    def _check_copy(self, params: Tensor, buffers: Tensors, x: Tensor, training: bool) -> torch.Size:
        """Runs one copy twice as plain PyTorch does and checks what it does; returns the shape of its outputs."""
        self._module.train(training)
        # The module itself holds the weights of another copy, so that outputs computed from those are noticed.
        weights = {name: w[1].clone().requires_grad_() for name, w in self.named(params).items()}
        mode = "training" if training else "evaluation"

        def attempt(function: Callable[[], T]) -> T:
            try:
                with torch.set_grad_enabled(training):
                    return function()
            except Exception as error:
                raise ValueError(
                    f"the network can't take {len(x)} examples of shape {tuple(x.shape[1:])} and type {x.dtype} in "
                    f"{mode} mode ({type(error).__name__}: {error})"
                ) from error

        def run() -> Any:
            reset_calls(self._dropout.values())
            return run_copy(self._module, weights, {name: b[1] for name, b in buffers.items()}, x.clone())[0]

        outputs = attempt(run)
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the network gives {what_is(outputs)}, but it must give one tensor whose first axis is that "
                "of the examples: wrap it in a module whose forward picks that out, such as the last output of nn.GRU"
            )
        if outputs.ndim == 0 or len(outputs) != len(x):
            raise ValueError(
                f"the network gives a tensor of shape {tuple(outputs.shape)} for {len(x)} examples, but its first axis "
                "must be that of the examples"
            )
        if training and not outputs.requires_grad:
            raise ValueError("the network's outputs don't depend on its parameters in a way that has a gradient")
        if self._all_plain:
            return outputs.shape
        found = attempt(lambda: _gradients(outputs, list(weights.values()))) if training else []
        changed = [name for name, w in weights.items() if not torch.equal(w, self.named(params)[name][1])]
        if changed:
            raise ValueError(
                f"the network changes its parameters {', '.join(changed)} in its forward pass, which only an optimizer "
                "may: compute what is used from them, or register what changes as a buffer"
            )
        if not torch.equal(outputs.nan_to_num(), attempt(run).nan_to_num()):
            raise ValueError(
                f"the network gives other outputs when it runs again on the same examples in {mode} mode: it draws "
                "random numbers, of which only those of nn.Dropout can be drawn here (set the dropout arguments of "
                "attention and recurrent layers to 0), or keeps something from one pass to the next, which must be a "
                "buffer"
            )
        if training and not self.why_sequential:  # hooks on gradients, for which copies run apart, are not called here
            self._check_gradients(found, list(weights), x)
        return outputs.shape

    def _check_gradients(self, found: list[Tensor], names: list[str], x: Tensor) -> None:
        """Raises a ValueError if a module that holds the same weights has other gradients than the copy tried."""
        module = self._initial.another(1).to(found[0].dtype)
        _replace_dropout(module)
        own = dict(module.named_parameters())
        with torch.enable_grad():
            expected = _gradients(module(x.clone()), [own[name] for name in names])
        if not all(_near(a, b) for a, b in zip(found, expected, strict=True)):
            raise ValueError(
                "the network's gradients are not those that it has with its own weights: it runs parts again on the "
                "way back, when other weights are in place, as torch.utils.checkpoint does; leave that out"
            )

    def _results(self, run: Pass, params: Tensor, buffers: Tensors, x: Tensor) -> list[Tensor]:
        """Returns outputs and buffers in both modes, and gradients, of copies that all see the examples x (b, ...)."""
        x = x.expand(len(params), *x.shape)
        found: list[Tensor] = []
        for training in (True, False):
            key = torch.arange(len(params)) if training and self.stochastic else None
            leaf = params.clone().requires_grad_()
            with torch.set_grad_enabled(training):
                outputs, after = self._pass(run, self.named(leaf), buffers, x, training, key)
                found += [outputs.detach(), *after.values()]
                if training:
                    weights = torch.linspace(-1, 1, outputs[0].numel()).cos().to(outputs.dtype)
                    found += torch.autograd.grad((outputs.flatten(1) * weights).sum(), leaf)
        return found

    @without_gradients
    def activations(self, x: Tensor, dtype: torch.dtype) -> list[int]:
        """Counts the outputs of each layer for one of the examples x (b, ...); layers that return views don't count."""
        counts: list[int] = []

        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            counts.append(sum(part.numel() for part in tree_leaves(output) if isinstance(part, Tensor)) // len(x))

        hooks = [
            part.register_forward_hook(note)
            for part in self._module.modules()
            if not children(part) and not isinstance(part, nn.Flatten | nn.Identity)
        ]
        params, buffers = self.init([0], torch.device("cpu"), dtype)
        tensors = {name: w[0] for name, w in (self.named(params) | buffers).items()}
        with self._lock:
            self._module.train(False)
            functional_call(self._module, {name: w.clone() for name, w in tensors.items()}, (x.cpu().clone(),))
        for hook in hooks:
            hook.remove()
        return counts

    def named(self, params: Tensor) -> Tensors:
        """Returns views of (n, P) parameters, or gradients, by parameter name: name -> (n, *shape)."""
        named = zip(self.shapes.items(), params.split(self._sizes, dim=1), strict=True)
        return {name: x.unflatten(1, shape) if shape else x.squeeze(1) for (name, shape), x in named}

    def summed(self, x: Tensor, granularity: str) -> Tensor:
        """Returns the sums (n, K) over the K pieces of a tensor (n, P); at "parameter" the tensor itself."""
        return self._pieces.summed(x, granularity)

    def fan_in(self, granularity: str) -> Tensor:
        """Returns how many terms each output of a piece sums up: (K,) for the K pieces, float64."""
        return self._pieces.fan_in(granularity)

    @with_own_settings
    def __call__(
        self,
        params: Tensor,
        buffers: Tensors,
        x: Tensor,
        training: bool,
        key: Tensor | None = None,
        first_order: bool = False,
    ) -> tuple[Tensor, Tensors]:
        """Computes the outputs of all copies.

        Args:
            params: (n, P).
            buffers: name -> (n, *shape).
            x: (n, b, *example); never written to.
            training: whether dropout and batch statistics are in force, as in `torch.nn.Module.train`.
            key: (n,) int64, from which dropout masks are drawn; needed in training if `stochastic`.
            first_order: whether first derivatives in reverse mode are the only ones that will be taken.

        Returns:
            Outputs (n, b, ...), and the buffers after the pass (new running statistics, in training mode).
        """
        named = FirstOrder(self.named(params)) if first_order else self.named(params)
        if torch.compiler.is_compiling():
            return self._pass(self._run, named, buffers, x, training, key)
        with self._lock:  # a pass changes the module, if only until it ends
            run = partial(run_sequentially, self._module, "") if _has_any_global_hook() else self._run
            return self._pass(run, named, buffers, x, training, key)

    def _pass(
        self, run: Pass, parameters: Tensors, buffers: Tensors, x: Tensor, training: bool, key: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        if self._module.training is not training:
            self._module.train(training)
        state = dict(buffers)
        if key is not None:
            state |= {f"{name}.key".lstrip("."): draws.fold(key, i) for i, name in enumerate(self._dropout)}
            reset_calls(self._dropout.values())
        outputs = run(parameters, state, x)
        return outputs, {name: state[name] for name in buffers}

    def _columns(self, name: str) -> slice:
        position = list(self.shapes).index(name)
        start = sum(self._sizes[:position])
        return slice(start, start + self._sizes[position])


def _gradients(outputs: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Returns the gradients of the outputs' sum, 0 for weights on which it does not depend."""
    found = torch.autograd.grad(outputs.sum(), weights, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]


def _check_dropout(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and type(part) is not nn.Dropout:
            raise ValueError(f"{name} is a {type(part).__name__}, which draws from a global generator; use nn.Dropout")


def _shares_tensors(module: nn.Module) -> bool:
    tensors: list[Tensor] = [t for _, t in module.named_parameters(remove_duplicate=False)]
    tensors += [t for _, t in module.named_buffers(remove_duplicate=False)]
    return len(set(map(id, tensors))) < len(tensors)


def _replace_dropout(module: nn.Module) -> None:
    for place, child in children(module):
        if isinstance(child, nn.Dropout) and "forward" not in vars(child):
            own = Dropout(child.p, child.inplace)
            hooks = (*HOOKS, "_is_full_backward_hook")
            own.__dict__ |= {
                attribute: value for attribute, value in vars(child).items() if attribute.startswith(hooks)
            }
            setattr(module, place, own)
        else:
            _replace_dropout(child)


def _near(a: Tensor, b: Tensor) -> bool:
    """Returns whether numbers differ by rounding alone."""
    if not b.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.abs().amax()) if b.numel() else 0.0
    close = 1e-3 if b.dtype != torch.float64 else 1e-9
    return a.shape == b.shape and torch.allclose(a, b, rtol=close, atol=close * scale, equal_nan=True)
