"""Runs the kernels of stacked linear layers in Triton's interpreter; prints what came of it as JSON, case -> numbers.

A process of its own, started by `test_linear_kernels.py`: whether Triton interprets is settled as it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from first_order import derivatives
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from lrenv.networks import kernels, linears
from lrenv.networks.stacked import Network

CASES = {
    "one of digits": (2, 64, 64, 32),
    "sides that fill no tile": (3, 5, 7, 10),
    "several tiles of examples": (2, 70, 33, 2),
    "one of everything": (1, 1, 1, 1),
}
"""Name -> n, b, inputs, outputs."""
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "examples": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "shared": lambda x: x[:1].expand_as(x),
}
"""What lies innermost in memory, or that all trainees have the same inputs."""


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def compared(name: str, layout: str, relu: bool, biased: bool, strided: bool = False) -> dict[str, Any]:
    """Errors against float64, in units of the largest number, and whether it is the same twice."""
    n, b, inputs, outputs = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    x = LAYOUTS[layout](torch.randn(n, b, inputs, generator=generator))
    # Columns of stacked parameters: rows of weights follow one another within a trainee alone.
    params = torch.randn(n, 3 + outputs * (inputs + 1), generator=generator)
    leaves = [x.requires_grad_(), params.requires_grad_()]

    def parts(params: Tensor) -> tuple[Tensor, Tensor | None]:
        weights, bias = params[:, 3 : 3 + outputs * inputs], params[:, 3 + outputs * inputs :]
        if strided:
            return weights.unflatten(1, (inputs, outputs)).transpose(1, 2), bias.flip(1).T.contiguous().T
        return weights.unflatten(1, (outputs, inputs)), bias if biased else None

    def attempt() -> list[Tensor]:
        return gradients(linears.stacked_linear(x, *parts(params), relu), leaves)

    own = [leaf.detach().double().requires_grad_() for leaf in leaves]
    weight, bias = parts(own[1])
    out = torch.einsum("nbi,noi->nbo", own[0], weight) + (0 if bias is None else bias[:, None])
    exact = gradients(out.relu() if relu else out, own)
    found = attempt()
    result: dict[str, Any] = {
        part: ((a - e).abs().max() / e.abs().max().clamp(min=1e-30)).item()
        for part, a, e in zip(("out", "x", "params"), found, exact, strict=True)
    }
    result["same"] = all(map(torch.equal, found, attempt()))
    return result


def not_a_number() -> dict[str, Any]:
    """An input of the second trainee is NaN, and one of the third infinite; ReLU keeps both, and so do gradients."""
    x = torch.ones(3, 2, 2)
    x[1, 0, 0], x[2, 1, 1] = torch.nan, torch.inf
    weight = torch.ones(3, 1, 2, requires_grad=True)
    out = linears.stacked_linear(x, weight, None, relu=True)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    return {"out": out.flatten(1).tolist(), "gradient": gradient.flatten(1).tolist()}


def hooked() -> nn.Module:
    relu = nn.ReLU()
    relu.register_forward_hook(lambda module, inputs, output: 2 * output)
    return relu


def pooled(*order: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(1, 2, 3), *order, nn.Flatten(), nn.Linear(8, 5), nn.ReLU()]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "images": lambda: [*pooled(nn.ReLU(), nn.MaxPool2d(2)), nn.Linear(5, 7)],
    "pooled first": lambda: [*pooled(nn.MaxPool2d(2), nn.ReLU()), nn.Linear(5, 7)],
    "ends in ReLU": lambda: pooled(nn.ReLU(), nn.MaxPool2d(2)),
    "hooked": lambda: [nn.Flatten(), nn.Linear(36, 5), hooked(), nn.Linear(5, 4)],
}


def networks() -> dict[str, dict[str, Any]]:
    """Gradients of networks with the kernels against those without, and which layers ran with their ReLU."""
    x = torch.randn(2, 3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    kernel, found = linears.stacked_linear, {}
    for name, make in NETWORKS.items():
        runs: list[bool] = []

        def counted(*arguments: Any, runs: list[bool] = runs) -> Tensor:
            runs.append(arguments[3])
            return kernel(*arguments)

        def loss(params: Tensor, net: Network, first_order: bool) -> Tensor:
            return net(params, {}, x, True, first_order=first_order)[0].square().sum()

        linears.stacked_linear = counted
        net = Network(lambda make=make: nn.Sequential(*make()))  # type: ignore[misc]
        params = net.init([1, 2], torch.device("cpu"), torch.float32)[0]
        own, exact = (grad(loss)(params, net, first_order) for first_order in (True, False))
        found[name] = {"error": ((own - exact).norm() / exact.norm()).item(), "relu": runs}
    linears.stacked_linear = kernel
    return found


def refused() -> dict[str, str]:
    """What the kernels say of shapes that don't fit."""
    x, weight, bias = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5)
    wrong: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {
        "features": (x[..., :3], weight, bias), "trainees": (x[:1], weight, None), "bias": (x, weight, bias[:, :4]),
        "axes": (x, weight[0, 0], None), "dtype": (x, weight.double(), bias.double()),
    }  # fmt: skip
    found = {}
    for name, arguments in wrong.items():
        try:
            linears.stacked_linear(*arguments)
        except ValueError as error:
            found[name] = str(error)
    return found


def transformed() -> dict[str, float]:
    """Differences of transforms of a measurement without gradients, by the kernels' network and by the plain one."""
    net = Network(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)))
    params = net.init([1, 2], torch.device("cpu"), torch.float32)[0]
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))

    def measured(p: Tensor, first_order: bool) -> Tensor:
        return net(p, {}, x, False, first_order=first_order)[0]

    with torch.no_grad():
        batch = torch.stack([params, params + 1])
        each = [vmap(lambda p, order=order: measured(p, order))(batch) for order in (True, False)]
        slopes = [jvp(lambda p, order=order: measured(p, order), (params,), (params,))[1] for order in (True, False)]
        slope = torch.compile(lambda p: jvp(lambda q: measured(q, True), (p,), (p,))[1], backend="eager")(params)
    return {
        "vmap": (each[0] - each[1]).abs().max().item(), "jvp": (slopes[0] - slopes[1]).abs().max().item(),
        "compiled jvp": (slope - slopes[1]).abs().max().item(),
    }  # fmt: skip


def network() -> dict[str, Any]:
    """The derivatives of a network with layers that have a bias and ReLU, and ones that have not."""
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    net = Network(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh()))
    runs: list[bool] = []
    kernel = linears.stacked_linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
        runs.append(relu)
        return kernel(x, weight, bias, relu)

    linears.stacked_linear = counted
    return derivatives(net, x, runs)


def chosen() -> dict[str, list[bool]]:
    """For which layers and batches the kernels are used: with gradients, without."""
    tried = {
        "small": (nn.Linear(64, 64), torch.zeros(2, 128, 64)),
        "many examples": (nn.Linear(64, 64), torch.zeros(2, 129, 64)),
        "many inputs": (nn.Linear(65, 64), torch.zeros(2, 8, 65)),
        "one trainee": (nn.Linear(4, 4), torch.zeros(1, 8, 4)),
        "sequences": (nn.Linear(4, 4), torch.zeros(2, 8, 3, 4)),
        "no examples": (nn.Linear(4, 4), torch.zeros(2, 0, 4)),
        "float64": (nn.Linear(4, 4), torch.zeros(2, 8, 4, dtype=torch.float64)),
    }
    with torch.no_grad():
        without = {name: linears.suits(*each) for name, each in tried.items()}
    found = {name: [linears.suits(*each), without[name]] for name, each in tried.items()}
    with mock.patch.object(kernels, "take", return_value=True):
        for name, stride in (("near", 2**20), ("far apart", 2**30)):
            x = torch.empty_strided((2, 3, 4), (1, stride, 1), device="meta")
            found[name] = [linears.suits(nn.Linear(4, 4), x)]
    return found


def main() -> None:
    results: dict[str, Any] = {"elsewhere": linears.suits(nn.Linear(4, 4), torch.zeros(2, 8, 4))}
    for number, name in enumerate(CASES):
        for relu in (False, True):
            layout = list(LAYOUTS)[(number + relu) % len(LAYOUTS)]
            biased = number % 2 == 0 or relu
            results[f"{name}, {layout}, {relu=}, {biased=}"] = compared(name, layout, relu, biased)
    results["strided weights, rows, relu=True"] = compared("sides that fill no tile", "rows", True, True, strided=True)
    results["not a number"] = not_a_number()
    results["refused"] = refused()
    kernels.DEVICE = "cpu"
    results["networks"] = networks()
    results["transformed"] = transformed()
    results["network"] = network()
    results["chosen"] = chosen()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
