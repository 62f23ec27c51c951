"""Data sets that come with lrenv: what they hold, and that nothing leaks from one split to another."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lrenv.data import DataCorrupt, Split, from_arrays, load, packaged


def test_text_targets_are_the_characters_that_follow() -> None:
    every, last = load("text", context=24), load("text", context=24, every=False)
    assert every.classes == every.outputs == last.classes == 103
    assert every.train.inputs.dtype == torch.int64
    assert every.tokens
    for split in every[:3]:
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
    assert last.train.targets.ndim == 1
    assert every.train.inputs.shape[1] == every.train.targets.shape[1] == last.train.inputs.shape[1] == 24
    windows = {tuple(x): y for x, y in zip(every.val.inputs.tolist(), every.val.targets[:, -1].tolist(), strict=True)}
    shown = zip(last.val.inputs.tolist(), last.val.targets.tolist(), strict=True)
    same = [windows[tuple(x)] == y for x, y in shown if tuple(x) in windows]
    assert len(same) > 100
    assert np.mean(same) > 0.99  # but for short pieces that occur in several places


def test_text_splits_share_no_block() -> None:
    """Lines that are repeated in the text, as those of tables are, may stand in two of them."""
    data = load("text", context=200)
    train = {tuple(x) for x in data.train.inputs.tolist()}
    held_out = data.val.inputs.tolist() + data.test.inputs.tolist()
    assert sum(tuple(x) in train for x in held_out) < 0.03 * len(held_out)


@pytest.mark.parametrize("context", [0, packaged.BLOCK])
def test_text_refuses_a_context_that_no_block_holds(context: int) -> None:
    with pytest.raises(ValueError, match=r"context=.*block"):
        load("text", context=context)


def test_tables_are_standardised_by_their_training_rows() -> None:
    for name in ("shuttle", "doctor-visits"):
        train = load(name).train.inputs.double()
        assert train.mean(0).abs().max() < 1e-5
        assert (train.std(0, correction=0) - 1).abs().max() < 1e-5
    assert 0.06 < load("shuttle").train.targets.double().mean() < 0.08


def test_doctor_visits_are_counts() -> None:
    data = load("doctor-visits")
    assert data.classes == 0
    assert data.outputs == 1
    assert torch.equal(data.train.targets, data.train.targets.round())
    assert data.train.targets.min() == 0


def test_co2_splits_follow_one_another_in_time() -> None:
    values = [float(row[1]) if row[1] not in ("", "nan") else np.nan for row in packaged._table("mauna-loa-co2.csv")]
    data = load("co2")
    assert [len(split.targets) for split in data[:3]] == [1300, 450, 458]
    number = len(values) - 52 - packaged.HORIZON
    begin = number - len(data.test.targets)
    change = np.array([values[i + 52 + packaged.HORIZON] - values[i + 52] for i in range(begin, number)])
    there = change[np.isfinite(change)]
    assert set(there.round(3)) <= set(data.test.targets.double().numpy().round(3))
    assert np.isfinite(change).mean() > 0.95


def test_co2_targets_are_known_before_the_next_split_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a series of squares, an input and its target tell their weeks."""
    table = [[str(week), str(week**2)] for week in range(2284)]
    monkeypatch.setattr(packaged, "_table", lambda name: table)
    train, val, test = packaged.co2()[:3]

    def forecast(split: Split) -> torch.Tensor:
        """The week in which each forecast is made: the change since the week before is twice it, less 1."""
        return (1 - split.inputs[:, -1]) / 2

    for earlier, later in ((train, val), (val, test)):
        known = forecast(earlier) + packaged.HORIZON
        assert torch.equal(earlier.targets, known**2 - forecast(earlier) ** 2)
        assert known.max() < forecast(later).min()


def test_photo_has_a_colour_for_each_place() -> None:
    data = load("photo", octaves=1)
    assert data.outputs == 3
    assert data.train.targets.min() >= 0
    assert data.train.targets.max() <= 1
    sin, cos = data.train.inputs.double().chunk(2, 1)
    assert (sin**2 + cos**2 - 1).abs().max() < 1e-5
    assert data.target_std.shape == (3,)
    torch.testing.assert_close(data.target_std, data.train.targets.std(0, correction=0))
    seen = (1000 * torch.cat([split.inputs for split in data[:3]])).round().long()
    assert len(seen.unique(dim=0)) == 106 * 160, "two places look the same"
    with pytest.raises(ValueError, match="octaves=0"):
        load("photo", octaves=0)


def test_label_noise_changes_that_share_of_training_labels_alone() -> None:
    clean, noisy = load("digits"), load("digits", label_noise=0.5)
    assert torch.equal(clean.train.inputs, noisy.train.inputs)
    assert 0.40 < (clean.train.targets != noisy.train.targets).double().mean() < 0.50  # a tenth is drawn as it was
    for kept, other in zip(clean[1:3], noisy[1:3], strict=True):
        assert torch.equal(kept.targets, other.targets)
    with pytest.raises(ValueError, match=r"label_noise=1\.5"):
        load("digits", label_noise=1.5)


def test_a_damaged_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "FILES", tmp_path)
    packaged._content.cache_clear()
    try:
        with pytest.raises(DataCorrupt, match="install lrenv again"):
            packaged._content("shuttle.csv")
        (tmp_path / "shuttle.csv.gz").write_bytes(gzip.compress(b"something else"))
        with pytest.raises(DataCorrupt, match="something else"):
            packaged._content("shuttle.csv")
    finally:
        packaged._content.cache_clear()


def test_files_name_their_source_and_licence() -> None:
    told = (packaged.FILES / "README.md").read_text()
    assert {path.name for path in packaged.FILES.glob("*.gz")} == {f"{name}.gz" for name in packaged.SHA256}
    assert all(f"`{name}.gz`" in told for name in packaged.SHA256)
    assert sum(path.stat().st_size for path in packaged.FILES.iterdir()) < 2**20


def test_arrays_of_numbers_sequences_and_tokens() -> None:
    x, ids = np.random.default_rng(0).normal(size=(6, 3)), np.arange(18).reshape(6, 3)
    numbers = from_arrays(x, x[:, 0], x, x[:, 0], x, x[:, 0])
    assert (numbers.classes, numbers.outputs, numbers.train.targets.dtype) == (0, 1, torch.float32)
    several = from_arrays(x, x[:, :2], x, x[:, :2], x, x[:, :2])
    assert (several.outputs, several.target_std.shape) == (2, (2,))
    tokens = from_arrays(ids, ids, ids, ids, ids, ids)
    assert (tokens.classes, tokens.tokens, tokens.train.inputs.dtype) == (18, True, torch.int64)
    assert (float(tokens.mean), float(tokens.std)) == (0, 1)
    vocabulary = from_arrays(ids, ids * 2, ids, ids, ids, ids, classes=40)
    assert vocabulary.classes == 40
    tags = np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]  # one word of each sequence is marked
    assert torch.equal(from_arrays(ids, tags, ids, tags, ids, tags).train.targets, torch.from_numpy(tags))
    for inputs in (x, ids[:, :2]):
        with pytest.raises(ValueError, match="look like one-hot rows"):
            from_arrays(inputs, tags, inputs, tags, inputs, tags)
    quantities = from_arrays(ids, ids[:, 0] % 2, ids, ids[:, 0] % 2, ids, ids[:, 0] % 2, normalise=True)
    assert quantities.train.inputs.dtype == torch.float32
    assert not quantities.tokens


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_targets": np.zeros((6, 2, 2))}, ValueError, "pass inputs"),
        ({"train_targets": np.full(6, np.nan)}, ValueError, "not finite"),
        ({"val_targets": np.zeros((6, 2))}, ValueError, "targets of val are"),
        ({"classes": 3}, ValueError, "targets are floats"),
        ({"train_inputs": -np.ones((6, 3), int)}, ValueError, "token ids are 0 or more"),
        ({"test_targets": np.zeros(6, int)}, ValueError, "use one shape and type"),
    ],
)
def test_targets_that_can_not_be_meant(changes: dict[str, object], error: type[Exception], message: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    given: dict[str, object] = {}
    for part in ("train", "val", "test"):
        given |= {f"{part}_inputs": x, f"{part}_targets": x[:, 0]}
    with pytest.raises(error, match=message):
        from_arrays(**(given | changes))  # type: ignore[arg-type]
