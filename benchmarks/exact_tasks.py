"""The excess of agents over the best possible expected loss: `python benchmarks/exact_tasks.py`.

On power-law regression (`lrenv.training.power_law`) the best schedule is computed (`lrenv.training.power_law_optimum`).
Schedules that observe nothing have exact excesses, too, without a run; agents that react to observations have means
over runs, with standard errors. Each agent is tuned on its grid: schedules by the exact expected loss, with peaks a
factor 1.2 apart; the others by the mean final loss of the tuning seeds. Writes results/exact_tasks.md, .jsonl and .png.
"""

from __future__ import annotations

import datetime
import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from harness import RESULTS
from lrenv.agents.base import BaseAgent
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.controllers.agent import Agent, View, agent_factory, agents
from lrenv.envs.observations import CLOCK
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.json_values import to_json
from lrenv.runtime.process import machine
from lrenv.training.power_law import EASY, HARD, expected_loss
from lrenv.training.power_law_optimum import continuous_schedule, optimal_schedule
from lrenv.training.tasks import Task, make_task

Array = NDArray[Any]
PROBLEMS = {"power-law-easy": EASY, "power-law-hard": HARD}
RATES = (1.0, 0.3, 0.1, 0.03, 0.01)
REACTING: dict[str, dict[str, tuple[float, ...]]] = {
    "plateau": {"peak": (1.5, 1.0, 0.5, 0.2, 0.1), "factor": (0.5, 0.1), "patience": (2, 5, 10)},
    "greedy": {"peak": (1.5, 1.0, 0.5, 0.2, 0.1)},
    "greedy-bounded": {"peak": (1.5, 1.0, 0.5, 0.2, 0.1), "factor": (0.5, 0.8), "patience": (0, 2)},
    "constant-ema": {"peak": (1.5, 1.0, 0.5, 0.2, 0.1), "ema": (0.9, 0.99, 0.999)},
    "sgd-hd": {"initial_lr": RATES, "beta": (1e-1, 1e-2, 1e-3, 1e-4)},
    "gala": {"initial_lr": RATES},
    "osgm": {"adagrad_lr": RATES},
}
"""Agents that react to training on plain SGD, and the grids that suit these tasks: curvatures are at most 1."""
SHAPES: dict[str, dict[str, tuple[float, ...]]] = {
    "step": {"discount_step": (50, 100, 200, 300), "discount_factor": (0.8, 0.5, 0.3, 0.1)},
    "inverse-sqrt": {"timescale": (10, 30, 100, 300)},
    "sgdr": {"period": (200, 500, 1000), "multiplier": (1, 2)},
}
"""Of schedules whose own grid is for short budgets, what else than the peak is tuned."""
ABOUT_SHAPES = (
    "Rates held for a twentieth of the budget. Theory is for long budgets and endless dimensions: with 100 of them the",
    "hard task's loss falls faster, because there is an end to what can be learned.",
)
POWERS = tuple(np.arange(0.25, 4.01, 0.25).tolist())


@dataclass(frozen=True)
class Settings:
    """The settings: how much to run."""

    seeds: int = 64
    """Runs of each agent that reacts."""
    budget: int = 1000
    """Inner steps."""
    theory: tuple[int, ...] = (100, 200, 400, 800)
    """Budgets at which the optimum's shape is compared with theory."""
    out: Path = RESULTS
    """Where the page, the lines and the figure go."""


@dataclass(frozen=True)
class Row:
    """One contestant on one task."""

    task: str
    agent: str
    excess: float  # of the expected final loss above that of the target
    error: float  # standard error of it; 0 where it is exact
    ratio: float  # to the optimum's
    flatness: float  # mean rate / highest rate
    peak: float
    runs: int  # 0 where no run was needed
    settings: dict[str, Any]
    rates: list[float]  # one per decision; of runs, the geometric mean


class Following(BaseAgent[tuple[()]]):
    """An agent that follows given rates, one per inner step."""

    view = View(control="set-raw", observe="clock")

    def __init__(self, rates: Array) -> None:
        self.rates = rates

    def act(self, observation: Array, carry: tuple[()]) -> tuple[Array, tuple[()]]:
        """Returns the rates (n, 1) of the intervals that now start."""
        return self.rates[observation[:, CLOCK.index("inner_step")].astype(int), None], carry


def schedule_of(agent: Agent, task: Task, n: int) -> Tensor | None:
    """Returns the rates (T, n) that an agent of n settings sets, if they are a function of the clock alone."""
    found: list[Array] = []
    for losses in (np.linspace(1, 2, task.budget), np.linspace(2, 1, task.budget)):
        rows, memory = [], None
        for step in range(0, task.budget, task.interval):
            given = {"inner_step": step, "budget": task.budget, "interval": task.interval}
            clock = np.tile(np.array([given.get(name, losses[step]) for name in CLOCK], np.float32), (n, 1))
            action, memory = agent.predict(clock, memory, np.full(n, step == 0), deterministic=True)
            rows.append(action[:, 0])
        found.append(np.stack(rows))
    if not np.array_equal(found[0], found[1]):
        return None
    return torch.from_numpy(found[0]).double().repeat_interleave(task.interval, 0)[: task.budget]


def grid_rows(grid: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """Returns all combinations of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class Field:
    """The contestants of one task, relative to its optimum."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.task = make_task(name, budget=settings.budget, measure_interval=10)
        self.problem, self.seeds = PROBLEMS[name], settings.seeds
        task = self.task
        self.optimum = optimal_schedule(self.problem, task.budget, task.batch_size, task.interval)

    def excess(self, lr: Tensor, momentum: Tensor | float = 0.0) -> Tensor:
        """Computes the excess of schedules (T, ...) over the target's loss."""
        return expected_loss(self.problem, lr, self.task.batch_size, momentum)[-1] - self.problem.noise**2 / 2

    def row(self, agent: str, excess: float, lr: Array, error: float = 0.0, runs: int = 0, **settings: Any) -> Row:
        """Returns a contestant with the rates of its decisions."""
        ratio, flatness = excess / self.optimum.excess, float(lr.mean() / lr.max())
        rates = [float(f"{x:.4g}") for x in lr]
        return Row(self.task.name, agent, excess, error, ratio, flatness, float(lr.max()), runs, settings, rates)

    def exact(self, agent: str, lr: Tensor, **settings: Any) -> Row:
        """Returns a contestant whose rates (T,) are known."""
        return self.row(agent, float(self.excess(lr)), lr[:: self.task.interval].numpy(), **settings)

    def computed(self) -> Iterator[Row]:
        """Returns the optimum, what theory says of it, and what momentum adds."""
        task, problem = self.task, self.problem
        yield self.exact("computed optimum", self.optimum.lr)
        yield self.ran("computed optimum, run", Following(self.optimum.lr.numpy()), {})
        formula, foreseen = continuous_schedule(problem, task.budget, task.batch_size)
        held = torch.from_numpy(formula.reshape(-1, task.interval).mean(1)).repeat_interleave(task.interval)
        yield self.exact("formula for small rates", held, foreseen=foreseen)
        yield from self.families()
        coarse = task.budget // 10
        for momentum in (False, True):
            found = optimal_schedule(problem, task.budget, task.batch_size, coarse, momentum)
            more: dict[str, Any] = {"momentum": found.momentum[::coarse].tolist()} if momentum else {}
            name = f"computed optimum, ten stages{', with momentum' * momentum}"
            yield self.row(name, found.excess, found.lr[::coarse].numpy(), **more)

    def families(self) -> Iterator[Row]:
        """Yields the shapes that theory names, with tuned peaks: power decay with its or a tuned exponent, and WSD."""
        task, exponent = self.task, 2 * self.problem.capacity - 1
        left = 1 - torch.arange(0, task.budget, task.interval).double() / task.budget
        shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
        for name, key, values, shape in (
            ("power decay, exponent of theory", "power", (exponent,), left[:, None] ** exponent),
            ("power decay, exponent tuned", "power", POWERS, left[:, None] ** torch.tensor(POWERS)),
            ("stable, then linear decay", "decay", shares, (left[:, None] / torch.tensor(shares)).clamp(max=1)),
        ):
            peaks = self.peaks()
            lr = (shape[:, :, None] * torch.tensor(peaks)).flatten(1).repeat_interleave(task.interval, 0)
            best = int(self.excess(lr).nan_to_num(torch.inf).argmin())
            settings = {key: values[best // len(peaks)], "peak": peaks[best % len(peaks)]}
            yield self.exact(name, lr[:, best], **settings)

    def peaks(self) -> tuple[float, ...]:
        """The peaks up to the largest stable rate, a factor 1.2 apart."""
        return tuple((self.problem.largest_stable_rate(self.task.batch_size) * 1.2 ** -np.arange(26.0)).tolist())

    def schedules(self) -> Iterator[Row]:
        """Yields every installed schedule that is a function of the clock."""
        for name in agents():
            factory = agent_factory(name)
            own = dict(getattr(factory, "grid", None) or {})
            if "peak" not in own or name in REACTING:
                continue
            rows = grid_rows({**own, **SHAPES.get(name, {}), "peak": self.peaks()})
            agent = factory(**{key: np.array([row[key] for row in rows]) for key in rows[0]})
            lr = schedule_of(agent, self.task, len(rows)) if agent.view.observe == "clock" else None
            if lr is None:
                continue
            excess = self.excess(lr).nan_to_num(torch.inf)
            best = int(excess.argmin())
            yield self.exact(name, lr[:, best], **rows[best])

    def reacting(self) -> Iterator[Row]:
        """Yields agents that observe training: tuned on the tuning seeds, run on the report's."""
        for name, grid in REACTING.items():
            factory, rows, seeds = agent_factory(name), grid_rows(grid), seeds_for("tuning", 3)
            arrays = {key: np.array([row[key] for row in rows]).repeat(len(seeds)) for key in grid}
            final, _ = self.finals(factory(**arrays), seeds * len(rows))
            best = rows[int(final.reshape(len(rows), -1).mean(1).argmin())]
            yield self.ran(name, factory(**best), best)

    def finals(self, agent: Agent, seeds: list[int]) -> tuple[Array, Array]:
        """Returns final excesses (n,), infinite where a run diverged, and the rates (decisions, n)."""
        result = evaluate(agent, self.task, seeds, initial_lr=0.1, device="cpu")
        final = selection_losses(result.curves["val_loss"][-1], result.diverged) - self.problem.noise**2 / 2
        return final, result.curves["lr"][1:]

    def ran(self, name: str, agent: Agent, settings: dict[str, Any]) -> Row:
        """Returns a contestant by its runs, whose validation losses are exact for their weights."""
        final, rates = self.finals(agent, seeds_for("report", self.seeds))
        held = len(rates) // (self.task.budget // self.task.interval)  # decisions per interval of the others
        middle = np.exp(np.log(rates.clip(1e-12)).mean(1))[::held]
        error = float(final.std(ddof=1) / len(final) ** 0.5)
        return self.row(name, float(final.mean()), middle, error, len(final), **settings)


def theory(settings: Settings) -> list[str]:
    """Returns a table of how the optimum's shape changes with the budget."""
    lines = [
        "| task | budget | excess | peak | mean / peak | exponent of the decay |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, problem in PROBLEMS.items():
        found = []
        for budget in settings.theory:
            lr = optimal_schedule(problem, budget, 8, budget // 20)
            rates = lr.lr[:: budget // 20].numpy()
            left = 1 - (np.arange(len(rates)) + 0.5) / len(rates)
            exponent = np.polyfit(np.log(left[2:-2]), np.log(rates[2:-2]), 1)[0]
            found.append((budget, lr.excess, rates.max(), rates.mean() / rates.max(), exponent))
            lines.append("| " + " | ".join([name, *(f"{x:.4g}" for x in found[-1])]) + " |")
        (first, *_), last = found[0], found[-1]
        fall = [-np.log(last[i] / found[0][i]) / np.log(last[0] / first) for i in (1, 2)]
        b, s = problem.capacity, problem.source
        told = (
            f"theory {s * b / (1 + s * b):.2f} and {(1 + s * b - b) / (1 + s * b):.2f}; exponent {2 * b - 1:g}"
            if problem.easy
            else f"theory {s:.2f} and 0"
        )
        lines.append(f"| {name} | fall, as a power of the budget | {fall[0]:.2f} | {fall[1]:.2f} | | {told} |")
    return lines


def page(rows: list[Row], fields: Mapping[str, Field], shapes: list[str]) -> str:
    """Returns the results as Markdown."""
    command = shlex.join(["python", "benchmarks/exact_tasks.py", *sys.argv[1:]])
    lines = [
        "# Exact tasks: excess over the computed optimum",
        "",
        f"`{command}`  ",
        f"{machine()}; {datetime.date.today()}",
        "",
        "Excess: expected final loss above that of the target weights. Ratio: to the computed optimum's excess.",
        "A standard error stands where agents react to what they see, and so have to be run. Mean / peak tells the",
        "shape: 1 is a constant rate, 1/2 linear decay, and less a decay that is early and long. The formula for small",
        "rates leaves out that noise feeds on itself near the largest stable rate, so it fails where that is best.",
        "",
    ]
    for name, field in fields.items():
        problem, task = field.problem, field.task
        lines += [
            f"## {name}",
            "",
            f"capacity {problem.capacity:g}, source {problem.source:g} ({'easy' if problem.easy else 'hard'}), noise "
            f"{problem.noise:g}, {problem.dimension} dimensions; {task.budget} steps of batch {task.batch_size}, rates "
            f"held for {task.interval}; largest stable rate {problem.largest_stable_rate(task.batch_size):.3f}.",
            "",
            "| agent | excess | standard error | ratio | mean / peak | peak | settings |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in sorted((row for row in rows if row.task == name), key=lambda row: row.ratio):
            short = {k: v for k, v in row.settings.items() if not isinstance(v, list)}
            shown = ", ".join(f"{key}={value:.3g}" for key, value in short.items())
            error = f"{row.error:.1e}" if row.runs else "exact"
            lines.append(
                f"| {row.agent} | {row.excess:.5f} | {error} | {row.ratio:.3f} | {row.flatness:.2f} | {row.peak:.3g} "
                f"| {shown} |"
            )
        lines.append("")
    lines += ["## The optimum's shape and the budget", "", *ABOUT_SHAPES, "", *shapes, ""]
    return "\n".join([*lines, "![schedules](exact_tasks.png)", ""])


def figure(rows: list[Row], path: Path) -> None:
    """Returns the best schedules against found ones."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, name in zip(axes, PROBLEMS, strict=True):
        own = [row for row in rows if row.task == name and "run" not in row.agent]
        first = [row for row in own if row.agent in ("computed optimum", "formula for small rates")]
        with_momentum = [row for row in own if "stages" in row.agent]
        others = sorted((row for row in own if row not in first + with_momentum), key=lambda row: row.ratio)
        different = {tuple(row.rates): row for row in reversed(others)}  # of equal schedules, one
        for row in first + list(reversed(different.values()))[:8]:
            x = (np.arange(len(row.rates)) + 0.5) / len(row.rates)
            main = row.agent == "computed optimum"
            axis.plot(
                x, row.rates, label=f"{row.agent} ({row.ratio:.2f})", lw=3 if main else 1, color="k" * main or None
            )
        axis.set(title=name, xlabel="share of the budget", yscale="log", ylim=(1e-3, 3))
        axis.legend(fontsize=7, loc="lower left")
    axes[0].set_ylabel("learning rate")
    fig.savefig(path, dpi=110)


def main(settings: Settings) -> None:
    """Computes everything and writes it down."""
    rows: list[Row] = []
    fields = {name: Field(name, settings) for name in PROBLEMS}
    for field in fields.values():
        for row in itertools.chain(field.computed(), field.schedules(), field.reacting()):
            print(
                row.task,
                row.agent,
                f"{row.excess:.5f} +- {row.error:.1e}",
                f"{row.ratio:.3f}",
                row.settings,
                flush=True,
            )
            rows.append(row)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "exact_tasks.jsonl").write_text("".join(to_json(vars(row)) + "\n" for row in rows))
    figure(rows, settings.out / "exact_tasks.png")
    (settings.out / "exact_tasks.md").write_text(page(rows, fields, theory(settings)))


if __name__ == "__main__":
    main(tyro.cli(Settings))
