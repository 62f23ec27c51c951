"""Recorded initialisation: the constructor's numbers, whether they are replayed or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrenv import networks
from lrenv.networks.initialisation import Initialiser, build


def drawn_and_zeroed() -> nn.Module:
    return networks.conv3(4)((2, 8, 8), 3)


def normal_with_statistics() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 40), nn.BatchNorm1d(40), nn.Linear(40, 3))
    nn.init.normal_(module[0].weight, 0.5, 0.1)
    return module


def orthogonal() -> nn.Module:
    module = nn.Linear(4, 4)
    nn.init.orthogonal_(module.weight)
    return module


def drawing_elsewhere() -> nn.Module:
    torch.rand(3)  # moves the generator on
    return nn.Linear(4, 4)


class RandomBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("fixed", torch.randn(3))


@pytest.mark.parametrize(
    ("make", "replayed"),
    [
        (drawn_and_zeroed, True),
        (normal_with_statistics, True),
        (orthogonal, False),
        (drawing_elsewhere, False),
        (RandomBuffer, False),
    ],
)
def test_copies_are_what_the_constructor_gives(make: Callable[[], nn.Module], replayed: bool) -> None:
    initialiser = Initialiser(make)
    assert (initialiser._draws is not None) == replayed
    before = torch.random.get_rng_state()
    params, buffers = initialiser([7, 100, 7])
    assert torch.equal(torch.random.get_rng_state(), before)
    for i, seed in enumerate((7, 100, 7)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = make()
        assert torch.equal(params[i], torch.cat([p.detach().flatten() for p in module.parameters()]))
        for name, buffer in module.named_buffers():
            assert torch.equal(buffers[name][i], buffer)


def test_copies_share_no_memory() -> None:
    params, buffers = Initialiser(normal_with_statistics)([1, 2])
    params[0] += 1
    buffers["1.running_mean"][0] += 1
    assert (buffers["1.running_mean"][1] == 0).all()
    again, _ = Initialiser(normal_with_statistics)([1, 2])
    assert torch.equal(params[1], again[1])
    assert torch.equal(params[0], again[0] + 1)


def drawn_in_every_way() -> nn.Module:
    """Draws with whatever has a generator of its own, and with what has not."""
    own = torch.Generator().manual_seed(1)
    drawn = [
        torch.rand(5), torch.randn(5), torch.randint(9, (5,)), torch.randint(3, 9, (5,)), torch.randperm(5),
        torch.rand_like(torch.ones(5)), torch.randint_like(torch.ones(5), 7), torch.empty(5).exponential_(),
        torch.normal(torch.zeros(5), torch.ones(5)), torch.bernoulli(torch.full((5,), 0.5)),
        torch.rand(5, generator=own), torch.multinomial(torch.ones(5), 5), F.dropout(torch.ones(5)),
        torch.empty(5).random_(9), torch.poisson(torch.ones(5)), nn.init.trunc_normal_(torch.empty(5)),
        torch.rrelu(-torch.ones(5), training=True),
    ]  # fmt: skip
    module = nn.Linear(5, 17)
    module.weight.data = torch.stack([x.float() for x in drawn])
    return module


def test_draws_of_every_kind_are_those_of_the_global_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    modules = [build(drawn_in_every_way, seed) for seed in (7, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    for seed, module in zip((7, 8), modules, strict=True):
        torch.manual_seed(seed)
        for ours, theirs in zip(module.parameters(), drawn_in_every_way().parameters(), strict=True):
            assert torch.equal(ours, theirs)
