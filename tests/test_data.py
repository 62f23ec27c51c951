"""Data sets: splits are disjoint, complete and fixed; files are checked; folders are decoded once."""

from __future__ import annotations

import hashlib
import pickle
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lrenv import data
from lrenv.data import Data, DataCorrupt, DataMissing, Split, from_arrays, load, register_data

TRAIN, TEST, HELD_OUT = 70, 20, 10


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data folder and an empty memory; downloads not allowed, the registry restored afterwards."""
    folder = tmp_path / "root"
    monkeypatch.setenv("LRENV_DATA", str(folder))
    monkeypatch.delenv("LRENV_DOWNLOAD", raising=False)
    monkeypatch.setattr(data, "_REGISTRY", dict(data._REGISTRY))
    monkeypatch.setattr(data, "_LOADED", {})
    yield folder


def shrink(name: str, **changes: Any) -> None:
    """Makes the published set `name` expect the small files these tests write."""
    source = data._REGISTRY[name].source
    assert source is not None
    small = {"train_count": TRAIN, "test_count": TEST, "held_out": HELD_OUT, **changes}
    data._REGISTRY[name] = data._from_source(source._replace(**small))


def numbered(first: int, count: int, channels: int, side: int) -> np.ndarray[Any, Any]:
    """Images (count, channels, side, side) whose every pixel is their own number: `numbers` reads it back."""
    ids = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(ids[:, None, None, None], (count, channels, side, side)).copy()


def numbers(split: Split) -> list[int]:
    return [int(x) for x in split.inputs.flatten(1)[:, 0]]


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


def write_images(folder: Path, numbers: range, side: int = 6) -> None:
    """PNGs, all of whose pixels are (number, 2 x number, 0)."""
    folder.mkdir(parents=True)
    for i in numbers:
        Image.new("RGB", (side, side), (i, 2 * i, 0)).save(folder / f"{i:03}.png")


def write_folder(path: Path) -> Path:
    """Two classes, cats 0..29 and dogs 30..49, without a split."""
    write_images(path / "cat", range(30))
    write_images(path / "dog", range(30, 50))
    return path


def assert_equal(a: Data, b: Data) -> None:
    for x, y in zip(a[:3], b[:3], strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.targets, y.targets)
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.std, b.std)
    assert a.classes == b.classes


def reload(name: str, **options: Any) -> Data:
    data._LOADED.clear()
    return load(name, **options)


# Embedded sets


def test_digits_are_the_1797_images_of_scikit_learn_each_in_one_split() -> None:
    from sklearn.datasets import load_digits

    loaded = load("digits")
    assert [len(s.targets) for s in loaded[:3]] == [1200, 297, 300]
    assert loaded.train.inputs.shape[1:] == (1, 8, 8)
    assert loaded.train.inputs.dtype == torch.uint8
    images = torch.cat([s.inputs for s in loaded[:3]]).flatten(1)
    labels = torch.cat([s.targets for s in loaded[:3]])
    got = sorted([*image, label] for image, label in zip(images.tolist(), labels.tolist(), strict=True))
    bunch = load_digits()
    assert got == sorted([*image, label] for image, label in zip(bunch.data, bunch.target, strict=True))


def test_digits_are_normalised_by_their_training_images_alone() -> None:
    loaded = load("digits")
    train = loaded.train.inputs.double()
    torch.testing.assert_close(loaded.mean, train.mean().float().view(1, 1, 1))
    torch.testing.assert_close(loaded.std, train.std(correction=0).float().view(1, 1, 1))


def test_order_of_the_splits_does_not_depend_on_the_numpy_version() -> None:
    pool = Split(torch.arange(8), torch.arange(8))
    assert data._shuffled(pool).targets.tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_mnist1d_is_the_published_set_and_is_stored() -> None:
    loaded = load("mnist1d")
    assert [tuple(s.inputs.shape) for s in loaded[:3]] == [(3000, 40), (1000, 40), (1000, 40)]
    assert loaded.mean.shape == loaded.std.shape == ()
    # The authors' generator at its defaults: seed 42, 500 examples a class, whitened as a whole.
    everything = torch.cat([s.inputs for s in loaded[:3]])
    labels = torch.cat([s.targets for s in loaded[:3]])
    assert labels.bincount().tolist() == [500] * 10
    torch.testing.assert_close(everything.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(everything.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    normal = (loaded.train.inputs - loaded.mean) / loaded.std
    torch.testing.assert_close(normal.var(correction=0), torch.tensor(1.0))

    def fail() -> dict[str, Tensor]:
        raise AssertionError("generated again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_generate_mnist1d", fail)
        assert_equal(loaded, reload("mnist1d"))


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_loading_leaves_global_random_state_alone(name: str) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    load(name)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


# Published sets


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


def test_pixels_keep_their_channel_and_statistics_are_per_channel(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_idx(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 100)


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


# Folders of images


def test_folder_without_split_is_cut_into_disjoint_fixed_parts(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    (path / "cat" / "Thumbs.db").write_bytes(b"not an image")
    (path / "cat" / "._001.png").write_bytes(b"not an image")
    (path / ".git").mkdir()
    loaded = load("folder", path=path)
    assert [len(s.targets) for s in loaded[:3]] == [40, 5, 5]
    ids = [numbers(split) for split in loaded[:3]]
    assert sorted(i for its in ids for i in its) == list(range(50))
    for split, its in zip(loaded[:3], ids, strict=True):
        assert split.targets.tolist() == [int(i >= 30) for i in its]
        assert split.inputs.shape[1:] == (3, 6, 6)
    assert ids[0] != sorted(ids[0])
    assert (loaded.train.inputs[:, 1] == 2 * loaded.train.inputs[:, 0]).all()
    assert (loaded.train.inputs[:, 2] == 0).all()
    assert_equal(reload("folder", path=str(path)), loaded)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [(["test"], [24, 6, 10]), (["val"], [24, 10, 6]), (["val", "test"], [30, 10, 10]), ([], [24, 3, 3])],
)
def test_what_is_missing_is_held_out_of_train(tmp_path: Path, given: list[str], sizes: list[int]) -> None:
    for part, first, count in (("train", 0, 15), ("val", 100, 5), ("test", 110, 5)):
        if part == "train" or part in given:
            write_images(tmp_path / "set" / part / "a", range(first, first + count))
            write_images(tmp_path / "set" / part / "b", range(first + count, first + 2 * count))
    loaded = load("folder", path=tmp_path / "set")
    ids = dict(zip(("train", "val", "test"), (numbers(split) for split in loaded[:3]), strict=True))
    assert [len(its) for its in ids.values()] == sizes
    from_train = [i for part, its in ids.items() if part not in given for i in its]
    assert sorted(from_train) == list(range(30))
    if "val" in given:
        assert sorted(ids["val"]) == list(range(100, 110))
    if "test" in given:
        assert sorted(ids["test"]) == list(range(110, 120))


def test_folder_named_train_may_be_a_class(tmp_path: Path) -> None:
    write_images(tmp_path / "vehicles" / "bus", range(10))
    write_images(tmp_path / "vehicles" / "train", range(10, 20))
    loaded = load("folder", path=tmp_path / "vehicles")
    assert loaded.classes == 2
    assert sum(len(s.targets) for s in loaded[:3]) == 20


def test_folder_size_and_channels(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    Image.new("RGB", (9, 5), (7, 14, 0)).save(path / "dog" / "wide.png")
    assert load("folder", path=path).train.inputs.shape[1:] == (3, 6, 6)
    grey = load("folder", path=path, size=4, channels=1)
    assert grey.train.inputs.shape[1:] == (1, 4, 4)
    assert grey.mean.shape == (1, 1, 1)
    # ITU-R 601 luma of (i, 2i, 0).
    expected = sorted(round(0.299 * i + 0.587 * 2 * i) for i in [*range(50), 7])
    got = sorted(i for split in grey[:3] for i in numbers(split))
    assert np.abs(np.subtract(got, expected)).max() <= 1


def test_folder_is_decoded_once_until_a_file_changes(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "pets")
    decoded = []
    decode = data._decode

    def counted(files: dict[str, list[Path]], size: int | None, channels: int) -> dict[str, Tensor]:
        decoded.append((size, channels))
        return decode(files, size, channels)

    monkeypatch.setattr(data, "_decode", counted)
    first = load("folder", path=path)
    assert_equal(reload("folder", path=path), first)
    assert len(reload("folder", path=path, held_out=0.5).train.targets) == 25
    assert decoded == [(None, 3)]
    reload("folder", path=path, size=4)
    assert decoded == [(None, 3), (4, 3)]

    Image.new("RGB", (6, 6), (200, 0, 0)).save(path / "cat" / "000.png")
    changed = reload("folder", path=path)
    assert len(decoded) == 3
    ids = [i for split in changed[:3] for i in numbers(split)]
    assert sorted(ids) == [*range(1, 50), 200]
    # The changed folder's old tensors are gone, those of the other size and no unfinished ones remain.
    assert len(list((root / "tensors").iterdir())) == 2
    assert all(file.suffix == ".safetensors" for file in (root / "tensors").iterdir())


@pytest.mark.parametrize("damage", [truncate, empty, not_idx])
def test_corrupt_stored_tensors_are_built_again_with_a_warning(
    tmp_path: Path, root: Path, damage: Callable[[Path], None]
) -> None:
    path = write_folder(tmp_path / "pets")
    first = load("folder", path=path)
    (stored,) = (root / "tensors").iterdir()
    damage(stored)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        again = reload("folder", path=path)
    assert str(stored) in str(caught[0].message)
    assert_equal(again, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(reload("folder", path=path), first)


def test_unwritable_store_costs_nothing_but_a_warning(tmp_path: Path, root: Path) -> None:
    path = write_folder(tmp_path / "pets")
    root.mkdir()
    (root / "tensors").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be stored"):
        assert load("folder", path=path).classes == 2


def test_interrupted_write_leaves_nothing(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: dict[str, Tensor], file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("folder", path=write_folder(tmp_path / "pets"))
    assert list((root / "tensors").iterdir()) == []


def halve(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("damage", [halve, empty, not_idx])
def test_unreadable_image_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_folder(tmp_path / "pets")
    damage(path / "dog" / "041.png")
    with pytest.raises(DataCorrupt, match=r"041\.png"):
        load("folder", path=path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    Image.fromarray(np.full((6, 6), 40_000, dtype=np.uint16)).save(path / "dog" / "deep.png")
    with pytest.raises(DataCorrupt, match=r"deep\.png.*clipped to 8 bits"):
        load("folder", path=path)


def test_folder_layouts_that_make_no_sense_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no image folder"):
        load("folder", path=tmp_path / "nowhere")
    write_images(tmp_path / "single" / "cat", range(3))
    with pytest.raises(ValueError, match="two class folders, but there is only 'cat'"):
        load("folder", path=tmp_path / "single")
    write_images(tmp_path / "tiny" / "cat", range(2))
    write_images(tmp_path / "tiny" / "dog", range(2))
    with pytest.raises(ValueError, match=r"too few to hold out 0\.2 for val and test"):
        load("folder", path=tmp_path / "tiny")
    (tmp_path / "tiny" / "mouse").mkdir()
    with pytest.raises(ValueError, match="mouse holds no images"):
        load("folder", path=tmp_path / "tiny")
    write_images(tmp_path / "split" / "train" / "cat", range(3))
    write_images(tmp_path / "split" / "train" / "dog", range(3))
    write_images(tmp_path / "split" / "test" / "cats", range(3))
    with pytest.raises(ValueError, match=r"class that train does not have.*'cat'"):
        load("folder", path=tmp_path / "split")
    write_images(tmp_path / "split" / "valid" / "cat", range(3))
    with pytest.raises(ValueError, match="holds valid beside train"):
        load("folder", path=tmp_path / "split")


@pytest.mark.parametrize("wrong", [{"channels": 4}, {"size": 0}, {"held_out": 0.0}, {"held_out": 1.0}])
def test_folder_options_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load("folder", path=write_folder(tmp_path / "pets"), **wrong)


# Names, options, plug-ins


def test_unknown_names_and_options_list_the_near_ones() -> None:
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        load("mnst")
    with pytest.raises(TypeError, match=r"no option 'whole_trian'.*'whole_train'"):
        load("mnist", whole_trian=True)
    with pytest.raises(TypeError, match=r"no option 'size'.*it has none"):
        load("digits", size=4)
    with pytest.raises(TypeError, match="'path'"):
        load("folder")


def test_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.data_root() == root
    monkeypatch.setenv("LRENV_DATA", "~/sets")
    assert data.data_root() == Path.home() / "sets"
    monkeypatch.delenv("LRENV_DATA")
    assert data.data_root() == Path.home() / ".cache" / "lrenv" / "data"


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    given: dict[str, Any] = {}
    for part, count in (("train", 12), ("val", 6), ("test", 3)):
        given[f"{part}_inputs"] = rng.normal(3, 2, (count, 4))
        given[f"{part}_targets"] = np.arange(count) % 3
    return given | changes


def test_registered_sets_load_by_name_once_per_option() -> None:
    calls = []

    def loader(scale: float = 1.0) -> Data:
        calls.append(scale)
        given = arrays()
        return from_arrays(**given | {"train_inputs": given["train_inputs"] * scale})

    register_data("mine", loader)
    assert "mine" in data.datasets()
    assert load("mine") is load("mine")
    assert load("mine", scale=2.0) is not load("mine")
    assert calls == [1.0, 2.0]
    with pytest.raises(TypeError, match="hashable"):
        load("mine", scale=[1.0])
    with pytest.raises(ValueError, match="replace=True"):
        register_data("mine", loader)
    register_data("mine", lambda: 3, replace=True)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"must return lrenv\.data\.Data, got int"):
        load("mine")


# One's own arrays


def test_from_arrays_copies_converts_and_normalises() -> None:
    given = arrays()
    made = from_arrays(**given)
    x = given["train_inputs"].copy()
    given["train_inputs"][:] = 0
    assert made.train.inputs.dtype == torch.float32
    assert made.train.targets.dtype == torch.int64
    torch.testing.assert_close(made.train.inputs, torch.from_numpy(x).float())
    assert made.classes == 3
    torch.testing.assert_close(made.mean, torch.tensor(x.mean()).float())
    torch.testing.assert_close(made.std, torch.tensor(x.std()).float())


def test_constant_inputs_are_centred_and_not_blown_up() -> None:
    constant = {
        f"{part}_inputs": np.full((m, 7), 0.1) for part, m in (("train", 12), ("val", 6), ("test", 3))
    }
    made = from_arrays(**arrays(**constant))
    assert made.std.item() == 1
    torch.testing.assert_close((made.val.inputs - made.mean) / made.std, torch.zeros(6, 7), atol=1e-7, rtol=0)


def test_from_arrays_without_normalisation_leaves_batches_as_they_stand() -> None:
    made = from_arrays(**arrays(), normalize=False)
    assert torch.equal((made.val.inputs - made.mean) / made.std, made.val.inputs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_get_the_statistics_of_each_channel(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12, 3, 5, 4), generator=generator).to(dtype)
    made = from_arrays(**arrays(train_inputs=images, val_inputs=images[:6], test_inputs=images[:3]))
    assert made.train.inputs.dtype == dtype
    normal = (images.double() - made.mean) / made.std
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(3).double())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"val_targets": np.arange(5) % 3}, ValueError, "val has 6 inputs but 5 targets"),
        ({"test_inputs": np.zeros((0, 4)), "test_targets": np.zeros(0, int)}, ValueError, "test is empty"),
        (
            {"train_inputs": np.full((12, 4), np.nan)},
            ValueError,
            "train inputs hold values that are not finite",
        ),
        ({"train_inputs": np.full((12, 4), 1e300)}, ValueError, "not finite in float32"),
        ({"train_inputs": np.full((12, 4), 1j)}, TypeError, "real numbers"),
        ({"train_inputs": np.array([["a"]])}, TypeError, "train inputs must be a tensor or an array"),
        ({"train_inputs": np.zeros(12)}, ValueError, r"\(m, \*shape\)"),
        ({"val_inputs": np.zeros((6, 5))}, ValueError, r"val and train differ in shape: \(5,\) and \(4,\)"),
        ({"train_targets": np.arange(12) / 12}, TypeError, "integer class labels"),
        ({"train_targets": np.eye(12, dtype=int)}, ValueError, "not one-hot"),
        ({"test_targets": np.array([0, -1, 2])}, ValueError, "label -1"),
        ({"test_targets": np.array([0, 3, 2])}, ValueError, r"test targets hold class 3.*only 0\.\.2"),
        ({"train_targets": np.zeros(12, int)}, ValueError, "at least two classes"),
    ],
)
def test_from_arrays_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_arrays(**arrays(**changes))


def test_from_arrays_refuses_images_of_two_scales() -> None:
    images = np.zeros((12, 1, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="use one scale"):
        from_arrays(**arrays(train_inputs=images, val_inputs=images[:6] / 255, test_inputs=images[:3]))


def test_to_moves_every_tensor() -> None:
    made = from_arrays(**arrays())
    moved = made.to("meta")
    tensors = [t for split in moved[:3] for t in split] + [moved.mean, moved.std]
    assert {t.device.type for t in tensors} == {"meta"}
    assert [t.shape for split in moved[:3] for t in split] == [t.shape for split in made[:3] for t in split]
    assert made.to("cpu").train.inputs is made.train.inputs
