"""Networks, and how n copies of one run side by side."""

from __future__ import annotations

from lrenv.networks.architectures import (
    NetworkFactory,
    Residual,
    Shape,
    batch_norm_mlp,
    conv3,
    images,
    lenet5,
    logistic_regression,
    mlp,
    residual_mlp,
    resnet18,
    vgg16,
    wide_resnet,
)
from lrenv.networks.sequences import context_mlp, transformer

__all__ = [
    "NetworkFactory",
    "Residual",
    "Shape",
    "batch_norm_mlp",
    "context_mlp",
    "conv3",
    "images",
    "lenet5",
    "logistic_regression",
    "mlp",
    "residual_mlp",
    "resnet18",
    "transformer",
    "vgg16",
    "wide_resnet",
]
