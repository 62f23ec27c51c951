"""Image folders: split, decoded once, stored; what is wrong with one is explained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import assert_equal, empty, empty_root, not_idx, numbers, reload, truncate, write_images
from PIL import Image
from torch import Tensor

from lrenv.data import DataCorrupt, DataMissing, load
from lrenv.data import folder as image_folder


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_root(tmp_path / "root", monkeypatch)


def write_folder(path: Path) -> Path:
    """Two classes, cats 0..29 and dogs 30..49, without a split."""
    write_images(path / "cat", range(30))
    write_images(path / "dog", range(30, 50))
    return path


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
    decode = image_folder._decode

    def counted(files: dict[str, list[Path]], size: int | None, channels: int) -> dict[str, Tensor]:
        decoded.append((size, channels))
        return decode(files, size, channels)

    monkeypatch.setattr(image_folder, "_decode", counted)
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


def test_interrupted_write_leaves_nothing(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ValueError, match=r"train has no such folder\) 'cats': did you mean 'cat'"):
        load("folder", path=tmp_path / "split")
    write_images(tmp_path / "split" / "valid" / "cat", range(3))
    with pytest.raises(ValueError, match="holds valid beside train"):
        load("folder", path=tmp_path / "split")


@pytest.mark.parametrize("wrong", [{"channels": 4}, {"size": 0}, {"held_out": 0.0}, {"held_out": 1.0}])
def test_folder_options_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load("folder", path=write_folder(tmp_path / "pets"), **wrong)
