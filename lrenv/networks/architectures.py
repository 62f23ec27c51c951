"""The trainees' networks of images and features, each an ordinary `torch.nn.Module` for inputs of one shape.

They are built from layers for which `lrenv.networks.layers` has a batched rule; a module of any other kind works as
well. A network is a function (input shape, classes) -> module, so that a task can pair it with any data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

Shape = Sequence[int]
"""The shape of one example: (channels, height, width) for images, (L,) for token ids, (features,) otherwise."""
NetworkFactory = Callable[[Shape, int], nn.Module]
"""A function (shape of an example, number of outputs) -> a freshly initialised module.

The outputs are one per class, or one per number to predict."""


class Residual(nn.Module):
    """The sum `shortcut(x) + branch(x)` of which residual networks are made (He et al. 2016).

    Args:
        branch: the layers that compute the residual.
        shortcut: the identity, or a projection where the shape changes.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both paths, which have the same shape (b, ...)."""
        total: Tensor = self.shortcut(x) + self.branch(x)
        return total


def logistic_regression(shape: Shape, classes: int) -> nn.Module:
    """Builds one linear layer on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(*hidden: int, activation: Callable[[], nn.Module] = nn.ReLU) -> NetworkFactory:
    """Returns a factory of multilayer perceptrons.

    Args:
        *hidden: widths of the hidden layers.
        activation: builds the module after each hidden layer.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in hidden:
            layers += [nn.Linear(width, units), activation()]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, classes))

    return make


def batch_norm_mlp(*hidden: int, activation: Callable[[], nn.Module] = nn.ReLU) -> NetworkFactory:
    """Returns a factory of multilayer perceptrons with batch normalisation (Ioffe & Szegedy 2015).

    Args:
        *hidden: widths of the hidden layers, which have no bias, as the normalisation would remove it.
        activation: builds the module after each normalisation.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for units in hidden:
            layers += [nn.Linear(width, units, bias=False), nn.BatchNorm1d(units), activation()]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, classes))

    return make


def residual_mlp(width: int = 64, blocks: int = 2, activation: Callable[[], nn.Module] = nn.GELU) -> NetworkFactory:
    """Returns a factory of perceptrons with residual blocks x + W2 activation(W1 layer_norm(x)) between linear layers.

    Args:
        width: units of each hidden layer.
        blocks: how many blocks.
        activation: builds the module between the two layers of a block.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(shape), width)]
        for _ in range(blocks):
            branch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), activation(), nn.Linear(width, width))
            layers.append(Residual(branch, nn.Identity()))
        return nn.Sequential(*layers, nn.LayerNorm(width), nn.Linear(width, classes))

    return make


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """Builds LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as is usual today.

    Images of 28x28 pixels are padded by 2, as in the original, so that they end in 16 maps of 5x5 as those of 32x32 do.

    Raises:
        ValueError: examples are no images of at least 20 pixels per side.
    """
    channels, height, width = images(shape, "lenet5", least=20)
    padding = 2 if height == 28 else 0
    rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * rows * columns, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip


def resnet18(shape: Shape, classes: int, width: int = 64) -> nn.Module:
    """Builds ResNet-18 (He et al. 2016) in the form used for 32x32 images: a 3x3 stem and no pooling after it.

    Args:
        shape: (channels, height, width) of an image.
        classes: outputs.
        width: channels of the first of the four stages; the others have 2, 4 and 8 times as many.

    Raises:
        ValueError: examples are no images of at least 8 pixels per side.
    """
    channels, _, _ = images(shape, "resnet18", least=8)

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        if stride == 1 and inputs == outputs:
            shortcut: nn.Module = nn.Identity()
        else:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(Residual(branch, shortcut), nn.ReLU())

    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [block(inputs, outputs, stride), block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes))


def wide_resnet(depth: int = 16, widen: int = 1) -> NetworkFactory:
    """Returns a factory of wide residual networks, WRN-depth-widen (Zagoruyko & Komodakis 2016), without dropout.

    Blocks are pre-activated and in three groups. The factory raises a ValueError if examples are no images of at least
    4 pixels per side.

    Args:
        depth: 6 k + 4 for k blocks per group.
        widen: the factor of the channels 16, 32 and 64 of the groups.

    Raises:
        ValueError: another depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"the depth of a wide residual network is 6 k + 4, such as 10, 16 or 28, not {depth}")

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        branch = [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        ]  # fmt: skip
        activation = [nn.BatchNorm2d(inputs), nn.ReLU()]
        if inputs == outputs:
            return Residual(nn.Sequential(*activation, *branch), nn.Identity())
        # Where the width changes, both paths start from the activated input.
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        return nn.Sequential(*activation, Residual(nn.Sequential(*branch), projection))

    def make(shape: Shape, classes: int) -> nn.Module:
        channels, _, _ = images(shape, "wide_resnet", least=4)
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
        inputs = 16
        for outputs, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for number in range((depth - 4) // 6):
                layers.append(block(inputs, outputs, stride if number == 0 else 1))
                inputs = outputs
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(inputs, classes))

    return make


def vgg16(shape: Shape, classes: int) -> nn.Module:
    """Builds VGG-16 with batch normalisation (Simonyan & Zisserman 2015, configuration D) and one linear layer on top.

    Raises:
        ValueError: examples are no images of at least 32 pixels per side.
    """
    channels, height, width = images(shape, "vgg16", least=32)
    layers: list[nn.Module] = []
    for units, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, units, 3, padding=1), nn.BatchNorm2d(units), nn.ReLU()]
            channels = units
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * (height // 32) * (width // 32), classes))


def conv3(units: int = 32) -> NetworkFactory:
    """Returns a factory of the three-layer convolutional network of Metz et al. 2019, appendix C.2.

    Strides are 2, 2 and 1, a global average pool follows, and weights start as Glorot and Bengio 2010 propose. The
    factory raises a ValueError if examples are no images of at least 4 pixels per side.

    Args:
        units: channels of each layer.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        channels, _, _ = images(shape, "conv3", least=4)
        net = nn.Sequential(
            nn.Conv2d(channels, units, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(units, units, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(units, units, 3, 1, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(units, classes),
        )  # fmt: skip
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        return net

    return make


def images(shape: Shape, network: str, least: int) -> tuple[int, int, int]:
    """Checks that `shape` is that of images which `network` can take, and returns it.

    Args:
        shape: of an example.
        network: its name, for the error.
        least: pixels per side that it needs.

    Raises:
        ValueError: the shape is not (channels, height, width), or has fewer than `least` pixels per side.
    """
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"{network} takes images of shape (channels, height, width), at least {least} pixels per side, but the "
            f"data has examples of shape {tuple(shape)}; choose another network, mlp(...) for one"
        )
    channels, height, width = shape
    return channels, height, width
