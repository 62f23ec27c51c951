"""Data sets as tensors: fixed splits, checked contents, statistics of the training part.

`load(name)` returns a `Data`: inputs and targets of the train, validation and test splits, and the mean and
standard deviation that normalise them. Files are decoded once and checked. Images stay uint8 and are
normalised batch by batch, so a data set takes a quarter of its float size on the device.

Splits are fixed. Every set is put in one order, drawn with `numpy.random.default_rng(0)`; validation is cut
from the end of the training part. Any prefix of a validation or test split is thus a fair sample of it.

Files are looked for below `data_root()`, which any `root` folder of torchvision's data sets can serve as.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import inspect
import os
import random
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_QUIET_BELOW = 2_000
"""Images: about a second of decoding. Fewer show no progress bar."""


class DataMissing(FileNotFoundError):
    """Files of a data set are not there, or could not be downloaded."""


class DataCorrupt(ValueError):
    """Files of a data set are there, but truncated, unreadable or not what they should be."""


class Split(NamedTuple):
    """One part of a data set: m examples and their classes."""

    inputs: Tensor
    """(m, *shape): uint8 for images (C, H, W), float32 otherwise."""
    targets: Tensor
    """(m,) int64 class labels in 0..classes-1."""


class Data(NamedTuple):
    """A data set. A batch `x` is normalised as `(x - mean) / std`.

    Values are shared between all callers of `load`: treat them as constants.
    """

    train: Split
    val: Split
    test: Split
    mean: Tensor
    """float32, in the units of the stored inputs (0..255 for most images), from the train split alone;
    (C, 1, 1) if an example has the three axes of an image, () otherwise."""
    std: Tensor
    """As `mean`; 1 where the training inputs do not vary."""
    classes: int

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`; tensors that are there already are not copied."""
        train, val, test = (Split(s.inputs.to(device), s.targets.to(device)) for s in self[:3])
        return Data(train, val, test, self.mean.to(device), self.std.to(device), self.classes)


Loader: TypeAlias = Callable[..., Data]


def data_root() -> Path:
    """Where data files live: `$LRENV_DATA`, or `~/.cache/lrenv/data`."""
    return Path(os.environ.get("LRENV_DATA") or "~/.cache/lrenv/data").expanduser().absolute()


def datasets() -> tuple[str, ...]:
    """The names `load` knows, those of `register_data` included."""
    return tuple(_REGISTRY)


def register_data(name: str, loader: Loader, *, replace: bool = False) -> None:
    """Adds a data set, so that `load(name, **options)` returns `loader(**options)`.

    Args:
        name: the name for `load`.
        loader: called once for each combination of options, which must be hashable; `from_arrays` builds and
            checks what it should return.
        replace: allow a name that is taken.

    Raises:
        ValueError: the name is taken and `replace` is false.
    """
    if name in _REGISTRY and not replace:
        raise ValueError(f"data set {name!r} exists already: choose another name, or pass replace=True")
    _REGISTRY[name] = _Entry(loader)


def load(name: str, *, download: bool | None = None, **options: object) -> Data:
    """A data set by name, loaded on the first call and then kept in memory for the life of the process.

    ============== ======================== ============================================================
    name           train / val / test       inputs
    ============== ======================== ============================================================
    digits         1,200 / 297 / 300        uint8 (1, 8, 8), 0..16, from scikit-learn
    mnist1d        3,000 / 1,000 / 1,000    float32 (40,), generated (Greydanus & Kobak, arXiv 2011.14439)
    mnist          50,000 / 10,000 / 10,000 uint8 (1, 28, 28)
    fashion-mnist  50,000 / 10,000 / 10,000 uint8 (1, 28, 28)
    cifar10        40,000 / 10,000 / 10,000 uint8 (3, 32, 32)
    svhn           63,257 / 10,000 / 26,032 uint8 (3, 32, 32)
    cifar10-jpeg   40,000 / 10,000 / 10,000 uint8 (3, 32, 32), from cifar10-jpeg/{train,test}/<class>/*.jpg
    folder         see below                uint8 (channels, height, width)
    ============== ======================== ============================================================

    Options of the sets that come as files, from mnist to cifar10-jpeg:
        whole_train (bool, False): train on all training images; the validation split is then the *test*
            split, so nothing may be chosen by it. For reproducing publications that held nothing out.

    Options of `folder`, a folder of images:
        path: holds either one folder per class, or train/ and optionally val/ and test/ that do. Classes are
            numbered in the order of their names in train/.
        size (int): images are resized to size x size; by default to the size of the first one.
        channels (1 or 3, default 3): grey or RGB.
        held_out (0.2): the fraction of the training images that is held out to make the missing ones of
            validation and test; where both are missing, half of it goes to each.
        Images are decoded once; the tensors are stored below `data_root()/tensors` until a file changes.

    Loading leaves the global generators of random, NumPy and torch as they were.

    Args:
        name: one of `datasets()`.
        download: fetch missing files of mnist, fashion-mnist, cifar10 and svhn; by default only if the
            environment says `LRENV_DOWNLOAD=1`. Other sets have nothing to fetch.
        **options: as listed; hashable values. A `path` is made absolute.

    Raises:
        ValueError: unknown name, an option out of range, or a folder that is not laid out as described.
        TypeError: unknown or missing option, or a registered loader that returns no `Data`.
        DataMissing: files are not there and may not, or could not, be downloaded.
        DataCorrupt: files are truncated, unreadable, or hold something else than they should.
    """
    if name not in _REGISTRY:
        known = ", ".join(datasets())
        raise ValueError(f"unknown data set {name!r}{_near(name, datasets())}; there are: {known}")
    entry = _REGISTRY[name]
    _check_options(name, entry.loader, options)
    if isinstance(options.get("path"), (str, os.PathLike)):
        options["path"] = Path(os.path.abspath(os.path.expanduser(str(options["path"]))))
    key = (entry.loader, data_root(), tuple(sorted(options.items())))
    try:
        data = _LOADED.get(key)
    except TypeError:
        raise TypeError(f"options of data set {name!r} must be hashable, got {options!r}") from None
    if data is None:
        with _global_randomness_kept():
            if entry.source is not None:
                _provide(entry.source, _may_download(download))
            data = entry.loader(**options)
        if not isinstance(data, Data):
            raise TypeError(f"the loader of {name!r} must return lrenv.data.Data, got {type(data).__name__}")
        _LOADED[key] = data
    return data


def from_arrays(
    train_inputs: ArrayLike | Tensor,
    train_targets: ArrayLike | Tensor,
    val_inputs: ArrayLike | Tensor,
    val_targets: ArrayLike | Tensor,
    test_inputs: ArrayLike | Tensor,
    test_targets: ArrayLike | Tensor,
    *,
    normalize: bool = True,
) -> Data:
    """A `Data` from one's own arrays, checked and copied to the CPU.

    Parts of a validation split serve as probes, so pass it in a shuffled order.

    Args:
        train_inputs: (m, *shape), as `val_inputs` and `test_inputs`. uint8 images (m, C, H, W) stay uint8;
            everything else becomes float32.
        train_targets: (m,) integer class labels 0..classes-1; the number of classes is the largest label of
            the training split plus 1.
        val_inputs: as `train_inputs`.
        val_targets: as `train_targets`, with no other classes.
        test_inputs: as `train_inputs`.
        test_targets: as `val_targets`.
        normalize: take mean and standard deviation from the training inputs (per channel where an example has
            three axes); otherwise they are 0 and 1, and batches are used as they stand.

    Raises:
        TypeError: inputs that are not real numbers, or targets that are not integers.
        ValueError: an empty split, inputs and targets of different length, examples of different shape,
            values that are not finite, labels outside 0..classes-1, or fewer than two classes.
    """
    parts = {
        "train": (train_inputs, train_targets),
        "val": (val_inputs, val_targets),
        "test": (test_inputs, test_targets),
    }
    train, val, test = (_split_from_arrays(part, *arrays) for part, arrays in parts.items())
    classes = int(train.targets.max()) + 1
    if classes < 2:
        raise ValueError("train targets hold only class 0: a classification task needs at least two classes")
    for part, split in (("val", val), ("test", test)):
        if split.inputs.shape[1:] != train.inputs.shape[1:]:
            shapes = f"{tuple(split.inputs.shape[1:])} and {tuple(train.inputs.shape[1:])}"
            raise ValueError(f"examples of {part} and train differ in shape: {shapes}")
        if split.inputs.dtype != train.inputs.dtype:
            raise ValueError(
                f"{part} inputs are {split.inputs.dtype}, train inputs {train.inputs.dtype}: use one scale"
            )
        if int(split.targets.max()) >= classes:
            largest = int(split.targets.max())
            raise ValueError(f"{part} targets hold class {largest}, train targets only 0..{classes - 1}")
    data = _data(train, val, test, classes)
    if not normalize:
        data = data._replace(mean=torch.zeros_like(data.mean), std=torch.ones_like(data.std))
    return data


def _split_from_arrays(part: str, inputs: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> Split:
    x, y = _copy(f"{part} inputs", inputs), _copy(f"{part} targets", targets)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{part} targets must be integer class labels, got {y.dtype}: convert them to int64")
    if x.is_complex():
        raise TypeError(f"{part} inputs must be real numbers, got {x.dtype}")
    if y.ndim != 1:
        raise ValueError(
            f"{part} targets must have shape (m,), got {tuple(y.shape)}: pass labels, not one-hot rows"
        )
    if x.ndim < 2:
        raise ValueError(f"{part} inputs must have shape (m, *shape), got {tuple(x.shape)}")
    if len(x) != len(y):
        raise ValueError(f"{part} has {len(x)} inputs but {len(y)} targets")
    if x.numel() == 0:
        raise ValueError(f"{part} is empty (inputs {tuple(x.shape)}): every split needs at least one example")
    y = y.long()
    if int(y.min()) < 0:
        raise ValueError(f"{part} targets hold the label {int(y.min())}: labels run from 0 to classes-1")
    if x.dtype != torch.uint8 or x.ndim != 4:
        x = x.float()
        if not x.isfinite().all():
            raise ValueError(
                f"{part} inputs hold values that are not finite in float32: clean or rescale them"
            )
    return Split(x, y)


def _copy(what: str, array: ArrayLike | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu().clone()
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a tensor or an array of numbers: {error}") from error


def _data(train: Split, val: Split, test: Split, classes: int) -> Data:
    """Adds the statistics of the train split, in double precision; a constant channel gets std 1."""
    x = train.inputs
    if x.dtype == torch.uint8:
        # Statistics of a histogram are exact and need no float copy of the images, which could be gigabytes.
        values = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([x[:, c].flatten().bincount(minlength=256) for c in range(x.shape[1])]).double()
        mean = (counts @ values / counts.sum(1))[:, None, None]
        var = ((counts * (values - mean[..., 0]) ** 2).sum(1) / counts.sum(1))[:, None, None]
    elif x.ndim == 4:
        var, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        var, mean = var[:, None, None], mean[:, None, None]
    else:
        var, mean = torch.var_mean(x.double(), correction=0)
    # Less spread than float32 resolves is rounding, which a division would blow up.
    std = torch.where(var.sqrt() > torch.finfo(torch.float32).eps * mean.abs(), var.sqrt(), 1.0)
    return Data(train, val, test, mean.float(), std.float(), classes)


def _shuffled(split: Split) -> Split:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(split.targets)))
    return Split(split.inputs[order], split.targets[order])


def _cut(split: Split, *sizes: int) -> list[Split]:
    """Consecutive parts of the given sizes, which add up to the whole."""
    inputs, targets = (torch.split_with_sizes(tensor, sizes) for tensor in split)
    return [Split(x, y) for x, y in zip(inputs, targets, strict=True)]


def _problem(
    split: Split, count: int, shape: tuple[int, ...], dtype: torch.dtype, classes: int
) -> str | None:
    """What is wrong with a split that should hold `count` examples of this kind, or None."""
    inputs, targets = split
    if inputs.shape != (count, *shape) or inputs.dtype != dtype:
        return f"inputs are {inputs.dtype} {tuple(inputs.shape)}, expected {dtype} {(count, *shape)}"
    if targets.shape != (count,) or targets.dtype != torch.int64:
        return f"targets are {targets.dtype} {tuple(targets.shape)}, expected torch.int64 {(count,)}"
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        return f"labels run from {int(targets.min())} to {int(targets.max())}, expected 0 to {classes - 1}"
    if inputs.is_floating_point() and not inputs.isfinite().all():
        return "inputs are not all finite"
    return None


# Sets that need no files


def _digits() -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    pool = Split(images, torch.from_numpy(bunch.target.astype(np.int64)))
    if problem := _problem(pool, 1797, (1, 8, 8), torch.uint8, 10):
        raise DataCorrupt(f"digits: {problem}; reinstall scikit-learn, which ships them")
    train, val, test = _cut(_shuffled(pool), 1200, 297, 300)
    return _data(train, val, test, classes=10)


def _mnist1d() -> Data:
    """The authors' own generator, at its published settings; it takes seconds, so its result is stored."""
    path = _tensors() / f"mnist1d-{importlib.metadata.version('mnist1d')}.safetensors"
    tensors = _stored(path, _generate_mnist1d)
    train, test = (Split(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in ("train", "test"))
    for split, count in ((train, 4000), (test, 1000)):
        if problem := _problem(split, count, (40,), torch.float32, 10):
            raise DataCorrupt(f"mnist1d: {path}: {problem}; delete the file, it is generated again")
    train, val = _cut(_shuffled(train), 3000, 1000)
    return _data(train, val, _shuffled(test), classes=10)


def _generate_mnist1d() -> dict[str, Tensor]:
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    return {
        "train.inputs": torch.from_numpy(made["x"]).float(),
        "train.targets": torch.from_numpy(made["y"]).long(),
        "test.inputs": torch.from_numpy(made["x_test"]).float(),
        "test.targets": torch.from_numpy(made["y_test"]).long(),
    }


# Published sets that come as files


class _Source(NamedTuple):
    """A published set of images in ten classes: its files, and what they must hold."""

    name: str
    train_files: tuple[str, ...]
    """Relative to `data_root()`, as `test_files`."""
    test_files: tuple[str, ...]
    shape: tuple[int, int, int]
    train_count: int
    test_count: int
    held_out: int
    read: Callable[[Path], tuple[Split, Split]]
    fetch: Callable[[Path], None] | None
    """Downloads into a root folder; None if there is no such place on the network."""


def _published(source: _Source, whole_train: bool = False) -> Data:
    root = data_root()
    train, test = source.read(root)
    parts = ((train, source.train_count, source.train_files), (test, source.test_count, source.test_files))
    for split, count, files in parts:
        if problem := _problem(split, count, source.shape, torch.uint8, 10):
            raise _corrupt([root / file for file in files], problem)
    train, test = _shuffled(train), _shuffled(test)
    if whole_train:
        return _data(train, test, test, classes=10)
    train, val = _cut(train, source.train_count - source.held_out, source.held_out)
    return _data(train, val, test, classes=10)


def _provide(source: _Source, download: bool) -> None:
    """Makes sure that the files of `source` exist, by a download if that is allowed.

    Raises:
        DataMissing: they do not, with the ways to bring them.
    """
    root = data_root()
    files = source.train_files + source.test_files
    missing = [file for file in files if not (root / file).exists()]
    if not missing:
        return
    absent = (
        f"{source.name}: {len(missing)} of {len(files)} files are missing below {root}: {', '.join(missing)}"
    )
    if not download or source.fetch is None:
        raise DataMissing(f"{absent}\n{_ways_to_bring(source, root)}")
    try:
        source.fetch(root)
    except Exception as error:  # the network, the archive and the disk all fail in their own types
        failed = f"Downloading them failed: {type(error).__name__}: {error}"
        raise DataMissing(f"{absent}\n{failed}\n{_ways_to_bring(source, root)}") from error


def _ways_to_bring(source: _Source, root: Path) -> str:
    lines = ["Ways to bring them:"]
    if source.fetch is not None:
        lines.append(f"  - run `lrenv download {source.name}`, or pass download=True to load")
        lines.append("  - set LRENV_DOWNLOAD=1, which allows downloads wherever data is loaded")
    lines.append(
        "  - set LRENV_DATA to a folder that holds them (any root folder of torchvision's data sets does)"
    )
    lines.append(f"  - place them below {root}")
    return "\n".join(lines)


def _may_download(download: bool | None) -> bool:
    if download is None:
        return os.environ.get("LRENV_DOWNLOAD", "").lower() in {"1", "true", "yes"}
    return download


def _corrupt(files: Sequence[Path], problem: object) -> DataCorrupt:
    names = ", ".join(map(str, files))
    return DataCorrupt(f"{names}: {problem}. Delete and download again (download=True, or LRENV_DOWNLOAD=1)")


@contextmanager
def _reading(*files: Path) -> Iterator[None]:
    """Whatever a parser raises inside becomes a `DataCorrupt` that names `files`."""
    try:
        yield
    except Exception as error:
        raise _corrupt(files, f"cannot be read ({type(error).__name__}: {error})") from error


def _mnist_source(name: str, dataset: str) -> _Source:
    """A set in MNIST's format, by the name of its class in torchvision."""

    def read(root: Path) -> tuple[Split, Split]:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        splits = []
        for files in (train_files, test_files):
            images, labels = (root / file for file in files)
            with _reading(images):
                inputs = read_image_file(str(images)).unsqueeze(1)
            with _reading(labels):
                splits.append(Split(inputs, read_label_file(str(labels))))
        return splits[0], splits[1]

    def fetch(root: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, dataset)(root, download=True)

    train_files, test_files = (
        (f"{dataset}/raw/{part}-images-idx3-ubyte", f"{dataset}/raw/{part}-labels-idx1-ubyte")
        for part in ("train", "t10k")
    )
    return _Source(name, train_files, test_files, (1, 28, 28), 60_000, 10_000, 10_000, read, fetch)


def _read_cifar10(root: Path) -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = root / CIFAR10.base_folder
    checksums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    for file, md5 in checksums:
        if not check_integrity(folder / file, md5):
            raise _corrupt([folder / file], "its checksum is wrong")
    with _reading(folder):
        train, test = (CIFAR10(root, train=train) for train in (True, False))
        splits = [
            Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in (train, test)
        ]
    return splits[0], splits[1]


def _fetch_cifar10(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(root, download=True)


def _read_svhn(root: Path) -> tuple[Split, Split]:
    from torchvision.datasets import SVHN

    splits = []
    for part in ("train", "test"):
        with _reading(root / f"{part}_32x32.mat"):
            raw = SVHN(root, split=part)
            splits.append(
                Split(torch.from_numpy(np.ascontiguousarray(raw.data)), torch.from_numpy(raw.labels))
            )
    return splits[0], splits[1]


def _fetch_svhn(root: Path) -> None:
    from torchvision.datasets import SVHN

    for part in ("train", "test"):
        SVHN(root, split=part, download=True)


def _read_cifar10_jpeg(root: Path) -> tuple[Split, Split]:
    pools, _ = _folder_pools(root / "cifar10-jpeg", size=None, channels=3)
    return pools["train"], pools["test"]


# Folders of images


def _folder(
    path: str | os.PathLike[str], size: int | None = None, channels: int = 3, held_out: float = 0.2
) -> Data:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a fraction between 0 and 1, got {held_out!r}")
    pools, classes = _folder_pools(Path(path), size, channels)
    splits = {part: _shuffled(pool) for part, pool in pools.items()}
    made = [part for part in ("val", "test") if part not in splits]
    if made:
        total = len(splits["train"].targets)
        held = round(held_out * total)
        sizes = [held // 2, held - held // 2] if len(made) == 2 else [held]
        if min(*sizes, total - held) < 1:
            raise ValueError(
                f"{path}: {total} training images are too few to hold out {held_out:g} "
                f"for {' and '.join(made)}"
            )
        splits["train"], *rest = _cut(splits["train"], total - held, *sizes)
        splits.update(zip(made, rest, strict=True))
    return _data(splits["train"], splits["val"], splits["test"], classes)


def _folder_pools(path: Path, size: int | None, channels: int) -> tuple[dict[str, Split], int]:
    """Decoded images of each part that is on disk, unshuffled, and the number of classes.

    The tensors are stored under two hashes: one of what was asked for, one of the files' names, sizes and
    times, so that a changed folder replaces its own entry and no other.
    """
    files, targets, classes = _list_images(path)
    stats = ((file, file.stat()) for listed in files.values() for file in listed)
    state = _digest(
        *(f"{file.relative_to(path).as_posix()}|{s.st_size}|{s.st_mtime_ns}" for file, s in stats)
    )
    request = f"folder-{_digest(str(path.absolute()), str(size), str(channels))}"
    stored = _tensors() / f"{request}-{state}.safetensors"
    inputs = _stored(stored, lambda: _decode(files, size, channels), supersedes=f"{request}-*.safetensors")
    return {part: Split(inputs[part], torch.tensor(targets[part])) for part in files}, classes


def _list_images(path: Path) -> tuple[dict[str, list[Path]], dict[str, list[int]], int]:
    """Image files and their labels for each part on disk, and the number of classes."""
    if not path.is_dir():
        raise DataMissing(
            f"no image folder {path}: pass the folder that holds the class folders, or train/ and test/"
        )
    parts = {"train": path}
    if _subfolders(path / "train"):
        names = [folder.name for folder in _subfolders(path)]
        if unexpected := sorted({*names} - {"train", "val", "test"}):
            raise ValueError(
                f"{path} holds {', '.join(unexpected)} beside train: only val and test may be there; "
                "rename or move the others"
            )
        parts = {part: path / part for part in ("train", "val", "test") if part in names}
    classes = [folder.name for folder in _subfolders(parts["train"])]
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{parts['train']} must hold at least two class folders, but there is {found}")
    files: dict[str, list[Path]] = {}
    targets: dict[str, list[int]] = {}
    for part, folder in parts.items():
        files[part], targets[part] = [], []
        for sub in _subfolders(folder):
            if sub.name not in classes:
                raise ValueError(f"{sub} is a class that train does not have{_near(sub.name, classes)}")
            images = sorted(
                file
                for file in sub.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
            )
            if part == "train" and not images:
                raise ValueError(f"class folder {sub} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            files[part] += images
            targets[part] += [classes.index(sub.name)] * len(images)
        if not files[part]:
            raise ValueError(
                f"{folder} holds no images in class folders; without it, {part} is held out of train"
            )
    return files, targets, len(classes)


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _decode(files: dict[str, list[Path]], size: int | None, channels: int) -> dict[str, Tensor]:
    """Images of each part as uint8 (m, channels, H, W), all of one size."""
    from rich.console import Console
    from rich.progress import track

    mode = "L" if channels == 1 else "RGB"
    width, height = (size, size) if size else _open(files["train"][0], mode, None).size
    everything = [file for listed in files.values() for file in listed]
    pixels = torch.empty(len(everything), channels, height, width, dtype=torch.uint8)
    progress = track(
        everything,
        "Decoding images",
        console=Console(stderr=True),
        transient=True,
        disable=len(everything) < _QUIET_BELOW,
    )
    for row, file in zip(pixels, progress, strict=True):
        image = torch.from_numpy(np.array(_open(file, mode, (width, height))))
        row.copy_(image.view(height, width, channels).permute(2, 0, 1))
    parts = torch.split_with_sizes(pixels, [len(listed) for listed in files.values()])
    return dict(zip(files, parts, strict=True))


def _open(file: Path, mode: str, size: tuple[int, int] | None) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as raw:
            if raw.mode.startswith(("I", "F")):
                raise ValueError(
                    f"pixels of mode {raw.mode} would be clipped to 8 bits: convert the image first"
                )
            image = ImageOps.exif_transpose(raw).convert(mode)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"cannot decode {file}: {error}; replace or delete the file") from error
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.BILINEAR)


# Tensors stored on disk


def _tensors() -> Path:
    return data_root() / "tensors"


def _stored(path: Path, build: Callable[[], dict[str, Tensor]], supersedes: str = "") -> dict[str, Tensor]:
    """The tensors in `path`, or else those of `build`, which are then put there.

    A file that cannot be read is built anew; a folder that cannot be written costs the next process the same
    work, nothing else. Both warn. Files beside `path` that match `supersedes` go when it is written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if path.is_file():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"stored tensors {path} cannot be read ({error}): building them again", stacklevel=2
            )
    tensors = build()
    # Written under a name of its own, then renamed: another process sees a whole file or none.
    unfinished = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
        unfinished.replace(path)
        for old in path.parent.glob(supersedes) if supersedes else ():
            if old != path:
                old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"tensors could not be stored in {path} ({error})", stacklevel=2)
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return tensors


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


# Names, options, randomness


class _Entry(NamedTuple):
    loader: Loader
    source: _Source | None = None


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Puts the generators of random, NumPy and torch (CPU) back: MNIST-1D's generator seeds two of them, and
    the mere import of sklearn.datasets draws from one."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _check_options(name: str, loader: Loader, options: dict[str, object]) -> None:
    signature = inspect.signature(loader)
    known = [
        p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in () if takes_any else options:
        if option not in known:
            listed = f"its options: {', '.join(known)}" if known else "it has none"
            raise TypeError(f"data set {name!r} has no option {option!r}{_near(option, known)}; {listed}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise TypeError(f"data set {name!r}: {error}; its options: {', '.join(known)}") from None


def _from_source(source: _Source) -> _Entry:
    return _Entry(partial(_published, source), source)


_SOURCES = (
    _mnist_source("mnist", "MNIST"),
    _mnist_source("fashion-mnist", "FashionMNIST"),
    _Source(
        name="cifar10",
        train_files=(
            *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "cifar-10-batches-py/batches.meta",
        ),
        test_files=("cifar-10-batches-py/test_batch",),
        shape=(3, 32, 32),
        train_count=50_000,
        test_count=10_000,
        held_out=10_000,
        read=_read_cifar10,
        fetch=_fetch_cifar10,
    ),
    _Source(
        name="svhn",
        train_files=("train_32x32.mat",),
        test_files=("test_32x32.mat",),
        shape=(3, 32, 32),
        train_count=73_257,
        test_count=26_032,
        held_out=10_000,
        read=_read_svhn,
        fetch=_fetch_svhn,
    ),
    _Source(
        name="cifar10-jpeg",
        train_files=("cifar10-jpeg/train",),
        test_files=("cifar10-jpeg/test",),
        shape=(3, 32, 32),
        train_count=50_000,
        test_count=10_000,
        held_out=10_000,
        read=_read_cifar10_jpeg,
        fetch=None,
    ),
)

_REGISTRY: dict[str, _Entry] = {
    "digits": _Entry(_digits),
    "mnist1d": _Entry(_mnist1d),
    **{source.name: _from_source(source) for source in _SOURCES},
    "folder": _Entry(_folder),
}

_LOADED: dict[tuple[Loader, Path, tuple[tuple[str, object], ...]], Data] = {}
