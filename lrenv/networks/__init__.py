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
from lrenv.networks.gated import gated_convolutions, gated_transformer, gru
from lrenv.networks.perceptrons import dropout_mlp, maxout, siren
from lrenv.networks.sequences import context_mlp, transformer

__all__ = [
    "NetworkFactory",
    "Residual",
    "Shape",
    "batch_norm_mlp",
    "context_mlp",
    "conv3",
    "dropout_mlp",
    "gated_convolutions",
    "gated_transformer",
    "gru",
    "images",
    "lenet5",
    "logistic_regression",
    "maxout",
    "mlp",
    "residual_mlp",
    "resnet18",
    "siren",
    "transformer",
    "vgg16",
    "wide_resnet",
]
