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

A program that changes a setting of the process in one thread while another is inside changes it there, too.

One setting is chosen by lrenv's objects: where the first argument of a decorated function has `rounds_products` set, as
trainees with `precision="tf32"` have, products of float32 matrices and convolutions on CUDA round their inputs to TF32
inside, and in what it calls. So do those of other threads that are inside meanwhile: trainings in several precisions at
a time must be processes. Derivatives that a caller takes outside are computed as the caller's settings say.

Not changed, on purpose:

- grad mode, which is how the functional core is asked for derivatives;
- the number of threads, and the choice of kernels but for cuDNN's (`torch.use_deterministic_algorithms`, which would
  refuse some networks, and the rest of `torch.backends`), which change numbers by rounding at most;
- the precision of products and convolutions where a program has set it backend by backend
  (`torch.backends.cuda.matmul.fp32_precision`) in a way that torch can't give a single name;
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


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set backend by backend
        return None


def _convolutions_rounded() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32  # on by default
    except RuntimeError:  # set backend by backend
        return None


def _round_convolutions(rounded: bool) -> None:
    torch.backends.cudnn.allow_tf32 = rounded


def _deterministic() -> bool:
    return torch.backends.cudnn.deterministic


def _set_deterministic(on: bool) -> None:
    torch.backends.cudnn.deterministic = on


def _by_timing() -> bool:
    return torch.backends.cudnn.benchmark


def _set_by_timing(on: bool) -> None:
    torch.backends.cudnn.benchmark = on


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly(state: tuple[bool, bool]) -> None:
    torch.set_anomaly_enabled(*state)


def _cached() -> int:
    return parametrize._cache_enabled  # how many `parametrize.cached()` are open


def _set_cached(number: int) -> None:
    parametrize._cache_enabled = number


PROCESS_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any, Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32, torch.float32),
    (_matmul_precision, torch.set_float32_matmul_precision, "highest", "high"),
    (_convolutions_rounded, _round_convolutions, False, True),
    # The same kernels each time, and none whose order of additions depends on threads.
    (_deterministic, _set_deterministic, True, True),
    (_by_timing, _set_by_timing, False, False),
    # A diverging trainee is no error.
    (_anomaly, _set_anomaly, (False, True), (False, True)),
    (_cached, _set_cached, 0, 0),
)
"""The settings of the whole process: functions that read and set each of them, lrenv's own value, and the one while
products are rounded. What reads as None the program has set in a way that can't be told in one value: it is left."""


class _Process:
    """Keeps lrenv's own settings of the process while any thread is inside, rounded ones while any thread rounds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._rounding = 0
        self._own: list[Any] = []
        self._programs: list[Any] = []

    @contextmanager
    def held(self, rounded: bool) -> Iterator[None]:
        """Counts a thread as inside."""
        with self._lock:
            self._note()
            self._inside += 1
            self._rounding += rounded
        try:
            with self._lock:
                self._set()
            yield
        finally:
            with self._lock:
                self._note()
                self._inside -= 1
                self._rounding -= rounded
                self._set()

    def _note(self) -> None:
        """Takes note of the program's settings: of all when no thread is inside, else of what was not set here."""
        found = [read() for read, *_ in PROCESS_SETTINGS]
        if self._inside:
            pairs = zip(found, self._own, self._programs, strict=True)
            found = [before if value is None or value == own else value for value, own, before in pairs]
        self._programs = found

    def _set(self) -> None:
        self._own = [coarse if self._rounding else fine for *_, fine, coarse in PROCESS_SETTINGS]
        wanted = self._own if self._inside else self._programs
        for (read, make, *_), value, program in zip(PROCESS_SETTINGS, wanted, self._programs, strict=True):
            if program is not None and read() != value:
                make(value)


class _Thread(threading.local):
    inside = False
    rounded = False


_PROCESS, _THREAD = _Process(), _Thread()


def _held(rounded: bool) -> bool:
    return _THREAD.inside and (_THREAD.rounded or not rounded)


@contextmanager
def own_settings(rounded: bool = False) -> Iterator[None]:
    """Makes lrenv's own settings hold within the block, except grad mode, which is the caller's; may be nested.

    Args:
        rounded: whether products on CUDA round their inputs to TF32; nested blocks do so, too.
    """
    if _held(rounded):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_PROCESS.held(rounded))
        for context in _without_thread_settings():
            stack.enter_context(context)
        before = _THREAD.inside, _THREAD.rounded
        _THREAD.inside, _THREAD.rounded = True, rounded
        try:
            yield
        finally:
            _THREAD.inside, _THREAD.rounded = before


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
    name = _matmul_precision()
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32") if name is None else name != "highest"


def _asks_for_rounding(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments) and getattr(arguments[0], "rounds_products", False) is True


def with_own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that may be differentiated: inside, lrenv's own settings and the caller's grad mode hold."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        rounded = _asks_for_rounding(args)
        if torch.compiler.is_compiling() or _held(rounded):
            return function(*args, **kwargs)
        with own_settings(rounded):
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
            stack.enter_context(own_settings(_asks_for_rounding(args)))
            stack.enter_context(torch.no_grad())
            return function(*args, **kwargs)

    return inside


def _same(x: Any) -> Any:
    return x
