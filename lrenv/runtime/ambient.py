"""Isolation from torch's settings: inside lrenv its own hold, so that those of the program around it change no number.

Functions are decorated: `with_own_settings` where they may be differentiated, `without_gradients` where not.

Settings of the thread are switched off for the call: a default device and any other `TorchFunctionMode`, autocast, and
inference mode (which counts as `torch.no_grad()`, so results are detached). Settings of the process are changed while
any thread is inside, and restored by the last one that leaves: the default dtype, reduced precision of float32 products
(`torch.set_float32_matmul_precision`) and of cuDNN's convolutions, the choice of cuDNN's kernels, anomaly detection,
and cached parametrisations.

Of cuDNN, only kernels that give the same bits each time are used, chosen by shapes and not by timing. Other operations
on CUDA that add in varying order are not replaced: the backward passes of overlapping or uneven pools (`max_pool2d`
with a stride below its kernel, adaptive pools), of gathers that compiled code (`compile=True`) adds up by atomics, of
recurrent layers and interpolation. So stacked perceptrons repeat to the last bit there, and so do stacked convolutions
on the kernels of `lrenv.networks.convolutions`; other networks repeat up to rounding, and to the last bit only where
PyTorch's operations do.

A program that changes a setting of the process in one thread while another is inside changes it there, too. That is so
for the one setting that lrenv's objects choose: where the first argument of a decorated function has `rounds_products`
set, as trainees with `precision="tf32"` have, products of float32 matrices and convolutions on CUDA round their inputs
to TF32 inside. Threads that train in several precisions at a time must be processes.

Not changed, on purpose:

- grad mode, which is how the functional core is asked for derivatives;
- the number of threads, and the choice of kernels but for cuDNN's (`torch.use_deterministic_algorithms`, which would
  refuse some networks, and the rest of `torch.backends`), which change numbers by rounding at most;
- the precision of products where a program has set it backend by backend (`torch.backends.cuda.matmul.fp32_precision`)
  in a way that torch can't give a single name;
- a `TorchDispatchMode`, which must see every operation, as for fake tensors;
- torch's generators, from which nothing here draws (`lrenv.randomness.draws`, `lrenv.networks.initialisation`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.utils import parametrize

P = ParamSpec("P")
R = TypeVar("R")


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set backend by backend
        return "highest"


def _convolutions_rounded() -> bool:
    return torch.backends.cudnn.allow_tf32  # on by default


def _round_convolutions(rounded: bool) -> None:
    torch.backends.cudnn.allow_tf32 = rounded


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def _set_cudnn(kernels: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = kernels


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly(state: tuple[bool, bool]) -> None:
    torch.set_anomaly_enabled(*state)


def _cached() -> int:
    return parametrize._cache_enabled  # how many `parametrize.cached()` are open


def _set_cached(number: int) -> None:
    parametrize._cache_enabled = number


PROCESS_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (_convolutions_rounded, _round_convolutions, False),
    # The same kernels each time, and none whose order of additions depends on threads.
    (_cudnn, _set_cudnn, (True, False)),
    # A diverging trainee is no error.
    (_anomaly, _set_anomaly, (False, True)),
    (_cached, _set_cached, 0),
)
"""The settings of the whole process: functions that read and set each of them, and lrenv's own value."""


class _Process:
    """A context that keeps lrenv's own settings of the process while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            for i, (read, make, own) in enumerate(PROCESS_SETTINGS):
                found = read()
                if found != own:
                    self._before[i] = found
                    make(own)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for i, found in self._before.items():
                    PROCESS_SETTINGS[i][1](found)
                self._before = {}


class _Thread(threading.local):
    inside = False
    rounded = False


_PROCESS, _THREAD = _Process(), _Thread()


@contextmanager
def own_settings() -> Iterator[None]:
    """Makes lrenv's own settings hold within the block, except grad mode, which is the caller's; may be nested."""
    if _THREAD.inside:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_PROCESS)
        for context in _without_thread_settings():
            stack.enter_context(context)
        _THREAD.inside = True
        try:
            yield
        finally:
            _THREAD.inside = False


def _without_thread_settings() -> Iterator[AbstractContextManager[Any]]:
    if torch._C._len_torch_function_stack():
        yield torch._C.DisableTorchFunction()
    if torch._C._is_any_autocast_enabled():
        yield torch._C._DisableAutocast()
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
        yield torch.no_grad()


def products_rounded() -> bool:
    """Returns whether products of float32 matrices on CUDA round their inputs to TF32."""
    return _matmul_precision() != "highest"


@contextmanager
def _products(owner: tuple[Any, ...]) -> Iterator[None]:
    """Makes products round their inputs within the block, if the first of these arguments asks for that."""
    if _THREAD.rounded or not _asks_for_rounding(owner):
        yield
        return
    before = _matmul_precision(), _convolutions_rounded()
    torch.set_float32_matmul_precision("high")
    _round_convolutions(True)
    _THREAD.rounded = True
    try:
        yield
    finally:
        _THREAD.rounded = False
        torch.set_float32_matmul_precision(before[0])
        _round_convolutions(before[1])


def _asks_for_rounding(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments) and getattr(arguments[0], "rounds_products", False) is True


def with_own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that may be differentiated: inside, lrenv's own settings and the caller's grad mode hold."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or (_THREAD.inside and not _asks_for_rounding(args)):
            return function(*args, **kwargs)
        with own_settings(), _products(args):
            return function(*args, **kwargs)

    return inside


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that has no derivatives, such as a constructor or an adapter's method.

    Inside, lrenv's own settings hold, gradients are off, and transforms of `torch.func` and hooks on saved tensors have
    no effect.
    """

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            if torch._C._functorch.peek_interpreter_stack() is not None:
                stack.enter_context(temporarily_clear_interpreter_stack())
            if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
            stack.enter_context(own_settings())
            stack.enter_context(_products(args))
            stack.enter_context(torch.no_grad())
            return function(*args, **kwargs)

    return inside


def _same(x: Any) -> Any:
    return x
