"""Data sets: those without files, names and options, one's own arrays."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import assert_equal, empty_root, reload
from torch import Tensor

from lrenv.data import Data, DataWarning, Split, data_root, datasets, embedded, from_arrays, load, register_data


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_root(tmp_path / "root", monkeypatch)


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
    assert pool.shuffled().targets.tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


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
        patch.setattr(embedded, "_generate_mnist1d", fail)
        assert_equal(loaded, reload("mnist1d"))


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_loading_leaves_global_random_state_alone(name: str) -> None:
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    load(name)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected  # noqa: NPY002


# Names, options, plug-ins


def test_unknown_names_and_options_list_the_near_ones() -> None:
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        load("mnst")
    with pytest.raises(TypeError, match=r"'whole_trian'; its options: whole_train"):
        load("mnist", whole_trian=True)
    with pytest.raises(TypeError, match=r"'size'; its options: label_noise"):
        load("digits", size=4)
    with pytest.raises(TypeError, match="'path'"):
        load("folder")


def test_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_root() == root
    monkeypatch.setenv("LRENV_DATA", "~/sets")
    assert data_root() == Path.home() / "sets"
    monkeypatch.delenv("LRENV_DATA")
    assert data_root() == Path.home() / ".cache" / "lrenv" / "data"


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
    assert "mine" in datasets()
    assert load("mine") is load("mine")
    assert load("mine", scale=2.0) is not load("mine")
    assert calls == [1.0, 2.0]
    with pytest.raises(TypeError, match="hashable"):
        load("mine", scale=[1.0])
    with pytest.raises(ValueError, match="a data set 'mine' exists; choose another name or pass replace_existing=True"):
        register_data("mine", loader)
    for name, message in (("a b:c=1", "a data set can't be named 'a b:c=1'"), ("digits", "lrenv's own")):
        for replace_existing in (False, True):
            with pytest.raises(ValueError, match=message):
                register_data(name, loader, replace_existing)
    register_data("mine", lambda: 3, replace_existing=True)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"must return lrenv\.data\.Data, got an int"):
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


def test_columns_of_unlike_scales_are_told() -> None:
    given = arrays()
    scaled = {name: x * [1.0, 1e4, 1, 0] for name, x in given.items() if name.endswith("inputs")}
    with pytest.warns(DataWarning, match=r"column 1 of the inputs has a range of .*e\+0\d, column [02] .*standard"):
        made = from_arrays(**given | scaled)
    assert made.std.ndim == 0
    from_arrays(**given | scaled, normalise=False)
    from_arrays(**given | {name: given[name] * [1.0, 20, 1, 0] for name in scaled})


def test_constant_inputs_are_centred_and_not_blown_up() -> None:
    constant = {f"{part}_inputs": np.full((m, 7), 0.1) for part, m in (("train", 12), ("val", 6), ("test", 3))}
    made = from_arrays(**arrays(**constant))
    assert made.std.item() == 1
    torch.testing.assert_close((made.val.inputs - made.mean) / made.std, torch.zeros(6, 7), atol=1e-7, rtol=0)


def test_from_arrays_without_normalisation_leaves_batches_as_they_stand() -> None:
    made = from_arrays(**arrays(), normalise=False)
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
        ({"val_targets": np.arange(5) % 3}, ValueError, r"val inputs have shape \(6, 4\), targets \(5,\)"),
        (
            {"test_inputs": np.zeros((0, 4)), "test_targets": np.zeros(0, int)},
            ValueError,
            "every split needs at least one example",
        ),
        (
            {"train_inputs": np.full((12, 4), np.nan)},
            ValueError,
            "train inputs hold values that are not finite",
        ),
        ({"train_inputs": np.full((12, 4), 1e300)}, ValueError, "not finite in float32"),
        ({"train_inputs": np.full((12, 4), 1j)}, TypeError, "real numbers"),
        ({"train_inputs": np.array([["a"]])}, TypeError, "train inputs must be a tensor or an array"),
        ({"train_inputs": np.zeros(12)}, ValueError, r"\(m, \*shape\)"),
        (
            {"val_inputs": np.zeros((6, 5))},
            ValueError,
            r"of val are torch.float32 \(5,\), of train torch.float32 \(4,\)",
        ),
        ({"train_targets": np.arange(12) / 12}, ValueError, "targets of val are torch.int64.*of train torch.float32"),
        ({"train_targets": np.zeros(12, bool)}, TypeError, "integer class labels"),
        ({"train_targets": np.eye(12, dtype=int)}, ValueError, "one-hot"),
        ({"test_targets": np.array([0, -1, 2])}, ValueError, "label -1"),
        ({"test_targets": np.array([0, 3, 2])}, ValueError, r"test targets hold class 3.*only 0\.\.2"),
        ({"train_targets": np.zeros(12, int)}, ValueError, "at least two classes"),
        ({"classes": 1}, ValueError, "classes=1: a classification task needs at least two classes"),
        ({"classes": 2}, ValueError, r"train targets hold class 2.*only 0\.\.1 by classes=2"),
        ({"classes": 0}, ValueError, "classes must be at least 1, not 0"),
        ({"classes": 2.5}, TypeError, r"classes must be an integer, not 2\.5"),
        ({"train_targets": np.array([0, 1, 3] * 4)}, ValueError, "no class 2, though they go up to 3.*without gaps"),
        ({"train_targets": np.array([0, 1, 10**9] * 4)}, ValueError, "no class 2, though they go up to 1000000000"),
        ({"train_targets": np.array([None] * 12)}, TypeError, "train targets must be a tensor or an array"),
        ({"train_inputs": np.array([[None] * 4] * 12)}, TypeError, "train inputs must be a tensor or an array"),
        ({"train_inputs": [[1.0], [1.0, 2.0]]}, TypeError, "train inputs must be a tensor or an array"),
        ({"val_targets": [0, 1, 2, 0, 1, 2.0]}, ValueError, "targets of val are torch.float32"),
        ({"val_inputs": np.full((6, 4), -np.inf)}, ValueError, "val inputs hold values that are not finite"),
        (
            {"test_inputs": np.full((3, 4, 1), 2**24 + 1)},
            ValueError,
            "test inputs hold integers that float32 would round",
        ),
        ({"train_inputs": np.ma.masked_less(np.zeros((12, 4)), 1)}, TypeError, "train inputs are masked"),
    ],
)
def test_from_arrays_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_arrays(**arrays(**changes))


def test_from_arrays_refuses_images_of_two_scales() -> None:
    images = np.zeros((12, 1, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="use one shape and type"):
        from_arrays(**arrays(train_inputs=images, val_inputs=images[:6] / 255, test_inputs=images[:3]))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float16, np.bool_])
def test_numbers_of_any_type_become_float32(dtype: Any) -> None:
    images = np.arange(12 * 16).reshape(12, 1, 4, 4).astype(dtype)
    made = from_arrays(**arrays(train_inputs=images, val_inputs=images[:6], test_inputs=images[:3]))
    assert made.train.inputs.dtype == torch.float32
    np.testing.assert_array_equal(made.train.inputs.numpy(), images.astype(np.float64))


def test_classes_that_can_not_be_measured_are_told() -> None:
    with pytest.warns(DataWarning, match="of 3 classes val has no example of 2, as 0; test has no example of 1, as 2"):
        from_arrays(**arrays(val_targets=np.ones(6, int), test_targets=np.array([0, 1, 1])))


def test_to_moves_every_tensor() -> None:
    made = from_arrays(**arrays())
    moved = made.to("meta")
    tensors = [t for split in moved[:3] for t in split] + [moved.mean, moved.std]
    assert {t.device.type for t in tensors} == {"meta"}
    assert [t.shape for split in moved[:3] for t in split] == [t.shape for split in made[:3] for t in split]
    assert made.to("cpu").train.inputs is made.train.inputs
