"""Kernels for stacked convolutions against cuDNN's grouped ones, on CUDA: `python benchmarks/stacked_convolutions.py`.

Times LeNet-5's two convolutions, pass by pass, and its whole training step and forward pass, as replays of CUDA graphs;
compares results with float64. Prints a JSON line per result, in under a minute. `--dry-run` runs the kernels in
Triton's interpreter on the CPU, with tiny sizes, and leaves out what needs a card.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.func import grad

from lrenv.networks import convolutions, kernels
from lrenv.networks.architectures import lenet5
from lrenv.networks.layers import _fold, _unfold
from lrenv.networks.stacked import Network
from lrenv.runtime.compiling import compiled, cuda_graph

LAYERS = {"first": (1, 6, 28, 5, 2), "second": (6, 16, 14, 5, 0)}
"""LeNet-5's convolutions: channels in and out, side, kernel, padding."""


@dataclass(frozen=True)
class Settings:
    """The settings: what to time."""

    trainees: int = 64
    """With weights and a batch of their own each."""
    batch_size: int = 1000
    """Examples of each."""
    turns: int = 5
    """Replays, of which the median counts."""
    compile: bool = True
    """Also time compiled steps."""
    dry_run: bool = False
    """Tiny sizes on the CPU."""


def milliseconds_of(work: Callable[[], Any], turns: int, device: torch.device) -> float:
    """Measures the milliseconds of a call: the median of some replays on CUDA, one call on a CPU."""
    if device.type == "cpu":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    replay = cuda_graph(device)(lambda: (work(), None)[1])
    times = []
    for _ in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return float(median(times))


def report(**row: Any) -> None:
    """Prints a line; numbers in three digits."""
    print(json.dumps({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def error(ours: Tensor, reference: Tensor) -> float:
    """Returns the relative error in the Euclidean norm."""
    return float((ours.double() - reference).norm() / reference.norm())


def layer(name: str, settings: Settings, device: torch.device) -> None:
    """Times forward pass, gradient of the weights and of the input, each by itself."""
    c, o, side, k, p = LAYERS[name]
    n, b = settings.trainees, settings.batch_size
    side = 6 if settings.dry_run else side
    x = torch.randn(n, c, side, side, b, device=device).permute(0, 4, 1, 2, 3)
    weight = torch.randn(n, o, c, k, k, device=device) / k
    bias = torch.randn(n, o, device=device)
    rows = torch.randn(n, b, c, side, side, device=device)
    laid, (left, _) = convolutions._laid(x if c > 1 else rows, (p, p))
    out, none = convolutions._convolved(laid, weight, bias, left, left, False)
    pooled, which = convolutions._convolved(laid, weight, bias, left, left, True)
    g, g_pooled = torch.randn_like(out), torch.randn_like(pooled)
    folded = _fold(rows)
    flat = weight.flatten(0, 1)
    g_folded = torch.randn_like(F.conv2d(folded, flat, bias.flatten(), 1, p, 1, n))

    def back(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            g_folded, folded, flat, [n * o], [1, 1], [p, p], [1, 1], False, [0, 0], n, mask
        )

    shape = laid.shape[2:4]
    works: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {
            "grouped": lambda: F.conv2d(folded, flat, bias.flatten(), 1, p, 1, n),
            "kernel": lambda: convolutions._convolved(laid, weight, bias, left, left, False),
        },
        "forward, pool, relu": {
            "grouped": lambda: F.relu(F.max_pool2d(F.conv2d(folded, flat, bias.flatten(), 1, p, 1, n), 2)),
            "kernel": lambda: convolutions._convolved(laid, weight, bias, left, left, True),
        },
        "layout": {"kernel": lambda: convolutions._laid(rows, (p, p))},
        "weight gradient": {
            "grouped": lambda: back([False, True, True]),
            "kernel": lambda: convolutions._weight_gradient(laid, g, none, k, k, left, left),
            "kernel, pooled": lambda: convolutions._weight_gradient(laid, g_pooled, which, k, k, left, left),
        },
    }
    if c > 1:
        works["input gradient"] = {
            "grouped": lambda: back([True, False, False]),
            "kernel": lambda: convolutions._InputGradient.apply(g, weight, none, *shape, left, left, False),
            "kernel, pooled": lambda: convolutions._InputGradient.apply(
                g_pooled, weight, which, *shape, left, left, True
            ),
        }
    for work, ways in works.items():
        for way, run in ways.items():
            if not (settings.dry_run and way == "grouped"):
                report(layer=name, work=work, way=way, ms=milliseconds_of(run, settings.turns, device))


def accuracy(name: str, settings: Settings, device: torch.device) -> None:
    """Returns relative errors of two trainees against float64, of the kernels and of grouped convolutions."""
    c, o, side, k, p = LAYERS[name]
    n, b = 2, settings.batch_size
    side = 6 if settings.dry_run else side
    leaves = [torch.randn(shape, device=device) for shape in ((n, b, c, side, side), (n, o, c, k, k), (n, o))]

    def grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _unfold(F.conv2d(_fold(x), weight.flatten(0, 1), bias.flatten(), 1, p, 1, n), n)

    def grouped_pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _unfold(F.relu(F.max_pool2d(_fold(grouped(x, weight, bias)), 2)), n)

    def kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolutions.stacked_conv2d(x, weight, bias, (p, p))

    def kernel_pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolutions.stacked_conv2d_relu_max_pool(x, weight, bias, (p, p))

    def results(f: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        own = [x.to(dtype).requires_grad_() for x in leaves]
        out = f(*own)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=device).view(out.shape).to(dtype)
        return [out.detach(), *torch.autograd.grad(out, own, weights)]

    for ways in ((grouped, kernel), (grouped_pooled, kernel_pooled)):
        exact = results(ways[0], torch.float64)
        for way in ways:
            found = results(way, torch.float32)
            names = ("out", "input", "weight", "bias")
            errors = {f"error_{part}": error(a, e) for part, a, e in zip(names, found, exact, strict=True)}
            same = all(torch.equal(a, e) for a, e in zip(found, results(way, torch.float32), strict=True))
            report(layer=name, way=way.__name__, same_bits_twice=same, **errors)


def lenet(settings: Settings, device: torch.device) -> None:
    """Returns the whole network: a training step (loss and gradient), and a forward pass without gradient."""
    n, b = settings.trainees, settings.batch_size
    side = 20 if settings.dry_run else 28
    net = Network(lambda: lenet5((1, side, side), 10))
    params = net.init(range(n), device, torch.float32)[0]
    x = torch.randn(n, b, 1, side, side, device=device)
    y = torch.randint(10, (n, b), device=device)
    gradients = {}
    for own in (False, True):

        def loss(params: Tensor, x: Tensor, y: Tensor, own: bool = own) -> Tensor:
            out = net(params, {}, x, True, first_order=own)[0]
            return F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view(n, b).mean(1).sum()

        def step(loss: Callable[..., Tensor] = loss) -> Tensor:
            leaf = params.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf, x, y), leaf)[0]

        def step_of(params: Tensor, x: Tensor, y: Tensor, loss: Callable[..., Tensor] = loss) -> Tensor:
            gradient: Tensor = grad(loss)(params, x, y)
            return gradient

        def measure(params: Tensor, x: Tensor, own: bool = own) -> Tensor:
            return net(params, {}, x, False, first_order=own)[0]

        ways: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {}
        with torch.no_grad():
            ways["eager"] = (torch.enable_grad()(step), partial(measure, params, x))
            if settings.compile and not settings.dry_run:
                fast_step, fast_measure = compiled(step_of, True, device), compiled(measure, True, device)
                ways["compiled"] = (partial(fast_step, params, x, y), partial(fast_measure, params, x))
            for mode, (train, forward) in ways.items():
                begin = time.perf_counter()
                gradients[mode, own] = train()
                row: dict[str, Any] = {"network": "lenet5", "mode": mode, "way": "kernel" if own else "grouped"}
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                if not settings.dry_run:
                    row |= {"step_ms": milliseconds_of(train, settings.turns, device)}
                    row |= {"forward_ms": milliseconds_of(forward, settings.turns, device)}
                report(
                    **row,
                    gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
                    difference=error(gradients[mode, own], gradients["eager", False].double()),
                    seconds=time.perf_counter() - begin,
                )


def main(settings: Settings) -> None:
    """Runs all parts."""
    device = torch.device("cpu" if settings.dry_run else "cuda")
    if settings.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
        settings = Settings(trainees=2, batch_size=1, turns=1, dry_run=True)
        kernels.DEVICE, convolutions.LEAST_BATCH = "cpu", 1
        convolutions.PROGRAMS = 8
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    start = time.perf_counter()
    report(torch=torch.__version__, device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    with torch.no_grad():
        for name in LAYERS:
            layer(name, settings, device)
    for name in LAYERS:
        accuracy(name, settings, device)
    lenet(settings, device)
    report(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
