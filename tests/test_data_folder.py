"""Image folders: split, decoded once, stored; what is wrong with one is explained."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import assert_equal, empty, empty_root, not_idx, numbers, reload, truncate, write_images
from PIL import Image
from torch import Tensor

from lrenv.data import IMAGE_SUFFIXES, DataCorrupt, DataMissing, DataWarning, load
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
    with pytest.warns(DataWarning, match=r"resized to 6 x 6 pixels, as the first image: 'dog/wide\.png'"):
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


def random_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))


def with_alpha(alpha: int) -> Image.Image:
    image = random_image()
    image.putalpha(alpha)
    return image


def turned(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image().save(file, exif=exif)


def deep_png(file: Path) -> None:
    """RGB with 16 bits a channel, which Pillow reads and doesn't write."""
    rows = b"".join(b"\0" + np.full((6, 3), 4_660, ">u2").tobytes() for _ in range(6))
    header = struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    with file.open("ab") as out:
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            out.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))


def animated(file: Path) -> None:
    random_image().save(file, save_all=True, append_images=[with_alpha(255).convert("RGB").rotate(90)])


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("clear.png", lambda file: with_alpha(100).save(file), "transparency dropped"),
        ("clear.gif", lambda file: with_alpha(0).save(file), "transparency dropped"),
        ("print.jpg", lambda file: random_image().convert("CMYK").save(file), "colours converted from CMYK"),
        ("print.tif", lambda file: random_image().convert("CMYK").save(file), "colours converted from CMYK"),
        ("deep.png", deep_png, "cut from 16 to 8 bits per channel"),
        ("moving.gif", animated, "only the first frame taken"),
        ("moving.png", animated, "only the first frame taken"),
        ("moving.webp", animated, "only the first frame taken"),
        ("pages.tif", animated, "only the first frame taken"),
        ("turned.jpg", turned, "turned as their EXIF data say"),
        ("large.png", lambda file: random_image().resize((9, 9)).save(file), "resized to 6 x 6 pixels"),
        ("opaque.png", lambda file: with_alpha(255).save(file), None),
        ("palette.png", lambda file: random_image().convert("P").save(file), None),
        ("grey.png", lambda file: random_image().convert("L").save(file), None),
        ("bits.png", lambda file: random_image().convert("1").save(file), None),
        ("photo.jfif", lambda file: random_image().save(file, "jpeg"), None),
        ("PHOTO.JPE", lambda file: random_image().save(file, "jpeg"), None),
    ],
)
def test_what_an_image_loses_is_told_each_time(
    tmp_path: Path, name: str, write: Callable[[Path], None], told: str | None
) -> None:
    """Also when the tensors come out of the store."""
    path = write_folder(tmp_path / "pets")
    write(path / "dog" / name)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = reload("folder", path=path)
        assert sum(len(s.targets) for s in loaded[:3]) == 51
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (told is not None)
        if told is not None:
            assert caught[0].category is DataWarning
            assert f"{told}" in messages[0]
            assert f"'dog/{name}'" in messages[0]


def test_who_asks_for_a_size_is_not_told_of_it(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    random_image().resize((9, 9)).save(path / "dog" / "large.png")
    assert load("folder", path=path, size=5).train.inputs.shape[1:] == (3, 5, 5)


def test_the_suffixes_are_those_of_torchvision_and_more() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) <= IMAGE_SUFFIXES
    Image.init()
    for suffix in IMAGE_SUFFIXES:
        assert Image.registered_extensions()[suffix] in Image.OPEN
    jpeg = {suffix for suffix, kind in Image.registered_extensions().items() if kind == "JPEG"}
    assert jpeg <= IMAGE_SUFFIXES


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    for i in range(5):
        (path / "cat" / f"{i}.heic").write_bytes(b"an image of a kind that isn't read")
    random_image().save(path / "lost.png")
    (path / "README.txt").write_text("about the pets")
    (path / "dog" / ".hidden").mkdir()
    random_image().save(path / "dog" / ".hidden" / "a.png")
    (path / "dog" / "linked").symlink_to(path / "cat")
    with pytest.warns(DataWarning) as caught:
        loaded = load("folder", path=path)
    assert sum(len(s.targets) for s in loaded[:3]) == 50
    (message,) = (str(warning.message) for warning in caught)
    assert "'cat/0.heic', 'cat/1.heic', 'cat/2.heic' and 3 more" in message
    assert "in no class folder: 'lost.png'" in message
    assert "README" not in message


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    (path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataCorrupt, match=r"gone\.png: No such file"):
        load("folder", path=path)


def test_classes_that_can_not_be_learned_or_measured(tmp_path: Path) -> None:
    """Of 60, 2 and 1 images one in five is held out: the last class has none to train on."""
    path = tmp_path / "rare"
    for name, first, end in (("a", 0, 60), ("b", 60, 62), ("c", 62, 63)):
        write_images(path / name, range(first, end))
    with pytest.raises(ValueError, match=r"class 'c' has too few images: none is left to train on when 0\.2"):
        load("folder", path=path)
    (path / "c" / "062.png").rename(path / "b" / "062.png")
    (path / "c").rmdir()
    with pytest.warns(DataWarning, match="test has no image of class 'b'$"):
        loaded = load("folder", path=path)
    assert (loaded.train.targets == 1).any()


def test_a_class_that_a_given_split_lacks_is_told(tmp_path: Path) -> None:
    for part, names in (("train", "ab"), ("val", "ab"), ("test", "a")):
        for k, name in enumerate(names):
            write_images(tmp_path / "set" / part / name, range(10 * k, 10 * k + 5))
    with pytest.warns(DataWarning, match="test has no image of class 'b'$"):
        load("folder", path=tmp_path / "set")


def test_images_beyond_all_memory_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"need [0-9,]+ GiB, and cpu has [0-9,]+: about [0-9]+ fit; pass a"):
        load("folder", path=write_folder(tmp_path / "pets"), size=10**8)


def test_a_class_of_other_files_says_which(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets")
    (path / "bird").mkdir()
    (path / "bird" / "a.heic").write_bytes(b"an image of a kind that isn't read")
    with pytest.raises(ValueError, match=r"bird holds no images .*but 'a\.heic'"):
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


@pytest.mark.parametrize(
    "wrong", [{"channels": 4}, {"size": 0}, {"size": 2.5}, {"size": "32"}, {"held_out": 0.0}, {"held_out": 1.0}]
)
def test_folder_options_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load("folder", path=write_folder(tmp_path / "pets"), **wrong)
