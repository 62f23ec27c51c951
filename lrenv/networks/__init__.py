"""Networks, and how n copies of one run side by side."""

from __future__ import annotations

from lrenv.networks.architectures import (
    NetworkFactory,
    Residual,
    Shape,
    conv3,
    images,
    lenet5,
    logistic_regression,
    mlp,
    resnet18,
    vgg16,
    wide_resnet,
)

__all__ = [
    "NetworkFactory",
    "Residual",
    "Shape",
    "conv3",
    "images",
    "lenet5",
    "logistic_regression",
    "mlp",
    "resnet18",
    "vgg16",
    "wide_resnet",
]
