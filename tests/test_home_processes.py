"""A controller in two processes that train one model decides as in one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lrenv.agents import BaseAgent, View
from lrenv.home.controller import LRController

T = 18


class Reacting(BaseAgent[tuple[()]]):
    view = View(control="scale", observe="scale-free", interval=3)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        return np.sin(5 * observation.mean(1, keepdims=True)), ()


AGENTS = Reacting(), "sgd-hd:initial_lr=0.05:beta=0.001"


def train(rank: int, world: int, agent: Any, saved_at: int | None = None) -> list[float]:
    """Each process takes its share of each batch; the second one's measurements are worthless.

    At `saved_at` steps, within an interval, all go on from the state that the first one has.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(T, 8, 3).double(), torch.randn(T, 8, 1).double()

    def validate() -> Tensor:
        return mse_loss(model(x.flatten(0, 1)), y.flatten(0, 1)) * (1 + rank)

    controller = LRController(optimizer, agent, T, every=3, evaluate=validate, fallback=None)
    rates = []
    for inputs, targets in zip(x, y, strict=True):
        loss = mse_loss(model(inputs[rank::world]), targets[rank::world])
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if world > 1:
                dist.all_reduce(parameter.grad)
            parameter.grad /= world
        optimizer.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        controller.step(loss)
        if len(rates) == saved_at:
            controller.average_losses()
            states = [controller.state_dict()]
            dist.broadcast_object_list(states, 0)
            controller = LRController(optimizer, agent, T, every=3, evaluate=validate, fallback=None)
            controller.load_state_dict(states[0])
    return rates


def train_sharded(rank: int, agent: str) -> tuple[list[float], str]:
    """FSDP keeps a part of the weights in each process; gives the rates, and why gradients can't be observed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(T, 8, 3), torch.randn(T, 8, 1)

    def validate() -> Tensor:
        return mse_loss(model(x.flatten(0, 1)), y.flatten(0, 1)) * (1 + rank)

    with pytest.raises(ValueError) as refused:  # noqa: PT011
        LRController(optimizer, Reacting(), T, evaluate=validate, module=model)
    controller = LRController(optimizer, agent, T, every=3, evaluate=validate, module=model)
    rates = []
    for inputs, targets in zip(x, y, strict=True):
        loss = mse_loss(model(inputs[rank::2]), targets[rank::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(controller.get_last_lr()[0])
        controller.step(loss)
    return rates, str(refused.value)


def sharded_after(rank: int) -> str:
    """As Accelerate does: the controller is made first, and weights are parted after; gives why it is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    controller = LRController(optimizer, "universal", T, module=model, batch_size=8)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    model(torch.randn(4, 3)).square().mean().backward()
    with pytest.raises(ValueError, match="a process holds a part alone") as refused:
        optimizer.step()
    del controller
    return str(refused.value)


def parted_states() -> tuple[float, str]:
    """Torch's ZeroRedundancyOptimizer: what kind of optimizer is seen, and why its groups aren't split."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    rates = []
    for kind in (ZeroRedundancyOptimizer, torch.optim.SGD):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        own = {"optimizer_class": torch.optim.SGD} if kind is ZeroRedundancyOptimizer else {}
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, **own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            controller = LRController(optimizer, "universal", T, module=model, batch_size=8)
        mse_loss(model(torch.ones(8, 3)), torch.ones(8, 1)).backward()
        controller.start(1.0)
        optimizer.step()
        rates.append(controller.get_last_lr()[0])
        optimizer.zero_grad()
        if kind is ZeroRedundancyOptimizer:
            with pytest.raises(ValueError, match="must be those of the optimizer inside") as refused:
                LRController(optimizer, "cosine:peak=0.1:fan_in=0.5", T, module=model)
    return rates[0] / rates[1], str(refused.value)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = [train(rank, 2, agent) for agent in AGENTS]
    sharded = train_sharded(rank, "greedy:peak=0.1:patience=0:factor=0.5")
    found = {"whole": whole, "resumed": train(rank, 2, AGENTS[0], saved_at=10), "sharded": sharded}
    found |= {"after": sharded_after(rank), "parted": parted_states()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_decide_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0] == found[1]
    rates, refused = found[0]["sharded"]
    assert len(set(rates)) > 2
    assert "a process holds a part alone (one is a DTensor" in refused
    assert found[0]["resumed"] == found[0]["whole"][0]
    assert found[0]["parted"][0] == pytest.approx(1)
    for rates, agent in zip(found[0]["whole"], AGENTS, strict=True):
        expected = train(0, 1, agent)
        assert len(set(expected)) == T // 3
        np.testing.assert_allclose(rates, expected, rtol=1e-9)
