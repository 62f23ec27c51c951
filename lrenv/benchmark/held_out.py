"""The held-out list: tasks that a controller trained on drawn tasks is reported on, and nothing else is done with.

Each differs in its data set *and* in its network from everything that `lrenv.training.drawn` can draw. In data: drawn
tasks have generated data, digits and MNIST-1D. In network: each has modules that no drawn network has, which
are named below; drawn ones are linear models, perceptrons with ReLU, tanh, sigmoid or GELU, with layer norm or without,
residual perceptrons, and transformers with layer norm and learned positions. None is a relative that was merely made
smaller or larger. Some share more with what is drawn than others; `differs` says what is shared, too.

**Nothing may be chosen on this list**: no setting, no training, no checkpoint, no seed, no baseline's grid. (The suites
`quick` and `standard`, whose grids were written before, have shuttle-mlp at other budgets: no controller may be chosen
by their results.) What needs choosing is chosen on drawn tasks (`TaskDistribution.tasks("selection", ...)`). Whoever
reports results on it adds a line to `REPORTS`: from the second report on, what is better may be so by selection, and
its number says how much selection there was. The list was fixed before any controller was trained on drawn tasks. It
doesn't change: tests hold it to a checksum, its settings are written out here whatever becomes of those in the
catalogue, and another list gets another name.

The tasks on MNIST, Fashion-MNIST and cifar10-jpeg need files; where these are missing, a report says so and
leaves them out. What isn't here although it could be thought to belong: plain perceptrons on other data, `text-mlp` and
`text-transformer`, whose networks are drawn or consist of drawn parts; the exact tasks, which are linear models; and
whatever is trained on digits or MNIST-1D.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lrenv.data import Data
from lrenv.lookup import lookup
from lrenv.training.tasks import Task, make_task

INITIAL_LRS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The rates that reports start from."""
SPEC = "held-out"
"""The name of its tasks in specs, before their own."""


@dataclass(frozen=True)
class HeldOut:
    """A task of the list.

    Attributes:
        name: in `lrenv.tasks()`.
        differs: in what it differs from all drawn tasks, and what it shares with some.
        modules: the kinds of modules in its network that no drawn network has.
        weights: P, parameters of its network.
        settings: those of the task, whatever the catalogue says.
    """

    name: str
    differs: str
    modules: tuple[str, ...]
    weights: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def task(self) -> Task:
        """Returns the task, with initial rates to draw from, named as `named` takes it: it isn't the catalogue's."""
        task = make_task(self.name, initial_lr=INITIAL_LRS, **self.settings)
        return replace(task, name=f"{SPEC}:name={self.name}")


HELD_OUT = (
    HeldOut(
        "mnist-lenet", "images of handwriting, of other people than the digits; convolutions with max pooling",
        ("Conv2d", "MaxPool2d"), 61_706,
        {"data": "mnist", "loss": "cross_entropy", "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0,
         "batch_size": 64, "budget": 600, "interval": 10, "val_examples": 1000},
    ),
    HeldOut(
        "mnist-maxout", "as mnist-lenet in data; maxout and dropout, over a million weights",
        ("Maxout", "Dropout"), 1_233_610,
        {"data": "mnist", "loss": "cross_entropy", "optimizer": "momentum", "momentum": 0.9, "weight_decay": 0.0,
         "batch_size": 64, "budget": 400, "interval": 10, "val_examples": 500},
    ),
    HeldOut(
        "fashion-mnist-conv3", "images of clothes; convolutions with strides, average pooling, Glorot start",
        ("Conv2d", "AdaptiveAvgPool2d"), 19_146,
        {"data": "fashion-mnist", "loss": "cross_entropy", "optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.01,
         "batch_size": 64, "budget": 400, "interval": 10, "val_examples": 500},
    ),
    HeldOut(
        "cifar10-jpeg-lenet", "colour photographs; convolutions with max pooling",
        ("Conv2d", "MaxPool2d"), 62_006,
        {"data": "cifar10-jpeg", "loss": "cross_entropy", "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0,
         "batch_size": 64, "budget": 500, "interval": 5, "val_examples": 500},
    ),
    HeldOut(
        "cifar10-jpeg-wrn10-1", "colour photographs; a residual network of convolutions and batch norm, few steps",
        ("Conv2d", "BatchNorm2d", "AdaptiveAvgPool2d"), 77_850,
        {"data": "cifar10-jpeg", "loss": "cross_entropy", "optimizer": "momentum", "momentum": 0.9,
         "weight_decay": 5e-4, "batch_size": 32, "budget": 100, "interval": 5, "val_examples": 200},
    ),
    HeldOut(
        "text-gated-conv", "text; gated convolutions. It embeds tokens, as drawn transformers do",
        ("Conv1d", "GatedConvolution"), 23_207,
        {"data": "text", "data_options": {"context": 32, "every": True}, "loss": "cross_entropy", "optimizer": "adamw",
         "momentum": 0.9, "weight_decay": 0.01, "batch_size": 16, "budget": 500, "interval": 10, "val_examples": 100},
    ),
    HeldOut(
        "text-gated-transformer", "text; RMS norm, rotary positions, SwiGLU. Attention itself is drawn, too",
        ("RMSNorm", "RotaryAttention", "GatedUnits"), 18_944,
        {"data": "text", "data_options": {"context": 32, "every": True}, "loss": "cross_entropy", "optimizer": "adam",
         "momentum": 0.9, "weight_decay": 0.0, "batch_size": 16, "budget": 600, "interval": 6, "val_examples": 100},
    ),
    HeldOut(
        "shuttle-mlp", "a table of sensors, 7 % anomalies; batch norm. Its linear layers and ReLUs are drawn, too",
        ("BatchNorm1d",), 1_506,
        {"data": "shuttle", "loss": "cross_entropy", "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0,
         "batch_size": 64, "budget": 1000, "interval": 20, "val_examples": 3000},
    ),
    HeldOut(
        "doctor-visits-dropout", "a table of persons, counts, Poisson's loss, which is never drawn; ELU and dropout",
        ("ELU", "Dropout"), 4_865,
        {"data": "doctor-visits", "loss": "poisson", "optimizer": "momentum", "momentum": 0.9, "weight_decay": 1e-4,
         "batch_size": 64, "budget": 2000, "interval": 20, "val_examples": 3000},
    ),
    HeldOut(
        "co2-gru", "a series in time, validated and tested on what comes later; gated recurrent units",
        ("GRU",), 1_073,
        {"data": "co2", "loss": "mse", "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0,
         "batch_size": 32, "budget": 500, "interval": 5, "val_examples": None},
    ),
    HeldOut(
        "photo-siren", "a photograph as a function, colours without noise; sines with an initialisation of their own",
        ("Sine",), 4_675,
        {"data": "photo", "data_options": {"octaves": 1}, "loss": "mse", "optimizer": "adam", "momentum": 0.9,
         "weight_decay": 0.0, "batch_size": 128, "budget": 3000, "interval": 30, "val_examples": None},
    ),
)  # fmt: skip

DATA = {
    "mnist": "b44cb216e6089ec9",
    "fashion-mnist": "efadbb45ea639bc4",
    "cifar10-jpeg": "5d964da407acb5a0",
    "text:context=32:every=True": "108a2a748b3cd633",
    "shuttle": "83a406488ac531fa",
    "doctor-visits": "f466a06d30697be8",
    "co2": "ddf288522e1e5885",
    "photo:octaves=1": "3194b6173c95e866",
}
"""Data set, with its options -> the digest of its three splits (`data_digest`)."""

REPORTS: tuple[str, ...] = (
    "2026-11-27: `universal` beside tuned schedules and optimizers without tuning (docs/carries-over.md). The first.",
    "2026-11-27: `universal` with a guard and a longer warm-up, chosen on drawn tasks after the first report had shown "
    "that a guard was lacking, and `universal-anytime`, beside the same. The second.",
    "2026-11-27: both with a guard that was mended for networks whose last layer begins small; `universal` is the same "
    "to the last digit, `universal-anytime` isn't. The third.",
    "2026-11-27: both with another size of the weights, a mean over layers, after it had been looked up why "
    "photo-siren fails: its first layer alone is large. It was chosen by drawn tasks whose layers are scaled. "
    "The fourth.",
)
"""Each report of results on this list, in order: its date, what was reported, and what had changed since the last."""


def held_out() -> list[Task]:
    """Returns all tasks of the list; reports run each from every one of `INITIAL_LRS`."""
    return [each.task() for each in HELD_OUT]


def named(name: str = "co2-gru") -> Task:
    """Returns one task of the list, as the spec `held-out:name=mnist-lenet` does.

    Raises:
        ValueError: there is none of that name; the message lists the near ones.
    """
    return lookup({each.name: each for each in HELD_OUT}, name, "task of the held-out list").task()


def data_of(task: Task) -> str:
    """What a task of the list trains on, the name of a data set and its options, as in `DATA`."""
    return ":".join((str(task.data), *(f"{name}={value}" for name, value in sorted(task.data_options.items()))))


def data_digest(data: Data) -> str:
    """Returns a digest of all splits, of numbers to three digits after the point, so that it holds on every machine."""
    found = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        for part in split:
            exact = (part.double() * 1000).round().long() if part.is_floating_point() else part
            found.update(f"{tuple(part.shape)} {part.dtype}".encode() + exact.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def check_data(task: Task) -> Task:
    """Returns the task of the list if its data are those that the list was made with.

    Raises:
        ValueError: they are others, so that results would not be comparable.
    """
    name, digest = data_of(task), data_digest(task.load())
    if DATA.get(name) != digest:
        raise ValueError(f"the data {name} ({digest}) are others than those of the held-out list ({DATA.get(name)})")
    return task
