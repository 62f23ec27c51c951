"""torch's settings around a call: inside lrenv its own hold, so that none that a program has made changes a number.

What torch keeps for a thread is put aside for the call: a default device and any other `TorchFunctionMode`, autocast,
and inference mode (which counts as `torch.no_grad()`: what is computed is detached). What it keeps for the process is
changed while any thread is inside, and put back by the last one to leave: the default dtype, reduced precision of
float32 products (`torch.set_float32_matmul_precision`) and of cuDNN's convolutions, which of cuDNN's kernels may be
chosen, anomaly detection, cached parametrisations.

Of cuDNN, only kernels that give the same bits each time are used, chosen by shapes and not by trying which is fastest
now. What else on CUDA adds in an order of its own is left to it: the backward passes of overlapping or uneven pools
(`max_pool2d` with a stride below its kernel, adaptive pools), of gathers that compiled code (`compile=True`) adds up by
atomics, of recurrent layers and interpolation. So stacked perceptrons repeat to the last bit there, and so do stacked
convolutions on the kernels of `lrenv.networks.convolutions`; other networks repeat up to rounding, and to the last bit
only where PyTorch's operations do.

A program that changes a setting of the process in one thread while another is inside changes it there, too.

Left as they are, on purpose:

- grad mode, which is how the functional core is asked for derivatives;
- the number of threads, and the choice of kernels but for cuDNN's (`torch.use_deterministic_algorithms`, which would
  refuse some networks, and the rest of `torch.backends`), which change numbers by rounding at most;
- the precision of products where a program has set it backend by backend (`torch.backends.cuda.matmul.fp32_precision`)
  in a way that torch can't give a single name;
- a `TorchDispatchMode`, which sees every operation, as fake tensors need it to;
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


OF_THE_PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (_convolutions_rounded, _round_convolutions, False),
    # The same kernels each time, and none that adds in whatever order its threads come.
    (_cudnn, _set_cudnn, (True, False)),
    # A diverging trainee is no error.
    (_anomaly, _set_anomaly, (False, True)),
    (_cached, _set_cached, 0),
)
"""How to read a setting of the whole process, how to make it, and lrenv's own value."""


class _Process:
    """Holds lrenv's own settings of the process for as long as any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            for i, (read, make, own) in enumerate(OF_THE_PROCESS):
                found = read()
                if found != own:
                    self._before[i] = found
                    make(own)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for i, found in self._before.items():
                    OF_THE_PROCESS[i][1](found)
                self._before = {}


class _Thread(threading.local):
    inside = False


_PROCESS, _THREAD = _Process(), _Thread()


@contextmanager
def own_settings() -> Iterator[None]:
    """Inside, lrenv's own settings hold; grad mode stays the caller's. Entering twice costs nothing more."""
    if _THREAD.inside:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_PROCESS)
        for context in _put_aside():
            stack.enter_context(context)
        _THREAD.inside = True
        try:
            yield
        finally:
            _THREAD.inside = False


def _put_aside() -> Iterator[AbstractContextManager[Any]]:
    if torch._C._len_torch_function_stack():
        yield torch._C.DisableTorchFunction()
    if torch._C._is_any_autocast_enabled():
        yield torch._C._DisableAutocast()
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
        yield torch.no_grad()


def with_own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that may be differentiated through: inside, lrenv's own settings hold.

    Grad mode is the caller's.
    """

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or _THREAD.inside:
            return function(*args, **kwargs)
        with own_settings():
            return function(*args, **kwargs)

    return inside


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that gives no derivatives, such as a constructor or an adapter's method.

    Inside, lrenv's own settings hold, gradients are off, and neither transforms of `torch.func` nor hooks on saved
    tensors reach there.
    """

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            if torch._C._functorch.peek_interpreter_stack() is not None:
                stack.enter_context(temporarily_clear_interpreter_stack())
            if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
            stack.enter_context(own_settings())
            stack.enter_context(torch.no_grad())
            return function(*args, **kwargs)

    return inside


def _same(x: Any) -> Any:
    return x
