"""The tasks that come with lrenv, which importing it registers."""

from __future__ import annotations

from typing import Any

from torch import nn

from lrenv import networks
from lrenv.training import analytic, power_law
from lrenv.training.tasks import Task

PAPER: dict[str, Any] = {"batch_size": 1000, "budget": 1000}
"""Xu et al. 2019, section 3.3."""
POWER_LAW: dict[str, Any] = {
    "optimizer": "sgd", "batch_size": 8, "budget": 1000, "initial_lr": (1.0, 1e-1, 1e-2), "replacement": True,
}  # fmt: skip
"""Batches so small that their noise decides what schedule is best; budgets that tell the two phases apart."""
SIGMOID_20_20 = networks.mlp(20, 20, activation=nn.Sigmoid)
"""The base network of Andrychowicz et al. 2016 and Fu et al. 2017, here with two hidden layers."""

BUILT_IN = (
    Task("noisy-quadratic", analytic.quadratic_noise, analytic.noisy_quadratic, "a quadratic in noise, solved exactly",
         loss="given", optimizer="sgd", batch_size=8, budget=100, initial_lr=(1.0, 1e-1, 1e-2), replacement=True),
    Task("power-law-easy", power_law.easy_data, power_law.linear_regression, "regression that wants a long decay",
         loss="given", **POWER_LAW),
    Task("power-law-hard", power_law.hard_data, power_law.linear_regression, "regression that wants high rates",
         loss="given", **POWER_LAW),
    Task("two-minima", analytic.nothing, analytic.two_minima, "(w - 4)(w - 3) w^2 from w = -1.2 (Metz et al. 2019)",
         loss="given", optimizer="momentum", batch_size=1, budget=100, initial_lr=(1e-2, 1e-3)),
    Task("digits-logreg", "digits", networks.logistic_regression, "logistic regression on 8x8 digits"),
    Task("digits-mlp", "digits", networks.mlp(32, 32), "64-32-32-10 perceptron on 8x8 digits"),
    Task("mnist1d-mlp", "mnist1d", networks.mlp(256), "40-256-10 perceptron on MNIST-1D", interval=5),
    Task("digits-conv", "digits", networks.conv3(16), "three conv layers of 16 on 8x8 digits", batch_size=32),
    Task("digits-noisy-mlp", "digits", networks.mlp(128), "perceptron on digits, 30 % of the labels drawn anew",
         data_options={"label_noise": 0.3}, budget=600),
    Task("mnist1d-residual", "mnist1d", networks.residual_mlp(64, 2), "residual perceptron, layer norm, MNIST-1D"),
    Task("text-mlp", "text", networks.context_mlp(), "next character of Python's reference, from the last 16",
         data_options={"context": 16, "every": False}, budget=600, val_examples=2000),
    Task("text-transformer", "text", networks.transformer(), "one layer of attention, characters of Python's reference",
         batch_size=16, val_examples=100),
    Task("text-gated-conv", "text", networks.gated_convolutions(), "gated convolutions, characters of the same",
         batch_size=16, val_examples=100),
    Task("text-gated-transformer", "text", networks.gated_transformer(), "LLaMA's layer, characters of the same",
         batch_size=16, val_examples=100),
    Task("shuttle-mlp", "shuttle", networks.batch_norm_mlp(32, 32), "7 % anomalies, by a perceptron with batch norm",
         val_examples=3000),
    Task("doctor-visits-mlp", "doctor-visits", networks.mlp(32), "counts of visits to a doctor, Poisson regression",
         loss="poisson"),
    Task("doctor-visits-dropout", "doctor-visits", networks.dropout_mlp(64, 64), "counts of visits, with dropout",
         loss="poisson"),
    Task("co2-mlp", "co2", networks.mlp(32, activation=nn.Tanh), "forecast of atmospheric CO2 eight weeks ahead",
         loss="mse", batch_size=32),
    Task("co2-gru", "co2", networks.gru(16, step=4), "forecast of atmospheric CO2 by gated recurrent units", loss="mse",
         batch_size=32),
    Task("photo-mlp", "photo", networks.mlp(64, 64), "a photograph's colours by their place", loss="mse",
         batch_size=128, budget=600),
    Task("photo-siren", "photo", networks.siren(64, 64), "a photograph's colours by their place, by sines", loss="mse",
         batch_size=128, budget=600, data_options={"octaves": 1}),
    Task("mnist-logreg", "mnist", networks.logistic_regression, "logistic regression on MNIST", batch_size=128),
    Task("mnist-mlp", "mnist", networks.mlp(1000, 1000), "784-1000-1000-10 perceptron on MNIST", batch_size=128,
         budget=1000),
    Task("mnist-lenet", "mnist", networks.lenet5, "LeNet-5 on MNIST", budget=600),
    Task("mnist-maxout", "mnist", networks.maxout(240, 240), "maxout with dropout on MNIST (Goodfellow et al. 2013)",
         optimizer="momentum", budget=400),
    Task("mnist-mlp20", "mnist", SIGMOID_20_20, "sigmoid perceptron 20-20 on MNIST", batch_size=128, budget=2000),
    Task("svhn-mlp20", "svhn", SIGMOID_20_20, "sigmoid perceptron 20-20 on SVHN", batch_size=128, budget=2000),
    Task("cifar10-mlp20", "cifar10", SIGMOID_20_20, "sigmoid perceptron 20-20 on CIFAR-10", batch_size=128,
         budget=2000),
    Task("fashion-mnist-mlp", "fashion-mnist", networks.mlp(32), "784-32-10 perceptron on Fashion-MNIST",
         batch_size=128, budget=500),
    Task("fashion-mnist-lenet", "fashion-mnist", networks.lenet5, "LeNet-5 on Fashion-MNIST (Xu et al. 2019)", **PAPER),
    Task("fashion-mnist-resnet18", "fashion-mnist", networks.resnet18, "ResNet-18 on Fashion-MNIST (Xu et al. 2019)",
         **PAPER),
    Task("fashion-mnist-conv3", "fashion-mnist", networks.conv3(), "three conv layers of 32 (Metz et al. 2019)",
         batch_size=128, budget=1000),
    Task("cifar10-lenet", "cifar10", networks.lenet5, "LeNet-5 on CIFAR-10 (Xu et al. 2019)", **PAPER),
    Task("cifar10-resnet18", "cifar10", networks.resnet18, "ResNet-18 on CIFAR-10 (Xu et al. 2019)", **PAPER),
    Task("cifar10-vgg16", "cifar10", networks.vgg16, "VGG-16 with batch norm on CIFAR-10", optimizer="momentum",
         weight_decay=5e-4, batch_size=128, budget=3900, augment="crop-flip"),
    Task("cifar10-wrn16-1", "cifar10", networks.wide_resnet(16, 1), "WRN-16-1 on CIFAR-10 (Micaelli & Storkey 2021)",
         optimizer="momentum", batch_size=256, budget=1560, augment="crop-flip"),
    Task("cifar10-jpeg-mlp20", "cifar10-jpeg", SIGMOID_20_20, "sigmoid perceptron 20-20 on cifar10-jpeg",
         batch_size=128, budget=2000),
    Task("cifar10-jpeg-lenet", "cifar10-jpeg", networks.lenet5, "LeNet-5 on cifar10-jpeg", **PAPER),
    Task("cifar10-jpeg-wrn10-1", "cifar10-jpeg", networks.wide_resnet(10, 1), "WRN-10-1 on cifar10-jpeg",
         optimizer="momentum", weight_decay=5e-4, batch_size=32, budget=100, interval=5),
    Task("cifar10-jpeg-resnet18", "cifar10-jpeg", networks.resnet18, "ResNet-18 on cifar10-jpeg", **PAPER),
    Task("folder-lenet", "folder", networks.lenet5, "LeNet-5 on a folder of images: path=...", batch_size=128),
    Task("folder-resnet18", "folder", networks.resnet18, "ResNet-18 on a folder of images: path=...", batch_size=128),
)  # fmt: skip
