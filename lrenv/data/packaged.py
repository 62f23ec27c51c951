"""Small sets that are part of lrenv or scikit-learn and are no images to classify: text, tables, a series, a photo.

`lrenv/data/files/README.md` names the source and the licence of each file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.data.types import Data, DataCorrupt, Split, with_statistics

FILES = Path(__file__).with_name("files")
SHA256 = {
    "python-reference.txt": "37d06970fc926e60c16dff401e441b84752446a36b6b64516c229fdec77e992c",
    "shuttle.csv": "b3e5d9ff544321872b8b01c748f7e4f1c5693caf8ec00efff5835ece1f913642",
    "doctor-visits.csv": "9f6c87d05aef087a82cc4465310c8cd3f38327be6eafa43bd81fb98c4f3d088c",
    "mauna-loa-co2.csv": "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f",
}
"""File -> the checksum of its decompressed content."""
BLOCK = 4096
"""The number of consecutive characters of text that stay in one split."""
NEIGHBOURS = 30
"""The number of consecutive doctor visits that stay in one split, as the years of one person follow one another."""
HORIZON = 8
"""The number of weeks by which the concentration of CO2 is forecast."""


def text(context: int = 32, every: bool = True) -> Data:
    """Returns characters of Python's reference, whose targets are the characters that follow.

    The text is cut into blocks of `BLOCK` characters; of the shuffled blocks, 80 % are for training, and a tenth each
    for validation and test. No example reaches over the end of a block.

    Args:
        context: L, the number of characters in an example.
        every: True for the character after each place as targets (m, L), for networks that read a sequence; False for
            the one after the last place, (m,).

    Raises:
        ValueError: the context is longer than a block.
    """
    if not 1 <= context < BLOCK:
        raise ValueError(f"context={context} must be at least 1 and below {BLOCK}, the length of a block of text")
    alphabet, numbered = np.unique(np.array(list(_content("python-reference.txt"))), return_inverse=True)
    ids = torch.from_numpy(numbered[: len(numbered) // BLOCK * BLOCK].astype(np.int64)).view(-1, BLOCK)
    ids = ids[_order(len(ids))]
    tenth = len(ids) // 10

    def split(blocks: Tensor) -> Split:
        # Windows of a sequence follow one another; those with one target overlap, so that there are enough of them.
        windows = blocks.unfold(1, context + 1, context if every else max(1, context // 4)).flatten(0, 1)
        windows = windows[_order(len(windows))]
        return Split(windows[:, :-1].contiguous(), (windows[:, 1:] if every else windows[:, -1]).contiguous())

    train, val, test = ids.split([len(ids) - 2 * tenth, tenth, tenth])
    return with_statistics(split(train), split(val), split(test), len(alphabet))


def shuttle() -> Data:
    """Returns states of a space shuttle's radiators by nine sensors, 7 % of them anomalies.

    The classes are imbalanced, and the inputs have heavy tails, so sensors are compressed by sign(x) log(1 + |x|) and
    standardised one by one.
    """
    rows = _rows("shuttle.csv")
    inputs, labels = rows[:, :-1], torch.from_numpy(rows[:, -1].astype(np.int64))
    compressed = np.sign(inputs) * np.log1p(np.abs(inputs))
    order = _order(len(rows))
    sizes = (30_000, 9_000, len(rows) - 39_000)
    train, val, test = _standardised(compressed[order], labels[order], sizes)
    return with_statistics(train, val, test, classes=2)


def doctor_visits() -> Data:
    """Returns visits to a doctor within a year (counts, as float32) by nine properties of person and insurance."""
    rows = _rows("doctor-visits.csv")
    blocks = np.arange(len(rows) // NEIGHBOURS * NEIGHBOURS).reshape(-1, NEIGHBOURS)
    order = torch.from_numpy(blocks[_order(len(blocks))].reshape(-1))
    visits = torch.from_numpy(rows[:, 0].astype(np.float32))
    sizes = (14_000, 3_000, len(order) - 17_000)
    train, val, test = _standardised(rows[:, 1:][order], visits[order], sizes)
    return with_statistics(train.shuffled(), val.shuffled(), test.shuffled(), classes=0)


def co2() -> Data:
    """Returns a forecast of atmospheric CO2: its change (ppm) in the next `HORIZON` weeks by those of the last year.

    The splits follow one another in time. Between two of them `HORIZON` windows are left out, so that the last targets
    of one are known when the first forecast of the next is made. Missing weeks are interpolated.
    """
    with_gaps = np.array(
        [float(row[1]) if row[1] not in ("", "nan") else np.nan for row in _table("mauna-loa-co2.csv")]
    )
    weeks = np.arange(len(with_gaps))
    known = np.isfinite(with_gaps)
    series = torch.from_numpy(np.interp(weeks, weeks[known], with_gaps[known]))
    windows = series.unfold(0, 53 + HORIZON, 1)
    now = windows[:, 52:53]
    inputs, targets = (windows[:, :52] - now).float(), (windows[:, -1:] - now).squeeze(1).float()
    sizes = (1300, HORIZON, 450, HORIZON, len(targets) - 1750 - 2 * HORIZON)
    train, _, val, _, test = Split(inputs, targets).cut(*sizes)
    return with_statistics(train.shuffled(), val.shuffled(), test.shuffled(), classes=0)


def photo(octaves: int = 6) -> Data:
    """Returns a photograph as a function: the colours (R, G, B in 0..1) of 17,000 places of scikit-learn's `china.jpg`.

    Args:
        octaves: inputs are sin(2^k pi x) and cos(2^k pi x) of both coordinates x, for k below this number, since a
            perceptron of the bare coordinates learns nothing but the coarsest structures. Coordinates are those of the
            centres of pixels, (2 i + 1) / n - 1, since sines and cosines can't tell the borders -1 and 1 apart.

    Raises:
        ValueError: there is fewer than one octave.
    """
    from sklearn.datasets import load_sample_image

    if octaves < 1:
        raise ValueError(f"octaves={octaves} must be at least 1")
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1).float() / 255
    small = torch.nn.functional.avg_pool2d(image[:, : 106 * 4], 4)
    _, height, width = small.shape
    rows, columns = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    places = torch.cartesian_prod(rows, columns)
    angles = (places[:, None] * (torch.pi * 2.0 ** torch.arange(octaves))[None, :, None]).flatten(1)
    pool = Split(torch.cat([angles.sin(), angles.cos()], 1), small.flatten(1).T.contiguous())
    held_out = len(pool.targets) * 15 // 100
    train, val, test = pool.shuffled().cut(len(pool.targets) - 2 * held_out, held_out, held_out)
    return with_statistics(train, val, test, classes=0)


def _standardised(inputs: NDArray[Any], targets: Tensor, sizes: tuple[int, int, int]) -> list[Split]:
    """Returns consecutive parts, each column less the mean of the first part, in units of its standard deviation."""
    first = inputs[: sizes[0]]
    scaled = (inputs - first.mean(0)) / first.std(0)
    return Split(torch.from_numpy(scaled.astype(np.float32)), targets).cut(*sizes)


def _order(number: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).permutation(number))


def _rows(name: str) -> NDArray[np.float64]:
    """Returns the numbers of a table."""
    return np.array(_table(name), dtype=np.float64)


def _table(name: str) -> list[list[str]]:
    """Returns the rows of a table, without its header."""
    return list(csv.reader(io.StringIO(_content(name))))[1:]


@cache
def _content(name: str) -> str:
    """Returns the decompressed content of a packaged file.

    Raises:
        DataCorrupt: it is missing or holds something else than it should.
    """
    path = FILES / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataCorrupt(f"{path}, a part of lrenv, can't be read ({error}): install lrenv again") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataCorrupt(f"{path}, a part of lrenv, holds something else than it should: install lrenv again")
    return content.decode()
