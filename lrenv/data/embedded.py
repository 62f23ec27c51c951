"""Data sets that need no files: digits is a part of scikit-learn, MNIST-1D is generated."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from lrenv.data.store import stored
from lrenv.data.types import Data, Split, with_statistics


def digits(label_noise: float = 0.0) -> Data:
    """Returns scikit-learn's digits: 1,797 images of 8 x 8 pixels with 17 levels of grey.

    Args:
        label_noise: the share of the training labels that are replaced by one of the ten drawn with equal chance.

    Raises:
        ValueError: the share is below 0 or above 1.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    pool = Split(images, torch.from_numpy(bunch.target.astype(np.int64)))
    train, val, test = pool.shuffled().cut(1200, 297, 300)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise} must be a share between 0 and 1")
    if label_noise:
        rng = np.random.default_rng(0)
        wrong = torch.from_numpy(rng.random(len(train.targets)) < label_noise)
        drawn = torch.from_numpy(rng.integers(0, 10, len(train.targets)))
        train = Split(train.inputs, torch.where(wrong, drawn, train.targets))
    return with_statistics(train, val, test, classes=10)


def mnist1d() -> Data:
    """Generates MNIST-1D by its authors' own code and settings, which takes seconds, so its result is stored."""
    tensors = stored("mnist1d", version("mnist1d"), _generate_mnist1d)
    train, test = (Split(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in ("train", "test"))
    train, val = train.shuffled().cut(3000, 1000)
    return with_statistics(train, val, test.shuffled(), classes=10)


def _generate_mnist1d() -> dict[str, Tensor]:
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    return {
        "train.inputs": torch.from_numpy(made["x"]).float(),
        "train.targets": torch.from_numpy(made["y"]).long(),
        "test.inputs": torch.from_numpy(made["x_test"]).float(),
        "test.targets": torch.from_numpy(made["y_test"]).long(),
    }
