"""Pathologies of hypergradients: `python reproductions/metz2019_hypergradients.py --scale cpu`.

Metz et al. 2019, "Understanding and correcting pathologies in the training of learned optimizers" (arXiv:1810.10180),
sections 2.3 and 2.4:

- momentum: SGD with momentum on (w - 4)(w - 3) w^2 from w = -1.2, by momentum and number of steps (figures 3b and 3c),
  with the derivative of the final loss by the momentum, which explodes with the number of steps.
- horizon: the same for the learning rate of SGD on a perceptron, below and above the rates that are stable.
- truncation: Adam's learning rate is learned from 0.001, by hypergradients truncated to windows (figure 4a), and the
  hypergradients of single windows at one rate, one by one and summed (figures 4b and 4c).

The paper gives neither the learning rate of figure 3 nor the outer optimizer of figure 4: here they are 0.02, and Adam
on the logarithm of the rate. Its 10,000 inner steps on MNIST are `--scale paper`. `cpu` takes 1,000 steps on 8x8 digits
with batches of 4, where noise counts as soon, and shows single windows at the rate 0.004.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

import flow
from flow import Report, Reproduction, Result, command
from lrenv import networks
from lrenv.randomness.seeds import seeds_for
from lrenv.training.hypergradients import forward, reverse, train_by_schedule, truncated, validation_loss
from lrenv.training.optimizers import adam
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee
from metz2019_hypergradients_report import report

F64 = torch.float64
TOY_RATE = 0.02
HILL = (21 - 57**0.5) / 8
"""The maximum of the loss between the toy problem's two minima."""
INITIAL_RATE = 1e-3
"""Of Adam (section 2.4)."""
OUTER_RATE = 0.25
"""Of the Adam that learns the logarithm of Adam's rate."""


@dataclass(frozen=True)
class Scale:
    """How much is computed."""

    momenta: int
    """From 0 to 0.99."""
    zooms: int
    """How often the first transition between the two minima is resolved more finely."""
    horizons: tuple[int, ...]
    """Inner steps of the toy problem."""
    rates: tuple[float, ...]
    """Of SGD on a perceptron."""
    unrolls: tuple[int, ...]
    """Inner steps of it."""
    task: str
    batch_size: int
    steps: int
    """Inner steps of Adam on a perceptron."""
    windows: tuple[int, ...]
    """Inner steps in a truncation."""
    window_rate: float
    """At which single windows are shown."""
    outer_steps: int
    grid: int
    """Rates among which the best one is looked for."""
    seeds: int


SCALES = {
    "smoke": Scale(
        momenta=8, zooms=1, horizons=(5, 10), rates=(0.1, 1.0), unrolls=(2, 4), task="digits-mlp", batch_size=16,
        steps=12, windows=(3, 12), window_rate=1e-3, outer_steps=2, grid=3, seeds=2,
    ),
    "cpu": Scale(
        momenta=400, zooms=5, horizons=(10, 30, 100, 300), rates=(0.03, 0.1, 0.3, 1.0),
        unrolls=tuple(2**k for k in range(10)), task="digits-mlp", batch_size=4, steps=1000, windows=(5, 20, 100, 1000),
        window_rate=4e-3, outer_steps=16, grid=25, seeds=4,
    ),
    "paper": Scale(
        momenta=2000, zooms=5, horizons=(10, 30, 100, 300, 1000), rates=(0.03, 0.1, 0.3, 1.0),
        unrolls=tuple(2**k for k in range(12)), task="mnist-mlp", batch_size=128, steps=10_000,
        windows=(10, 50, 100, 500, 2000), window_rate=1e-3, outer_steps=20, grid=25, seeds=4,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A result; all fields together are its name."""

    part: str
    setting: float
    """Steps, a rate, or a window's steps; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """Seconds, minutes, or the paper's sizes."""
    out: Path = Path("runs/metz2019_hypergradients")
    """Where results go."""


TOY = Trainee(make_task("two-minima"), dtype=F64)


def by_momentum(scale: Scale, horizon: int) -> Result:
    """Where the toy problem ends after `horizon` steps, for each momentum, and the derivative of the loss by it.

    The momenta are close together near the `transition`, the least one that leads over the hill. The longer the
    training, the narrower the transition, until it lies between two neighbours of float64.
    """
    low, high, found = 0.0, 0.99, []
    for _ in range(scale.zooms + 1):
        momenta = torch.linspace(low, high, scale.momenta, dtype=F64)[:, None]
        schedule = {"lr": torch.full_like(momenta, TOY_RATE), "momentum": momenta}
        end = forward(TOY, TOY.init(seeds_for("report", scale.momenta)), schedule, horizon)
        found.append(torch.cat([momenta, end.state.params, end.objective[:, None], end.gradient["momentum"]], 1))
        beyond = (end.state.params[:, 0] > HILL).nonzero()[:, 0].tolist()
        if not beyond or not beyond[0]:
            break
        low, high = momenta[beyond[0] - 1 : beyond[0] + 1, 0].tolist()
    columns = zip(*sorted(torch.cat(found).tolist()), strict=True)
    return {"transition": high} | dict(zip(("momentum", "weight", "loss", "slope"), columns, strict=True))


def trajectories(scale: Scale) -> Result:
    """The toy problem's weight after each step, for each momentum."""
    momenta = torch.linspace(0, 0.99, scale.momenta, dtype=F64)[:, None]
    state, weights = TOY.init(seeds_for("report", scale.momenta)), []
    with torch.no_grad():
        for _ in range(min(100, scale.horizons[-1])):
            weights.append(state.params[:, 0].tolist())
            state = train_by_schedule(TOY, state, {"lr": torch.full_like(momenta, TOY_RATE), "momentum": momenta}, 1)
    return {"momentum": momenta[:, 0].tolist(), "weights": weights}


def by_horizon(scale: Scale, rate: float) -> Result:
    """The length of the hypergradient by SGD's rate after each number of steps, seed by seed."""
    trainee = Trainee(make_task("digits-mlp", optimizer="sgd"), dtype=F64)
    start = trainee.init(seeds_for("report", scale.seeds))
    lr = {"lr": torch.full((scale.seeds, 1), rate, dtype=F64)}
    found = [reverse(trainee, start, lr, steps) for steps in scale.unrolls]
    return {"steps": scale.unrolls, "slopes": [own.gradient["lr"][:, 0].abs().tolist() for own in found]}


def perceptron(scale: Scale) -> Trainee:
    """What Adam trains: two layers."""
    optimizer = adam(eps_root=1e-8)
    return Trainee(make_task(scale.task, network=networks.mlp(32), optimizer=optimizer, batch_size=scale.batch_size))


def single_windows(scale: Scale, window: int) -> Result:
    """The hypergradient of each window by the logarithm of Adam's rate, averaged over seeds."""
    trainee = perceptron(scale)
    start, lr = trainee.init(seeds_for("report", scale.seeds)), torch.full((scale.seeds, 1), scale.window_rate)
    windows = truncated(trainee, start, {"lr": lr}, scale.steps, window)
    slopes = [scale.window_rate * float(found.gradient["lr"].mean()) for found in windows]
    return {"steps": [min(window * (i + 1), scale.steps) for i in range(len(slopes))], "slopes": slopes}


def learned(scale: Scale, window: int) -> Result:
    """Adam's rate, learned by hypergradients truncated to windows: each rate, and the loss that it ends with."""
    trainee = perceptron(scale)
    start, log_lr = trainee.init(seeds_for("report", scale.seeds)), torch.tensor(INITIAL_RATE).log().requires_grad_()
    outer = torch.optim.Adam([log_lr], lr=OUTER_RATE)
    rates, losses = [], []
    for _ in range(scale.outer_steps):
        lr = log_lr.detach().exp()
        found = reverse(trainee, start, {"lr": lr.expand(scale.seeds, 1)}, scale.steps, truncation=window)
        rates.append(float(lr))
        losses.append(float(found.objective.mean()))
        log_lr.grad = (lr * found.gradient["lr"].mean()).nan_to_num(0, 0, 0)
        outer.step()
    return {"lr": rates, "loss": losses}


def grid(scale: Scale) -> Result:
    """The final loss of each of several rates of Adam."""
    trainee = perceptron(scale)
    rates = torch.logspace(-4, -1, scale.grid)
    with torch.no_grad():
        start = trainee.init([seed for _ in rates for seed in seeds_for("report", scale.seeds)])
        end = train_by_schedule(trainee, start, {"lr": rates.repeat_interleave(scale.seeds)[:, None]}, scale.steps)
        losses = validation_loss(trainee, end).view(len(rates), scale.seeds).mean(1)
    return {"lr": rates.tolist(), "loss": losses.tolist()}


def jobs(scale: Scale) -> dict[Run, Callable[[], Result]]:
    """Run -> what computes it."""
    work: dict[Run, Callable[[], Result]] = {Run("trajectory", 0): partial(trajectories, scale)}
    work |= {Run("momentum", steps): partial(by_momentum, scale, steps) for steps in scale.horizons}
    work |= {Run("horizon", rate): partial(by_horizon, scale, rate) for rate in scale.rates}
    work[Run("grid", 0)] = partial(grid, scale)
    work |= {Run("windows", window): partial(single_windows, scale, window) for window in scale.windows}
    work |= {Run("learned", window): partial(learned, scale, window) for window in scale.windows}
    return work


class Hypergradients(Reproduction[Settings, Run]):
    """How hypergradients explode, and what truncation makes of them."""

    paper, title = "Metz et al. 2019, sections 2.3 and 2.4", "Hypergradients through long training"
    name, scales = Run, SCALES

    def runs(self) -> Iterator[list[Run]]:
        """One by one."""
        return ([run] for run in jobs(self.scale))

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        """Each on its own."""
        work = jobs(self.scale)
        return [work[run]() for run in batch]

    def report(self) -> Report:
        """Transitions, sizes of hypergradients, learned rates."""
        return report(self.lines)


if __name__ == "__main__":
    sys.exit(command(Hypergradients, Settings, __doc__))
