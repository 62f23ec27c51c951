"""Published sets of images that are read from files, in the layout of torchvision's `root` folders."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lrenv.data.folder import read_folder, warn_about
from lrenv.data.store import data_root
from lrenv.data.types import Data, DataCorrupt, DataMissing, Split, with_statistics

CLASSES = 10
"""The number of classes of every set here."""


@dataclass(frozen=True)
class Source:
    """A published set: its files and what they must hold. Calling it loads the set.

    Attributes:
        name: the name for `lrenv.data.load`.
        files: the files of the training and the test part, relative to `data_root()`.
        counts: how many images the training and the test part have.
        shape: (C, H, W) of an image.
        read: reads the files of one part.
        fetch: downloads all files into a root folder; None if they can't be downloaded.
        held_out: how many training images make the validation split.
    """

    name: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    counts: tuple[int, int]
    shape: tuple[int, int, int]
    read: Callable[..., Split]
    fetch: Callable[[Path], None] | None
    held_out: int = 10_000

    def __call__(self, whole_train: bool = False) -> Data:
        """Returns the set, whose files must exist.

        Args:
            whole_train: train on all training images; the validation split is then the test split.

        Raises:
            DataCorrupt: the files are truncated, unreadable, or hold something else than they should.
        """
        parts = zip(self.files, self.counts, strict=True)
        train, test = (self._part(files, count).shuffled() for files, count in parts)
        if whole_train:
            return with_statistics(train, test, test, CLASSES)
        train, val = train.cut(self.counts[0] - self.held_out, self.held_out)
        return with_statistics(train, val, test, CLASSES)

    def provide(self, download: bool | None) -> None:
        """Makes sure that the files exist.

        Args:
            download: whether missing files may be downloaded; None for what `$LRENV_DOWNLOAD` says.

        Raises:
            DataMissing: files are missing; the message lists the ways to get them.
        """
        root, files = data_root(), [file for part in self.files for file in part]
        missing = [file for file in files if not (root / file).exists()]
        if not missing:
            return
        if download is None:
            download = os.environ.get("LRENV_DOWNLOAD", "").lower() in {"1", "true", "yes"}
        absent = f"{len(missing)} of {len(files)} files are missing below {root}: {', '.join(missing)}"
        lines = [f"{self.name}: {absent}"]
        cause = None
        if download and self.fetch is not None:
            try:
                self.fetch(root)
                return
            except Exception as error:  # the network, the archive and the disk all fail in their own types
                cause = error
                lines.append(f"Downloading them failed: {type(error).__name__}: {error}")
        lines.append("Ways to get them:")
        if self.fetch is not None:
            lines.append(f"  - run `lrenv download {self.name}`, or pass download=True to load")
            lines.append("  - set LRENV_DOWNLOAD=1, which allows downloads wherever data is loaded")
        lines.append("  - set LRENV_DATA to a folder that holds them, as any root of torchvision's data sets")
        lines.append(f"  - place them below {root}")
        raise DataMissing("\n".join(lines)) from cause

    def _part(self, files: tuple[str, ...], count: int) -> Split:
        paths = [data_root() / file for file in files]
        try:
            split = self.read(*paths)
        except DataCorrupt:
            raise
        except Exception as error:  # parsers fail in many types, and any failure means the same
            raise self._corrupt(paths, f"cannot be read ({type(error).__name__}: {error})") from error
        found = f"{split.inputs.dtype} {tuple(split.inputs.shape)} with {len(split.targets)} labels"
        expected = f"torch.uint8 {(count, *self.shape)} with {count} labels"
        if found != expected:
            raise self._corrupt(paths, f"inputs are {found}, expected {expected}")
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= CLASSES:
            raise self._corrupt(paths, f"labels run from {low} to {high}, expected 0 to {CLASSES - 1}")
        return split

    def _corrupt(self, paths: list[Path], problem: str) -> DataCorrupt:
        again = "delete and download again (download=True, or LRENV_DOWNLOAD=1)"
        cure = "replace what is wrong" if self.fetch is None else again
        return DataCorrupt(f"{', '.join(map(str, paths))}: {problem}; {cure}")


def _read_idx(images: Path, labels: Path) -> Split:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    return Split(read_image_file(str(images)).unsqueeze(1), read_label_file(str(labels)))


def _read_cifar10(*batches: Path) -> Split:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    pixels, labels = [], []
    for file in batches:
        # A pickle can run anything, so only the published bytes are unpickled.
        if not check_integrity(file, checksums[file.name]):
            raise ValueError(f"{file}: its checksum is wrong")
        batch = pickle.loads(file.read_bytes(), encoding="latin1")
        pixels.append(batch["data"].reshape(-1, 3, 32, 32))
        labels += batch["labels"]
    return Split(torch.from_numpy(np.concatenate(pixels)), torch.tensor(labels))


def _read_svhn(file: Path) -> Split:
    from torchvision.datasets import SVHN

    raw = SVHN(file.parent, split=file.name.removesuffix("_32x32.mat"))
    return Split(torch.from_numpy(np.ascontiguousarray(raw.data)), torch.from_numpy(raw.labels))


def _read_class_folders(path: Path) -> Split:
    found = read_folder(path, size=None, channels=3)
    warn_about(path, found.notes)
    return found.pools["train"]


def _fetch(dataset: str, root: Path) -> None:
    import torchvision

    parts = ({"split": "train"}, {"split": "test"}) if dataset == "SVHN" else ({},)
    for part in parts:
        getattr(torchvision.datasets, dataset)(root, download=True, **part)


def _mnist(name: str, dataset: str) -> Source:
    """Returns a set in MNIST's format, by the name of its class in torchvision."""
    train, test = (
        (f"{dataset}/raw/{part}-images-idx3-ubyte", f"{dataset}/raw/{part}-labels-idx1-ubyte")
        for part in ("train", "t10k")
    )
    return Source(name, (train, test), (60_000, 10_000), (1, 28, 28), _read_idx, partial(_fetch, dataset))


SOURCES = (
    _mnist("mnist", "MNIST"),
    _mnist("fashion-mnist", "FashionMNIST"),
    Source(
        name="cifar10",
        files=(
            tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            ("cifar-10-batches-py/test_batch",),
        ),
        counts=(50_000, 10_000),
        shape=(3, 32, 32),
        read=_read_cifar10,
        fetch=partial(_fetch, "CIFAR10"),
    ),
    Source(
        name="svhn",
        files=(("train_32x32.mat",), ("test_32x32.mat",)),
        counts=(73_257, 26_032),
        shape=(3, 32, 32),
        read=_read_svhn,
        fetch=partial(_fetch, "SVHN"),
    ),
    Source(
        name="cifar10-jpeg",
        files=(("cifar10-jpeg/train",), ("cifar10-jpeg/test",)),
        counts=(50_000, 10_000),
        shape=(3, 32, 32),
        read=_read_class_folders,
        fetch=None,
    ),
)
