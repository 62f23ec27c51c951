"""Three trainings as users write them, on data and models that nothing in lrenv was trained on.

| loop | data | model | optimizer, usual rate |
|---|---|---|---|
| `source-lstm` | characters of Python's standard library | LSTM with 1.2 million weights | Adam, 2e-3, clipped |
| `photo-denoising` | noisy patches of a photograph of a flower | DnCNN: convolutions and batch norm | Adam, 1e-3 |
| `name-convolutions` | Unicode's names of characters, to find their kind | convolutions over characters | SGD, 0.01 |

All data come with Python or scikit-learn. None of them, and none of the models, is drawn (`lrenv.training.drawn`) or on
the held-out list (`lrenv.benchmark.held_out`). Nearest to them are: the list's text, which is about the same Python in
English; its photograph, which is another one and a function to be fitted; its small GRU and its convolutions.

Of the test data each keeps apart whole files, a part of the photograph, and whole names. Other versions of Python have
other files and other names, so a digest of the data belongs to each result.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset, TensorDataset


class Splits(NamedTuple):
    """Examples; those to measure on are whole tensors."""

    train: Dataset[Any]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def digest(self) -> str:
        """Tells these data from others."""
        parts = (x.double().mul(1000).round().long().numpy().tobytes() for x in (*self.val, *self.test))
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@dataclass(frozen=True)
class Loop:
    """A training.

    Attributes:
        data: makes its examples.
        model: makes its network.
        optimizer: (parameters, rate) -> an optimizer.
        lr: the usual rate of such a loop.
        usual: where that rate is from.
        loss: (outputs, targets) -> a mean.
        steps: of the optimizer.
        batch_size: examples per step.
        shown: validation examples of which agents are shown the loss at their decisions.
        clip: the norm to which gradients are clipped; None for never.
    """

    data: Callable[[], Splits]
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    lr: float
    usual: str
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    batch_size: int
    shown: int
    clip: float | None = None


CONTEXT = 64
"""Characters of an example of source code."""
TRAINED_ON, HELD_OUT = 1_600_000, 10_000
"""Characters of source code for training, and as many for validation as for the test."""


@cache
def source() -> Splits:
    """Windows of source code, whose targets are the characters that follow."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    held: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, file in enumerate(files):
        held[{8: "val", 9: "test"}.get(i % 10, "train")].append(file.read_text(encoding="utf-8"))

    def windows(texts: list[str], most: int) -> tuple[Tensor, Tensor]:
        content = "".join(texts).encode("ascii", "replace")[:most]
        ids = torch.from_numpy(np.frombuffer(content, np.uint8).astype(np.int64)).unfold(0, CONTEXT + 1, CONTEXT)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    train = TensorDataset(*windows(held["train"], TRAINED_ON))
    return Splits(train, windows(held["val"], HELD_OUT), windows(held["test"], HELD_OUT))


class SourceLSTM(nn.Module):
    """An LSTM that predicts characters; `width` units."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.lstm = nn.LSTM(64, width, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(width, 128)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, L, 128) of ids (b, L)."""
        hidden, _ = self.lstm(self.embedding(ids))
        logits: Tensor = self.output(self.dropout(hidden))
        return logits


PATCH, SIGMA = 20, 25 / 255
"""Pixels of a patch's side; the standard deviation of the noise, as in the paper of DnCNN."""


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Patches with fresh noise each time, and that noise."""

    def __init__(self, patches: Tensor) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(self.patches[index])
        return self.patches[index] + SIGMA * noise, noise


@cache
def photo() -> Splits:
    """Patches of scikit-learn's photograph of a flower: of its left part for training, of its right one for the test.

    The noise of the validation and test patches is always the same.
    """
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image("flower.jpg").astype(np.float32) / 255).permute(2, 0, 1)
    generator = torch.Generator().manual_seed(0)

    def patches(part: Tensor, stride: int) -> Tensor:
        cut = part.unfold(1, PATCH, stride).unfold(2, PATCH, stride)
        return cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH).contiguous()

    def noisy(part: Tensor) -> tuple[Tensor, Tensor]:
        clean = patches(part, PATCH)
        clean = clean[torch.randperm(len(clean), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        return clean + SIGMA * noise, noise

    width = image.shape[2]
    left, middle, right = image.split([width * 6 // 10, width * 2 // 10, width - width * 6 // 10 - width * 2 // 10], 2)
    return Splits(Noisy(patches(left, PATCH // 2)), noisy(middle), noisy(right))


class DnCNN(nn.Sequential):
    """Predicts the noise in an image: convolutions with batch norm (Zhang et al. 2017, section III)."""

    def __init__(self, width: int = 32, depth: int = 6) -> None:
        inner = [
            layer
            for _ in range(depth - 2)
            for layer in (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        ]
        first, last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        super().__init__(first, nn.ReLU(), *inner, last)


LETTERS = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST = 48
"""Letters of a name that are looked at."""
KINDS = ("Lo", "So", "Ll", "Mn", "Lu", "Sm", "No", "Nd", "Po", "Mc", "Lm", "Nl")
"""The categories of which there are more than 200 names: letters, marks, numbers, signs."""


@cache
def names() -> Splits:
    """The names of Unicode's characters, and their general categories.

    Left out are those that are numbered, such as ideographs, and those of other categories than `KINDS`.
    """
    inputs_of, targets_of = [], []
    for code in range(sys.maxunicode + 1):
        name, kind = unicodedata.name(chr(code), ""), unicodedata.category(chr(code))
        numbered = name.startswith("HANGUL SYLLABLE") or name.rpartition("-")[2].endswith(f"{code:X}")
        if name and kind in KINDS and not numbered:
            letters = [LETTERS.index(letter) + 1 for letter in name[:LONGEST]]
            inputs_of.append(letters + [0] * (LONGEST - len(letters)))
            targets_of.append(KINDS.index(kind))
    inputs, targets = torch.tensor(inputs_of), torch.tensor(targets_of)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, val, train = order.split([2000, 2000, len(order) - 4000])
    return Splits(
        TensorDataset(inputs[train], targets[train]), (inputs[val], targets[val]), (inputs[test], targets[test])
    )


class NameConvolutions(nn.Module):
    """Convolutions over letters, pooled, and two linear layers, as Zhang, Zhao and LeCun (2015), and smaller."""

    def __init__(self, classes: int = len(KINDS), width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, 16, padding_idx=0)
        self.convolutions = nn.Sequential(
            nn.Conv1d(16, width, 7, padding=3), nn.ReLU(), nn.MaxPool1d(3),
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, classes))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, classes) of ids (b, L)."""
        logits: Tensor = self.classifier(self.convolutions(self.embedding(ids).mT).amax(2))
        return logits


LOOPS = {
    "source-lstm": Loop(
        source, SourceLSTM, lambda weights, lr: torch.optim.Adam(weights, lr), 2e-3,
        "Karpathy's char-rnn", lambda outputs, targets: cross_entropy(outputs.flatten(0, 1), targets.flatten()),
        300, 16, 16, 1.0,
    ),
    "photo-denoising": Loop(
        photo, DnCNN, lambda weights, lr: torch.optim.Adam(weights, lr), 1e-3,
        "Adam's own, as in most code for DnCNN", mse_loss, 1000, 16, 32,
    ),
    "name-convolutions": Loop(
        names, NameConvolutions, lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9), 0.01,
        "Zhang, Zhao and LeCun (2015)", cross_entropy, 2000, 64, 256,
    ),
}  # fmt: skip
"""Name -> a training."""
