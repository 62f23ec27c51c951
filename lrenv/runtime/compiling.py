"""Compiled and captured functions, which call decisions with little overhead.

`compiled` is `torch.compile` for functions that are called with the same shapes again and again. `Captured` records all
kernels of a decision as one CUDA graph and replays them, since launching a few thousand kernels one by one takes longer
than running them, for up to some thousand small networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")
O = TypeVar("O")  # noqa: E741 - output, as S is the state
Compile = bool | Literal["graph"]
"""The setting: False runs operations one by one; True compiles them, and on CUDA captures decisions as well; "graph"
captures decisions without compiling."""
Recording = Callable[[Callable[[], None]], Callable[[], object]]
"""A function that runs another a few times and returns one that runs it again on the same tensors."""
OPTIONS: dict[str, dict[str, Any]] = {"cuda": {"combo_kernels": True}}
"""Type of a device -> options of its compiler. On CUDA small kernels that don't depend on one another become one, since
a decision of few trainees takes as long as its kernels are many."""
WARM_UPS = 2
"""The number of runs before a capture, in which libraries create handles and choose kernels; captures must not."""


def checked(compile: Compile, device: torch.device) -> Compile:
    """Returns the setting, if it can work on this device.

    Raises:
        ValueError: it is none of the three, asks for CUDA graphs on another device, or for a compiler that is missing;
            the message says what to do.
    """
    if compile not in (True, False, "graph"):
        raise ValueError(f"compile={compile!r} must be True, False or 'graph'")
    if compile == "graph" and device.type != "cuda":
        raise ValueError(f"compile='graph' captures CUDA graphs, which {device} has not; use compile=True or False")
    if compile is True:
        missing = _missing_compiler(device)
        if missing:
            instead = "compile='graph' or False" if device.type == "cuda" else "compile=False"
            raise ValueError(f"compile=True needs {missing}; install it, or use {instead}")
    return compile


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton and a C compiler"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler such as g++"
    return None


def compiled(function: F, compile: Compile, device: torch.device, **options: Any) -> F:
    """Returns the function, compiled where that is asked for: the only place where eager or compiled is chosen.

    With `compile=True` calls run code from `torch.compile` while gradients are off, and the function itself while they
    are on, since compiled code gives no derivatives of derivatives. With False and "graph" the function always runs
    itself.

    Args:
        function: takes and gives tensors, of the same shapes in every call; rates and seeds are tensors, too, or each
            value would compile anew. If it is a method, its object must not change afterwards.
        compile: the setting of that name.
        device: of the tensors.
        **options: of the compiler, besides those of the device.
    """
    if compile is not True:
        return function

    def entry(*arguments: Any) -> Any:
        return function(*arguments)

    # The compiler limits the graphs per code object, so a code object that all environments shared would exceed them.
    code = entry.__code__.replace(co_name=getattr(function, "__name__", "compiled"))
    own = FunctionType(code, entry.__globals__, code.co_name, None, entry.__closure__)
    settings = OPTIONS.get(device.type, {}) | options | {"guard_filter_fn": _of_arguments}
    fast = torch.compile(own, dynamic=False, fullgraph=True, options=settings)

    def chosen(*arguments: Any) -> Any:
        return (function if torch.is_grad_enabled() else fast)(*arguments)

    return chosen  # type: ignore[return-value]


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Selects the compiler's assumptions that a call checks: those on its arguments, and on the state of PyTorch.

    The others, of which a graph that trains a network has hundreds, would take time in every call.
    """
    return [guard.name == "" or guard.name.startswith("arguments") for guard in guards]


class CaptureError(ValueError):
    """An error: a decision can't be captured, or the device failed in it; the message says what to do."""


class _Place(NamedTuple, Generic[S]):
    """The tensors in which recordings read and write states of one shape."""

    state: S
    leaves: list[Tensor]
    structure: TreeSpec
    shapes: tuple[Any, ...]


class _Graph(NamedTuple):
    """One recording, for one shape of the arguments."""

    inputs: list[Tensor]  # the arguments besides the state
    replay: Callable[[], object]
    output: list[Any]  # of the last run, in tensors to which replays write


class Captured(Generic[S, O]):
    """A function (state, ...) -> (state, output) that is recorded once for each shape of its arguments, then replayed.

    A recording reads and writes tensors at fixed addresses. Arguments are copied there, unless they are there already,
    and the new state replaces the old one at its address. Outputs have addresses of their own.

    Args:
        function: takes a tree of tensors, the state, and more trees of tensors and plain values; returns a state of the
            same structure and shapes, and another tree of tensors, the output. It must neither wait for the device nor
            change its arguments.
        record: `cuda_graph` of a device; tests pass other functions.
        what: names the function in errors.

    Raises:
        CaptureError: in a call: the function can't be recorded, as where it waits for the device, or the device fails.
            The arguments stay as they were.
    """

    def __init__(self, function: Callable[..., tuple[S, O]], record: Recording, what: str = "the function") -> None:
        self._function = function
        self._record = record
        self._what = what
        self._places: dict[tuple[Any, ...], _Place[S]] = {}
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, state: S, *arguments: Any, donate: bool = False) -> tuple[S, O]:
        """Returns the next state, and the output.

        Args:
            state: the state before.
            *arguments: the function's other arguments; each plain value among them has a recording of its own.
            donate: whether the caller no longer needs the state: then the next one and the output are not copied, and
                the next call overwrites them.
        """
        place = self._placed(state)
        others, structure = tree_flatten(arguments)
        kinds = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in others)
        key = (place.shapes, kinds, structure)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(place, others, structure)
        graph = self._graphs[key]
        if graph.inputs:
            _copy_each(graph.inputs, [x for x in others if isinstance(x, Tensor)])
        try:
            graph.replay()
        except RuntimeError as error:
            raise self._lost(error) from error
        if donate:
            return place.state, graph.output[0]
        outputs, shape = tree_flatten(graph.output[0])
        return tree_unflatten(_copied(place.leaves), place.structure), tree_unflatten(_copied(outputs), shape)

    def holds(self, tree: Any) -> bool:
        """Returns whether the next call may overwrite a tensor of this tree."""
        held = [x for place in self._places.values() for x in place.leaves]
        held += [x for graph in self._graphs.values() for x in tree_flatten(graph.output)[0]]
        memory = {x.untyped_storage().data_ptr() for x in held}
        return any(x.untyped_storage().data_ptr() in memory for x in tree_flatten(tree)[0])

    def _placed(self, state: S) -> _Place[S]:
        for place in self._places.values():
            if place.state is state:
                return place
        leaves, structure = tree_flatten(state)
        shapes = (structure, *((x.shape, x.dtype) for x in leaves))
        held = self._places.get(shapes)
        if held is None:
            own = _copied(leaves)
            held = self._places[shapes] = _Place(tree_unflatten(own, structure), own, structure, shapes)
        else:
            _copy_each(held.leaves, leaves)
        return held

    def _recorded(self, place: _Place[S], others: list[Any], structure: TreeSpec) -> _Graph:
        inputs = [x.clone() if isinstance(x, Tensor) else x for x in others]
        arguments = tree_unflatten(inputs, structure)
        memory = {x.untyped_storage().data_ptr() for x in place.leaves}

        output: list[O] = []

        def freed(x: Tensor) -> Tensor:
            """Copies a tensor that lies in memory which is to be overwritten."""
            return x.clone() if x.untyped_storage().data_ptr() in memory else x

        def run() -> None:
            state, given = self._function(place.state, *arguments)
            output[:] = [tree_map(freed, given)]
            # Leaves that are the same tensor as before are in their place.
            moved = [
                (old, new) for old, new in zip(place.leaves, tree_flatten(state)[0], strict=True) if old is not new
            ]
            free = [freed(new) for _, new in moved]
            _copy_each([old for old, _ in moved], free)

        before = _copied(place.leaves)
        failed: RuntimeError | None = None
        try:
            replay = self._record(run)
        except RuntimeError as error:
            failed = error
        try:
            _copy_each(place.leaves, before)  # recording has run the function
        except RuntimeError as error:
            raise self._lost(failed or error) from error
        if isinstance(failed, torch.OutOfMemoryError):
            raise failed
        if failed is not None:
            raise CaptureError(
                f"{self._what} can't be captured as a CUDA graph ({_line(failed)}): the network or the optimizer waits "
                "for the device, as by .item() or a copy from the host; use compile=False"
            ) from failed
        return _Graph([x for x in inputs if isinstance(x, Tensor)], replay, output)

    def _lost(self, error: Exception) -> CaptureError:
        return CaptureError(
            f"the device failed in {self._what} ({_line(error)}): start again in a new process, with --resume where a "
            "training was saved, or choose another device"
        )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cuda_graph(device: torch.device) -> Recording:
    """Returns the function that records on a CUDA device.

    All recordings of one such function share memory, since one replay follows another.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], None]) -> Callable[[], object]:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                function()
        return graph.replay

    return record


def _copied(tensors: list[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]
    _copy_each(copies, tensors)
    return copies


def _copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies tensors to tensors that have their shapes and types.

    PyTorch copies many at a time in one kernel only where all of them are of one type and laid out as their targets.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = groups.setdefault((source.dtype, source.stride() == target.stride()), ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in groups.values():
        torch._foreach_copy_(*group)
