"""What `xu2019.py` trains: data, networks, and how far each scale reduces the paper's setting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lrenv import networks
from lrenv.data import Data, DataMissing, Split, load
from lrenv.data.types import with_statistics
from lrenv.networks.architectures import NetworkFactory, Shape
from lrenv.training.tasks import Task, register_task


class Version(NamedTuple):
    """How a row is run. The defaults are the paper's (section 3.3): everything whole."""

    size: int | None = None
    """Pixels a side that images are resized to; their own if None."""
    width: int = 64
    """Channels of a ResNet's first stage."""
    batch_size: int = 1000
    budget: int = 1000
    """Inner steps."""
    interval: int = 10
    """Inner steps between two actions. Reduced versions have as many decisions as whole ones, so that a controller
    carried from one to the other lives as long there."""
    val_examples: int | None = None
    """Validation examples that a decision measures."""

    def told(self, network: str) -> str:
        """What differs from the paper, in words."""
        names = {
            "size": "images of {0}x{0} pixels", "width": "ResNets of width {}", "batch_size": "batches of {}",
            "budget": "{} steps", "interval": "an action every {} steps", "val_examples": "{} validation images",
        }  # fmt: skip
        if not network.startswith("resnet"):
            del names["width"]
        whole = Version()._asdict()
        reduced = {name: value for name, value in self._asdict().items() if value != whole[name] and name in names}
        return ", ".join(names[name].format(value) for name, value in reduced.items()) or "whole"


def caffe_lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet as in Caffe's MNIST example: 20 and 50 maps without a nonlinearity, max pooling, 500 units with ReLU."""
    channels, height, width = networks.images(shape, "cnn-caffe", least=20)
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    net = nn.Sequential(
        nn.Conv2d(channels, 20, 5), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(50 * rows * columns, 500), nn.ReLU(),
        nn.Linear(500, classes),
    )  # fmt: skip
    return glorot(net)


def tensorflow_lenet(shape: Shape, classes: int) -> nn.Module:
    """The convolutional network of TensorFlow's official MNIST model, beside the ResNet that the paper took from there.

    32 and 64 maps, ReLU and max pooling, 1,024 units with dropout of 0.4, Keras's initial weights.
    """
    channels, height, width = networks.images(shape, "cnn-tensorflow", least=4)
    net = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 1024), nn.ReLU(), nn.Dropout(0.4),
        nn.Linear(1024, classes),
    )  # fmt: skip
    return glorot(net)


def glorot(net: nn.Sequential) -> nn.Sequential:
    """The network with uniform weights after Glorot and Bengio 2010 and biases of zero."""
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return net


NETWORKS: dict[str, Callable[[Version], NetworkFactory]] = {
    "cnn": lambda version: networks.lenet5,
    "cnn-caffe": lambda version: caffe_lenet,
    "cnn-tensorflow": lambda version: tensorflow_lenet,
    "resnet": lambda version: partial(networks.resnet18, width=version.width),
    "tiny": lambda version: networks.conv3(4),
}
"""Name -> network. The paper says that its CNN follows the structure of LeNet, and gives neither sizes nor initial
weights: `cnn` is LeNet-5 with ReLU and max pooling, in PyTorch's default initialisation; two other plausible LeNets can
be asked for. Its ResNet follows He et al. and has 18 layers; which ones is not said: `resnet` is their ResNet-18 with
the stem for small images. `tiny` is for 8x8 digits."""


PEAKS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
Grid = dict[str, tuple[float, ...]]
"""Argument of a schedule -> values."""
GRIDS: dict[str, Grid] = {
    "step": {
        "peak": (0.1, 0.01, 0.001, 0.0001),
        "discount_step": (10, 20, 50, 100),
        "discount_factor": (0.99, 0.9, 0.88),
    },
    "linear": {"peak": PEAKS, "warmup": (0, 30)},
    "cosine": {"peak": PEAKS, "warmup": (0, 30)},
}
"""Of step decay, the paper's 48 (section 3.2); of the others, those that the committed results were tuned over."""


def combinations(grid: Grid) -> list[dict[str, float]]:
    """All that a schedule is tuned over, in order."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


OTHER_LENET: dict[str, Grid] = {"step": {"peak": (0.01, 0.001), "discount_step": (50,), "discount_factor": (0.9,)}}
"""What a CPU has time for where other LeNets are asked for, to see how near step decay comes to the paper's: the course
that is best for LeNet-5 on Fashion-MNIST, from two of the paper's rates."""


class Scale(NamedTuple):
    """What is run; data and networks in the order in which it is."""

    data: tuple[tuple[str, ...], tuple[str, ...]]
    """Fashion-MNIST, and what is carried to it, CIFAR-10: each the first of these that is there."""
    networks: tuple[str, ...]
    reported: dict[str, Version]
    """Network -> what tables are about; a network's variants ("cnn-caffe") are like it ("cnn")."""
    trained: dict[str, Version]
    """Network -> what controllers are trained on."""
    episodes: dict[str, int]
    at_once: dict[str, int]
    """Network -> runs in a piece at most, which is what an interruption may cost."""
    methods: tuple[str, ...] = ("ours-mlp", "step", "linear", "cosine", "paper-mlp", "ours-lstm", "paper-lstm")
    envs: dict[str, int] = {"ours": 16, "paper": 4}
    """Setting -> episodes of an update."""
    starts: tuple[float, ...] = (1e-3, 1e-2, 1e-4)
    """First rates that controllers are reported from; the first is that of the tables."""
    seeds: int = 10
    evaluations: int = 8
    """Times that a controller is evaluated on held-out seeds while it is trained, about; the best is kept."""
    eval_seeds: int = 8
    methods_of: dict[str, tuple[str, ...]] = {}
    """Network, by its full name -> what is run on it, where that is not all."""
    grids_of: dict[str, dict[str, Grid]] = {}
    """Network, by its full name -> what schedules are tuned over on it, where that is not the whole grids."""

    def like(self, network: str, table: dict[str, Any]) -> Any:
        """The entry of a network, or of the one that it is a variant of."""
        return table.get(network, table.get(network.partition("-")[0]))

    def run_on(self, network: str) -> tuple[str, ...]:
        """The methods that are run on a network."""
        return self.methods_of.get(network, self.methods)

    def grid(self, network: str, schedule: str) -> list[dict[str, float]]:
        """The combinations that a schedule is tuned over."""
        return combinations(self.grids_of.get(network, GRIDS)[schedule])


IMAGES = (("fashion-mnist",), ("cifar10", "cifar10-jpeg"))
WHOLE = {"cnn": Version(), "resnet": Version()}
SCALES = {
    "smoke": Scale(
        (("digits",), ("digits-turned",)), ("tiny",),
        reported={"tiny": Version(batch_size=50, budget=40, val_examples=50)},
        trained={"tiny": Version(batch_size=20, budget=20, interval=5, val_examples=20)},
        episodes={"tiny": 8}, at_once={"tiny": 24}, methods=("ours-mlp", "step", "linear", "paper-lstm"),
        envs={"ours": 4, "paper": 2}, starts=(1e-3, 1e-2), seeds=3, evaluations=2, eval_seeds=2,
    ),
    "cpu": Scale(
        IMAGES, ("cnn", "resnet"),
        reported={
            "cnn": Version(),
            "resnet": Version(size=14, width=8, batch_size=250, budget=300, interval=3, val_examples=2000),
        },
        trained={
            "cnn": Version(size=20, batch_size=250, budget=300, interval=3, val_examples=1000),
            "resnet": Version(size=10, width=4, batch_size=100, budget=200, interval=2, val_examples=500),
        },
        episodes={"cnn": 1000, "resnet": 256},
        at_once={"cnn": 2, "cnn-caffe": 1, "cnn-tensorflow": 1, "resnet": 4},
        methods=("ours-mlp", "step", "linear", "cosine", "paper-mlp", "ours-lstm"), starts=(1e-3,),
        methods_of={
            "resnet": ("ours-mlp", "step", "linear", "cosine"), "cnn-caffe": ("step",), "cnn-tensorflow": ("step",),
        },
        grids_of={"cnn-caffe": OTHER_LENET, "cnn-tensorflow": OTHER_LENET},
    ),
    "gpu": Scale(
        IMAGES, ("cnn", "resnet"),
        reported={
            "cnn": Version(),
            "resnet": Version(size=14, width=16, batch_size=250, val_examples=2000),
        },
        trained={
            "cnn": Version(),
            "resnet": Version(size=14, width=16, batch_size=100, budget=300, interval=3, val_examples=1000),
        },
        episodes={"cnn": 1000, "resnet": 256}, at_once={"cnn": 64, "resnet": 16},
    ),
    "paper": Scale(
        IMAGES, ("cnn", "resnet"), reported=WHOLE, trained=WHOLE, episodes={"cnn": 1000, "resnet": 1000},
        at_once={"cnn": 64, "resnet": 4}, envs={"ours": 16, "paper": 1},
    ),
}  # fmt: skip
"""`smoke` is for seeing whether everything works, on 8x8 digits and the same images turned. `cpu` has whole CNN rows
and reduced ResNets, with controllers from cheaper versions carried over. `gpu` has controllers trained on the whole CNN
rows. `paper` is whole, with an update an episode in the paper's setting."""


def base(name: str) -> Data:
    """A data set by name; "digits-turned" is digits by a quarter turn."""
    if name != "digits-turned":
        return load(name)
    data = load("digits")
    return resplit(data, lambda images: images.rot90(1, (2, 3)).contiguous())


def resplit(data: Data, change: Callable[[torch.Tensor], torch.Tensor]) -> Data:
    """The data with every split's images changed."""
    train, val, test = (Split(change(split.inputs), split.targets) for split in data[:3])
    return with_statistics(train, val, test, data.classes)


@cache
def resized(name: str, size: int) -> Data:
    """A data set with images of size x size pixels, each the mean of the area that it covers."""

    def smaller(images: torch.Tensor) -> torch.Tensor:
        parts = images.split(5000)
        return torch.cat([F.interpolate(x.float(), size=(size, size), mode="area").round().byte() for x in parts])

    return resplit(base(name), smaller)


def available(names: Sequence[str]) -> str | None:
    """The first of the data sets that is there; says what is missing if none is."""
    missing = []
    for name in names:
        try:
            base(name)
        except DataMissing as error:
            missing.append(str(error).splitlines()[0])
        else:
            return name
    print(f"skipping the rows of {' or '.join(names)}: {'; '.join(missing)}", flush=True)
    return None


def task_of(data: str, network: str, version: Version) -> Task:
    """The task of a row, registered under a name of its own, for trainings name their tasks."""
    source: Any = partial(base, data) if version.size is None else partial(resized, data, version.size)
    name = "-".join(map(str, ("xu2019", data, network, *(x or "all" for x in version))))
    task = Task(
        name, source, NETWORKS[network](version), batch_size=version.batch_size, budget=version.budget,
        interval=version.interval, val_examples=version.val_examples,
    )  # fmt: skip
    return register_task(task, replace_existing=True)
