"""Image folders: one folder per class, with or without a split, decoded once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lrenv.data.store import digest, stored
from lrenv.data.types import Data, DataCorrupt, DataMissing, Split, with_statistics
from lrenv.lookup import lookup

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_QUIET_BELOW = 2_000
"""Images: about a second of decoding. Fewer show no progress bar."""


def folder(path: str | os.PathLike[str], size: int | None = None, channels: int = 3, held_out: float = 0.2) -> Data:
    """A folder of images as a data set; `lrenv.data.load` describes the options.

    Raises:
        ValueError: an option out of range, or a folder that is not laid out as described there.
        DataMissing: no such folder.
        DataCorrupt: an image that cannot be decoded.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a fraction between 0 and 1, got {held_out!r}")
    pools, classes = read_folder(Path(path), size, channels)
    splits = {part: pool.shuffled() for part, pool in pools.items()}
    if missing := [part for part in ("val", "test") if part not in splits]:
        total = len(splits["train"].targets)
        held = round(held_out * total)
        sizes = [held] if len(missing) == 1 else [held // 2, held - held // 2]
        if min(*sizes, total - held) < 1:
            wanted = f"{held_out:g} for {' and '.join(missing)}"
            raise ValueError(f"{path}: {total} training images are too few to hold out {wanted}")
        parts = splits["train"].cut(total - held, *sizes)
        splits.update(zip(["train", *missing], parts, strict=True))
    return with_statistics(splits["train"], splits["val"], splits["test"], classes)


def read_folder(path: Path, size: int | None, channels: int) -> tuple[dict[str, Split], int]:
    """Decoded images of each part that is on disk, in order of class and name, and the number of classes.

    The version under which the tensors are stored comes from the files' names, sizes and times, so that a
    changed folder replaces its own entry and no other.
    """
    listed, classes = _list_images(path)
    stats = [(file, file.stat()) for images in listed.values() for file, _ in images]
    state = digest(f"{file.relative_to(path).as_posix()}|{s.st_size}|{s.st_mtime_ns}" for file, s in stats)
    files = {part: [file for file, _ in images] for part, images in listed.items()}
    name = f"folder-{digest([path.absolute(), size, channels])}"
    inputs = stored(name, state, partial(_decode, files, size, channels))
    targets = {part: torch.tensor([label for _, label in images]) for part, images in listed.items()}
    return {part: Split(inputs[part], targets[part]) for part in listed}, classes


def _list_images(path: Path) -> tuple[dict[str, list[tuple[Path, int]]], int]:
    """Image files and their labels for each part on disk, and the number of classes."""
    parts = _parts(path)
    labels = {sub.name: label for label, sub in enumerate(_subfolders(parts["train"]))}
    if len(labels) < 2:
        found = f"only {next(iter(labels))!r}" if labels else "none"
        raise ValueError(f"{parts['train']} must hold at least two class folders, but there is {found}")
    listed: dict[str, list[tuple[Path, int]]] = {part: [] for part in parts}
    for part, where in parts.items():
        for sub in _subfolders(where):
            label = lookup(labels, sub.name, f"class in {where} (train has no such folder)")
            images = sorted(file for file in sub.rglob("*") if _is_image(file))
            if part == "train" and not images:
                raise ValueError(f"class folder {sub} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            listed[part] += [(file, label) for file in images]
        if not listed[part]:
            raise ValueError(f"{where} holds no images: remove it, then {part} is held out of train")
    return listed, len(labels)


def _parts(path: Path) -> dict[str, Path]:
    """Part -> the folder that holds its class folders."""
    if not path.is_dir():
        raise DataMissing(f"no image folder {path}: pass the one that holds the class folders, or train/")
    if not _subfolders(path / "train"):
        return {"train": path}
    names = {sub.name for sub in _subfolders(path)}
    if unexpected := sorted(names - {"train", "val", "test"}):
        others = ", ".join(unexpected)
        raise ValueError(f"{path} holds {others} beside train: rename or move what is not val or test")
    return {part: path / part for part in ("train", "val", "test") if part in names}


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _decode(files: dict[str, list[Path]], size: int | None, channels: int) -> dict[str, Tensor]:
    """Images of each part as uint8 (m, channels, H, W), all of one size."""
    from rich.console import Console
    from rich.progress import track

    mode = "L" if channels == 1 else "RGB"
    width, height = (size, size) if size else _open(files["train"][0], mode).size
    everything = [file for listed in files.values() for file in listed]
    pixels = torch.empty(len(everything), channels, height, width, dtype=torch.uint8)
    quiet, console = len(everything) < _QUIET_BELOW, Console(stderr=True)
    shown = track(everything, "Decoding images", console=console, transient=True, disable=quiet)
    for row, file in zip(pixels, shown, strict=True):
        image = torch.from_numpy(np.array(_open(file, mode, (width, height))))
        row.copy_(image.view(height, width, channels).permute(2, 0, 1))
    return dict(zip(files, pixels.split_with_sizes([len(listed) for listed in files.values()]), strict=True))


def _open(file: Path, mode: str, size: tuple[int, int] | None = None) -> Image.Image:
    """An image of (width, height) pixels, or of its own size."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as raw:
            if raw.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {raw.mode} would be clipped to 8 bits: convert it first")
            image = ImageOps.exif_transpose(raw).convert(mode)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"cannot decode {file}: {error}; replace or delete the file") from error
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.BILINEAR)
