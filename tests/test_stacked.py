"""Stacked networks: every copy gives the numbers of its module alone, in values, gradients and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrenv import networks
from lrenv.networks.stacked import Network
from lrenv.randomness import draws

CPU, F64 = torch.device("cpu"), torch.float64
SEEDS = [3, 11, 4]


def assert_equals_modules_alone(
    make: Callable[[], nn.Module], shape: tuple[int, ...], n: int = 3, batch: int = 4, steps: int = 2
) -> None:
    """Trains n stacked copies and the n modules alone side by side, and compares all their numbers."""
    seeds = SEEDS[:n]
    network = Network(make)
    params, buffers = network.init(seeds, CPU, F64)
    modules = []
    for seed in seeds:
        torch.manual_seed(seed)
        modules.append(make().double())
    generator = torch.Generator().manual_seed(0)

    def compare(training: bool) -> None:
        nonlocal params, buffers
        x = torch.randn(n, batch, *shape, generator=generator, dtype=F64)
        leaf = params.requires_grad_()
        outputs, after = network(leaf, buffers, x, training)
        targets = torch.arange(batch) % outputs.shape[-1]
        total = sum(F.cross_entropy(outputs[i], targets) for i in range(n))
        assert isinstance(total, Tensor)
        (grads,) = torch.autograd.grad(total, leaf)
        moved = (params - 0.1 * grads).detach()
        for i, module in enumerate(modules):
            module.train(training).zero_grad()
            alone = module(x[i])
            torch.testing.assert_close(outputs[i], alone, rtol=1e-9, atol=1e-9)
            F.cross_entropy(alone, targets).backward()
            flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            torch.testing.assert_close(grads[i], flat, rtol=1e-9, atol=1e-9)
            for name, buffer in module.named_buffers():
                torch.testing.assert_close(after[name][i], buffer, rtol=1e-9, atol=1e-9)
            with torch.no_grad():
                for p in module.parameters():
                    assert p.grad is not None
                    p -= 0.1 * p.grad
        params, buffers = moved, after

    for _ in range(steps):
        compare(training=True)
    compare(training=False)


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (networks.logistic_regression, (1, 4, 4)),
        (networks.logistic_regression, (6,)),
        (networks.mlp(5, 4), (1, 4, 4)),
        (networks.mlp(5, activation=nn.Sigmoid), (6,)),
        (networks.lenet5, (1, 28, 28)),
        (networks.lenet5, (3, 32, 32)),
        (networks.wide_resnet(10, 1), (3, 8, 8)),
        (networks.wide_resnet(16, 2), (1, 8, 8)),
        (networks.conv3(6), (3, 12, 12)),
    ],
)
def test_networks_equal_modules_alone(factory: networks.NetworkFactory, shape: tuple[int, ...]) -> None:
    assert_equals_modules_alone(lambda: factory(shape, 3), shape)


@pytest.mark.parametrize(
    ("factory", "shape"), [(networks.resnet18, (1, 16, 16)), (networks.vgg16, (3, 32, 32))], ids=["resnet18", "vgg16"]
)
@pytest.mark.slow
def test_large_networks_equal_modules_alone(factory: networks.NetworkFactory, shape: tuple[int, ...]) -> None:
    assert_equals_modules_alone(lambda: factory(shape, 3), shape, n=2, batch=2, steps=1)


class Gated(nn.Module):
    """A module with a forward pass of its own, a bare parameter, and a batch norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5))
        self.inner = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.inner(x))) * self.gain + x[:, :5]


class Doubled(nn.Linear):
    """A subclass must not fall under its parent's rule."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def shared_activation() -> nn.Module:
    activation = nn.Tanh()
    return nn.Sequential(nn.Linear(6, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 3))


def shared_layer() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(2, 2, 3), norm, nn.Conv2d(2, 2, 3), norm, nn.Flatten(), nn.Linear(8, 3))


CUSTOM: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "own forward": (lambda: nn.Sequential(Gated(), nn.Linear(5, 3)), (6,)),
    "own forward nested": (lambda: nn.Sequential(nn.Sequential(nn.Sequential(Gated())), nn.Linear(5, 3)), (6,)),
    "subclass of a layer": (lambda: nn.Sequential(Doubled(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)), (6,)),
    "linear on many axes": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Flatten(), nn.Linear(10, 3)), (2, 6)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (6,)),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (6,)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(36, 3)),
        (2, 5, 5),
    ),
    "circular padding": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
        ),
        (2, 5, 5),
    ),
    "grouped, dilated, same": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2, bias=False),
            nn.AvgPool2d(2),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (4, 6, 6),
    ),
    "batch norm without parameters": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(27, 3)),
        (2, 5, 5),
    ),
    "batch norm without statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(27, 3)
        ),
        (2, 5, 5),
    ),
    "batch norm averaging": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.Flatten(), nn.Linear(27, 3)),
        (2, 5, 5),
    ),
    "flatten of some axes": (lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(6, 3), nn.Flatten()), (2, 1, 6)),
    "one activation in two places": (shared_activation, (6,)),
    "one layer in two places": (shared_layer, (6,)),
    "one batch norm in two places": (shared_norm, (2, 6, 6)),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_any_module_equals_itself_alone(name: str) -> None:
    make, shape = CUSTOM[name]
    assert_equals_modules_alone(make, shape, steps=3)


def test_init_is_that_of_the_global_seed_and_leaves_it_alone() -> None:
    def make() -> nn.Module:
        return networks.lenet5((1, 28, 28), 10)

    network = Network(make)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    params, _ = network.init([7, 8, 7], CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    alone = torch.cat([p.detach().flatten() for p in make().parameters()])
    assert torch.equal(params[1], alone)
    assert torch.equal(params[0], params[2])
    assert not torch.equal(params[0], params[1])


def test_columns_name_what_they_hold() -> None:
    network = Network(lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 4)))
    assert network.size == 8 + 4 + 12
    assert network.layers == ["0", "1", "2"]
    assert network.pieces == {"trainee": [24], "layer": [8, 4, 12], "tensor": [6, 2, 2, 2, 8, 4]}
    assert (network.first, network.last) == (slice(0, 6), slice(12, 20))
    params, _ = network.init([0, 1], CPU, F64)
    named = network.named(params)
    assert list(named) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert torch.equal(torch.cat([p.flatten(1) for p in named.values()], 1), params)
    assert named["2.weight"].shape == (2, 4, 2)
    assert torch.equal(named["2.weight"].flatten(1), params[:, network.last])


def test_vectors_alone_are_watched_where_there_is_no_matrix() -> None:
    network = Network(lambda: nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3)))
    assert (network.first, network.last) == (slice(0, 3), slice(9, 12))


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        Network(nn.Identity)


def dropout_masks(network: Network, keys: Tensor, training: bool = True) -> Tensor:
    """(n, b, features) outputs of a network that passes ones through dropout alone."""
    n = len(keys)
    params = torch.ones(n, network.size, dtype=F64)
    outputs, _ = network(params, {}, torch.ones(n, 200, 30, dtype=F64), training, keys)
    return outputs


class Scale(nn.Module):
    """Multiplies by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Wrapped(nn.Module):
    """Dropout inside a module of its own, behind the fallback."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.scale(x))
        return out


@pytest.mark.parametrize("make", [lambda: nn.Sequential(Scale(), nn.Dropout(0.3)), Wrapped], ids=["rule", "fallback"])
def test_dropout_masks_are_functions_of_the_key(make: Callable[[], nn.Module]) -> None:
    network = Network(make)
    assert network.stochastic
    keys = draws.fold(torch.arange(3), 0)
    masks = dropout_masks(network, keys)
    kept = masks != 0
    torch.testing.assert_close(masks[kept], torch.full_like(masks[kept], 1 / 0.7))
    deviation = (0.3 * 0.7 / kept[0].numel()) ** 0.5
    assert ((kept.double().mean((1, 2)) - 0.7).abs() < 5 * deviation).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agreement = (kept[a] == kept[b]).double().mean()
        assert abs(agreement - (0.7**2 + 0.3**2)) < 0.05
    assert torch.equal(masks, dropout_masks(network, keys))
    assert torch.equal(masks[1:2], dropout_masks(network, keys[1:2]))
    assert not torch.equal(masks, dropout_masks(network, draws.fold(torch.arange(3), 1)))
    assert torch.equal(dropout_masks(network, keys, training=False), torch.ones_like(masks))


def test_dropout_layers_draw_separately() -> None:
    drop = nn.Dropout(0.5)
    once = dropout_masks(Network(lambda: nn.Sequential(Scale(), nn.Dropout(0.5))), torch.arange(2))
    for second in (nn.Dropout(0.5), drop):
        network = Network(lambda second=second: nn.Sequential(Scale(), drop, second))
        twice = dropout_masks(network, torch.arange(2))
        assert abs((once != 0).double().mean() - 0.5) < 0.02
        assert abs((twice != 0).double().mean() - 0.25) < 0.02


@pytest.mark.parametrize(
    ("factory", "shape", "parts"),
    [
        (networks.lenet5, (6,), "at least 20"),
        (networks.lenet5, (1, 8, 8), "at least 20"),
        (networks.vgg16, (3, 28, 28), "at least 32"),
        (networks.conv3(), (40,), "mlp"),
    ],
)
def test_networks_refuse_unfit_examples(factory: networks.NetworkFactory, shape: tuple[int, ...], parts: Any) -> None:
    with pytest.raises(ValueError, match=parts):
        factory(shape, 10)


def pooled(shape: Any, classes: int) -> nn.Module:
    # ReLU ahead of the pool, which are swapped, and pools that only the general kernel can do.
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 5, 1), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(5 * 2 * 2, classes),
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 3])
def test_swapped_and_plain_pools_equal_modules_alone(n: int) -> None:
    def make() -> nn.Module:
        return pooled((1, 12, 12), 4)

    assert_equals_modules_alone(make, (1, 12, 12), n=n)
    network = Network(make)
    params, buffers = network.init([1], CPU, F64)
    x = torch.randn(1, 2, 1, 12, 12, dtype=F64)
    with torch.no_grad():
        without, _ = network(params, buffers, x, False)
    with_gradient, _ = network(params.requires_grad_(), buffers, x, False)
    assert torch.equal(without, with_gradient)


def test_activations_are_counted_for_one_example() -> None:
    assert Network(lambda: networks.mlp(8)((3,), 2)).activations(torch.zeros(1, 3), torch.float32) == [8, 8, 2]


@pytest.mark.parametrize("depth", [3, 4, 12])
def test_wide_residual_networks_have_no_other_depths(depth: int) -> None:
    with pytest.raises(ValueError, match=f"the depth of a wide residual network is 6 k . 4, .*, not {depth}"):
        networks.wide_resnet(depth)
