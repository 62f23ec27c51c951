"""Draws: known outputs of the hash, bijections, uniformity, and independence of everything but the key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lrenv.randomness import draws

MASK = 2**64 - 1


def splitmix64(z: int) -> int:
    """The finaliser of Steele, Lea & Flood 2014, figure 15 (variant 13 of Stafford), on plain integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chi_square_is_ordinary(counts: Tensor, freedom: int) -> bool:
    """Whether counts of equally likely cells are within six standard deviations of a chi-square's mean."""
    expected = counts.sum() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - freedom) < 6 * math.sqrt(2 * freedom)


def test_mix_equals_the_reference() -> None:
    words = [0, 1, 2, 2**31, 2**63 - 1, 2**63, MASK, 0xDEADBEEFCAFEBABE, *(3**k & MASK for k in range(30, 60))]
    signed = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words])
    assert [int(w) & MASK for w in draws.mix(signed)] == [splitmix64(w) for w in words]


def test_mix_gives_the_published_stream() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as its test vectors list them."""
    state = 1234567 + draws.GOLDEN * torch.arange(1, 6)
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(w) & MASK for w in draws.mix(state)] == published


def test_golden_is_the_golden_ratio() -> None:
    assert draws.GOLDEN & MASK == 0x9E3779B97F4A7C15


def test_fold_treats_integers_and_tensors_alike() -> None:
    keys = torch.arange(5)
    for data in (0, 1, 7, 2**40, 2**62):
        assert torch.equal(draws.fold(keys, data), draws.fold(keys, torch.tensor(data)))
    table = draws.fold(torch.arange(100)[:, None], torch.arange(100))
    assert table.unique().numel() == 10_000
    assert not torch.equal(table, table.T)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1200, 50_000])
def test_permuted_is_a_bijection(size: int) -> None:
    keys = draws.mix(torch.arange(4))[:, None]
    shuffled = draws.permuted(keys, torch.arange(size), size)
    assert torch.equal(shuffled.sort(1).values, torch.arange(size).expand(4, -1))
    if size >= 64:
        assert shuffled.unique(dim=0).shape[0] == 4
        assert (shuffled == torch.arange(size)).double().mean() < 10 / size


@pytest.mark.parametrize("size", [4, 5])
def test_every_permutation_is_equally_likely(size: int) -> None:
    number = math.factorial(size)
    shuffled = draws.permuted(torch.arange(500 * number)[:, None], torch.arange(size), size)
    codes = (shuffled * size ** torch.arange(size)).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert counts.numel() == number
    assert chi_square_is_ordinary(counts, number - 1)


def test_positions_are_uniform() -> None:
    size, keys = 50, 20_000
    shuffled = draws.permuted(torch.arange(keys)[:, None], torch.arange(size), size)
    counts = torch.bincount((torch.arange(size) * size + shuffled).flatten(), minlength=size**2)
    # Rows and columns of the table add up to the number of keys, which leaves (size - 1)^2 degrees of freedom.
    assert chi_square_is_ordinary(counts, (size - 1) ** 2)


@pytest.mark.parametrize("positions", [(0, 1), (24, 25), (3, 40), (0, 49)])
def test_pairs_are_uniform(positions: tuple[int, int]) -> None:
    size, keys = 50, 100_000
    shuffled = draws.permuted(torch.arange(keys)[:, None], torch.tensor(positions), size)
    codes, counts = (shuffled[:, 0] * size + shuffled[:, 1]).unique(return_counts=True)
    assert codes.numel() == size * (size - 1)
    assert chi_square_is_ordinary(counts, size * (size - 1) - 1)


def test_epochs_have_no_repeats_and_drop_the_remainder() -> None:
    size, batch, epochs = 23, 5, 40
    batches = size // batch
    step = torch.arange(batches * epochs)[None]
    indices = draws.epoch_indices(torch.tensor([3]), step, batch, size)
    epoch = indices.view(epochs, batches * batch)
    assert epoch.min() >= 0
    assert epoch.max() < size
    assert all(len(set(row.tolist())) == batches * batch for row in epoch)
    assert epoch.unique(dim=0).shape[0] == epochs
    left_out = {tuple(sorted(set(range(size)) - set(row.tolist()))) for row in epoch}
    assert len(left_out) > epochs // 2
    assert epoch.unique().numel() == size


def test_replacement_draws_independently() -> None:
    size = 20
    step = torch.arange(2000)[None]
    indices = draws.epoch_indices(torch.tensor([1]), step, 8, size, replacement=True)
    assert indices.shape == (1, 2000, 8)
    assert chi_square_is_ordinary(torch.bincount(indices.flatten(), minlength=size), size - 1)
    pairs = torch.bincount((indices[..., 0] * size + indices[..., 1]).flatten(), minlength=size**2)
    assert chi_square_is_ordinary(pairs, size**2 - 1)
    repeats = (indices.sort(-1).values.diff(dim=-1) == 0).any(-1).double().mean()
    expected = 1 - math.prod((size - k) / size for k in range(8))
    assert abs(repeats - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000)


@pytest.mark.parametrize("replacement", [False, True])
def test_an_env_draws_alone_what_it_draws_in_a_batch(replacement: bool) -> None:
    seeds, step = torch.tensor([5, 9, 2**40]), torch.tensor([[0, 1, 2], [7, 8, 9], [100, 101, 102]])
    together = draws.epoch_indices(seeds, step, 4, 13, replacement)
    for i in range(3):
        alone = draws.epoch_indices(seeds[i : i + 1], step[i : i + 1], 4, 13, replacement)
        assert torch.equal(alone[0], together[i])
    late = draws.epoch_indices(seeds, step[:, 2:], 4, 13, replacement)
    assert torch.equal(late, together[:, 2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers(dtype: torch.dtype) -> None:
    x = draws.uniform(torch.arange(1000), (10, 20), dtype)
    assert x.shape == (1000, 10, 20)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() < 1
    x = x.double()
    count = x.numel()
    assert abs(x.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count)
    assert abs((x - 0.5).square().mean() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    # Neither neighbouring numbers of a key nor neighbouring keys are correlated.
    for a, b in ((x[:, :, :-1], x[:, :, 1:]), (x[:-1], x[1:])):
        assert abs(((a - 0.5) * (b - 0.5)).mean()) < 5 / 12 / math.sqrt(a.numel())
    scalar = draws.uniform(torch.arange(7), dtype=dtype)
    assert scalar.shape == (7,)
    assert scalar.unique().numel() == 7


def test_streams_share_no_numbers() -> None:
    streams = (draws.BATCH, draws.DROPOUT, draws.AUGMENT, draws.INITIAL_LR, draws.EPISODE)
    keys = torch.stack([draws.fold(torch.arange(20_000), stream) for stream in streams])
    assert keys.unique().numel() == keys.numel()
    correlation = torch.corrcoef(draws.uniform(keys, dtype=torch.float64))
    assert (correlation - torch.eye(len(streams))).abs().max() < 5 / math.sqrt(20_000)


def test_episode_seeds() -> None:
    seeds, episodes = (x.flatten() for x in np.meshgrid(np.arange(30), np.arange(30), indexing="ij"))
    drawn = draws.episode_seeds(seeds, episodes)
    assert (drawn[episodes == 0] == np.arange(30)).all()
    later = drawn[episodes > 0]
    assert len(set(later.tolist())) == len(later)
    assert later.min() >= 0
    assert later.max() < 2**62
    assert draws.episode_seeds(np.array([7]), np.array([3])) == drawn[(seeds == 7) & (episodes == 3)]


def test_generators_differ_by_each_number() -> None:
    paths = [(0,), (1,), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1)]
    first = [float(torch.rand((), generator=draws.generator(*path), dtype=torch.float64)) for path in paths]
    assert len(set(first)) == len(paths)
    again = [float(torch.rand((), generator=draws.generator(*path), dtype=torch.float64)) for path in paths]
    assert first == again
