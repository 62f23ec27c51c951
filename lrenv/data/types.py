"""What a data set is: three splits, and statistics that normalise them; how one's own arrays become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class DataMissing(FileNotFoundError):
    """Files of a data set are not there, or could not be downloaded."""


class DataCorrupt(ValueError):
    """Files of a data set are there, but truncated, unreadable or not what they should be."""


class DataWarning(UserWarning):
    """Something of a data set was left out, changed on the way, or can't be measured; the message says what."""


class Split(NamedTuple):
    """One part of a data set: m examples and their classes."""

    inputs: Tensor
    """(m, *shape): uint8 for images (C, H, W), float32 otherwise."""
    targets: Tensor
    """(m,) int64 class labels in 0..classes-1."""

    def shuffled(self) -> Split:
        """The same examples in a fixed random order."""
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(self.targets)))
        return Split(self.inputs[order], self.targets[order])

    def cut(self, *sizes: int) -> list[Split]:
        """Consecutive parts of the given sizes, which add up to the whole."""
        parts = zip(self.inputs.split_with_sizes(sizes), self.targets.split_with_sizes(sizes), strict=True)
        return [Split(inputs, targets) for inputs, targets in parts]


class Data(NamedTuple):
    """A data set. A batch `x` is normalised as `(x - mean) / std`.

    Values are shared between all callers of `load`: treat them as constants.
    """

    train: Split
    val: Split
    test: Split
    mean: Tensor
    """float32, in the units of the stored inputs (0..255 for most images), from the train split alone;
    (C, 1, 1) if an example has the three axes of an image, () otherwise."""
    std: Tensor
    """As `mean`; 1 where the training inputs do not vary."""
    classes: int
    """The number of classes; 0 if there are none, and then nothing reads the targets."""

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`; tensors that are there already are not copied."""
        train, val, test = (Split(s.inputs.to(device), s.targets.to(device)) for s in self[:3])
        return Data(train, val, test, self.mean.to(device), self.std.to(device), self.classes)


Loader: TypeAlias = Callable[..., Data]
"""Options, as keyword arguments, to a data set."""


def absent_classes(split: Split, classes: int) -> list[int]:
    """The classes that a split has no example of."""
    return sorted(set(range(classes)) - set(split.targets.unique().tolist()))


def with_statistics(train: Split, val: Split, test: Split, classes: int) -> Data:
    """Adds the mean and standard deviation of the train split, taken in double precision."""
    images = train.inputs.ndim == 4
    channels = train.inputs.unbind(1) if images else (train.inputs,)
    mean, var = torch.stack([_moments(channel) for channel in channels]).T
    # Less spread than float32 resolves is rounding, which a division would blow up.
    std = torch.where(var.sqrt() > torch.finfo(torch.float32).eps * mean.abs(), var.sqrt(), 1.0)
    shape = (-1, 1, 1) if images else ()
    return Data(train, val, test, mean.float().view(shape), std.float().view(shape), classes)


def _moments(values: Tensor) -> Tensor:
    """Mean and variance, (2,) float64."""
    if values.dtype == torch.uint8:
        # A histogram needs no float copy of the images, which could be gigabytes.
        share = values.flatten().bincount(minlength=256).double() / values.numel()
        levels = torch.arange(256, dtype=torch.float64)
        mean = share @ levels
        return torch.stack([mean, share @ (levels - mean) ** 2])
    var, mean = torch.var_mean(values.double(), correction=0)
    return torch.stack([mean, var])


def from_arrays(
    train_inputs: ArrayLike | Tensor,
    train_targets: ArrayLike | Tensor,
    val_inputs: ArrayLike | Tensor,
    val_targets: ArrayLike | Tensor,
    test_inputs: ArrayLike | Tensor,
    test_targets: ArrayLike | Tensor,
    *,
    normalize: bool = True,
) -> Data:
    """A `Data` from one's own arrays, checked and copied to the CPU.

    Parts of a validation split serve as probes, so pass it in a shuffled order.

    A class that validation or test has no example of is told in a `DataWarning`.

    Args:
        train_inputs: (m, *shape). uint8 images (m, C, H, W) stay uint8; everything else becomes float32.
        train_targets: (m,) integers 0..classes-1, each of them at least once.
        val_inputs: as `train_inputs`.
        val_targets: as `train_targets`, with no other classes.
        test_inputs: as `train_inputs`.
        test_targets: as `val_targets`.
        normalize: take mean and standard deviation from the training inputs (per channel where an example has
            three axes); otherwise they are 0 and 1, and batches are used as they stand.

    Raises:
        TypeError: inputs that are not real numbers, or targets that are not integers.
        ValueError: an empty split, inputs and targets of different length, examples of different shape,
            values that are not finite or integers that float32 would round, labels outside 0..classes-1, a class
            without a training example, or fewer than two classes.
    """
    train = _checked("train", train_inputs, train_targets)
    val = _checked("val", val_inputs, val_targets)
    test = _checked("test", test_inputs, test_targets)
    classes = int(train.targets.max()) + 1
    if classes < 2:
        raise ValueError("train targets hold only class 0: a classification task needs at least two classes")
    present = train.targets.unique()  # sorted
    if len(present) < classes:
        gap = int((present != torch.arange(len(present))).nonzero()[0])
        raise ValueError(
            f"train targets hold no class {gap}, though they go up to {classes - 1}: number the classes without gaps"
        )
    expected = _example(train)
    for part, split in (("val", val), ("test", test)):
        if (found := _example(split)) != expected:
            raise ValueError(f"examples of {part} are {found}, of train {expected}: use one shape and scale")
        if (largest := int(split.targets.max())) >= classes:
            raise ValueError(f"{part} targets hold class {largest}, train targets only 0..{classes - 1}")
    absent = {part: absent_classes(split, classes) for part, split in (("val", val), ("test", test))}
    if told := [f"{part} has no example of {len(labels)}, as {labels[0]}" for part, labels in absent.items() if labels]:
        warnings.warn(f"of {classes} classes {'; '.join(told)}", DataWarning, stacklevel=2)
    data = with_statistics(train, val, test, classes)
    if not normalize:
        data = data._replace(mean=torch.zeros_like(data.mean), std=torch.ones_like(data.std))
    return data


def _checked(part: str, inputs: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> Split:
    """A split that is right by itself."""
    x, y = _copy(f"{part} inputs", inputs), _copy(f"{part} targets", targets)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{part} targets must be integer class labels, got {y.dtype}: convert them to int64")
    if x.is_complex():
        raise TypeError(f"{part} inputs must be real numbers, got {x.dtype}")
    shapes = f"{part} inputs have shape {tuple(x.shape)}, targets {tuple(y.shape)}"
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"{shapes}: pass (m, *shape) and (m,), class labels and not one-hot rows")
    if x.numel() == 0:
        raise ValueError(f"{shapes}: every split needs at least one example")
    y = y.long()
    if y.min() < 0:
        raise ValueError(f"{part} targets hold the label {int(y.min())}: labels run from 0 to classes-1")
    if x.dtype != torch.uint8 or x.ndim != 4:
        if not x.is_floating_point() and not torch.equal(x.float().long(), x.long()):
            raise ValueError(f"{part} inputs hold integers that float32 would round: rescale them")
        x = x.float()
        if not x.isfinite().all():
            raise ValueError(f"{part} inputs hold values that are not finite in float32: rescale them")
    return Split(x, y)


def _example(split: Split) -> str:
    return f"{split.inputs.dtype} {tuple(split.inputs.shape[1:])}"


def _copy(what: str, array: ArrayLike | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu().clone()
    if np.ma.is_masked(array):
        raise TypeError(f"{what} are masked: fill in what is missing")
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a tensor or an array of numbers: {error}") from error
