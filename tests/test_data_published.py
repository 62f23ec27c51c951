"""Published sets: splits are disjoint, complete and fixed; files are checked and fetched only on request."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import (
    assert_equal,
    empty,
    empty_root,
    not_idx,
    numbered,
    numbers,
    reload,
    truncate,
    write_images,
)

from lrenv.data import DataCorrupt, DataMissing, load, registry

TRAIN, TEST, HELD_OUT = 70, 20, 10


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_root(tmp_path / "root", monkeypatch)


def shrink(name: str, **changes: Any) -> None:
    """Makes the published set `name` expect the small files these tests write."""
    small = {"counts": (TRAIN, TEST), "held_out": HELD_OUT, **changes}
    registry._LOADERS[name] = replace(registry._LOADERS[name], **small)  # type: ignore[type-var]


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, dataset: str = "MNIST") -> Path:
    raw = root / dataset / "raw"
    for part, first, count in (("train", 0, TRAIN), ("t10k", TRAIN, TEST)):
        write_idx(raw / f"{part}-images-idx3-ubyte", numbered(first, count, 1, 28)[:, 0])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(first, first + count) % 10)
    return raw


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def dump(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def batch(file: str, first: int, count: int) -> list[str]:
        pixels = numbered(first, count, 3, 32)
        pixels[:, 1] = 100
        labels = [i % 10 for i in range(first, first + count)]
        return dump(file, {"data": pixels.reshape(count, -1), "labels": labels})

    per_batch = TRAIN // 5
    train = [batch(f"data_batch_{i + 1}", i * per_batch, per_batch) for i in range(5)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", TRAIN, TEST)])
    file, md5 = dump("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": file, "key": "label_names", "md5": md5})
    return folder


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True)
    checksums = {}
    for part, first, count in (("train", 0, TRAIN), ("test", TRAIN, TEST)):
        file = root / f"{part}_32x32.mat"
        labels = np.arange(first, first + count) % 10
        pixels = numbered(first, count, 3, 32).transpose(2, 3, 1, 0)
        # SVHN's own files call the digit 0 class 10.
        savemat(file, {"X": pixels, "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
        checksums[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", checksums)


def files_of(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match name:
        case "mnist":
            write_mnist(root)
        case "fashion-mnist":
            write_mnist(root, "FashionMNIST")
        case "cifar10":
            write_cifar10(root, monkeypatch)
        case "svhn":
            write_svhn(root, monkeypatch)
    shrink(name)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
def test_published_splits_are_disjoint_complete_shuffled_and_fixed(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of(name, root, monkeypatch)
    loaded = load(name)
    train, val, test = (numbers(split) for split in loaded[:3])
    assert [len(train), len(val), len(test)] == [TRAIN - HELD_OUT, HELD_OUT, TEST]
    assert sorted(train + val) == list(range(TRAIN))
    assert sorted(test) == list(range(TRAIN, TRAIN + TEST))
    for split, ids in zip(loaded[:3], (train, val, test), strict=True):
        assert split.targets.tolist() == [i % 10 for i in ids]
        assert split.targets.dtype == torch.int64
        assert ids != sorted(ids)
    assert load(name) is loaded
    assert_equal(reload(name), loaded)


def test_pixels_keep_their_channel_and_statistics_are_per_channel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of("cifar10", root, monkeypatch)
    loaded = load("cifar10")
    ids = torch.tensor(numbers(loaded.train), dtype=torch.float64)
    assert (loaded.val.inputs[:, 1] == 100).all()
    assert loaded.mean.shape == loaded.std.shape == (3, 1, 1)
    torch.testing.assert_close(
        loaded.mean.flatten().double(), torch.stack([ids.mean(), ids.mean() * 0 + 100, ids.mean()])
    )
    # The constant channel would divide by zero: its std is 1.
    torch.testing.assert_close(loaded.std[0].item(), ids.std(correction=0).item())
    assert loaded.std[1].item() == 1


def test_whole_train_uses_every_training_image_and_validates_on_test(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of("mnist", root, monkeypatch)
    loaded = load("mnist", whole_train=True)
    assert sorted(numbers(loaded.train)) == list(range(TRAIN))
    assert numbers(loaded.val) == numbers(loaded.test)
    assert numbers(loaded.test) == numbers(load("mnist").test)


def test_missing_files_are_named_with_the_ways_to_bring_them(root: Path) -> None:
    raw = write_mnist(root)
    shrink("mnist")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataMissing) as caught:
        load("mnist")
    message = str(caught.value)
    assert "1 of 4" in message
    assert "MNIST/raw/t10k-labels-idx1-ubyte" in message
    assert "train-images" not in message
    for way in (str(root), "LRENV_DOWNLOAD=1", "lrenv download mnist", "LRENV_DATA"):
        assert way in message


def test_download_only_on_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(folder: Path) -> None:
        fetched.append(folder)
        write_mnist(folder)

    shrink("mnist", fetch=fetch)
    with pytest.raises(DataMissing):
        load("mnist")
    monkeypatch.setenv("LRENV_DOWNLOAD", "1")
    with pytest.raises(DataMissing):
        load("mnist", download=False)
    assert not fetched
    loaded = load("mnist")
    assert fetched == [root]
    assert load("mnist", download=True) is loaded
    reload("mnist", download=True)
    assert fetched == [root]


def test_failed_download_is_missing_data_with_its_cause() -> None:
    cause = ConnectionError("no route to host")

    def fetch(folder: Path) -> None:
        raise cause

    shrink("cifar10", fetch=fetch)
    with pytest.raises(DataMissing, match=r"no route to host[\s\S]*lrenv download cifar10") as caught:
        load("cifar10", download=True)
    assert caught.value.__cause__ is cause


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def too_few(path: Path) -> None:
    write_idx(path, np.zeros((TRAIN - 1, *([28, 28] if "images" in path.name else []))))


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [truncate, lengthen, empty, not_idx, too_few])
def test_damaged_idx_file_is_named(root: Path, file: str, damage: Callable[[Path], None]) -> None:
    raw = write_mnist(root)
    shrink("mnist")
    damage(raw / file)
    with pytest.raises(DataCorrupt, match="download again") as caught:
        load("mnist")
    assert str(raw / file) in str(caught.value)


def test_labels_out_of_range_are_corrupt(root: Path) -> None:
    raw = write_mnist(root)
    shrink("mnist")
    write_idx(raw / "t10k-labels-idx1-ubyte", np.full(TEST, 10))
    with pytest.raises(DataCorrupt, match="labels run from 10 to 10, expected 0 to 9"):
        load("mnist")


def test_real_counts_are_enforced(root: Path) -> None:
    write_mnist(root)
    with pytest.raises(DataCorrupt, match=r"expected torch.uint8 \(60000, 1, 28, 28\)"):
        load("mnist")


def test_damaged_cifar_batch_and_svhn_matrix_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of("svhn", root, monkeypatch)
    root.rename(root.with_name("svhn"))
    files_of("cifar10", root, monkeypatch)
    truncate(root / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(DataCorrupt, match="data_batch_3: its checksum is wrong"):
        load("cifar10")
    monkeypatch.setenv("LRENV_DATA", str(root.with_name("svhn")))
    truncate(root.with_name("svhn") / "test_32x32.mat")
    with pytest.raises(DataCorrupt, match=r"svhn.test_32x32\.mat: cannot be read"):
        load("svhn")


def test_cifar10_jpeg_reads_class_folders_in_order_of_name(root: Path) -> None:
    for i, name in enumerate("abcdefghij"):
        write_images(root / "cifar10-jpeg" / "train" / name, range(7 * i, 7 * i + 7), side=32)
        write_images(root / "cifar10-jpeg" / "test" / name, range(70 + 2 * i, 72 + 2 * i), side=32)
    shrink("cifar10-jpeg")
    loaded = load("cifar10-jpeg")
    assert sorted(numbers(loaded.train) + numbers(loaded.val)) == list(range(70))
    assert loaded.val.targets.tolist() == [i // 7 for i in numbers(loaded.val)]
    assert loaded.test.targets.tolist() == [(i - 70) // 2 for i in numbers(loaded.test)]


def test_cifar10_jpeg_cannot_be_downloaded() -> None:
    with pytest.raises(DataMissing) as caught:
        load("cifar10-jpeg", download=True)
    assert "cifar10-jpeg/train" in str(caught.value)
    assert "lrenv download" not in str(caught.value)
