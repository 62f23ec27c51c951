"""Runs the kernels of stacked convolutions in Triton's interpreter; prints what came of it as JSON, case -> numbers.

A process of its own, started by `test_convolution_kernels.py`: whether Triton interprets is settled as it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from first_order import derivatives
from torch import Tensor, nn

from lrenv.networks import convolutions, kernels
from lrenv.networks.stacked import Network

CASES: dict[str, tuple[int, int, int, int, int, int, int, int, tuple[int, int]]] = {
    "LeNet's first": (2, 2, 1, 4, 4, 6, 5, 5, (2, 2)),
    "LeNet's second": (2, 2, 6, 6, 6, 16, 5, 5, (0, 0)),
    "odd sides, channels in two blocks": (2, 3, 3, 3, 4, 18, 3, 2, (1, 0)),
    "more padding than the kernel reaches": (2, 2, 2, 2, 3, 3, 2, 1, (2, 1)),
    "one example, one trainee, one pixel": (1, 1, 1, 2, 2, 1, 1, 1, (0, 0)),
    "several blocks of examples": (2, 130, 2, 3, 4, 3, 2, 3, (0, 1)),
}
"""Name -> n, b, c, h, w, o, kh, kw, padding."""
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "examples": lambda x: x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
    "strided": lambda x: x.flip(1).repeat_interleave(2, 4)[..., ::2].flip(1),
}
"""What lies innermost in memory."""


def interpreted() -> bool:
    """Whether this Triton's interpreter runs beside this NumPy at all: some can't take the bounds of a loop."""
    import triton
    import triton.language as tl

    @triton.jit
    def count(x):  # type: ignore[no-untyped-def]
        for i in range(tl.program_id(0), tl.program_id(0) + 2):
            tl.store(x + i, 1.0)

    x = torch.zeros(2)
    try:
        count[(1,)](x)
    except triton.runtime.errors.InterpreterError:
        return False
    return bool(x.all())


def reference(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int], pooled: bool) -> Tensor:
    out = torch.stack([F.conv2d(*own, 1, padding) for own in zip(x, weight, bias, strict=True)])
    return F.max_pool2d(F.relu(out).flatten(0, 1), 2).unflatten(0, x.shape[:2]) if pooled else out


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)], cotangent


def compared(name: str, layout: str, pooled: bool, whole: bool) -> dict[str, Any]:
    """Errors against float64 (in units of the largest number), the same twice, and <g, f(x)> by both factors."""
    n, b, c, h, w, o, kh, kw, padding = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    shapes = ((n, b, c, h, w), (n, o, c, kh, kw), (n, o))
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    if whole:  # sums are exact, and pools have ties
        drawn = [x.mul(1.5).round() for x in drawn]
    x, weight, bias = (x.clone() for x in drawn)
    leaves = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    f = convolutions.stacked_conv2d_relu_max_pool if pooled else convolutions.stacked_conv2d
    found, cotangent = gradients(f(LAYOUTS[layout](x), weight, bias, padding), leaves)
    again = (
        gradients(f(LAYOUTS[layout](x), weight, bias, padding), leaves)[0]
        if "blocks" in name or "more" in name
        else found
    )
    own = [x.double().requires_grad_() for x in drawn]
    exact, _ = gradients(reference(*own, padding, pooled), own)
    result = {
        part: ((a - e).abs().max() / e.abs().max().clamp(min=1e-30)).item()
        for part, a, e in zip(("out", "x", "weight", "bias"), found, exact, strict=True)
    }
    result["shape"] = [list(a.shape) == list(e.shape) for a, e in zip(found, exact, strict=True)]
    if again is not found:
        result["same"] = all(map(torch.equal, found, again))
    if not pooled:  # linear in images, and in weights with bias
        product = (found[0] * cotangent).double()
        result["product"] = product.sum().item()
        without = product.sum() - (cotangent.sum((1, 3, 4)) * bias).double().sum()
        result["by_x"] = ((found[1] * x).double().sum() - without).item()
        result["by_weight"] = ((found[2] * weight).double().sum() - without).item()
    return result


def not_a_number() -> dict[str, Any]:
    """Four pixels are NaN: the windows that they lie in are, too, and no others."""
    x = torch.zeros(2, 2, 1, 4, 4)
    x[1, 0, 0, 0, 0] = x[1, 0, 0, 0, 3] = x[1, 0, 0, 3, 0] = x[1, 1, 0, 3, 3] = torch.nan  # each place of a window
    weight = torch.ones(2, 1, 1, 1, 1)
    out = convolutions.stacked_conv2d_relu_max_pool(x, weight, None)
    gradient = torch.autograd.grad(convolutions.stacked_conv2d(x, weight.requires_grad_(), None).sum(), weight)[0]
    return {"out": out.isnan().nonzero().tolist(), "gradient": gradient.isnan().flatten().tolist()}


def shared() -> dict[str, Any]:
    """Images that all trainees share, against copies of them."""
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(3, 2, 1, 4, 4)
    weight = torch.randn(3, 2, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = convolutions.stacked_conv2d(x, weight, None, (1, 0))
    each = convolutions.stacked_conv2d(x.clone(), weight, None, (1, 0))
    return {"equal": torch.equal(found, each)}


def network() -> dict[str, Any]:
    """The derivatives of a network with a convolution, pool and ReLU in one kernel, and one by itself."""
    x = torch.randn(2, 2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    net = Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2, 3, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4),
        )
    )  # fmt: skip
    runs: list[str] = []
    for name in ("stacked_conv2d", "stacked_conv2d_relu_max_pool"):
        kernel = getattr(convolutions, name)

        def counted(*args: Any, name: str = name, kernel: Any = kernel) -> Tensor:
            runs.append(name)
            out: Tensor = kernel(*args)
            return out

        setattr(convolutions, name, counted)
    return derivatives(net, x, runs)


def main() -> None:
    if not interpreted():
        print("[unavailable]")
        return
    convolutions.PROGRAMS = 12  # so that partial sums span several rows
    results: dict[str, Any] = {}
    for number, name in enumerate(CASES):
        for pooled in (False, True):
            layout = list(LAYOUTS)[(number + pooled) % len(LAYOUTS)]
            results[f"{name}, {layout}, {pooled=}"] = compared(name, layout, pooled, False)
    results["ties"] = compared("more padding than the kernel reaches", "rows", True, True)
    results["not a number"] = not_a_number()
    kernels.DEVICE, convolutions.LEAST_BATCH = "cpu", 1
    results["shared"] = shared()
    results["network"] = network()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
