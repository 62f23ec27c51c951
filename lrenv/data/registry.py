"""Data sets by name: `load` returns one, and `register_data` adds one."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lrenv.data.embedded import digits, mnist1d
from lrenv.data.folder import folder
from lrenv.data.packaged import co2, doctor_visits, photo, shuttle, text
from lrenv.data.published import SOURCES, Source
from lrenv.data.store import data_root
from lrenv.data.types import Data, Loader
from lrenv.lookup import check_new, lookup, what_is

_LOADERS: dict[str, Loader] = {
    "digits": digits,
    "mnist1d": mnist1d,
    "text": text,
    "shuttle": shuttle,
    "doctor-visits": doctor_visits,
    "co2": co2,
    "photo": photo,
    **{source.name: source for source in SOURCES},
    "folder": folder,
}
"""Name -> the function that loads the set."""
_BUILT_IN = frozenset(_LOADERS)
_LOADED: dict[tuple[Loader, Path, tuple[tuple[str, object], ...]], Data] = {}
"""What `load` has returned so far: (loader, data root, options) -> data set."""


def datasets() -> tuple[str, ...]:
    """Returns the names that `load` takes, those of `register_data` included."""
    return tuple(_LOADERS)


def may_change(name: str) -> bool:
    """Returns whether a set may hold other data under the same name: one of files, or of a loader of one's own."""
    loader = _LOADERS.get(name)
    return name not in _BUILT_IN or loader is folder or isinstance(loader, Source)


def register_data(name: str, loader: Loader, replace_existing: bool = False) -> None:
    """Adds a data set, so that `load(name, **options)` returns `loader(**options)`.

    Args:
        name: the name for `load`.
        loader: called once per combination of options, which must be hashable; it returns a `Data`, such as
            `from_arrays` makes and checks.
        replace_existing: overwrite a data set of the same name, other than lrenv's own, instead of refusing.

    Raises:
        ValueError: the name is taken, or none that specs can hold.
    """
    check_new("data set", name, _LOADERS, _BUILT_IN, replace_existing)
    _LOADERS[name] = loader


def load(name: str, *, download: bool | None = None, **options: object) -> Data:
    """Returns a data set by name, loaded on the first call and then kept in memory for the life of the process.

    | name | train / val / test | inputs |
    |---|---|---|
    | `digits` | 1,200 / 297 / 300 | uint8 (1, 8, 8), 0..16, from scikit-learn |
    | `mnist1d` | 3,000 / 1,000 / 1,000 | float32 (40,), generated (Greydanus & Kobak, arXiv:2011.14439) |
    | `text` | 11,557 / 1,397 / 1,397 | int64 (32,) characters, targets (32,), see `lrenv.data.packaged.text` |
    | `shuttle` | 30,000 / 9,000 / 10,097 | float32 (9,), two classes |
    | `doctor-visits` | 14,000 / 3,000 / 3,190 | float32 (9,), targets are counts |
    | `co2` | 1,300 / 450 / 458 | float32 (52,), targets are numbers |
    | `photo` | 11,872 / 2,544 / 2,544 | float32 (24,), targets (3,) are colours |
    | `mnist` | 50,000 / 10,000 / 10,000 | uint8 (1, 28, 28) |
    | `fashion-mnist` | 50,000 / 10,000 / 10,000 | uint8 (1, 28, 28) |
    | `cifar10` | 40,000 / 10,000 / 10,000 | uint8 (3, 32, 32) |
    | `svhn` | 63,257 / 10,000 / 26,032 | uint8 (3, 32, 32) |
    | `cifar10-jpeg` | 40,000 / 10,000 / 10,000 | uint8 (3, 32, 32), from cifar10-jpeg/{train,test}/<class>/*.jpg |
    | `folder` | see below | uint8 (channels, height, width) |

    The sets that come as files, from mnist to cifar10-jpeg, have an option:

    - `whole_train` (False): train on all training images; the validation split is then the *test* split, so nothing
      may be chosen by it. For reproducing publications that held nothing out.

    Those of `folder`, a folder of images:

    - `path`: holds either one folder per class, or train/ and optionally val/ and test/ that do. Classes are numbered
      in the order of their names in train/.
    - `size`: images are resized to size x size; by default to the size of the first one.
    - `channels` (1 or 3, default 3): grey or RGB.
    - `held_out` (0.2): the fraction of the training images that is held out to make the missing ones of validation and
      test; where both are missing, half of it goes to each.

    Images are decoded once; the tensors are stored below `data_root()/tensors` until a file changes. One `DataWarning`
    names files that are left out, images that lose something (transparency, frames, colours, bits, size), and classes
    of which validation or test has no image.

    Loading does not change the global generators of random, NumPy and torch.

    Args:
        name: one of `datasets()`.
        download: fetch missing files of mnist, fashion-mnist, cifar10 and svhn; by default only if the
            environment variable `LRENV_DOWNLOAD` is 1. Other sets have nothing to fetch.
        **options: as listed, with hashable values. A `path` is made absolute.

    Raises:
        ValueError: the name is unknown, an option is out of range, a folder is not laid out as described, or a class
            has no image to train on.
        TypeError: an option is unknown or missing, or a registered loader returns no `Data`.
        DataMissing: files are not there and may not, or could not, be downloaded.
        DataCorrupt: files are truncated, unreadable, or hold something else than they should.
    """
    loader = lookup(_LOADERS, name, "data set")
    signature = inspect.signature(loader)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise TypeError(f"data set {name!r}: {error}; its options: {known}") from None
    if isinstance(path := options.get("path"), (str, Path)):
        options["path"] = Path(path).expanduser().absolute()
    key = (loader, data_root(), tuple(sorted(options.items())))
    try:
        if key in _LOADED:
            return _LOADED[key]
    except TypeError:
        raise TypeError(f"options of data set {name!r} must be hashable, got {options!r}") from None
    with _randomness_kept():
        if isinstance(loader, Source):
            loader.provide(download)
        data = loader(**options)
    if not isinstance(data, Data):
        raise TypeError(f"the loader of {name!r} must return lrenv.data.Data, got {what_is(data)}")
    _LOADED[key] = data
    return data


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Restores the states of the generators of random, NumPy and torch (CPU) at the end of the block.

    The code that generates MNIST-1D seeds two of them, and importing sklearn.datasets draws from one.
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
