"""Kernels for stacked linear layers against PyTorch's products, on CUDA: `python benchmarks/stacked_linears.py`.

Times a layer's forward pass with its ReLU, and all of its gradients, as replays of CUDA graphs, by precision and by the
kernels' settings: examples per tile and warps. Prints a JSON line per result, in about two minutes, of which Triton's
compiler takes most. `--dry-run` runs the kernels in Triton's interpreter on the CPU, with tiny sizes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
import tyro
from torch import Tensor

from lrenv.networks import linears
from stacked_convolutions import error, milliseconds_of, report


@dataclass(frozen=True)
class Settings:
    """The settings: what to time."""

    trainees: tuple[int, ...] = (64, 8192)
    """With weights and a batch of their own each."""
    layers: tuple[tuple[int, int], ...] = ((64, 32), (32, 32), (32, 10), (64, 64), (40, 128), (128, 10))
    """Inputs and outputs; the last two are beyond what the kernels are used for."""
    batch_size: int = 64
    """Examples of each."""
    lanes: tuple[int, ...] = (32, 64)
    """Examples per tile."""
    warps: tuple[int, ...] = (1, 2, 4)
    """Warps per program."""
    turns: int = 7
    """Replays, of which the median counts."""
    dry_run: bool = False
    """Tiny sizes on the CPU."""


Work = Callable[[], Tensor | tuple[Tensor, ...]]


def layer(n: int, inputs: int, outputs: int, settings: Settings, device: torch.device) -> None:
    """Times both passes of one layer."""
    b = settings.batch_size
    # Rows of stacked parameters, whose alignment changes from trainee to trainee.
    params = torch.randn(n, inputs * outputs + outputs, device=device)
    weight = params[:, : inputs * outputs].unflatten(1, (outputs, inputs))
    bias = params[:, inputs * outputs :]
    x, grad = torch.randn(n, inputs, b, device=device), torch.randn(n, outputs, b, device=device)
    out = torch.baddbmm(bias.unsqueeze(2), weight, x).relu()

    def gradients() -> tuple[Tensor, ...]:
        g = torch.ops.aten.threshold_backward(grad, out, 0)
        return torch.bmm(weight.transpose(1, 2), g), torch.bmm(g, x.transpose(1, 2)), g.sum(2)

    passes: dict[str, tuple[Work, Work]] = {
        "forward": (
            lambda: torch.baddbmm(bias.unsqueeze(2), weight, x).relu(),
            lambda: linears._applied(x, weight, bias, True),
        ),
        "gradients": (gradients, lambda: linears._gradients(x, weight, out, grad, True)),
    }
    exact = torch.baddbmm(bias.double().unsqueeze(2), weight.double(), x.double()).relu()
    passed = torch.ops.aten.threshold_backward(grad, out, 0).double()
    expected = {"forward": exact, "gradients": torch.bmm(passed, x.transpose(1, 2).double())}
    for precision, (name, (library, kernel)) in itertools.product(("highest", "high"), passes.items()):
        torch.set_float32_matmul_precision(precision)
        about = {"n": n, "inputs": inputs, "outputs": outputs, "precision": precision, "work": name}
        off = error(of_weight(library()), expected[name])
        report(**about, way="library", error=off, ms=milliseconds_of(library, settings.turns, device))
        for lanes, warps in itertools.product(settings.lanes, settings.warps):
            with mock.patch.multiple(linears, _lanes=lambda _, lanes=lanes: lanes, WARPS=warps):
                report(
                    **about, way="kernel", lanes=lanes, warps=warps, error=error(of_weight(kernel()), expected[name]),
                    ms=milliseconds_of(kernel, settings.turns, device),
                )  # fmt: skip
    torch.set_float32_matmul_precision("highest")


def of_weight(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Returns the outputs, or of gradients those of the weight."""
    return found if isinstance(found, Tensor) else found[1]


def main(settings: Settings) -> None:
    """Times all layers."""
    if settings.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
        settings = Settings((2,), ((5, 3),), 7, (16,), (1,), 1, True)
    device = torch.device("cpu" if settings.dry_run else "cuda")
    for n, (inputs, outputs) in itertools.product(settings.trainees, settings.layers):
        layer(n, inputs, outputs, settings, device)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
