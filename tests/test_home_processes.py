"""A controller in two processes that train one model decides as in one."""

from __future__ import annotations

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


def train(rank: int, world: int, agent: Any) -> list[float]:
    """Each process takes its share of each batch; the second one's measurements are worthless."""
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


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = [train(rank, 2, agent) for agent in AGENTS]
    sharded = train_sharded(rank, "greedy:peak=0.1:patience=0:factor=0.5")
    torch.save({"whole": whole, "sharded": sharded}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_decide_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0] == found[1]
    rates, refused = found[0]["sharded"]
    assert len(set(rates)) > 2
    assert "a process holds a part alone (one is a DTensor" in refused
    for rates, agent in zip(found[0]["whole"], AGENTS, strict=True):
        expected = train(0, 1, agent)
        assert len(set(expected)) == T // 3
        np.testing.assert_allclose(rates, expected, rtol=1e-9)
