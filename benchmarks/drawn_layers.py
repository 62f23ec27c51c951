"""What rates per layer are worth on drawn tasks, and which size of the weights tells the peak where layers differ.

On drawn tasks for choosing designs, runs have the schedule of `agents/universal` without its guard, and the rate of
layer k is multiplied by

    exp(sum_f theta_f phi_f(k)),    theta_f ~ N(0, s_f^2),

with features phi_f of the layer in what is known before the first step: -1/2 log fan-in, whether it is the first and
whether the last, the logarithm of the root mean square of its weights, and that of its gradient relative to them; each
less its mean over the layers, and bounded. Each theta stands beside -theta, and each has peaks that are the power law's
times 1/4 to 4. A line per task is appended to a file, from which the same command goes on. Two questions are answered
by it:

- Is there a rule that would be worth it? The slope of the log loss, at each rule's best peak, along each theta_f, as a
  mean over tasks: for fan-in, what rates lose that are proportional to fan-in^(-1/2); for "first" and "last", what is
  lost where that layer's rate is e times as high; for the others, where rates are proportional to weights, or to
  relative gradients.
- How should a peak depend on the weights? Adam's steps don't depend on how large weights are. So, but for weight decay,
  to multiply the rates of layers is the same as to divide their weights by these factors, in a network that multiplies
  them again. Then a power law sees other weights, and its peak should move as the best one does. For several sizes W of
  the weights, peaks that are proportional to W, and the loss relative to that at the best peak. For SGD, weights are
  divided and gradients multiplied by the roots of the factors, and peaks are as G^-0.6, with G of relative gradients.
  The geometric mean of layers is not moved by these rules, so it stands under "none".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from drawn_peaks import CLIP, OUTSIDE
from drawn_rows import digest_of, falls, rows_of
from lrenv.agents.universal.policy import PEAK, SCHEDULE, Architecture, log_decay, log_warmup, power_law, shown, signals
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.envs.episode import Episode, TimeStep
from lrenv.randomness.seeds import seeds_for
from lrenv.training.drawn import VERSION
from lrenv.training.dynamics import Untrained
from lrenv.training.tasks import Task

FEATURES = {"fan-in": 0.7, "first": 0.7, "last": 0.7, "weights": 0.7, "gradient": 0.5}
"""Feature -> the standard deviation of its theta."""
WIDEST = 3.0
"""Features are at most so far from their mean."""
PAIRS, SEEDS = 8, 2
FACTORS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
"""Of the peak."""
FIRST_TASK, FIRST_SEED = 4000, 200
"""Beyond those of `drawn_guards.py` and `drawn_anytime.py`."""
OF_GRADIENT = PEAK["sgd"]["gradient"]
"""The exponent of L_0 / G."""
RIDGE = 0.3
"""The root of what is added to a sum of squares where slopes are found from eight differences in five directions."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """The settings: how many tasks, and where what was found is kept."""

    tasks: int = 120
    """Tasks to try rules on."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("benchmarks/results/drawn_layers.jsonl")
    """The file of what was found."""


def features_of(fan_in: Array, numbers: Array, weights: Array, gradients: Array) -> Array:
    """The features (F, K) of K layers.

    Args:
        fan_in: of each layer.
        numbers: of its weights.
        weights: sums of squares; layers whose weights are 0 have features of 0.
        gradients: sums of squares.
    """
    moves, places = weights > 0, np.arange(len(fan_in))
    some = np.where(moves, weights, 1)
    size, relative = np.log(some / numbers) / 2, np.log(np.maximum(gradients, 1e-30) / some) / 2
    rows = np.stack([-np.log(fan_in) / 2, places == 0, places == len(places) - 1, size, relative])
    centred = rows - rows[:, moves].mean(1, keepdims=True)
    return np.where(moves, np.clip(centred, -WIDEST, WIDEST), 0)


def tried(training: UniversalTraining, architecture: Architecture, task: Task) -> dict[str, Any]:
    """The log loss of each rule and peak on a task, the means over `SEEDS` runs, and what its layers are.

    Args:
        training: gives the episode, with a rate per layer.
        architecture: of a policy with one rate, whose peak and shape are taken.
        task: to run on.
    """
    _, episode = training.run(task)
    trainee, seeds = episode.trainee, seeds_for("selection", SEEDS, FIRST_SEED)
    state, network = trainee.init(seeds), trainee.network
    gradient = trainee.gradient(state, trainee.batch_indices(state, 1)[:, 0]).grads.detach()
    weights, gradients = (
        network.summed(x.square(), "layer").mean(0).double().numpy() for x in (state.params, gradient)
    )
    numbers = np.array(network.pieces["layer"], np.float64)
    features = features_of(network.fan_in("layer").numpy(), numbers, weights, gradients)
    chance = np.random.default_rng(zlib.crc32(task.name.encode()))
    half = chance.normal(size=(PAIRS, len(FEATURES))) * list(FEATURES.values())
    theta = np.concatenate([half, -half])
    log_factors = (theta @ features)[:, None] + np.log(FACTORS)[:, None]
    one = len(numbers) == 1  # has no rules
    losses = np.zeros((0, 0)) if one else losses_of(episode, architecture, seeds, log_factors)
    return {
        "task": task.name, "version": VERSION, "designs": own_digest(), "optimizer": task.optimizer,
        "adaptive": trainee.optimizer.adaptive, "numbers": numbers.tolist(), "weights": weights.tolist(),
        "gradients": gradients.tolist(), "features": features.round(4).tolist(), "theta": theta.round(4).tolist(),
        "log_loss": losses.round(4).tolist(),
    }  # fmt: skip


def losses_of(episode: Episode, architecture: Architecture, seeds: Sequence[int], log_factors: Array) -> Array:
    """The log losses (rules, peaks), means over seeds.

    Args:
        episode: of the task, with a rate per layer.
        architecture: of a policy with one rate, whose peak and shape are taken.
        seeds: of the runs.
        log_factors: (rules, peaks, K), the logarithm of what the rates of layers are multiplied by.
    """
    factors = torch.from_numpy(log_factors).float().flatten(0, 1).repeat_interleave(len(seeds), 0)
    exponents, shape = (factors.new_zeros(len(factors), size) for size in (len(architecture.exponents), len(SCHEDULE)))

    def log_rates(step: TimeStep) -> Tensor:
        seen = signals(architecture, shown(step))
        schedule = log_warmup(architecture, shape, seen) + log_decay(architecture, shape, seen)
        return power_law(architecture, exponents, seen) + schedule + factors

    losses = falls(episode, list(seeds) * (len(factors) // len(seeds)), log_rates)
    return losses.double().view(*log_factors.shape[:2], -1).mean(2).numpy()


def slopes_of(row: dict[str, Any]) -> Array:
    """The slopes (F,) of a task's log loss along each theta, at each rule's best peak, by the differences of pairs."""
    best = np.array(row["log_loss"]).min(1).reshape(2, PAIRS)
    differences = np.clip(best[0] - best[1], -CLIP, CLIP) / 2
    half = np.array(row["theta"])[:PAIRS]
    slopes: Array = np.linalg.solve(half.T @ half + RIDGE**2 * np.eye(len(FEATURES)), half.T @ differences)
    return slopes


def of_all(_: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
    """The logarithm of the root mean square of all weights."""
    return (weights.sum(1) / numbers.sum()).log() / 2


def of_numbers(_: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
    """The geometric mean of layers', each with its number of weights."""
    return ((weights / numbers).log() * numbers).sum(1) / numbers.sum() / 2


def of_smallest(_: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
    """That of the smallest layer."""
    return (weights / numbers).amin(1).log() / 2


def none(_: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
    """Peaks stay where they are."""
    return weights.new_zeros(len(weights))


Size = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The logarithm (n,) of what peaks are proportional to, by the sums of squares (n, K) of gradients and of weights, and
the numbers (K,) of weights, of layers that don't begin at 0."""
SIZES: dict[bool, dict[str, Size]] = {
    True: {
        "none": none,
        "root mean square of all weights": of_all,
        "as in `universal`": lambda g, w, n: Untrained.of(g, w, n.tolist()).weight_size.log(),
        "the same, but each layer counts with its number": of_numbers,
        "the smallest layer's root mean square": of_smallest,
    },
    False: {
        "none": none,
        "as in `universal`": lambda g, w, n: -OF_GRADIENT * Untrained.of(g, w, n.tolist()).relative_gradient.log(),
    },
}
"""Whether optimizers scale gradients -> name -> size."""


def moved(row: dict[str, Any], size: Size) -> Array:
    """By how much the logarithm of the peak moves with each rule (rules,)."""
    weights, gradients, numbers = (torch.tensor(row[name])[None] for name in ("weights", "gradients", "numbers"))
    moves = weights[0] > 0
    # A rate times f is, for Adam, weights divided by f; for SGD, weights divided by its root, and gradients times that.
    squares = torch.tensor(np.array(row["theta"]) @ np.array(row["features"])).exp() ** (2 if row["adaptive"] else 1)
    scaled = gradients * squares, weights / squares
    own = [size(g[:, moves], w[:, moves], numbers[0, moves]) for g, w in (scaled, (gradients, weights))]
    difference: Array = (own[0] - own[1]).numpy()
    return difference


def lost(row: dict[str, Any], size: Size) -> float:
    """What peaks lose that are proportional to a size of the weights, where layers are scaled; the mean over rules."""
    found, grid = [], np.log(FACTORS)
    for place, losses in zip(moved(row, size), np.array(row["log_loss"]), strict=True):
        curve = np.clip(losses - losses.min(), 0, CLIP)
        found.append(float(np.interp(place, grid, curve)) + OUTSIDE * max(0.0, abs(place) - float(grid[-1])))
    return float(np.mean(found))


def told(rows: list[dict[str, Any]]) -> str:
    """The tables."""
    kinds = {"optimizers that scale gradients": True, "SGD with momentum": False}
    of_kind = {kind: [row for row in rows if row["adaptive"] is adaptive] for kind, adaptive in kinds.items()}
    lines = ["The slope of the log loss along each theta:\n", f"| optimizer | tasks | {' | '.join(FEATURES)} |"]
    lines.append(f"|---|---:|{'---:|' * len(FEATURES)}")
    for kind, own in of_kind.items():
        slopes = np.array([slopes_of(row) for row in own])
        cells = [f"{x.mean():+.3f} ({x.std(ddof=1) / len(x) ** 0.5:.3f})" for x in slopes.T]
        lines.append(f"| {kind} | {len(own)} | {' | '.join(cells)} |")
    lines += [
        "\nThe regret of peaks that are proportional to a size:\n",
        "| optimizer | size | regret | less than none |",
    ]
    lines.append("|---|---|---:|---:|")
    for kind, own in of_kind.items():
        none = np.array([lost(row, SIZES[kinds[kind]]["none"]) for row in own])
        for name, size in SIZES[kinds[kind]].items():
            x = np.array([lost(row, size) for row in own])
            less = x - none
            error = less.std(ddof=1) / len(x) ** 0.5
            lines.append(f"| {kind} | {name} | {x.mean():.4f} | {less.mean():+.4f} ({error:.4f}) |")
    return "\n".join(lines)


def own_digest() -> str:
    """Tells rules, and the policy, from others."""
    return digest_of([FEATURES, WIDEST, PAIRS, SEEDS, FACTORS.tolist()])


def main(settings: Settings) -> None:
    """Runs, and prints tables."""
    training = UniversalTraining(UniversalSettings(limit=settings.limit, layers=True))
    architecture = replace(training.architecture, layers=False)
    tasks = training.distribution.tasks("selection", settings.tasks, FIRST_TASK)
    designs = own_digest()
    rows = rows_of(
        settings.out, tasks, lambda row: row["designs"] == designs, lambda task: tried(training, architecture, task)
    )
    print(told([row for row in rows if row["log_loss"]]))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
