"""The type of a data set, `Data`: three splits and the statistics that normalise them; `from_arrays` makes one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lrenv.lookup import count

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

UNLIKE = 100
"""How many times the range of one column another one's is from which on a table is not normalised as a whole."""


class DataMissing(FileNotFoundError):
    """An error: files of a data set are not there, or could not be downloaded."""


class DataCorrupt(ValueError):
    """An error: files of a data set are there, but truncated, unreadable or not what they should be."""


class DataWarning(UserWarning):
    """A warning: a part of a data set was left out or changed, can't be measured, or needs scaling; it says what."""


class Split(NamedTuple):
    """One part of a data set: m examples and their targets."""

    inputs: Tensor
    """(m, *shape): uint8 for images (C, H, W), int64 for token ids, float32 otherwise."""
    targets: Tensor
    """Class labels in 0..classes-1, int64: (m,), or (m, L) for the L places of a sequence. Numbers, float32: (m,) or
    (m, d)."""

    def shuffled(self) -> Split:
        """Returns the same examples in a fixed random order."""
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(self.targets)))
        return Split(self.inputs[order], self.targets[order])

    def cut(self, *sizes: int) -> list[Split]:
        """Returns consecutive parts of the given sizes, which must add up to the whole."""
        parts = zip(self.inputs.split_with_sizes(sizes), self.targets.split_with_sizes(sizes), strict=True)
        return [Split(inputs, targets) for inputs, targets in parts]


class Data(NamedTuple):
    """A data set, whose batches x are normalised as (x - mean) / std.

    Values are shared between all callers of `load`, so they must not be changed.
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
    """The number of classes; 0 where targets are numbers, or where nothing reads them."""

    @property
    def outputs(self) -> int:
        """The number of outputs that a network must have, per example or per place of a sequence."""
        targets = self.train.targets
        return math.prod(targets.shape[1:]) if targets.is_floating_point() else self.classes

    @property
    def tokens(self) -> bool:
        """Whether inputs are token ids, which are not normalised and stay integers."""
        return _are_tokens(self.train.inputs)

    @property
    def target_std(self) -> Tensor:
        """The standard deviation of the training targets where they are numbers, () or (d,); 1 where they don't vary.

        It is the unit in which outputs of different tasks can be compared.
        """
        targets = self.train.targets
        if not targets.is_floating_point():
            return torch.tensor(1.0, device=targets.device)
        std = targets.double().std(0, correction=0)
        return torch.where(std > torch.finfo(torch.float32).eps * targets.abs().amax(0), std, 1.0).float()

    def to(self, device: torch.device | str) -> Data:
        """Returns the same data on `device`; tensors that are there already are not copied."""
        train, val, test = (Split(s.inputs.to(device), s.targets.to(device)) for s in self[:3])
        return Data(train, val, test, self.mean.to(device), self.std.to(device), self.classes)


def check_data(whose: str, data: Data) -> None:
    """Checks a data set that may have been made by hand for what would otherwise be found out in training.

    Args:
        whose: for errors, such as "task 'mine': its".
        data: the data set.

    Raises:
        TypeError: labels that aren't int64.
        ValueError: a split without examples, or a label of no class.
    """
    for name, (inputs, targets) in zip(("training", "validation", "test"), data[:3], strict=True):
        if not inputs.numel() or not len(targets):
            raise ValueError(f"{whose} {name} split has no examples")
        if targets.is_floating_point() or not data.classes:
            continue
        if targets.dtype != torch.int64:
            raise TypeError(f"{whose} {name} targets are {targets.dtype}: make labels int64, or numbers float32")
        low, high = (int(bound) for bound in targets.aminmax())
        if not 0 <= low <= high < data.classes:
            held = f"{low} to {high}, and classes are 0 to {data.classes - 1}"
            raise ValueError(f"{whose} {name} targets hold {held}")


Loader: TypeAlias = Callable[..., Data]
"""A function (options as keyword arguments) -> a data set."""


def _are_tokens(inputs: Tensor) -> bool:
    return not inputs.is_floating_point() and inputs.dtype != torch.uint8


def absent_classes(split: Split, classes: int) -> list[int]:
    """Returns the classes that a split has no example of."""
    return sorted(set(range(classes)) - set(split.targets.unique().tolist()))


def with_statistics(train: Split, val: Split, test: Split, classes: int) -> Data:
    """Returns a data set with the mean and standard deviation of its train split, or 0 and 1 for token ids.

    They are computed in double precision. Inputs that vary by less than float32 resolves have a standard deviation of
    1.
    """
    if _are_tokens(train.inputs):
        return Data(train, val, test, torch.tensor(0.0), torch.tensor(1.0), classes)
    images = train.inputs.ndim == 4
    channels = train.inputs.unbind(1) if images else (train.inputs,)
    mean, var = torch.stack([_moments(channel) for channel in channels]).T
    # Less spread than float32 resolves is rounding error, which a division would magnify.
    std = torch.where(var.sqrt() > torch.finfo(torch.float32).eps * mean.abs(), var.sqrt(), 1.0)
    shape = (-1, 1, 1) if images else ()
    return Data(train, val, test, mean.float().view(shape), std.float().view(shape), classes)


def _moments(values: Tensor) -> Tensor:
    """Returns mean and variance, (2,) float64."""
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
    normalise: bool | None = None,
    classes: int | None = None,
) -> Data:
    """Returns a `Data` of one's own arrays, checked and copied to the CPU.

    Pass the validation split in a shuffled order, since its first examples stand for the whole where a task measures a
    part of it. A `DataWarning` names classes of which validation or test has no example, and columns of a table whose
    ranges are so unlike that one mean and one standard deviation for all of them can't normalise it.

    Args:
        train_inputs: (m, *shape). uint8 images (m, C, H, W) stay uint8, integers (m, L) become token ids (int64),
            everything else becomes float32.
        train_targets: integers 0..classes-1, (m,), or (m, L) for the L places of a sequence; or floats, (m,) or (m, d),
            which are numbers to be predicted. Counts are numbers, so pass them as floats.
        val_inputs: as `train_inputs`.
        val_targets: as `train_targets`, with no other classes.
        test_inputs: as `train_inputs`.
        test_targets: as `val_targets`.
        normalise: take mean and standard deviation from the training inputs (per channel where an example has
            three axes, and one for all columns of a table); otherwise they are 0 and 1, and batches are used as they
            stand. By default all inputs but token ids are normalised. Integers that are quantities and no token ids:
            pass True, and they become float32.
        classes: how many there are. By default as many as the training targets name, each of them at least once; a
            vocabulary may be larger than what the training targets hold.

    Raises:
        TypeError: inputs that are not real numbers, targets that are neither integers nor floats, targets of another
            kind in another split, or a number of classes that is no integer.
        ValueError: an empty split, inputs and targets of different length, examples or targets of different shape,
            values that are not finite or integers that float32 would round, negative token ids, labels outside
            0..classes-1, a class without a training example where `classes` isn't given, or fewer than two classes.
    """
    parts = {
        "train": (train_inputs, train_targets),
        "val": (val_inputs, val_targets),
        "test": (test_inputs, test_targets),
    }
    splits = {part: _checked(part, inputs, targets, normalise) for part, (inputs, targets) in parts.items()}
    for say, what in ((_example, "examples"), (_target, "targets")):
        expected = say(splits["train"])
        for part in ("val", "test"):
            if (found := say(splits[part])) != expected:
                raise ValueError(f"{what} of {part} are {found}, of train {expected}: use one shape and type")
    if splits["train"].targets.is_floating_point():
        if classes is not None:
            raise ValueError(f"classes={classes}, but targets are floats, which are numbers to predict: pass integers")
        number = 0
    else:
        number = _classes(splits, classes)
    data = with_statistics(splits["train"], splits["val"], splits["test"], number)
    if normalise is False:
        return data._replace(mean=torch.zeros_like(data.mean), std=torch.ones_like(data.std))
    _warn_of_scales(data.train.inputs)
    return data


def _warn_of_scales(inputs: Tensor) -> None:
    """Warns where columns of a table are of unlike scales.

    Ranges tell scales: deviations are small in columns that are seldom other than 0, too, such as pixels at an edge.
    """
    if inputs.ndim != 2 or not inputs.is_floating_point():
        return
    ranges = inputs.amax(0) - inputs.amin(0)
    widest, narrowest = int(ranges.argmax()), int(ranges.where(ranges > 0, torch.inf).argmin())
    if ranges[widest] > UNLIKE * ranges[narrowest] > 0:
        warnings.warn(
            f"column {widest} of the inputs has a range of {ranges[widest]:.3g}, column {narrowest} one of "
            f"{ranges[narrowest]:.3g}, and all columns are divided by one standard deviation: standardise each first",
            DataWarning,
            stacklevel=3,
        )


def _classes(splits: dict[str, Split], given: int | None) -> int:
    """Checks the labels and returns how many classes there are."""
    train = splits["train"].targets
    present = train.unique()  # sorted
    classes = int(present[-1]) + 1 if given is None else count("classes", given)
    if classes < 2:
        held = "train targets hold only class 0" if given is None else f"classes={given}"
        raise ValueError(f"{held}: a classification task needs at least two classes")
    if given is None and len(present) < classes:
        gap = int((present != torch.arange(len(present))).nonzero()[0])
        raise ValueError(
            f"train targets hold no class {gap}, though they go up to {classes - 1}: number the classes without gaps, "
            "or say how many there are, classes=..."
        )
    for part, split in splits.items():
        if (largest := int(split.targets.max())) >= classes:
            said = "in train" if given is None else f"by classes={given}"
            raise ValueError(f"{part} targets hold class {largest}, but there are only 0..{classes - 1} {said}")
    if train.ndim == 1:
        absent = {part: absent_classes(splits[part], classes) for part in ("val", "test")}
        if told := [f"{part} has no example of {len(x)}, as {x[0]}" for part, x in absent.items() if x]:
            warnings.warn(f"of {classes} classes {'; '.join(told)}", DataWarning, stacklevel=3)
    return classes


def _checked(
    part: str, inputs: ArrayLike | Tensor, targets: ArrayLike | Tensor, normalise: bool | None = None
) -> Split:
    """Returns one part as a split, checked by itself."""
    x, y = _copy(f"{part} inputs", inputs), _copy(f"{part} targets", targets)
    if y.is_complex() or y.dtype == torch.bool:
        raise TypeError(
            f"{part} targets must be integer class labels, or floats to predict, got {y.dtype}: convert them to int64"
        )
    if x.is_complex():
        raise TypeError(f"{part} inputs must be real numbers, got {x.dtype}")
    shapes = f"{part} inputs have shape {tuple(x.shape)}, targets {tuple(y.shape)}"
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"{shapes}: pass inputs (m, *shape) and targets (m,), (m, L) class labels of sequences or (m, d) floats"
        )
    if x.numel() == 0 or y.numel() == 0:
        raise ValueError(f"{shapes}: every split needs at least one example")
    kept = _input(part, x, normalise)
    if y.is_floating_point():
        y = y.float()
        if not y.isfinite().all():
            raise ValueError(f"{part} targets hold values that are not finite in float32: rescale or drop them")
    else:
        y = y.long()
        if y.min() < 0:
            raise ValueError(f"{part} targets hold the label {int(y.min())}: labels run from 0 to classes-1")
        tagged = _are_tokens(kept) and kept.shape == y.shape  # a label for each place of a sequence
        if y.ndim == 2 and y.shape[1] > 1 and not tagged and int(y.max()) == 1 and bool((y.sum(1) == 1).all()):
            raise ValueError(f"{part} targets look like one-hot rows: pass class labels (m,), targets.argmax(1)")
    return Split(kept, y)


def _input(part: str, x: Tensor, normalise: bool | None) -> Tensor:
    """Returns inputs in the type in which they are kept."""
    if x.dtype == torch.uint8 and x.ndim == 4:
        return x
    integers = not x.is_floating_point() and x.dtype != torch.bool
    if integers and x.ndim == 2 and not normalise:
        x = x.long()
        if x.min() < 0:
            raise ValueError(
                f"{part} inputs are integers and hold {int(x.min())}: token ids are 0 or more; quantities are to be "
                "floats, or normalise=True"
            )
        return x
    if not x.is_floating_point() and not torch.equal(x.float().long(), x.long()):
        raise ValueError(f"{part} inputs hold integers that float32 would round: rescale them")
    x = x.float()
    if not x.isfinite().all():
        raise ValueError(f"{part} inputs hold values that are not finite in float32: rescale them")
    return x


def _example(split: Split) -> str:
    return f"{split.inputs.dtype} {tuple(split.inputs.shape[1:])}"


def _target(split: Split) -> str:
    return f"{split.targets.dtype} {tuple(split.targets.shape[1:])}"


def _copy(what: str, array: ArrayLike | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu().clone()
    if np.ma.is_masked(array):
        raise TypeError(f"{what} are masked: fill in what is missing")
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a tensor or an array of numbers: {error}") from error
