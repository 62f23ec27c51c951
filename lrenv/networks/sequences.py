"""Networks of sequences of token ids (L,): a perceptron of the last characters, and a small transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrenv.networks.architectures import NetworkFactory, Residual, Shape


def context_mlp(hidden: int = 64, embedding: int = 8) -> NetworkFactory:
    """Returns a factory of perceptrons that embed each of the L tokens and have one hidden layer (Bengio et al. 2003).

    The factory raises a ValueError if examples are no sequences.

    Args:
        hidden: units of the hidden layer.
        embedding: numbers per token.
    """

    def make(shape: Shape, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Embedding(classes, embedding), nn.Flatten(),
            nn.Linear(sequence_length(shape, "context_mlp") * embedding, hidden), nn.Tanh(), nn.Linear(hidden, classes),
        )  # fmt: skip

    return make


def transformer(width: int = 32, heads: int = 2, layers: int = 1) -> NetworkFactory:
    """Returns a factory of causal transformers with learned positions and pre-normalisation (Radford et al. 2019).

    Outputs (L, classes) predict the token after each place. The factory raises a ValueError if examples are no
    sequences.

    Args:
        width: numbers per place; the perceptron of each layer has four times as many units.
        heads: heads of attention; they divide the width.
        layers: layers, each of attention and a perceptron.

    Raises:
        ValueError: the heads don't divide the width.
    """
    if width % heads:
        raise ValueError(f"width={width} must be a multiple of heads={heads}")

    def make(shape: Shape, classes: int) -> nn.Module:
        length = sequence_length(shape, "transformer")
        blocks: list[nn.Module] = []
        for _ in range(layers):
            perceptron = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            attention = nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads))
            blocks += [Residual(attention, nn.Identity()), Residual(perceptron, nn.Identity())]
        embedding = Positions(nn.Embedding(classes, width), length)
        return nn.Sequential(embedding, *blocks, nn.LayerNorm(width), nn.Linear(width, classes))

    return make


class Positions(nn.Module):
    """An embedding of tokens, to which a learned vector per place is added.

    Args:
        tokens: the embedding.
        length: L, places.
    """

    def __init__(self, tokens: nn.Embedding, length: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.places = nn.Parameter(0.02 * torch.randn(length, tokens.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the sums (b, L, width) of both vectors of token ids (b, L)."""
        embedded: Tensor = self.tokens(ids)
        return embedded + self.places


class CausalAttention(nn.Module):
    """Attention of each place to itself and those before it (Vaswani et al. 2017, equation 1).

    It is written out, since fused kernels of attention can be neither stacked over trainees nor differentiated in
    forward mode.

    Args:
        width: numbers per place.
        heads: heads of width / heads numbers each.
        bias: whether the linear layers have biases.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.Linear(width, 3 * width, bias)
        self.output = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs (b, L, width) for inputs x (b, L, width)."""
        # (b, L, 3, heads, width / heads) -> three tensors (b, heads, L, width / heads)
        queries, keys, values = self.joint(x).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(-3)
        scores = self._placed(queries) @ self._placed(keys).transpose(-2, -1) / math.sqrt(queries.shape[-1])
        later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ values
        output: Tensor = self.output(mixed.transpose(-3, -2).flatten(-2))
        return output

    def _placed(self, x: Tensor) -> Tensor:
        """Tells queries or keys (..., L, d) their places; here they stay as they are."""
        return x


def sequence_length(shape: Shape, network: str) -> int:
    """Returns the length of a sequence.

    Raises:
        ValueError: examples are no sequences.
    """
    if len(shape) != 1:
        raise ValueError(
            f"{network} takes sequences, examples of shape (L,), but the data has examples of shape {tuple(shape)}"
        )
    return shape[0]
