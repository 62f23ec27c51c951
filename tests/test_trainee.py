"""The trainee: batches of n equal n alone, measuring equals plain computation, augmentation only moves images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrenv import networks
from lrenv.data import Data
from lrenv.data.augment import PADDING, crop, crop_flip
from lrenv.networks.copies import Dropout
from lrenv.randomness import draws
from lrenv.runtime.trees import select
from lrenv.training import objective
from lrenv.training.optimizers import Optimizer, adam
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee, TraineeState

F64 = torch.float64
RATES = torch.tensor([[0.1], [0.3], [0.02]], dtype=F64)


def conv_net(shape: networks.Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip


def assert_states_close(a: TraineeState, b: TraineeState, row: int) -> None:
    """All leaves of row `row` of `a` and of the lone trainee `b`."""
    torch.testing.assert_close(a.params[row], b.params[0], rtol=1e-10, atol=1e-10)
    for mine, other in ((a.buffers, b.buffers), (a.opt, b.opt)):
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name][row], other[name][0], rtol=1e-10, atol=1e-10)
    assert (a.step[row], a.seed[row]) == (b.step[0], b.seed[0])


@pytest.mark.parametrize("kind", ["mlp", "conv with everything"])
def test_an_unroll_of_n_is_each_alone(toy: Callable[..., Task], make_blobs: Callable[..., Data], kind: str) -> None:
    task = toy(optimizer="adam")
    if kind != "mlp":
        task = toy(make_blobs((2, 8, 8)), network=conv_net, optimizer="momentum", augment="crop-flip")
    trainee = Trainee(task, dtype=F64)
    seeds = [4, 9, 2]
    state, losses = trainee.unroll(trainee.init(seeds), RATES, trainee.hyper(3), 9)
    assert losses.shape == (3, 9)
    for i, seed in enumerate(seeds):
        alone, alone_losses = trainee.unroll(trainee.init([seed]), RATES[i : i + 1], trainee.hyper(1), 9)
        torch.testing.assert_close(losses[i], alone_losses[0], rtol=1e-10, atol=1e-10)
        assert_states_close(state, alone, i)


def test_an_unroll_can_be_cut_anywhere(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer="adam"), dtype=F64)
    start, hyper = trainee.init([0, 1, 2]), trainee.hyper(3)
    whole, losses = trainee.unroll(start, RATES, hyper, 7)
    part, first = trainee.unroll(start, RATES, hyper, 3)
    parts, second = trainee.unroll(part, RATES, hyper, 4)
    assert torch.equal(torch.cat([first, second], 1), losses)
    assert torch.equal(parts.params, whole.params)
    assert torch.equal(parts.step, whole.step)


def test_until_stops_each_trainee_on_its_own(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    trainee = Trainee(toy(make_blobs((2, 8, 8)), network=conv_net, optimizer="adam"), dtype=F64)
    hyper = trainee.hyper(3)
    start = trainee.init([0, 1, 2])
    ahead, _ = trainee.unroll(start, RATES, hyper, 3)
    mixed = select(torch.tensor([True, False, False]), ahead, start)
    state, _ = trainee.unroll(mixed, RATES, hyper, 6, until=5)
    assert state.step.tolist() == [5, 5, 5]
    straight, _ = trainee.unroll(start, RATES, hyper, 5)
    torch.testing.assert_close(state, straight, rtol=1e-12, atol=1e-12)
    again, _ = trainee.unroll(state, RATES, hyper, 4, until=5)
    assert torch.equal(again.params, state.params)
    assert torch.equal(again.opt["square"], state.opt["square"])


def test_training_loss_is_that_of_the_drawn_batch(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(), dtype=F64)
    state = trainee.init([5])
    data = trainee.task.load()
    rows = draws.epoch_indices(state.seed, torch.tensor([[0, 1]]), 4, 24)
    assert torch.equal(trainee.batch_indices(state, 2), rows)
    torch.manual_seed(5)
    module = trainee.task.module().double()
    x = (data.train.inputs[rows[0, 0]].double() - data.mean.double()) / data.std.double()
    expected = F.cross_entropy(module(x), data.train.targets[rows[0, 0]])
    loss, _ = trainee.loss(state.params, state, rows[:, 0])
    torch.testing.assert_close(loss, expected.detach()[None], rtol=1e-12, atol=0)


def test_rates_per_layer_and_per_parameter(toy: Callable[..., Task]) -> None:
    """A plain SGD step moves each parameter by its own rate times the same gradient."""
    trainee = Trainee(toy(), dtype=F64)
    network, hyper = trainee.network, trainee.hyper(2)
    start = trainee.init([0, 1])

    def displacement(lr: Tensor) -> Tensor:
        return trainee.unroll(start, lr, hyper, 1)[0].params - start.params

    unit = displacement(torch.ones(2, 1, dtype=F64))
    layers = torch.tensor([[0.5, 2.0], [0.0, 3.0]], dtype=F64)
    first = 6 * 5 + 5
    expected = torch.cat([unit[:, :first] * layers[:, :1], unit[:, first:] * layers[:, 1:]], 1)
    torch.testing.assert_close(displacement(layers), expected, rtol=1e-10, atol=1e-12)
    each = torch.rand(2, network.size, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(displacement(each), unit * each, rtol=1e-10, atol=1e-12)
    assert trainee.spread(layers).shape == (2, network.size)
    assert trainee.spread(torch.ones(2, 1)).shape == (2, 1)


def test_evaluation_is_plain_computation(toy: Callable[..., Task], make_blobs: Callable[..., Data]) -> None:
    trainee = Trainee(toy(make_blobs((2, 8, 8), held_out=700), network=conv_net), dtype=F64)
    state, _ = trainee.unroll(trainee.init([0, 1, 2]), RATES, trainee.hyper(3), 5)
    measured = trainee.evaluate(state.params, state.buffers, trainee.val)
    data = trainee.task.load()
    x = (data.val.inputs.double() - data.mean.double()) / data.std.double()
    for i in range(3):
        module = trainee.task.module().double().eval()
        named = {name: p[i] for name, p in trainee.network.named(state.params).items()}
        module.load_state_dict(named | {name: b[i] for name, b in state.buffers.items()})
        with torch.no_grad():
            outputs = module(x)
        torch.testing.assert_close(measured.loss[i], F.cross_entropy(outputs, data.val.targets))
        torch.testing.assert_close(measured.metric[i], (outputs.argmax(1) == data.val.targets).double().mean())
        torch.testing.assert_close(measured.predictions[i], outputs.softmax(1).T)


def test_evaluation_in_pieces_is_evaluation_in_one(
    toy: Callable[..., Task], make_blobs: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch size 4 makes pieces of 256 of the 600 examples, batch size 200 one piece."""
    monkeypatch.setattr(objective, "PROBE", 300)
    data = make_blobs(train=200, held_out=600)
    pieces, one = (Trainee(toy(data, batch_size=b), dtype=F64) for b in (4, 200))
    state = pieces.init([0, 1])
    a, b = (t.evaluate(state.params, state.buffers, t.val) for t in (pieces, one))
    assert a.predictions.shape == (2, 3, 300)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_normalising_in_advance_changes_no_number(toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    early = Trainee(toy(), dtype=F64)
    monkeypatch.setattr(objective, "NORMALISED_IN_ADVANCE", 0)
    late = Trainee(toy(), dtype=F64)
    assert not torch.equal(early.train.inputs, late.train.inputs.double())
    results = []
    for trainee in (early, late):
        state, losses = trainee.unroll(trainee.init([0, 1, 2]), RATES, trainee.hyper(3), 4)
        results.append((losses, trainee.evaluate(state.params, state.buffers, trainee.test)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].loss, results[1][1].loss)


def test_unrolls_are_detached_under_no_grad(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy(optimizer="adam"), dtype=F64)
    rates = RATES.clone().requires_grad_()
    with torch.no_grad():
        state, losses = trainee.unroll(trainee.init([0, 1, 2]), rates, trainee.hyper(3), 3)
    assert not state.params.requires_grad
    assert not losses.requires_grad
    assert not any(leaf.requires_grad for leaf in state.opt.values())
    attached, _ = trainee.unroll(trainee.init([0, 1, 2]), rates, trainee.hyper(3), 3)
    assert attached.params.requires_grad
    torch.testing.assert_close(attached.params.detach(), state.params, rtol=0, atol=0)


def test_dropout_and_augmentation_are_redrawn_every_step(
    toy: Callable[..., Task], make_blobs: Callable[..., Data]
) -> None:
    """The same examples and weights at two steps, or under two seeds, have different losses; repeated, the same."""
    for task in (
        toy(network=lambda s, c: nn.Sequential(nn.Dropout(0.5), nn.Linear(6, c))),
        toy(make_blobs((1, 8, 8)), network=networks.logistic_regression, augment="crop"),
    ):
        trainee = Trainee(task, dtype=F64)
        state = trainee.init([0])
        rows = trainee.batch_indices(state, 1)[:, 0]
        variants = (state, state._replace(step=state.step + 1), state._replace(seed=state.seed + 1))
        losses = [trainee.loss(state.params, variant, rows)[0] for variant in variants]
        assert len({float(loss) for loss in losses}) == 3
        assert torch.equal(trainee.loss(state.params, state, rows)[0], losses[0])


def test_crop_shifts_each_image() -> None:
    n, b, height, width = 2, 40, 6, 5
    x = torch.rand(n, b, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = crop(torch.tensor([1, 2]), x)
    assert out.shape == x.shape
    padded = F.pad(x, (PADDING,) * 4)
    side = 2 * PADDING + 1
    windows = torch.stack([padded[..., i : i + height, j : j + width] for i in range(side) for j in range(side)])
    matches = (windows == out).flatten(3).all(-1)
    assert matches.any(0).all()
    chosen = [int(matches[:, i, j].int().argmax()) for i in range(n) for j in range(b)]
    assert len(set(chosen)) > 40, "81 places, drawn 80 times"
    assert torch.equal(crop(torch.tensor([2]), x[1:]), out[1:])


def test_crop_draws_every_shift_equally_often() -> None:
    """An image with one bright pixel in the middle shows where it was moved."""
    x = torch.zeros(1, 81 * 200, 1, 9, 9)
    x[..., 4, 4] = 1
    place = crop(torch.tensor([3]), x).flatten(2).argmax(-1)
    counts = torch.bincount(place.flatten(), minlength=81)
    statistic = float(((counts - 200) ** 2 / 200).sum())
    assert abs(statistic - 80) < 6 * 160**0.5


def test_flip_mirrors_half_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrenv.data import augment

    monkeypatch.setattr(augment, "crop", lambda key, x: x)
    x = torch.rand(1, 2000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    out = crop_flip(torch.tensor([5]), x)
    same, mirrored = ((out == y).flatten(2).all(-1)[0] for y in (x, x.flip(-1)))
    assert (same | mirrored).all()
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_reset_of_many_calls_a_data_function_once(toy: Callable[..., Task]) -> None:
    held, calls = toy().load(), []

    def data() -> Data:
        calls.append(1)
        return held

    trainee = Trainee(Task("counted", data, networks.mlp(3), batch_size=4))
    trainee.init(range(20))
    assert len(calls) == 1


def test_groups_share_the_envs_evenly(toy: Callable[..., Task]) -> None:
    trainee = Trainee(toy())
    trainee.chunk_size = 4
    assert [trainee.chunks(n) for n in (1, 4, 5, 8, 11, 9)] == [[1], [4], [3, 2], [4, 4], [4, 4, 3], [3, 3, 3]]


def test_trainees_with_convolutions_go_one_by_one_on_a_cpu(toy: Callable[..., Task], make_blobs: Any) -> None:
    small = Trainee(toy())
    images = Trainee(toy(make_blobs((1, 8, 8)), network=networks.conv3(4)))
    assert small.chunks(500) == [500]
    assert images.chunks(3) == [1, 1, 1]


def test_memory_is_counted_by_hand(toy: Callable[..., Task]) -> None:
    # A 6-5-3 perceptron: 53 weights; 24 + 10 + 10 examples of 6 float32 and an int64; outputs of 5, 5 and 3 numbers.
    memory = Trainee(toy(optimizer="adam")).memory
    assert memory.data == 44 * (6 * 4 + 8)
    # Weights, the best ones, two moments and two powers of betas; predictions.
    assert memory.held == 4 * (53 * (2 + 2) + 2 + 3 * 10)
    assert memory.training == 4 * (2 * 53 + 4 * (6 + 13 + 2 * 5))
    assert memory.measuring == 4 * 10 * (6 + 3 * 5)
    for n, chunk_size, times in ((8, 2, 3), (2, 2, 2)):
        working = 2 * max(memory.training, memory.measuring)
        assert memory.total(n, chunk_size) == memory.data + times * n * memory.held + working


def test_a_fixed_part_of_the_validation_split_is_measured(toy: Callable[..., Task]) -> None:
    full, part = (Trainee(toy(val_examples=k), dtype=torch.float64) for k in (None, 4))
    state = full.init([0, 1])
    assert len(part.val.targets) == 4
    assert torch.equal(part.val.inputs, full.val.inputs[:4])
    assert torch.equal(part.test.inputs, full.test.inputs)
    outputs, _ = full.network(state.params, state.buffers, full.val.inputs[:4].expand(2, 4, 6), False)
    by_hand = torch.stack([torch.nn.functional.cross_entropy(o, full.val.targets[:4]) for o in outputs])
    torch.testing.assert_close(part.evaluate(state.params, state.buffers, part.val).loss, by_hand)


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (2.5, TypeError)])
def test_a_part_of_nothing_is_refused(toy: Callable[..., Task], k: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="val_examples"):
        toy(val_examples=k)


def test_bf16_rounds_networks_and_nothing_else(toy: Callable[..., Task]) -> None:
    exact, rounded = (Trainee(toy(), precision=precision) for precision in ("full", "bf16"))
    rate = torch.full((2, 1), 0.1)
    with torch.no_grad():
        (one, losses), (other, rounded_losses) = (
            trainee.unroll(trainee.init([0, 1]), rate, trainee.hyper(2), 8) for trainee in (exact, rounded)
        )
    assert other.params.dtype == rounded_losses.dtype == torch.float32
    assert not torch.equal(losses, rounded_losses)
    torch.testing.assert_close(rounded_losses, losses, rtol=0.05, atol=0.02)  # bfloat16 has 8 bits of precision
    torch.testing.assert_close(other.params, one.params, rtol=0.1, atol=0.02)
    with pytest.raises(ValueError, match="bf16"):
        Trainee(toy(), precision="fp8")
    with pytest.raises(ValueError, match="leave dtype at float32"):
        Trainee(toy(), precision="bf16", dtype=torch.float64)


def test_tf32_is_for_float32_on_cuda(toy: Callable[..., Task]) -> None:
    with pytest.raises(ValueError, match="tensor cores"):
        Trainee(toy(), precision="tf32")
    with pytest.raises(ValueError, match="leave dtype at float32"):
        Trainee(toy(), "meta", precision="tf32", dtype=torch.float64)


def test_an_optimizer_is_made_for_all_weights_at_once(toy: Callable[..., Task]) -> None:
    seen = []

    def made(sizes: Sequence[int]) -> Optimizer:
        plain = adam()

        def init(params: Tensor) -> dict[str, Tensor]:
            params.split(list(sizes), 1)  # of the whole network, and of nothing else
            seen.append(params.shape[1])
            return plain.init(params)

        return replace(plain, init=init)

    assert Trainee(toy(optimizer=made)).memory == Trainee(toy(optimizer="adam")).memory
    assert set(seen) == {53}


def test_the_bytes_of_data_are_those_that_are_kept() -> None:
    trainee = Trainee(make_task("digits-mlp"))
    assert trainee.train.inputs.dtype == torch.float32  # normalised in advance
    kept = sum(x.nbytes for split in (trainee.train, trainee.val, trainee.test) for x in split)
    assert trainee.memory.data == kept


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_dropout_in_bfloat16_drops_its_part(p: float) -> None:
    dropped = Dropout(p).drop(torch.arange(40), torch.ones(40, 5000, dtype=torch.bfloat16))
    assert dropped.dtype == torch.bfloat16
    kept = float((dropped != 0).double().mean())
    assert kept == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 200_000) ** 0.5)


class Own(nn.Module):
    """A module of which no rule runs the whole."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh())


OWN = Task("own", "shuttle", lambda shape, classes: Own(shape[0], classes))


@pytest.mark.parametrize("task", [make_task("shuttle-mlp"), OWN, make_task("text-transformer:batch_size=4")])
def test_networks_run_side_by_side_in_bfloat16(task: Task) -> None:
    task = replace(task, budget=4, interval=2)
    losses = []
    for precision in ("full", "bf16"):
        trainee = Trainee(task, precision=precision)
        assert not trainee.network.why_sequential
        state = trainee.init([0, 1])
        with torch.no_grad():
            losses.append(trainee.gradient(state, trainee.batch_indices(state, 1)[:, 0]).loss)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)
