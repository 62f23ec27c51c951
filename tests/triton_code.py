"""What Inductor and Triton make of a function for a CUDA card, without a card.

A function is traced on the CPU, its graph moved to a fake card, lowered to Triton's source by Inductor, and each kernel
compiled to machine code by Triton. Nothing runs.
"""

from __future__ import annotations

import re
import runpy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

CARD = torch.device("cuda:0")
PROPERTIES = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, gcnArchName="",
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, L2_cache_size=50 * 2**20,
)  # fmt: skip
PATCHES: dict[str, Callable[..., Any]] = {
    "torch.cuda.is_available": lambda: True,
    "torch.cuda.device_count": lambda: 1,
    "torch.cuda.current_device": lambda: 0,
    "torch.cuda.synchronize": lambda *_: None,
    "torch.cuda._lazy_init": lambda: None,
    "torch.cuda.get_device_properties": lambda *_: PROPERTIES,
    "torch.cuda.get_device_capability": lambda *_: (9, 0),
    "torch._dynamo.device_interface.CudaInterface.get_device_properties": lambda *_: PROPERTIES,
    "torch.utils._triton.triton_hash_with_backend": lambda: "none",
}


def triton_code(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> str:
    """Inductor's source of a function that takes and gives tensors."""
    torch._C._ensureCUDADeviceGuardSet()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, ExitStack() as stack:
        on_cpu = [mode.from_tensor(x) for x in arguments]
        graph = make_fx(function, decomposition_table=select_decomp_table())(*on_cpu)
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": CARD}
        graph.recompile()
        inputs = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CARD) for x in on_cpu]
        graph = make_fx(torch.fx.Interpreter(graph).run)(*inputs)
        for name, stand_in in PATCHES.items():
            stack.enter_context(mock.patch(name, stand_in))
        lowering = GraphLowering(graph, example_inputs=inputs)
        stack.enter_context(V.set_graph_handler(lowering))
        stack.enter_context(V.set_fake_mode(mode))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        lowering.run(*inputs)
        code = lowering.codegen()[0]
    return code if isinstance(code, str) else code.value


def kernels(code: str) -> list[str]:
    """The sources of the Triton kernels in it."""
    return re.findall(r"async_compile\.triton\('\w+', '''(.*?)''', device_str", code, re.DOTALL)


def machine_code(kernel: str) -> str:
    """The PTX of one kernel for an H100, at blocks of 128.

    Raises:
        triton.compiler.errors.CompilationError: Triton does not accept the source.
    """
    import triton
    from torch._inductor.runtime import triton_heuristics
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found: dict[str, Any] = {}

    def heuristic(*_: Any, triton_meta: dict[str, Any], **__: Any) -> Callable[[Any], Any]:
        def noted(function: Any) -> Any:
            found.update(function=function, signature=triton_meta["signature"])
            return function

        return noted

    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu"))
        for name in ("pointwise", "reduction", "persistent_reduction"):
            stack.enter_context(mock.patch.object(triton_heuristics, name, heuristic))
        # Triton reads the source of a function from its file.
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".py"))
        file.write(kernel)
        file.flush()
        runpy.run_path(file.name)
        blocks = {name: 128 for name in found["function"].arg_names if name.endswith("BLOCK")}
        signature = found["signature"] | dict.fromkeys(blocks, "constexpr")
        source = ASTSource(found["function"], signature, blocks)
        ptx: str = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return ptx
