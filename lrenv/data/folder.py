"""Image folders: one folder per class, with or without splits, decoded once.

One `DataWarning` names files that are left out and images that lose something, also where the tensors come from the
store. Images that can't be decoded, and folders that can't be learned from, raise an error.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrenv.data.store import digest, stored
from lrenv.data.types import Data, DataCorrupt, DataMissing, DataWarning, Split, absent_classes, with_statistics
from lrenv.lookup import lookup
from lrenv.runtime.memory import check_fits

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""The suffixes of image files: those of torchvision's image folders, GIF, and the other names of JPEG.

Other files are left out, with a warning."""
_NO_DATA = frozenset({"thumbs.db", "desktop.ini"})
"""The names of files that file managers make; they are left out without a warning, as hidden files are."""
_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"})
"""Pillow's modes that become grey or RGB without loss, transparency aside."""
_QUIET_BELOW = 2_000
"""The number of images, about a second of decoding, below which no progress bar is shown."""
_ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""
_FORMAT = 2
"""The version of the stored tensors; with another number they are decoded again."""
_NAMED = 3
"""The number of files of a kind that a warning names."""


class Folder(NamedTuple):
    """The contents of a folder of images."""

    pools: dict[str, Split]
    """Each part that is on disk, in order of class and name."""
    classes: list[str]
    notes: list[str]
    """A clause per kind of thing that was left out or lost something."""


def folder(path: str | os.PathLike[str], size: int | None = None, channels: int = 3, held_out: float = 0.2) -> Data:
    """Returns a folder of images as a data set; `lrenv.data.load` describes the options.

    Raises:
        ValueError: an option out of range, a folder that is not laid out as described there, or a class without an
            image to train on.
        DataMissing: no such folder.
        DataCorrupt: an image that cannot be decoded.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a fraction between 0 and 1, got {held_out!r}")
    pools, classes, notes = read_folder(Path(path), size, channels)
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
    absent = {part: [classes[i] for i in absent_classes(split, len(classes))] for part, split in splits.items()}
    if absent["train"]:
        raise ValueError(
            f"{path}: class {_some(absent['train'])} has too few images: none is left to train on when {held_out:g} is "
            f"held out for {' and '.join(missing)}; add images, or make train/, val/ and test/ yourself"
        )
    notes += [f"{part} has no image of class {_some(names)}" for part, names in absent.items() if names]
    warn_about(path, notes)
    return with_statistics(splits["train"], splits["val"], splits["test"], len(classes))


def warn_about(path: str | os.PathLike[str], notes: list[str]) -> None:
    """Issues one `DataWarning` with all notes about a folder, if there are any."""
    if notes:
        warnings.warn(f"images of {os.fspath(path)}: {'; '.join(notes)}", DataWarning, stacklevel=3)


def read_folder(path: Path, size: int | None, channels: int) -> Folder:
    """Returns the decoded images of a folder.

    The version under which the tensors are stored is a hash of the files' names, sizes and times, so that a changed
    folder replaces its own entry and no other.

    Args:
        path: the folder.
        size: the width and height that images get; None for those of the first one.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: the folder is not laid out as `lrenv.data.load` describes.
        DataMissing: there is no such folder.
        DataCorrupt: an image cannot be decoded.
    """
    listed, classes, notes = _list_images(path)
    files = {part: [file for file, _ in images] for part, images in listed.items()}
    try:
        stats = [(file, file.stat()) for images in files.values() for file in images]
    except OSError as error:
        raise DataCorrupt(f"cannot read {error.filename}: {error.strerror}; replace or delete it") from error
    state = digest([_FORMAT, *(f"{f.relative_to(path).as_posix()}|{s.st_size}|{s.st_mtime_ns}" for f, s in stats)])
    name = f"folder-{digest([path.absolute(), size, channels])}"
    held = stored(name, state, partial(_decode, files, size, channels))
    notes += [
        f"{what}: {_some(str(Path(file).relative_to(path.absolute())) for file in changed)}"
        for what, changed in json.loads(bytes(held["notes"].tolist())).items()
    ]
    targets = {part: torch.tensor([label for _, label in images]) for part, images in listed.items()}
    return Folder({part: Split(held[part], targets[part]) for part in listed}, classes, notes)


def _some(names: Iterable[str]) -> str:
    """Returns the first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + rest


def _list_images(path: Path) -> tuple[dict[str, list[tuple[Path, int]]], list[str], list[str]]:
    """Returns image files and their labels for each part on disk, the classes, and notes on what was left out."""
    parts = _parts(path)
    labels = {sub.name: label for label, sub in enumerate(_subfolders(parts["train"]))}
    if len(labels) < 2:
        found = f"only {next(iter(labels))!r}" if labels else "none"
        raise ValueError(f"{parts['train']} must hold at least two class folders, but there is {found}")
    listed: dict[str, list[tuple[Path, int]]] = {part: [] for part in parts}
    others: list[Path] = []
    stray = [file for where in {path, *parts.values()} for file in where.iterdir() if _is_image(file)]
    for part, where in parts.items():
        for sub in _subfolders(where):
            label = lookup(labels, sub.name, f"class in {where} (train has no such folder)")
            images, rest = _contents(sub)
            others += rest
            if part == "train" and not images:
                found = f", but {_some(file.name for file in rest)}" if rest else ""
                raise ValueError(f"class folder {sub} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){found}")
            listed[part] += [(file, label) for file in images]
        if not listed[part]:
            raise ValueError(f"{where} holds no images: remove it, then {part} is held out of train")
    left_out = {
        f"left out, since they don't end in one of {', '.join(sorted(IMAGE_SUFFIXES))} or are links to folders": others,
        "left out, since they lie in no class folder": stray,
    }
    notes = [
        f"{why}: {_some(str(f.relative_to(path)) for f in sorted(files))}" for why, files in left_out.items() if files
    ]
    return listed, list(labels), notes


def _parts(path: Path) -> dict[str, Path]:
    """Returns part -> the folder that holds its class folders."""
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
    named = file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    broken_link = file.is_symlink() and not file.exists()  # which reading will refuse
    return named and (file.is_file() or broken_link)


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images below a class folder in order of their names, and the other files that are not hidden."""

    def refuse(error: OSError) -> None:
        raise DataCorrupt(f"cannot read {error.filename}: {error.strerror}") from error

    images: list[Path] = []
    others: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        others += [link for name in folders if (link := Path(where, name)).is_symlink()]
        for name in files:
            if not name.startswith(".") and name.lower() not in _NO_DATA:
                file = Path(where, name)
                (images if _is_image(file) else others).append(file)
    return sorted(images), others


def _decode(files: dict[str, list[Path]], size: int | None, channels: int) -> dict[str, Tensor]:
    """Returns images of each part as uint8 (m, channels, H, W), all of one size, and as JSON what decoding changed."""
    from rich.console import Console
    from rich.progress import track

    mode = "L" if channels == 1 else "RGB"
    width, height = (size, size) if size else _open(files["train"][0], mode)[0].size
    everything = [file for listed in files.values() for file in listed]
    what, number = f"{len(everything)} images of {width} x {height} pixels", len(everything)
    check_fits(what, number, lambda n: n * channels * height * width, torch.device("cpu"), "pass a smaller size")
    pixels = torch.empty(len(everything), channels, height, width, dtype=torch.uint8)
    notes: dict[str, list[str]] = {}
    quiet, console = len(everything) < _QUIET_BELOW, Console(stderr=True)
    shown = track(everything, "Decoding images", console=console, transient=True, disable=quiet)
    for row, file in zip(pixels, shown, strict=True):
        image, changes = _open(file, mode)
        if image.size != (width, height):
            if size is None:  # who asks for a size knows
                changes.append(f"resized to {width} x {height} pixels, as the first image")
            image = _resized(image, (width, height))
        for change in changes:
            notes.setdefault(change, []).append(str(file.absolute()))
        row.copy_(torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1))
    decoded = dict(zip(files, pixels.split_with_sizes([len(listed) for listed in files.values()]), strict=True))
    return decoded | {"notes": torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)}


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    return image.resize(size, Image.Resampling.BILINEAR)


def _open(file: Path, mode: str) -> tuple[Image.Image, list[str]]:
    """Returns an image in its own size, upright, and notes on what decoding changed."""
    from PIL import Image, ImageOps

    changes = []
    try:
        with Image.open(file) as raw:
            if raw.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {raw.mode} would be clipped to 8 bits: convert it first")
            if getattr(raw, "is_animated", False):
                changes.append("only the first frame taken")
            if any(";16" in str(tile) for tile in raw.tile):
                changes.append("cut from 16 to 8 bits per channel")
            if raw.mode not in _EIGHT_BITS:
                changes.append(f"colours converted from {raw.mode}")
            if raw.getexif().get(_ORIENTATION, 1) != 1:
                changes.append("turned as their EXIF data say")
            upright = ImageOps.exif_transpose(raw)
            if upright.has_transparency_data and upright.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                changes.append("transparency dropped")
            image = upright.convert(mode)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"cannot decode {file}: {error}; replace or delete the file") from error
    return image, changes
