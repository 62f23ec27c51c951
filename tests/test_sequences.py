"""Networks of sequences against PyTorch's own attention, and against what causality demands."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from lrenv import networks
from lrenv.networks.sequences import CausalAttention
from lrenv.networks.stacked import Network


def test_attention_is_pytorchs() -> None:
    attention, x = CausalAttention(8, 2).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    queries, keys, values = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.joint(x).chunk(3, -1))
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    torch.testing.assert_close(attention(x), attention.output(mixed.transpose(1, 2).flatten(2)))


def test_no_place_of_a_transformer_sees_later_ones() -> None:
    net = networks.transformer(width=8, heads=2, layers=2)((6,), 11).double()
    ids = torch.randint(0, 11, (2, 6))
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = net(ids), net(changed)
    assert before.shape == (2, 6, 11)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    assert not torch.equal(before[:, 4], after[:, 4])


@pytest.mark.parametrize(
    ("make", "shape", "inputs"),
    [
        (networks.transformer(width=8, heads=2), (6,), torch.randint(0, 11, (3, 4, 6))),
        (networks.context_mlp(7, 3), (6,), torch.randint(0, 11, (3, 4, 6))),
        (networks.batch_norm_mlp(5, 6), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
        (networks.residual_mlp(5, 2), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
    ],
    ids=["transformer", "context_mlp", "batch_norm_mlp", "residual_mlp"],
)
def test_copies_side_by_side_are_modules_by_themselves(make: networks.NetworkFactory, shape: tuple[int, ...],
                                                       inputs: torch.Tensor) -> None:  # fmt: skip
    network = Network(partial(make, shape, 11))
    params, buffers = network.init([0, 1, 2], torch.device("cpu"), torch.float64)
    network.dry_run(inputs[0], torch.float64)
    assert not network.why_sequential
    leaf = params.clone().requires_grad_()
    outputs, after = network(leaf, buffers, inputs, True)
    (grads,) = torch.autograd.grad(outputs.square().sum(), leaf)
    for i in range(3):
        module = make(shape, 11).double()
        own = {name: w[i].clone().requires_grad_() for name, w in network.named(params).items()}
        state = {name: b[i].clone() for name, b in buffers.items()}
        expected = functional_call(module.train(), (own, state), (inputs[i],))
        torch.testing.assert_close(outputs[i], expected)
        for name, g in zip(own, torch.autograd.grad(expected.square().sum(), list(own.values())), strict=True):
            torch.testing.assert_close(network.named(grads)[name][i], g)
        for name, b in state.items():
            torch.testing.assert_close(after[name][i], b)


def test_settings_that_can_not_be_meant() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        networks.transformer(width=10, heads=3)
    with pytest.raises(ValueError, match="sequences of token ids"):
        networks.context_mlp()((1, 8, 8), 10)
