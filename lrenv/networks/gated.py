"""Networks of sequences with gates, which multiply parts with one another: recurrent, convolutional, attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrenv.networks.architectures import NetworkFactory, Residual, Shape
from lrenv.networks.sequences import CausalAttention, sequence_length


class GRU(nn.Module):
    """Gated recurrent units (Cho et al. 2014) as in `torch.nn.GRU`; the output is the state after the last place.

    It is written out, since the fused kernels of recurrent layers can't be stacked over trainees.

    Args:
        inputs: numbers per place.
        width: units.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.entering, self.recurring = nn.Linear(inputs, 3 * width), nn.Linear(width, 3 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the last states (b, width) for inputs x (b, L, inputs)."""
        entering = self.entering(x)
        state = torch.zeros_like(entering[..., 0, : self.recurring.in_features])
        for each in entering.unbind(-2):
            reset, update, new = each.chunk(3, -1)
            old_reset, old_update, old = self.recurring(state).chunk(3, -1)
            keep = (update + old_update).sigmoid()
            proposal = (new + (reset + old_reset).sigmoid() * old).tanh()
            state = keep * state + (1 - keep) * proposal
        return state


def gru(width: int = 16, step: int = 1) -> NetworkFactory:
    """Returns a factory of networks that predict from the last state of gated recurrent units over a series of numbers.

    Args:
        width: units.
        step: numbers per place, so that a series of length L has L / step places.
    """

    def make(shape: Shape, outputs: int) -> nn.Module:
        length = sequence_length(shape, "gru")
        return nn.Sequential(nn.Unflatten(1, (length // step, step)), GRU(step, width), nn.Linear(width, outputs))

    return make


class GatedConvolution(nn.Module):
    """A causal convolution, half of whose channels are gates of the others (Dauphin et al. 2017, equation 1).

    Args:
        width: numbers per place.
        kernel: places on which an output depends, its own and those before it.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, 2 * width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs (b, L, width) for inputs x (b, L, width)."""
        seen = F.pad(x.transpose(-1, -2), (self.convolution.kernel_size[0] - 1, 0))
        return F.glu(self.convolution(seen), dim=-2).transpose(-1, -2)


def gated_convolutions(width: int = 32, kernel: int = 4, layers: int = 2) -> NetworkFactory:
    """Returns a factory of text models of gated convolutions with residual connections (Dauphin et al. 2017).

    Outputs (L, classes) predict the token after each place.

    Args:
        width: numbers per place.
        kernel: places on which an output of a layer depends.
        layers: how many layers there are.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        sequence_length(shape, "gated_convolutions")
        blocks = (Residual(GatedConvolution(width, kernel), nn.Identity()) for _ in range(layers))
        return nn.Sequential(nn.Embedding(classes, width), *blocks, nn.Linear(width, classes))

    return make


class RMSNorm(nn.Module):
    """The normalisation x / sqrt(mean of x^2 + eps), scaled per component (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., width) over the last axis."""
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class RotaryAttention(CausalAttention):
    """Causal attention whose scores depend on the distance of two places (Su et al. 2021, equation 34), without biases.

    Args:
        width: numbers per place.
        heads: heads, which divide the width into even parts.
        base: pair i of the d components is rotated by base^(-2 i / d) per place, i = 0 ... d / 2 - 1.
    """

    def __init__(self, width: int, heads: int, base: float = 1e4) -> None:
        super().__init__(width, heads, bias=False)
        self.base = base

    def _placed(self, x: Tensor) -> Tensor:
        """Rotates each pair of components (..., L, d) by an angle in proportion to its place."""
        half = x.shape[-1] // 2
        speeds = self.base ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
        angles = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * speeds
        one, other = x.chunk(2, -1)
        return torch.cat([one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos()], -1)


class GatedUnits(nn.Module):
    """The layer SwiGLU: W3 (silu(W1 x) * W2 x), without biases (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.joint, self.output = nn.Linear(width, 2 * units, bias=False), nn.Linear(units, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs (..., width) for inputs x (..., width)."""
        gate, value = self.joint(x).chunk(2, -1)
        output: Tensor = self.output(F.silu(gate) * value)
        return output


def gated_transformer(width: int = 32, heads: int = 2, layers: int = 1) -> NetworkFactory:
    """Returns a factory of causal transformers as in Touvron et al. 2023 ("LLaMA", section 2.2).

    They have RMS norm, rotary positions and SwiGLU. Outputs (L, classes) predict the token after each place.

    Args:
        width: numbers per place; gated units are 8 / 3 times as many, so that there are 12 width^2 weights per layer.
        heads: heads of attention; they divide the width into even parts.
        layers: layers, each of attention and gated units.

    Raises:
        ValueError: the heads don't divide the width into even parts.
    """
    if width % (2 * heads):
        raise ValueError(f"width={width} must be a multiple of twice heads={heads}")

    def make(shape: Shape, classes: int) -> nn.Module:
        sequence_length(shape, "gated_transformer")
        blocks: list[nn.Module] = []
        for _ in range(layers):
            for part in (RotaryAttention(width, heads), GatedUnits(width, 8 * width // 3)):
                blocks.append(Residual(nn.Sequential(RMSNorm(width), part), nn.Identity()))
        return nn.Sequential(
            nn.Embedding(classes, width), *blocks, RMSNorm(width), nn.Linear(width, classes, bias=False)
        )

    return make
