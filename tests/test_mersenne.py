"""torch's own generator is the second method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrenv.networks.initialisation import Initialiser
from lrenv.randomness import mersenne


@pytest.mark.parametrize("count", [1, 227, 624, 625, 3000])
def test_the_numbers_are_torchs(count: int) -> None:
    seeds = torch.tensor([0, 1, 12345, 2**40 + 17, 2**62 - 1])
    numbers = mersenne.uniform(seeds, count)
    for seed, own in zip(seeds.tolist(), numbers, strict=True):
        assert torch.equal(own, torch.empty(count).uniform_(generator=torch.Generator().manual_seed(seed)))


def module() -> nn.Module:
    network = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Conv1d(4, 5, 3, bias=False), nn.Linear(3, 2))
    nn.init.zeros_(network[3].bias)
    return network


def test_weights_drawn_for_all_seeds_together_are_those_drawn_one_by_one() -> None:
    initialiser = Initialiser(module)
    scaled = initialiser._scaled(torch.device("cpu"))
    assert scaled is not None
    expected, _ = initialiser([5, 6, 2**33])
    assert torch.equal(initialiser._drawn_on(torch.tensor([5, 6, 2**33]), scaled), expected)


def test_other_distributions_are_drawn_on_the_cpu() -> None:
    assert Initialiser(lambda: nn.Embedding(3, 40))._scaled(torch.device("cpu")) is None
