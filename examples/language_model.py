"""An agent drives the rate of a small language model: `python examples/language_model.py [agent]`."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lrenv
from lrenv.data import load

STEPS, BATCH, WIDTH = 200, 16, 64


class LanguageModel(nn.Module):
    """A transformer of one layer that predicts the next character."""

    def __init__(self, characters: int, length: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, WIDTH), nn.Parameter(torch.zeros(length, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, ids: Tensor) -> Tensor:
        """Gives logits (b, L, characters)."""
        return self.head(self.layer(self.embedding(ids) + self.places, src_mask=self.mask, is_causal=True))


def main(agent: str = "wsd:peak=0.01:warmup=0.1") -> float:
    """Trains on Python's reference; gives bits per character on validation text."""
    torch.manual_seed(0)
    data = load("text")
    model = LanguageModel(data.classes, data.train.inputs.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))

    def validate() -> tuple[Tensor, Tensor]:
        return model(data.val.inputs[:200]), data.val.targets[:200]

    controller = lrenv.LRController(optimizer, agent, horizon=STEPS, evaluate=validate, module=model)
    for _ in range(STEPS):
        batch = torch.randint(len(data.train.inputs), (BATCH,))
        loss = cross_entropy(model(data.train.inputs[batch]).flatten(0, 1), data.train.targets[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        controller.step(loss)
    logits, targets = validate()
    bits = cross_entropy(logits.flatten(0, 1), targets.flatten()).item() / math.log(2)
    print(f"{bits:.2f} bits per character, in place of {math.log2(data.classes):.2f} at random")
    return bits


if __name__ == "__main__":
    main(*sys.argv[1:2])
