"""Derivatives of `Trainee.unroll`, by rates of layers and parameters too: both modes and finite differences agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import smooth_conv_net
from torch import Tensor

from lrenv.data import Data
from lrenv.training.optimizers import adam
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64
STEPS = 5


OPTIMIZERS = {"sgd": "sgd", "momentum": "momentum", "adam": adam(eps_root=1e-8)}


def objective(trainee: Trainee, seeds: range) -> Callable[[Tensor], Tensor]:
    """Rates (n, K) -> (n,): the loss of the next training batch, in training mode, after an unroll."""
    start, hyper = trainee.init(seeds), trainee.hyper(len(seeds))

    def loss(lr: Tensor) -> Tensor:
        state, _ = trainee.unroll(start, lr, hyper, STEPS)
        return trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])[0]

    return loss


def central_differences(loss: Callable[[Tensor], Tensor], lr: Tensor, h: float = 1e-5) -> Tensor:
    """d loss_i / d lr_ik, (n, K): one column of all envs at a time, for envs do not interact."""
    columns = []
    with torch.no_grad():
        for k in range(lr.shape[1]):
            step = torch.zeros_like(lr)
            step[:, k] = h
            columns.append((loss(lr + step) - loss(lr - step)) / (2 * h))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("granularity", ["trainee", "layer"])
def test_reverse_equals_forward_equals_differences(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], optimizer: str, network: str, granularity: str
) -> None:
    settings = {"optimizer": OPTIMIZERS[optimizer]}
    task = toy(**settings) if network == "mlp" else toy(make_blobs((2, 6, 6)), network=smooth_conv_net, **settings)
    trainee = Trainee(task, dtype=F64)
    loss = objective(trainee, range(3))
    columns = 1 if granularity == "trainee" else len(trainee.network.layers)
    lr = 0.02 * torch.arange(1, 3 * columns + 1, dtype=F64).view(3, columns)
    leaf = lr.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    torch.testing.assert_close(reverse, central_differences(loss, lr), rtol=1e-6, atol=1e-9)
    for k in range(columns):
        direction = torch.zeros_like(lr)
        direction[:, k] = 1
        _, forward = torch.func.jvp(loss, (lr,), (direction,))
        torch.testing.assert_close(forward, reverse[:, k], rtol=1e-9, atol=1e-12)
    assert reverse.abs().min() > 1e-6, "a derivative of zero would agree with anything"


def test_rates_per_parameter(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer="momentum"), dtype=F64)
    loss = objective(trainee, range(2))
    lr = torch.full((2, trainee.network.size), 0.05, dtype=F64)
    leaf = lr.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    torch.testing.assert_close(reverse, central_differences(loss, lr), rtol=1e-6, atol=1e-9)


def test_trainees_do_not_interact(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    trainee = Trainee(toy(make_blobs((2, 6, 6)), network=smooth_conv_net), dtype=F64)
    loss = objective(trainee, range(3))
    lr = torch.full((3, 1), 0.1, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(loss, lr).squeeze(-1)
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert (jacobian.diagonal() != 0).all()
