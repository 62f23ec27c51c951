"""Small data files for tests, all of whose images can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrenv.data import Data, Split, load, registry


def empty_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Until the test ends: no data files, no memory of loaded ones, no downloads, a registry of one's own."""
    monkeypatch.setenv("LRENV_DATA", str(folder))
    monkeypatch.delenv("LRENV_DOWNLOAD", raising=False)
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    monkeypatch.setattr(registry, "_LOADED", {})
    return folder


def numbered(first: int, count: int, channels: int, side: int) -> np.ndarray[Any, Any]:
    """Images (count, channels, side, side) whose every pixel is their own number: `numbers` reads it back."""
    ids = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(ids[:, None, None, None], (count, channels, side, side)).copy()


def numbers(split: Split) -> list[int]:
    return [int(x) for x in split.inputs.flatten(1)[:, 0]]


def write_images(folder: Path, numbers: range, side: int = 6) -> None:
    """PNGs, all of whose pixels are (number, 2 x number, 0)."""
    folder.mkdir(parents=True)
    for i in numbers:
        Image.new("RGB", (side, side), (i, 2 * i, 0)).save(folder / f"{i:03}.png")


def assert_equal(a: Data, b: Data) -> None:
    for x, y in zip(a[:3], b[:3], strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.targets, y.targets)
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.std, b.std)
    assert a.classes == b.classes


def reload(name: str, **options: Any) -> Data:
    registry._LOADED.clear()
    return load(name, **options)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_idx(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 100)
