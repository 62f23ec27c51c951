"""Ways to compute the convolutions and pools of one or several trainees: `python benchmarks/layers.py`.

The rules of `lrenv.networks.layers` and `Trainee.chunks` follow from this: trainees with convolutions one by one on a
CPU, channels innermost where they fill vectors, plain maxima where no gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from harness import Build, Turn, race, rate, report
from lrenv.networks.pooling import max_pool_pairs
from lrenv.runtime.process import keep_memory

LAYERS = {
    "LeNet-5's first": (1, 6, 28, 5, 2),
    "LeNet-5's second": (6, 16, 14, 5, 0),
    "conv3's second": (32, 32, 14, 3, 1),
    "ResNet-18's": (64, 64, 32, 3, 1),
}
"""Name -> channels in and out, side, kernel, padding."""


@dataclass(frozen=True)
class Settings:
    """What to time."""

    trainees: int = 4
    """With a batch each."""
    batch_size: int = 128
    """Examples of each."""
    turns: int = 7
    """How often each contestant runs."""
    record: bool = False
    """Also write the results to benchmarks/results and RESULTS.md."""


def convolution(layer: str, way: str, trainees: int, batch_size: int, dtype: torch.dtype = torch.float32) -> Turn:
    """Builds forward and backward pass of one layer; a turn is in examples per second.

    Args:
        layer: a name in `LAYERS`.
        way: "grouped" (all trainees' channels in one convolution), "rows" (one by one, width innermost) or "channels"
            (one by one, channels innermost).
        trainees: how many.
        batch_size: of each.
        dtype: of everything.
    """
    keep_memory()
    inputs, outputs, side, kernel, padding = LAYERS[layer]
    grouped = way == "grouped"
    across = trainees if grouped else 1
    memory = torch.channels_last if way == "channels" else torch.contiguous_format
    x = torch.randn(batch_size, across * inputs, side, side, dtype=dtype).contiguous(memory_format=memory)
    weight = torch.randn(across * outputs, inputs, kernel, kernel, dtype=dtype).contiguous(memory_format=memory)
    for leaf in (x, weight):
        leaf.requires_grad_(leaf is weight or inputs > 3)  # nobody asks for the gradient of an image
    leaves = [leaf for leaf in (x, weight) if leaf.requires_grad]

    def work() -> None:
        for _ in range(1 if grouped else trainees):
            y = F.conv2d(x, weight, None, 1, padding, 1, across)
            torch.autograd.grad(y, leaves, torch.ones_like(y))

    work()
    return partial(rate, work, 3, trainees * batch_size)


def pool(way: Callable[[Tensor], Tensor], channels: int, side: int, batch_size: int) -> Turn:
    """Builds a forward pass of a pool over pairs of rows and columns; a turn is in examples per second."""
    keep_memory()
    x = torch.randn(batch_size, channels, side, side)
    way(x)
    return partial(rate, partial(way, x), 5, batch_size)


def kernel(x: Tensor) -> Tensor:
    """Runs PyTorch's kernel, which also stores the places of the maxima."""
    return F.max_pool2d(x, 2)


def maxima(x: Tensor) -> Tensor:
    """Computes the maxima as `lrenv.networks.layers` does without a gradient."""
    with torch.no_grad():
        return max_pool_pairs(x)


def main(settings: Settings) -> None:
    """Runs and reports a race for each layer, and one for the pool."""
    sizes = (settings.trainees, settings.batch_size)
    for layer in LAYERS:
        contestants: dict[str, Build] = {
            "all in one, grouped": partial(convolution, layer, "grouped", *sizes),
            "one by one, width innermost": partial(convolution, layer, "rows", *sizes),
            "one by one, channels innermost": partial(convolution, layer, "channels", *sizes),
            "the same in bfloat16": partial(convolution, layer, "channels", *sizes, dtype=torch.bfloat16),
        }
        title = f"{layer} convolution, {sizes[0]} trainees, batch {sizes[1]}"
        result = race(title, "examples/s", contestants, settings.turns, "all in one, grouped")
        report(result, settings.record)
    pools: dict[str, Build] = {
        name: partial(pool, way, 6, 28, settings.batch_size) for name, way in (("kernel", kernel), ("maxima", maxima))
    }
    report(race("LeNet-5's first pool, no gradient", "examples/s", pools, settings.turns, "kernel"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
