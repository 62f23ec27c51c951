"""Networks of sequences against PyTorch's own attention, and against what causality demands."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lrenv import networks
from lrenv.networks.gated import GRU, GatedConvolution, GatedUnits, RMSNorm, RotaryAttention
from lrenv.networks.sequences import CausalAttention
from lrenv.networks.stacked import Network


def test_attention_is_pytorchs() -> None:
    attention, x = CausalAttention(8, 2).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    queries, keys, values = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.joint(x).chunk(3, -1))
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    torch.testing.assert_close(attention(x), attention.output(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    "make",
    [networks.transformer(8, 2, 2), networks.gated_transformer(8, 2, 2), networks.gated_convolutions(8, 3)],
    ids=["transformer", "gated_transformer", "gated_convolutions"],
)
def test_no_place_sees_later_ones(make: networks.NetworkFactory) -> None:
    net = make((6,), 11).double()
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
        (networks.gated_transformer(8, 2, 2), (6,), torch.randint(0, 11, (3, 4, 6))),
        (networks.gated_convolutions(5, 3), (6,), torch.randint(0, 11, (3, 4, 6))),
        (networks.gru(5, 2), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
        (networks.siren(5, 4), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
        (networks.maxout(4, 3, dropout=0.0), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
        (networks.dropout_mlp(5, dropout=0.0), (6,), torch.randn(3, 4, 6, dtype=torch.float64)),
    ],
    ids=[
        "transformer",
        "context_mlp",
        "batch_norm_mlp",
        "residual_mlp",
        "gated_transformer",
        "gated_convolutions",
        "gru",
        "siren",
        "maxout",
        "dropout_mlp",
    ],
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


def test_gated_units_are_pytorchs() -> None:
    ours, theirs = GRU(3, 5).double(), nn.GRU(3, 5, batch_first=True).double()
    names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    for name, parameter in zip(names, ours.parameters(), strict=True):
        getattr(theirs, name).data.copy_(parameter.data)
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x)[1][0])
    net = networks.gru(5, step=3)((12,), 2).double()
    series = torch.randn(4, 12, dtype=torch.float64)
    torch.testing.assert_close(net(series), net[2](net[1](series.view(4, 4, 3))))


def test_a_gated_convolution_is_its_formula() -> None:
    gated, x = GatedConvolution(3, 2).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    weight, bias = gated.convolution.weight, gated.convolution.bias
    assert bias is not None
    before = torch.cat([torch.zeros(2, 1, 3, dtype=torch.float64), x[:, :-1]], 1)
    linear = before @ weight[:, :, 0].T + x @ weight[:, :, 1].T + bias
    torch.testing.assert_close(gated(x), linear[..., :3] * linear[..., 3:].sigmoid())


def test_rotary_scores_depend_on_distances_alone() -> None:
    attention = RotaryAttention(8, 1, base=100.0).double()
    query, key = torch.randn(2, 8, dtype=torch.float64)
    turned = [attention._placed(vector.expand(9, 8)) for vector in (query, key)]
    scores = turned[0] @ turned[1].T
    for distance in (0, 1, 4):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert (scores[5, 0] - scores[5, 1]).abs() > 1e-3
    torch.testing.assert_close(scores[0, 0], query @ key)
    one, other = query.view(2, 4).double()
    speeds = 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    rotated = torch.complex(one, other) * torch.exp(1j * 3 * speeds)
    torch.testing.assert_close(turned[0][3], torch.cat([rotated.real, rotated.imag]))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    queries, keys, values = (part[:, None] for part in attention.joint(x).chunk(3, -1))
    turned = [attention._placed(part) for part in (queries, keys)]
    mixed = F.scaled_dot_product_attention(*turned, values, is_causal=True)
    torch.testing.assert_close(attention(x), attention.output(mixed[:, 0]))


def test_norms_and_gates_are_pytorchs() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    norm = RMSNorm(6).double()
    norm.weight.data.uniform_()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (6,), norm.weight, 1e-6))
    units = GatedUnits(6, 4).double()
    gate, value = (x @ units.joint.weight.T).split(4, -1)
    torch.testing.assert_close(units(x), (gate * gate.sigmoid() * value) @ units.output.weight.T)


def test_maxout_and_sines_are_their_formulas() -> None:
    x = torch.randn(7, 6)
    net = networks.maxout(4, pieces=3)((6,), 2).eval()
    hidden = (x @ net[1].weight.T + net[1].bias).view(7, 4, 3).max(-1).values
    torch.testing.assert_close(net(x), net[4](hidden))
    assert [type(part).__name__ for part in net] == ["Flatten", "Linear", "Maxout", "Dropout", "Linear"]
    sines = networks.siren(50, 40, frequency=10.0)((6,), 2)
    torch.testing.assert_close(sines[2](sines[1](x)), torch.sin(10 * (x @ sines[1].weight.T + sines[1].bias)))
    for layer, bound in zip(sines[1::2], (1 / 6, (6 / 50) ** 0.5 / 10, (6 / 40) ** 0.5 / 10), strict=True):
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    with pytest.raises(ValueError, match="multiple of twice heads=2"):
        networks.gated_transformer(width=6, heads=2)


def test_settings_that_can_not_be_meant() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        networks.transformer(width=10, heads=3)
    with pytest.raises(ValueError, match=r"takes sequences, examples of shape \(L,\)"):
        networks.context_mlp()((1, 8, 8), 10)
