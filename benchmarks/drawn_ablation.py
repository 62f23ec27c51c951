"""What of a PPO controller's design matters on drawn tasks: each arm differs from a base in one thing, if it can.

The arm that is paid at the end alone has rewards divided by a fixed number, too, since that of returns so far would be
another; those for one kind of optimizer have other tasks; evolution strategies have four times the runs.

A policy is trained on drawn tasks of its own for some minutes and run, deterministically, on drawn tasks for choosing
designs, from first rates of 1e-5, 1e-3 and 1e-1. The score is the logarithm of the last validation loss relative to
that of the untrained network, at most 1 (`lrenv.agents.outer.validation`). What is told is the difference to the base,
a mean over its seeds, with the standard error over tasks. A difference of two trainings with other seeds, too, has the
standard deviation over seeds that is told below the table, times sqrt(1 + 1/n) with n seeds of the base. Beside them
stand agents that PPO has not trained.

Trainings with PPO make equally many decisions, and those of one seed see the same tasks in the same order, but for arms
that choose theirs. A line per training is appended to a file, from which the same command goes on; a training that was
interrupted goes on from its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from ablation_trainings import (
    CLONE_LR,
    ITERATIONS,
    LEAST_LOG_STD,
    PASSES,
    SHOWN,
    SHOWN_RUNS,
    UPDATES,
    WEIGHT_FACTORS,
    augmented,
    begun_at,
    by_evolution,
    by_ppo,
    by_ppo_with,
    clone,
    cloned,
    on_changed,
    ppo_from_clone,
    untrained,
    with_optimizers,
)
from drawn_rows import digest_of
from lrenv.agents.outer.validation import fall_of
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.agent import Agent
from lrenv.envs.observations import DYNAMICS, SCALE_FREE, Signal, register_observation
from lrenv.envs.quantities import MOTION
from lrenv.envs.rewards import CAP, improvement, register_reward
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import append_line, json_lines
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION, TaskDistribution
from lrenv.training.dynamics import Dynamics
from lrenv.training.tasks import Task

Array = NDArray[np.float64]
Row = dict[str, Any]

FIRST_RATES = (1e-5, 1e-3, 1e-1)
OWN_RATE = 3e-3
"""Of the arm that begins with a rate of its own."""
SEEDS, FIRST_SEED, FIRST_TASK = 2, 300, 6000
"""Runs per task and first rate; places beyond those of the other benchmarks on drawn tasks."""
PEAKS = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-8, 3))
"""What linear decay is tuned over."""
LIMIT = 5e8
"""The most FLOPs of a run."""
BASE = "base"


def without(names: set[str], table: dict[str, Signal]) -> dict[str, Signal]:
    """The signals of a table but these."""
    return {name: signal for name, signal in table.items() if name not in names}


def fall_at_end(d: Dynamics, diverged: Tensor) -> Tensor:
    """The same return as `improvement` has, all of it at the end of the budget."""
    whole = improvement(d._replace(previous_val_loss=d.initial_val_loss), diverged)
    return torch.where(diverged | (d.inner_step >= d.budget), whole, 0.0)


def all_losses(d: Dynamics, diverged: Tensor) -> Tensor:
    """The negative logarithm of the validation loss at each decision, relative to that of the untrained network.

    That must be positive and finite, as it is on drawn tasks.
    """
    fallen = improvement(d._replace(previous_val_loss=d.initial_val_loss), diverged)
    others_left = ((d.budget - d.inner_step) / d.interval).ceil()  # as if these were at the cap
    return torch.where(diverged, fallen - math.log(CAP) * others_left, fallen)


RELATIVE = {f"relative {name}": signal for name, signal in SCALE_FREE.items()}
BOTH = RELATIVE | DYNAMICS
"""What the base observes, under names that differ."""
OBSERVATIONS = {
    "ablation-no-motion": without({f"relative {name}" for name in MOTION}, BOTH),
    "ablation-no-validation": without(
        {"val_loss", "prediction_variance", "prediction_change"}
        | {f"relative {name}" for name in ("val_fall", "val_change", "gap")},
        BOTH,
    ),
    "ablation-endless": without({"progress", "relative progress"}, BOTH),
}
"""What arms observe that has no name elsewhere."""
OWN_REWARDS = {"ablation-fall-at-end": fall_at_end, "ablation-all-losses": all_losses}


@dataclass(frozen=True)
class Arm:
    """A design.

    Attributes:
        changes: the settings that aren't those of the base.
        trained: gives the controller.
        first_rate: the one that it always begins with.
        optimizers: of the tasks that it is for; all if empty.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    trained: Callable[[PPOSettings], Agent] = by_ppo
    first_rate: float | None = None
    optimizers: tuple[str, ...] = ()

    def settings(self, seed: int, runs: Path, name: str) -> PPOSettings:
        """Those of the training with a seed, in a folder of `runs`."""
        base: dict[str, Any] = {
            "tasks": f"drawn:limit={LIMIT}", "control": "scale10", "observe": "scale-free,dynamics",
            "reward": "improvement", "gamma": 1.0, "envs": 128, "groups": 8,
            "eval_every": 100_000, "eval_tasks": 1, "eval_seeds": 1,
        }  # fmt: skip
        return PPOSettings(
            **base | self.changes, seed=seed, out=runs / f"{'-'.join(name.replace(',', '').split())}-{seed}"
        )


CHOICE = 30
"""From so many drawn tasks one is taken that has the optimizer that is wanted, which three of ten have or more."""
ADAMS, SGD = ("adam", "adamw"), ("momentum",)
NUMBERS = (ITERATIONS, UPDATES, WEIGHT_FACTORS, SHOWN, SHOWN_RUNS, PASSES, CLONE_LR, LEAST_LOG_STD)
"""Those that the trainings have for themselves."""
SPREAD = 1.7
"""About the standard deviation of returns so far, by which the base's rewards end up being divided."""
ARMS: dict[str, Arm] = {
    BASE: Arm(),
    "relative signals alone": Arm({"observe": "scale-free"}),
    "absolute signals alone": Arm({"observe": "dynamics"}),
    "no movements and angles": Arm({"observe": "ablation-no-motion"}),
    "no validation split": Arm({"observe": "ablation-no-validation"}),
    "no progress": Arm({"observe": "ablation-endless"}),
    "all that universal sees, too": Arm({"observe": "scale-free,dynamics,training,horizon,setup,untrained"}),
    "factor 2": Arm({"control": "scale"}),
    "factor 1000": Arm({"control": "scale1000"}),
    "sets rates": Arm({"control": "set"}),
    "begins at 0.003": Arm(trained=partial(on_changed, partial(begun_at, OWN_RATE)), first_rate=OWN_RATE),
    "reward at the end alone": Arm({"reward": "ablation-fall-at-end"}, partial(by_ppo_with, SPREAD)),
    "reward of all losses": Arm({"reward": "ablation-all-losses"}),
    "LSTM": Arm({"lstm": True}),
    "weights of layers scaled": Arm(trained=partial(on_changed, augmented)),
    "clone of universal": Arm(trained=clone),
    "clone, then PPO": Arm(trained=ppo_from_clone),
    "evolution": Arm(trained=partial(by_evolution, untrained)),
    "clone, then evolution": Arm(trained=partial(by_evolution, cloned)),
    "Adam alone": Arm(trained=partial(on_changed, partial(with_optimizers, ADAMS), choice=CHOICE), optimizers=ADAMS),
    "SGD alone": Arm(trained=partial(on_changed, partial(with_optimizers, SGD), choice=CHOICE), optimizers=SGD),
}
REFERENCES = ("universal", f"linear:peak={OWN_RATE}:warmup=0.05")
TUNED = "linear decay, best of eleven peaks per task"


@dataclass(frozen=True)
class Settings:
    """The settings: what to train, and where what was found is kept."""

    agents: tuple[str, ...] = (*REFERENCES, TUNED, *ARMS)
    """Whom to run, after training where they are arms; the table has all that was found."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings."""
    tasks: int = 60
    """Tasks to compare controllers on."""
    runs: Path = Path("runs/ablation")
    """The folder of the trainings."""
    out: Path = Path("benchmarks/results/drawn_ablation.jsonl")
    """The file of what was found."""
    against: str = BASE
    """Relative to whom it is told."""
    without: tuple[int, ...] = ()
    """The places of tasks that the table leaves out, to see what they make of it."""


class FromEachRate(LearningRateVectorEnv):
    """Environments of which equal parts begin their first episodes at each of `FIRST_RATES`."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begins all of them, one part after the other."""
        begun = super().reset(seed=seed, options={"initial_lr": FIRST_RATES[0]})
        part = np.arange(self.num_envs) // (self.num_envs // len(FIRST_RATES))
        for number, rate in enumerate(FIRST_RATES[1:], 1):
            own = [s if own else None for s, own in zip(seed, part == number, strict=True)]
            begun = super().reset(seed=own, options={"initial_lr": rate, "reset_mask": part == number})
        return begun


def falls(agent: Agent | str, task: Task, first_rate: float | None = None) -> tuple[list[float], int]:
    """The mean score from each first rate, and how many runs diverged.

    Args:
        agent: a trained one, or the name of one.
        task: to run on.
        first_rate: in the place of `FIRST_RATES`, if it always begins with it.
    """
    seeds = seeds_for("selection", SEEDS, FIRST_SEED)
    if first_rate is None:
        result = evaluate(agent, task, seeds * len(FIRST_RATES), environments=FromEachRate)
    else:
        result = evaluate(agent, task, seeds, initial_lr=first_rate)
    scores = scores_of(result).view(-1, SEEDS).mean(1)
    again = 1 if first_rate is None else len(FIRST_RATES)
    return [round(score, 4) for score in scores.tolist()] * again, int(result.diverged.sum()) * again


def scores_of(result: Result) -> Tensor:
    """The score (n,) of each run."""
    first, last = (torch.from_numpy(x).double() for x in (result.curves["val_loss"][0], result.final_val_loss))
    return fall_of(first, last, torch.from_numpy(result.diverged))


def tuned(task: Task) -> tuple[list[float], int]:
    """The same of linear decay, whose peak is the best one on other seeds."""
    seeds, at_ends = seeds_for("tuning", SEEDS, FIRST_SEED), replace(task, measure_interval=task.budget)

    def loss(peak: float) -> float:
        return scores_of(evaluate(f"linear:peak={peak}:warmup=0.05", at_ends, seeds)).mean().item()

    return falls(f"linear:peak={min(PEAKS, key=loss)}:warmup=0.05", task, OWN_RATE)


def row_of(name: str, seed: int, tasks: Sequence[Task], score: Callable[[Task], tuple[list[float], int]]) -> Row:
    """What was found of an agent on all tasks."""
    found = []
    with progress(len(tasks), f"tasks of {name}") as report:
        for place, task in enumerate(tasks):
            report(place)
            found.append(score(task))
    return {
        "arm": name, "seed": seed, "version": VERSION, "design": design_of(name), "tasks": len(tasks),
        "optimizers": [task.optimizer for task in tasks], "log_loss": [scores for scores, _ in found],
        "diverged": [number for _, number in found],
    }  # fmt: skip


def design_of(name: str) -> str:
    """Tells an agent from others that had its name, by its settings, its training and the numbers of both files."""
    if name not in ARMS:
        return digest_of([name, PEAKS])
    arm = ARMS[name]
    settings = arm.settings(0, Path(), name)
    signals = [list(OBSERVATIONS.get(observed, ())) for observed in settings.observe.split(",")]
    return digest_of([settings.essence(), signals, described(arm.trained), arm.first_rate, arm.optimizers, NUMBERS])


def described(function: Any) -> Any:
    """A function by its name, with what is given to it, as JSON values."""
    if isinstance(function, partial):
        return [described(part) for part in (function.func, *function.args, *function.keywords.values())]
    return function.__name__ if callable(function) else function


def trained_row(name: str, seed: int, tasks: Sequence[Task], runs: Path) -> Row:
    """Trains an arm with a seed, and tells what came of it."""
    arm = ARMS[name]
    settings = arm.settings(seed, runs / design_of(name), name)
    agent = arm.trained(settings)
    row = row_of(name, seed, tasks, lambda task: falls(agent, task, arm.first_rate))
    trained = settings.out / "controller.safetensors"
    runs_of = controller_file.read_metadata(trained)["runs"]["training"] if trained.exists() else 0
    return row | {"changes": {key: str(value) for key, value in arm.changes.items()}, "runs": runs_of}


def told(rows: list[Row], against: str = BASE, without: Sequence[int] = ()) -> str:
    """The table: what each agent has more than another one, and that one itself; for the arguments see `Settings`."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["arm"], []).append(row)
    if against not in by_name:
        return f"there is nothing of {against} yet to compare with: run it, too"
    kept = np.array([place not in without for place in range(rows[0]["tasks"])])
    scores = {name: np.array([row["log_loss"] for row in own])[:, kept] for name, own in by_name.items()}
    adam = np.array([name in ADAMS for name in rows[0]["optimizers"]])[kept]
    base = scores[against].mean(0)
    heads = ["from 1e-5", "from 1e-3", "from 1e-1", "all", "median", "Adam", "SGD", "diverged"]
    lines = [f"| agent | seeds | {' | '.join(heads)} |", f"|---|---:|{'---:|' * len(heads)}"]
    for name, own in scores.items():
        more, kinds = own.mean(0) - base, ARMS[name].optimizers if name in ARMS else ()
        here = adam if kinds == ADAMS else ~adam if kinds == SGD else np.ones_like(adam)
        if name == against:
            parts = [*base.T, base, base[adam], base[~adam]]
            cells = [f"{part.mean():.3f}" if part.size else "" for part in parts]
            cells.insert(4, "")
        else:
            parts = [*more.T, more.mean(1), more[adam].mean(1), more[~adam].mean(1)]
            shown = [not kinds] * 4 + [kinds in ((), ADAMS), kinds in ((), SGD)]
            cells = [difference(x) if show else "" for x, show in zip(parts, shown, strict=True)]
            cells.insert(4, f"{np.median(more.mean(1)):+.3f}" if not kinds else "")
        died = np.array([row["diverged"] for row in by_name[name]]).mean(0)[kept][here]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {died.mean() / (base.shape[1] * SEEDS):.1%} |")
    if len(scores[against]) > 1:
        spread = scores[against].mean((1, 2)).std(ddof=1)
        lines.append(f"\nThe standard deviation of {against} over its {len(scores[against])} seeds is {spread:.3f}.")
    return "\n".join(lines)


def difference(values: Array) -> str:
    """A mean with its standard error; nothing where there is none."""
    return "" if len(values) < 2 else f"{values.mean():+.3f} ({values.std(ddof=1) / len(values) ** 0.5:.3f})"


def _key(row: Row) -> tuple[Any, ...]:
    return row["version"], row["tasks"], row.get("design")


def main(settings: Settings) -> None:
    """Trains what is missing, and prints the table."""
    for own, table in OBSERVATIONS.items():
        register_observation(own, table, replace_existing=True)
    for own, reward in OWN_REWARDS.items():
        register_reward(own, reward, replace_existing=True)
    if unknown := set(settings.agents) - {*REFERENCES, TUNED, *ARMS}:
        raise SystemExit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(Settings.agents)}")
    tasks = TaskDistribution(LIMIT).tasks("selection", settings.tasks, FIRST_TASK)

    def rows() -> dict[tuple[str, int], Row]:
        """Those of these agents and tasks, in the order in which they are told."""
        order = [*REFERENCES, TUNED, *ARMS]
        listed = [row for row in json_lines(settings.out) if row["arm"] in order]
        kept = [row for row in listed if _key(row) == (VERSION, settings.tasks, design_of(row["arm"]))]
        return {(row["arm"], row["seed"]): row for row in sorted(kept, key=lambda row: order.index(row["arm"]))}

    settings.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in settings.seeds:
        for name in settings.agents:
            if (name, seed if name in ARMS else 0) in rows():
                continue
            if name in ARMS:
                row = trained_row(name, seed, tasks, settings.runs)
            else:
                row = row_of(name, 0, tasks, tuned if name == TUNED else partial(falls, name, first_rate=OWN_RATE))
            append_line(settings.out, json.dumps(row))
    print(told(list(rows().values()), settings.against, settings.without))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
