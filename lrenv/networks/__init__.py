"""Networks, and how n copies of one run side by side.

n trainees have the same network and weights of their own. Their parameters are one tensor (n, P), and a layer computes
all copies in one operation: a linear layer of n copies is the batched matrix product

    y_i = x_i W_i^T + b_i,    i = 1..n,    x (n, b, inputs), W (n, outputs, inputs), b (n, outputs), y (n, b, outputs),

and a convolution is one grouped convolution, whose groups are the copies. Modules without such a rule run by
`torch.func.vmap`, or, where that can't run them, one copy after another. Each copy gives the numbers that the module
gives by itself, up to rounding.

Read `stacked.py` first (`Network`: initial weights and forward pass of n copies), then `layers.py` (the rule of each
layer) and `copies.py` (modules without one). The networks themselves are in `architectures.py` (perceptrons, LeNet-5,
ResNets, VGG), `sequences.py` (token ids), `perceptrons.py` and `gated.py` (further shapes of both); `families.py` has
those of drawn tasks, as values. `pieces.py` tells the layers and tensors that may have rates of their own,
`initialisation.py` draws the weights of n seeds fast, and `pooling.py` is a faster pool for the CPU. For CUDA
`convolutions.py` and `linears.py` have faster layers, by the Triton kernels of `convolution_kernels.py` and
`linear_kernels.py`; `kernels.py` is what they share.
"""

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
