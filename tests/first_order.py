"""What both scripts that run kernels in Triton's interpreter ask of a network: its derivatives, by all ways to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from lrenv.networks.stacked import Network


def derivatives(net: Network, x: Tensor, runs: list[Any]) -> dict[str, Any]:
    """A network's gradient in all modes, with the kernels and without; what asks for more raises.

    Args:
        net: of which two copies are tried.
        x: (2, b, ...), their inputs.
        runs: what the kernels that ran have left there.
    """
    params = net.init([1, 2], torch.device("cpu"), torch.float32)[0]

    def loss(params: Tensor, first_order: bool = True) -> Tensor:
        return net(params, {}, x, True, first_order=first_order)[0].square().sum()

    exact = grad(loss)(params, False)
    plain = list(runs)
    leaf = params.clone().requires_grad_()
    found = {"autograd": torch.autograd.grad(loss(leaf), leaf)[0], "func": grad(loss)(params)}
    used = list(runs)
    with torch.no_grad():  # what traces and what plans memory take no notice of who writes the code
        compiled = torch.compile(lambda p: grad(loss)(p), fullgraph=True, dynamic=False, backend="aot_eager")
        found["compiled"] = compiled(params)
    asked: dict[str, Callable[[], Any]] = {
        "twice": lambda: grad(lambda p: grad(loss)(p).square().sum())(params),
        "create_graph": lambda: torch.autograd.grad(
            torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0].square().sum(), leaf
        ),
    }
    refused = {}
    for name, work in asked.items():
        try:
            work()
        except NotImplementedError as reason:
            refused[name] = str(reason)
    own, plainly = (jvp(lambda p, order=order: loss(p, order), (params,), (params,))[1] for order in (True, False))
    forward = ((own - plainly).abs() / plainly.abs()).item()
    errors = {name: ((each - exact).norm() / exact.norm()).item() for name, each in found.items()}
    return {"errors": errors, "plain": plain, "used": used, "refused": refused, "forward": forward}
