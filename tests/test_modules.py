"""Modules train as they do in plain PyTorch: weights, losses and statistics after twenty steps, module by module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import blobs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from lrenv.data import Data, Split
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.architectures import Residual
from lrenv.networks.stacked import Network
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

F64 = torch.float64
STEPS, SEEDS, RATE = 8, [3, 11, 4], 0.05
VECTOR, SEQUENCE, IMAGE = (6,), (3, 4), (2, 6, 6)
S, Make = nn.Sequential, Callable[[], nn.Module]

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


class Apply(nn.Module):
    """A module with a forward pass of its own."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Any) -> Any:
        return self.function(x, **self.parts)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


class Sums(nn.Module):
    """Keeps a running sum in a buffer, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.register_buffer("total", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += x.detach().sum(0)
        return x * self.weight + 0.01 * torch.tanh(self.total)


class Replacing(nn.Module):
    """Puts other tensors in its buffers' places, instead of writing to them."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))  # a number, no vector
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.count = self.count + 1
        return self.scale * torch.tanh(x - self.mean)


def listed(x: Tensor, layers: nn.ModuleList) -> Tensor:
    for layer in layers:
        x = x + torch.tanh(layer(x))
    return x


def doubling(register: Callable[[nn.Linear], object], place: int = 0) -> Make:
    """A perceptron, one of whose layers gets a hook."""

    def make() -> nn.Module:
        net = S(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        register(net[2 * place])
        return net

    return make


def vector(*layers: Callable[[], nn.Module]) -> Make:
    """Layers between a linear one 6 -> 8 and another 8 -> 3."""
    return lambda: S(nn.Linear(6, 8), *(layer() for layer in layers), nn.Linear(8, 3))


def image(*layers: Callable[[], nn.Module], features: int) -> Make:
    """Layers between a convolution (2, 6, 6) -> (4, 4, 4) and a linear one on `features`."""
    return lambda: S(nn.Conv2d(2, 4, 3), *(layer() for layer in layers), nn.Flatten(), nn.Linear(features, 3))


def recurrent(cell: Callable[[int, int], nn.Module]) -> Make:
    def run(x: Tensor, cell: nn.Module, out: nn.Module) -> Any:
        h: Any = None
        for t in range(x.shape[1]):
            h = cell(x[:, t], h)
        return out(h[0] if isinstance(h, tuple) else h)

    return lambda: Apply(run, cell=cell(4, 5), out=nn.Linear(5, 3))


def head() -> nn.Module:
    return nn.Linear(5, 3)


def tokens(x: Tensor) -> Tensor:
    return (10 * x.abs()).long() % 7


def own_forward() -> nn.Module:
    net = S(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    net[0].forward = lambda x: 2 * nn.Linear.forward(net[0], x)
    return net


def dotted(layer: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.4)


class Case(NamedTuple):
    make: Make
    shape: tuple[int, ...]
    apart: str = ""  # part of the reason why copies run one after another
    single: str = ""  # plain PyTorch's own words where it refuses a batch of 1


ONE_VALUE = "more than 1 value per channel"
CASES: dict[str, Case] = {
    "buffers replaced, a parameter that is a number": Case(vector(Replacing), VECTOR),
    "buffers replaced, copies apart": Case(vector(Replacing, lambda: spectral_norm(nn.Linear(8, 8))), VECTOR, "out="),
    "forward hook": Case(doubling(lambda m: m.register_forward_hook(lambda m, i, o: o * 2)), VECTOR),
    "forward hook with keywords": Case(
        doubling(lambda m: m.register_forward_hook(lambda m, i, k, o: o * 2, with_kwargs=True), 1), VECTOR
    ),
    "forward pre-hook": Case(doubling(lambda m: m.register_forward_pre_hook(lambda m, i: (i[0] * 2,)), 1), VECTOR),
    "backward hook": Case(
        doubling(lambda m: m.register_full_backward_hook(lambda m, i, o: (i[0] * 2,)), 1), VECTOR, "differ"
    ),
    "backward pre-hook": Case(
        doubling(lambda m: m.register_full_backward_pre_hook(lambda m, o: (o[0] * 2,))), VECTOR, "differ"
    ),
    "hook on a weight": Case(doubling(lambda m: m.weight.register_hook(lambda g: g * 2)), VECTOR, "hooks"),
    "hook on a batch norm": Case(
        lambda: S(nn.Conv2d(2, 3, 3), hooked(nn.BatchNorm2d(3)), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), IMAGE
    ),
    "forward of the instance": Case(own_forward, VECTOR),
    "weight norm": Case(lambda: S(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR),
    "old weight norm": Case(lambda: S(weight_norm(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR),
    "spectral norm": Case(
        lambda: S(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR, "out="
    ),
    "old spectral norm": Case(lambda: S(spectral_norm(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR, "out="),
    "orthogonal": Case(lambda: S(parametrizations.orthogonal(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR),
    "pruned": Case(lambda: S(dotted(nn.Linear(6, 5)), nn.Tanh(), head()), VECTOR),
    "in-place activations": Case(
        lambda: S(nn.ELU(inplace=True), nn.Linear(6, 5), nn.LeakyReLU(inplace=True), nn.Linear(5, 5),
                  nn.SiLU(inplace=True), head()), VECTOR),
    "in-place ahead of a pool": Case(image(lambda: nn.ReLU(inplace=True), lambda: nn.MaxPool2d(2), features=16), IMAGE),
    "in-place behind a pool": Case(
        image(lambda: nn.MaxPool2d(2), lambda: nn.Hardtanh(inplace=True), features=16), IMAGE
    ),
    "in-place in a forward": Case(lambda: S(Apply(lambda x: x.mul_(2).add_(1)), nn.Linear(6, 3)), VECTOR),
    "in-place seen by a shortcut": Case(
        lambda: S(Residual(S(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Identity()), nn.Linear(6, 3)), VECTOR, "differ"
    ),
    "its own input": Case(lambda: S(Apply(lambda x: x), nn.Linear(6, 3)), VECTOR),
    "flatten of transposed": Case(
        lambda: S(nn.Linear(4, 6), Apply(lambda x: x.transpose(1, 2).flatten(1)), nn.Linear(18, 3)), SEQUENCE
    ),
    "views": Case(
        lambda: S(nn.Linear(4, 6), Apply(lambda x: x.view(x.shape[0], -1).narrow(1, 2, 12)), nn.Linear(12, 3)), SEQUENCE
    ),
    "views of images": Case(
        image(lambda: Apply(lambda x: x.view(x.shape[0], 2, -1).permute(0, 2, 1)[..., ::2]), features=32), IMAGE
    ),
    "channels last": Case(
        image(lambda: Apply(lambda x: x.to(memory_format=torch.channels_last)), lambda: nn.MaxPool2d(2), features=16),
        IMAGE, "channels_last",
    ),
    "channels innermost": Case(
        image(lambda: Apply(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), nn.ReLU,
              lambda: nn.MaxPool2d(2), lambda: nn.BatchNorm2d(4), features=16), IMAGE),
    "expanded": Case(
        lambda: S(nn.Linear(6, 4), Apply(lambda x: x[..., None, None].expand(-1, -1, 4, 4)), nn.Conv2d(4, 2, 2),
                  nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)), VECTOR),
    "images without a batch axis": Case(
        lambda: S(Apply(lambda x: x[:, 0]), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(18, 3)), IMAGE
    ),
    "attention": Case(
        lambda: Apply(lambda x, a, o: o(a(x, x, x)[0].flatten(1)), a=nn.MultiheadAttention(4, 2, batch_first=True),
                      o=nn.Linear(12, 3)), SEQUENCE),
    "transformer layer": Case(
        lambda: S(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(12, 3)),
        SEQUENCE,
    ),
    "batch norm 1d": Case(vector(lambda: nn.BatchNorm1d(8)), VECTOR, single=ONE_VALUE),
    "batch norm 1d, averaging": Case(
        vector(lambda: nn.BatchNorm1d(8, momentum=None)), VECTOR, single=ONE_VALUE
    ),
    "batch norm 1d, bare": Case(
        vector(lambda: nn.BatchNorm1d(8, affine=False, track_running_stats=False)), VECTOR, single=ONE_VALUE
    ),
    "batch norm 2d": Case(image(lambda: nn.BatchNorm2d(4), features=64), IMAGE),
    "batch norm 2d, averaging": Case(image(lambda: nn.BatchNorm2d(4, momentum=None, affine=False), features=64), IMAGE),
    "batch norm 2d, no statistics": Case(
        image(lambda: nn.BatchNorm2d(4, track_running_stats=False), features=64), IMAGE
    ),
    "batch norm 2d of pixels": Case(
        image(lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.BatchNorm2d(4), features=4), IMAGE, single=ONE_VALUE
    ),
    "layer norm": Case(vector(lambda: nn.LayerNorm(8)), VECTOR),
    "group norm": Case(image(lambda: nn.GroupNorm(2, 4), features=64), IMAGE),
    "instance norm": Case(
        image(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), features=64), IMAGE
    ),
    "RMS norm": Case(vector(lambda: nn.RMSNorm(8)), VECTOR),
    "local response norm": Case(image(lambda: nn.LocalResponseNorm(2), features=64), IMAGE),
    "embedding": Case(
        lambda: S(Apply(tokens), nn.Embedding(7, 4), nn.Flatten(), nn.Linear(24, 3)), VECTOR
    ),
    "embedding bag": Case(lambda: S(Apply(tokens), nn.EmbeddingBag(7, 4), nn.Linear(4, 3)), VECTOR),
    "PReLU": Case(vector(lambda: nn.PReLU(8), lambda: nn.PReLU()), VECTOR),
    "activations": Case(
        vector(nn.Softplus, nn.Mish, nn.Softsign, lambda: nn.Softmax(-1), nn.CELU, nn.Hardswish), VECTOR),
    "gated": Case(lambda: S(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)), VECTOR),
    "bilinear": Case(lambda: Apply(lambda x, b: b(x, x), b=nn.Bilinear(6, 6, 3)), VECTOR),
    "convolutions 1d": Case(
        lambda: S(nn.Conv1d(3, 4, 2, padding=1, padding_mode="replicate"), nn.Tanh(), nn.ConvTranspose1d(4, 2, 2, 2),
                  nn.AvgPool1d(2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3)), SEQUENCE),
    "convolutions 2d": Case(
        lambda: S(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", groups=2), nn.GELU(),
                  nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                  nn.ConvTranspose2d(4, 2, 2, 2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), IMAGE),
    "convolutions 3d": Case(
        lambda: S(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(),
                  nn.Linear(50, 3)), IMAGE),
    "pixel shuffle": Case(image(lambda: nn.PixelShuffle(2), features=64), IMAGE),
    "upsampled": Case(
        image(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), lambda: nn.Upsample(3), features=36), IMAGE
    ),
    "padded": Case(image(lambda: nn.ZeroPad2d(1), lambda: nn.ReflectionPad2d(1), features=256), IMAGE),
    "pools": Case(
        image(lambda: nn.AvgPool2d(2, 1), nn.ReLU, lambda: nn.MaxPool2d(2, ceil_mode=True), lambda: nn.LPPool2d(2, 2),
              features=4), IMAGE),
    "pool with places": Case(
        lambda: Apply(lambda x, c, p, u, o: o(u(*p(c(x))).flatten(1)), c=nn.Conv2d(2, 2, 3),
                      p=nn.MaxPool2d(2, return_indices=True), u=nn.MaxUnpool2d(2), o=nn.Linear(32, 3)), IMAGE),
    "GRU cell": Case(recurrent(nn.GRUCell), SEQUENCE),
    "RNN cell": Case(recurrent(nn.RNNCell), SEQUENCE),
    "LSTM cell": Case(recurrent(nn.LSTMCell), SEQUENCE, "lstm_cell"),
    "RNN": Case(lambda: S(nn.RNN(4, 5, batch_first=True), Apply(lambda x: x[0][:, -1]), head()), SEQUENCE, "rnn"),
    "GRU": Case(lambda: S(nn.GRU(4, 5, 2), Apply(lambda x: x[0][:, -1]), head()), SEQUENCE, "gru"),
    "LSTM": Case(lambda: S(nn.LSTM(4, 5, batch_first=True), Apply(lambda x: x[0][:, -1]), head()), SEQUENCE, "lstm"),
    "tied weights": Case(lambda: S(Tied(), nn.Tanh(), nn.Linear(6, 3)), VECTOR),
    "residual": Case(
        lambda: S(Residual(S(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 6)), Residual(nn.Tanh(), nn.Identity()),
                  nn.Linear(6, 3)), VECTOR),
    "list and dict of modules": Case(
        lambda: Apply(lambda x, layers, out: out(listed(x, layers)), layers=nn.ModuleList([nn.Linear(6, 6)] * 2),
                      out=nn.Linear(6, 3)), VECTOR),
    "nested": Case(lambda: S(S(S(nn.Linear(6, 8)), nn.Tanh()), S(nn.Flatten(), S(nn.Linear(8, 3)))), VECTOR),
    "a buffer that sums": Case(lambda: S(Sums(), nn.Linear(6, 3)), VECTOR),
    "a branch on the mode": Case(
        lambda: S(nn.Linear(6, 8), nn.Dropout(0.0), nn.Dropout(0.0, inplace=True), nn.Linear(8, 3)), VECTOR
    ),
}  # fmt: skip


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, i, o: 0.5 * o)
    return module


def task(case: Case, batch_size: int) -> Task:
    data = blobs(case.shape)
    return Task(
        "contract", lambda: data, lambda shape, classes: case.make(), optimizer="momentum", batch_size=batch_size,
        budget=STEPS, interval=STEPS, initial_lr=RATE,
    )  # fmt: skip


def alone(case: Case, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return case.make().double()


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_training_equals_plain_pytorch(name: str, batch_size: int) -> None:
    case = CASES[name]
    if batch_size == 1 and case.single:
        with pytest.raises(ValueError, match=case.single):
            alone(case, 0).train()(torch.zeros(1, *case.shape, dtype=F64))
        with pytest.raises(ValueError, match=f"can't take 1 examples of shape .* in training mode.*{case.single}"):
            Trainee(task(case, 1), dtype=F64)
        return
    trainee = Trainee(task(case, batch_size), dtype=F64)
    assert case.apart in trainee.network.why_sequential
    assert bool(case.apart) == bool(trainee.network.why_sequential)
    start = trainee.init(SEEDS)
    with torch.no_grad():
        end, losses = trainee.unroll(start, torch.full((3, 1), RATE, dtype=F64), trainee.hyper(3), STEPS)
        measured = trainee.evaluate(end.params, end.buffers, trainee.val).loss
    batches = trainee.batch_indices(start, STEPS)
    for i, seed in enumerate(SEEDS):
        module = alone(case, seed)
        optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=0.9)
        for t, rows in enumerate(batches[i]):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(trainee.train.inputs[rows].clone()), trainee.train.targets[rows])
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(losses[i, t], loss.detach(), rtol=1e-9, atol=1e-9)
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(
                trainee.network.named(end.params)[key][i], parameter.detach(), rtol=1e-9, atol=1e-9
            )
        for key, buffer in module.named_buffers():
            torch.testing.assert_close(end.buffers[key][i], buffer, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            outputs = module.eval()(trainee.val.inputs.clone())
        torch.testing.assert_close(measured[i], F.cross_entropy(outputs, trainee.val.targets), rtol=1e-9, atol=1e-9)


def digest(data: Data) -> list[str]:
    return [hashlib.sha256(x.numpy().tobytes()).hexdigest() for split in data[:3] for x in split]


class Overwriting(nn.Module):
    """Does whatever overwrites an input, past autograd too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(1.5)
        x[:, ::2].add_(1)
        out: Tensor = self.linear(x.clone().view(-1, 6))
        with torch.no_grad():
            x.zero_()
        return out


OVERWRITING: dict[str, Make] = {
    "activation": lambda: S(nn.ELU(inplace=True), nn.Linear(6, 3)),
    "behind views": lambda: S(nn.Identity(), nn.Flatten(), S(nn.ReLU(inplace=True)), nn.Linear(6, 3)),
    "unusual activation": lambda: S(nn.Hardtanh(inplace=True), nn.Linear(6, 3)),
    "dropout": lambda: S(nn.Dropout(0.5, inplace=True), nn.Linear(6, 3)),
    "shortcut": lambda: S(Residual(S(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Identity()), nn.Linear(6, 3)),
    "view of the input": lambda: S(Apply(lambda x: x[:, 1:4].mul_(3)), nn.Linear(3, 3)),
    "recurrent": lambda: S(
        Apply(lambda x: x.mul_(2).view(-1, 3, 2)), nn.GRU(2, 3, batch_first=True), Apply(lambda x: x[0][:, -1])
    ),
    "own forward": Overwriting,
    "its own input": lambda: S(nn.Linear(6, 6), Apply(lambda x: x), nn.Softplus(), Apply(lambda x: x.exp_())),
}


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("name", OVERWRITING)
def test_no_network_overwrites_stored_data(name: str, num_envs: int) -> None:
    data = blobs(VECTOR)
    settings: dict[str, Any] = {"batch_size": 4, "budget": 4, "interval": 2, "optimizer": "sgd"}
    envs = LearningRateVectorEnv(
        num_envs, Task("x", lambda: data, lambda shape, classes: OVERWRITING[name](), **settings), device="cpu",
        observe=("dynamics", "gradient_change_square"),
    )  # fmt: skip
    trainee = envs.episode.trainee
    before = [digest(data), digest(Data(trainee.train, trainee.val, trainee.test, data.mean, data.std, 3))]
    seen = []
    for _ in range(3):
        seen.append([envs.reset(seed=0)[1]["val_loss"].tolist()])
        for _ in range(3):  # over the end of the episode, where the test split is measured
            info = envs.step(np.zeros((num_envs, 1), np.float32))[4]
            seen[-1].append([info["train_loss"].tolist(), info["val_loss"].tolist()])
    assert seen[0] == seen[1] == seen[2]
    state = trainee.init(range(num_envs))
    lr = torch.full((num_envs, 1), 0.1, requires_grad=True)
    if not trainee.network.why_sequential:
        trainee.unroll(state, lr, trainee.hyper(num_envs), 2)[1].sum().backward()
    assert before == [digest(data), digest(Data(trainee.train, trainee.val, trainee.test, data.mean, data.std, 3))]


class Clamped(nn.Module):
    """Keeps its weights in bounds by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.1, 0.1)
        out: Tensor = self.linear(x)
        return out


class Remembering(nn.Module):
    """Keeps its last output outside any buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.before = nn.Linear(6, 3), torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.before
        self.before = out.detach().mean(0)
        return out


ONE = S(nn.Linear(6, 3))
ONE_LAYER = nn.Linear(6, 6)


def numpy_drawn() -> nn.Module:
    layer = nn.Linear(6, 3)
    layer.weight.data[:] = torch.from_numpy(np.random.default_rng().standard_normal((3, 6)))
    return layer


def accumulating() -> nn.Module:
    layer = nn.Linear(6, 3)
    layer.weight.register_post_accumulate_grad_hook(lambda p: None)
    return layer


REFUSED: dict[str, tuple[Make, str]] = {
    "parts run again on the way back": (
        lambda: Apply(lambda x, net: checkpoint(net, x, use_reentrant=False), net=vector(nn.Tanh)()),
        "as torch.utils.checkpoint does",
    ),
    "functional dropout": (lambda: S(nn.Linear(6, 3), Apply(F.dropout)), "draws random numbers"),
    "dropout while evaluating": (
        lambda: S(nn.Linear(6, 3), Apply(lambda x: F.dropout(x, training=True))),
        "draws random numbers",
    ),
    "other dropout": (lambda: S(nn.Linear(6, 3), nn.AlphaDropout(0.1)), "use nn.Dropout"),
    "random leaks": (lambda: S(nn.Linear(6, 3), nn.RReLU()), "draws random numbers"),
    "attention with dropout": (
        lambda: S(
            nn.Unflatten(1, (3, 2)),
            nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        "set the dropout arguments of attention",
    ),
    "recurrent": (lambda: S(nn.Unflatten(1, (3, 2)), nn.GRU(2, 3)), "gives a tuple of 2, but it must give one tensor"),
    "several outputs": (lambda: Apply(lambda x, a: {"out": a(x)}, a=nn.Linear(6, 3)), "gives a dict, but"),
    "no batch axis": (lambda: Apply(lambda x, a: a(x).sum(0), a=nn.Linear(6, 3)), r"shape \(3,\) for 4 examples"),
    "lazy": (lambda: S(nn.LazyLinear(5), nn.Linear(5, 3)), "such as nn.Linear"),
    "one instance": (lambda: ONE, "build a new module in each call"),
    "one layer": (lambda: S(ONE_LAYER, nn.Linear(6, 3)), "build a new module in each call"),
    "drawn by numpy": (numpy_drawn, "draw them with torch"),
    "its own weights": (Clamped, "changes its parameters linear.weight"),
    "memory outside buffers": (Remembering, "must be a buffer"),
    "frozen": (lambda: S(nn.Linear(6, 3).requires_grad_(False)), "frozen"),
    "accumulation hook": (accumulating, "Tensor.register_hook"),
    "no parameters": (nn.Identity, "no parameters"),
    "no gradient": (lambda: Apply(lambda x, a: a(x).detach(), a=nn.Linear(6, 3)), "has a gradient"),
    "elsewhere": (lambda: nn.Linear(6, 3, device="meta"), "build the network on the CPU"),
    "overwritten too early": (
        lambda: Apply(lambda x, a: (a(x), x.zero_())[0], a=nn.Linear(6, 3)),
        "training mode .*modified by an inplace operation",
    ),
    "other examples": (lambda: nn.Linear(7, 3), r"can't take 4 examples of shape \(6,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_a_sentence(name: str) -> None:
    make, sentence = REFUSED[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=sentence):
        Trainee(task(Case(make, VECTOR), 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": nn.Linear(6, 3)}, "network must be a function .* not Linear itself"),
        ({"network": "lenet"}, "network must be a function .*, not a str.* a task of your own"),
        ({"initial_lr": "fast"}, "initial_lr must be a rate, several rates, or a LogUniform, not a str"),
        ({"network": nn.Linear}, "network must be a function .* not Linear itself"),
        ({"optimizer": torch.optim.Adam}, "torch.optim's Adam.*one of the names sgd"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, "torch.optim's SGD"),
        ({"data": torch.utils.data.TensorDataset(torch.ones(2))}, "not a TensorDataset.*from_arrays"),
        ({"data": lambda: (torch.ones(2), torch.ones(2))}, "must give a lrenv.data.Data, not a tuple of 2"),
        ({"network": lambda shape, classes: torch.ones(3)}, "must give a torch.nn.Module, not a Tensor"),
        ({"network": lambda shape, classes: nn.Linear}, "must give a torch.nn.Module, not the class Linear"),
    ],
)
def test_objects_handed_over_instead_of_what_is_wanted(settings: dict[str, Any], sentence: str) -> None:
    defaults: dict[str, Any] = {"data": lambda: blobs(VECTOR), "network": lambda shape, classes: nn.Linear(6, 3)}
    with pytest.raises(TypeError, match=sentence):
        Trainee(Task("x", batch_size=4, **(defaults | settings)))


def test_copies_that_run_apart_are_not_compiled() -> None:
    case = CASES["LSTM"]
    with pytest.raises(ValueError, match="compile=False"):
        Trainee(task(case, 4), compile=True)


def test_a_dropout_that_runs_twice_draws_twice() -> None:
    network = Network(lambda: Apply(lambda x, d, a: (d(x), d(x), a(x))[:2], a=nn.Linear(1, 1), d=nn.Dropout(0.5)))
    x = torch.ones(2, 400, 1)
    for key in (torch.tensor([3, 4]), torch.tensor([4, 3])):
        params, _ = network.init([0, 1], torch.device("cpu"), torch.float32)
        (first, second), _ = network(params, {}, x, True, key)
        agreement = ((first != 0) == (second != 0)).float().mean((1, 2))
        assert ((agreement - 0.5).abs() < 5 * 0.5 / 20).all()


def test_dropout_of_a_copy_that_runs_apart_is_its_own() -> None:
    case = Case(
        lambda: S(nn.GRU(4, 5, batch_first=True), Apply(lambda x: x[0][:, -1]), nn.Dropout(0.5), head()), SEQUENCE
    )
    trainee = Trainee(task(case, 4), dtype=F64)
    assert trainee.network.why_sequential
    both, alone = trainee.init([3, 4]), trainee.init([4])
    index = trainee.batch_indices(both, 1)[:, 0]
    together, _ = trainee.loss(both.params, both, index)
    torch.testing.assert_close(trainee.loss(alone.params, alone, index[1:])[0], together[1:])


def test_global_hooks_run_as_in_plain_pytorch() -> None:
    trainee = Trainee(task(CASES["nested"], 5), dtype=F64)
    params, buffers = trainee.network.init([3], torch.device("cpu"), F64)
    x = trainee.train.inputs[:5]
    module = alone(CASES["nested"], 3)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 1.5)
    try:
        outputs, _ = trainee.network(params, buffers, x[None], True)
        torch.testing.assert_close(outputs[0], module(x))
    finally:
        hook.remove()
    outputs, _ = trainee.network(params, buffers, x[None], True)
    torch.testing.assert_close(outputs[0], module(x))


@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed", "channels last"])
def test_the_layout_of_data_changes_no_number(layout: str) -> None:
    def laid(x: Tensor) -> Tensor:
        if layout == "strided":
            return torch.stack([x, x], -1)[..., 0]
        if layout == "expanded":
            return x[:1].expand(x.shape)
        if layout == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return x.contiguous(memory_format=torch.channels_last)

    data = blobs(IMAGE)
    end = []
    for memory in (laid, lambda x: laid(x).contiguous()):
        splits = [Split(memory(split.inputs), split.targets) for split in data[:3]]
        held = Data(*splits, data.mean, data.std, 3)
        case = Task(
            "x", lambda held=held: held, lambda shape, classes: CASES["convolutions 2d"].make(), optimizer="sgd",
            batch_size=5,
        )  # fmt: skip
        trainee = Trainee(case, dtype=F64)
        with torch.no_grad():
            state, _ = trainee.unroll(trainee.init([1, 2]), torch.full((2, 1), RATE, dtype=F64), trainee.hyper(2), 5)
            end += [state.params, trainee.evaluate(state.params, state.buffers, trainee.val).loss]
    torch.testing.assert_close(end[0], end[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end[1], end[3], rtol=1e-12, atol=1e-12)
