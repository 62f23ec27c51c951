"""What of a PPO controller's design matters on drawn tasks: each arm differs from a base in one thing.

A policy is trained on drawn tasks of its own for some minutes and run, deterministically, on drawn tasks for choosing
designs, from first rates of 1e-5, 1e-3 and 1e-1. The score is the logarithm of the last validation loss relative to
that of the untrained network, at most 1 (`lrenv.agents.outer.validation`). What is told is the difference to the base,
the mean over its seeds, with the standard error over tasks; runs of arms with one seed also differ by their seed, whose
standard deviation is that of the base's own differences. Beside them stand agents that were not trained by PPO.

Trainings of one seed see the same tasks in the same order. A line per training is appended to a file, from which the
same command goes on; a training that was interrupted goes on from its folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from ablation_trainings import (
    augmented,
    begun_at,
    by_evolution,
    by_ppo,
    clone,
    cloned,
    on_changed,
    ppo_from_clone,
    untrained,
    with_optimizers,
)
from lrenv.agents import make_agent
from lrenv.agents.outer.validation import fall_of
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.benchmark.evaluation import evaluate
from lrenv.controllers.agent import Agent
from lrenv.envs.observations import DYNAMICS, MOTION, SCALE_FREE, TRAINING, Signal, register_observation
from lrenv.envs.rewards import improvement, register_reward
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
PEAKS = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-8, 1))
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


BOTH = {f"relative {name}": signal for name, signal in SCALE_FREE.items()} | without({"progress"}, DYNAMICS)
OBSERVATIONS = {
    "ablation-no-motion": without({f"relative {name}" for name in MOTION}, BOTH),
    "ablation-endless": without({"relative progress"}, BOTH),
    "ablation-relative-with-rate": SCALE_FREE | {"lr": DYNAMICS["lr"]},
    "ablation-kind": {name: TRAINING[name] for name in ("adaptive", "steps", "steps_per_decision")},
    "ablation-no-validation": without({"adaptive"}, TRAINING) | {name: DYNAMICS[name] for name in ("lr", "progress")},
}
"""What arms observe that has no name elsewhere."""


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
            "reward": "improvement", "gamma": 1.0, "envs": 128, "groups": 8, "episodes": 3072,
            "eval_every": 100_000, "eval_tasks": 1, "eval_seeds": 1,
        }  # fmt: skip
        return PPOSettings(
            **base | self.changes, seed=seed, out=runs / f"{'-'.join(name.replace(',', '').split())}-{seed}"
        )


CHOICE = 30
"""From so many drawn tasks one is taken that has the optimizer that is wanted, which three of ten have or more."""
ADAMS, SGD = ("adam", "adamw"), ("momentum",)
MANY = {"envs": 512, "episodes": 12_288}
"""Of evolution strategies, which take larger batches, of which a trainee takes less time."""
ARMS: dict[str, Arm] = {
    BASE: Arm(),
    "relative signals alone": Arm({"observe": "scale-free"}),
    "relative signals and the rate": Arm({"observe": "ablation-relative-with-rate"}),
    "absolute signals alone": Arm({"observe": "dynamics"}),
    "no movements and angles": Arm({"observe": "ablation-no-motion"}),
    "no validation split": Arm({"observe": "ablation-no-validation"}),
    "no progress": Arm({"observe": "ablation-endless"}),
    "kind of optimizer and steps, too": Arm({"observe": "scale-free,dynamics,ablation-kind"}),
    "network, batch size and horizon, too": Arm({"observe": "scale-free,dynamics,ablation-kind,setup,untrained"}),
    "factor 2": Arm({"control": "scale"}),
    "factor 1000": Arm({"control": "scale1000"}),
    "sets rates": Arm({"control": "set"}),
    "begins at 0.003": Arm(trained=partial(on_changed, partial(begun_at, OWN_RATE)), first_rate=OWN_RATE),
    "reward at the end alone": Arm({"reward": "ablation-fall-at-end"}),
    "reward of all losses": Arm({"reward": "log_val_loss"}),
    "gamma 0.99": Arm({"gamma": 0.99}),
    "LSTM": Arm({"lstm": True}),
    "weights of layers scaled": Arm(trained=partial(on_changed, augmented)),
    "clone of universal": Arm(trained=clone),
    "clone, then PPO": Arm(trained=ppo_from_clone),
    "evolution": Arm(MANY, partial(by_evolution, untrained)),
    "clone, then evolution": Arm(MANY, partial(by_evolution, cloned)),
    "Adam alone": Arm(trained=partial(on_changed, partial(with_optimizers, ADAMS), choice=CHOICE), optimizers=ADAMS),
    "SGD alone": Arm(trained=partial(on_changed, partial(with_optimizers, SGD), choice=CHOICE), optimizers=SGD),
}
REFERENCES = ("universal", f"linear:peak={OWN_RATE}:warmup=0.05")
TUNED = "linear decay, best of nine peaks per task"


@dataclass(frozen=True)
class Settings:
    """The settings: what to train, and where what was found is kept."""

    arms: tuple[str, ...] = tuple(ARMS)
    """What to train; the table has all that was found."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings."""
    tasks: int = 60
    """Tasks to compare controllers on."""
    runs: Path = Path("runs/ablation")
    """The folder of the trainings."""
    out: Path = Path("benchmarks/results/drawn_ablation.jsonl")
    """The file of what was found."""


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
    first, last = (torch.from_numpy(x).double() for x in (result.curves["val_loss"][0], result.final_val_loss))
    scores = fall_of(first, last, torch.from_numpy(result.diverged)).view(-1, SEEDS).mean(1)
    again = 1 if first_rate is None else len(FIRST_RATES)
    return [round(score, 4) for score in scores.tolist()] * again, int(result.diverged.sum()) * again


def tuned(task: Task) -> tuple[list[float], int]:
    """The same of linear decay, whose peak is the best one on other seeds."""
    seeds = seeds_for("tuning", SEEDS, FIRST_SEED)

    def loss(peak: float) -> float:
        found = evaluate(f"linear:peak={peak}:warmup=0.05", task, seeds).final_val_loss
        return float(np.log(np.minimum(found, 1e30)).mean())

    return falls(f"linear:peak={min(PEAKS, key=loss)}:warmup=0.05", task, OWN_RATE)


def row_of(name: str, seed: int, tasks: Sequence[Task], score: Callable[[Task], tuple[list[float], int]]) -> Row:
    """What was found of an agent on all tasks."""
    found = []
    with progress(len(tasks), f"tasks of {name}") as report:
        for place, task in enumerate(tasks):
            report(place)
            found.append(score(task))
    return {
        "arm": name, "seed": seed, "version": VERSION, "tasks": len(tasks), "diverged": sum(n for _, n in found),
        "optimizers": [task.optimizer for task in tasks], "log_loss": [scores for scores, _ in found],
    }  # fmt: skip


def trained_row(name: str, seed: int, tasks: Sequence[Task], runs: Path) -> Row:
    """Trains an arm with a seed, and tells what came of it."""
    arm, begun = ARMS[name], time.monotonic()
    settings = arm.settings(seed, runs, name)
    agent = arm.trained(settings)
    seconds = round(time.monotonic() - begun)
    row = row_of(name, seed, tasks, lambda task: falls(agent, task, arm.first_rate))
    return row | {"changes": {key: str(x) for key, x in arm.changes.items()}, "seconds": seconds}


def told(rows: list[Row]) -> str:
    """The table: what each agent has more than the base, and the base itself."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["arm"], []).append(row)
    if BASE not in by_name:
        raise SystemExit(f"there is no {BASE} yet to compare with: train it first")
    scores = {name: np.array([row["log_loss"] for row in own]) for name, own in by_name.items()}  # (seeds, tasks, 3)
    adam = np.array([name in ADAMS for name in rows[0]["optimizers"]])
    base = scores[BASE].mean(0)
    heads = ["from 1e-5", "from 1e-3", "from 1e-1", "all", "Adam", "SGD", "diverged"]
    lines = [f"| agent | seeds | {' | '.join(heads)} |", f"|---|---:|{'---:|' * len(heads)}"]
    for name, own in scores.items():
        more = own.mean(0) - base
        if name == BASE:
            parts = [*base.T, base, base[adam], base[~adam]]
            cells = [f"{part.mean():.3f}" if part.size else "" for part in parts]
        else:
            kinds = ARMS[name].optimizers if name in ARMS else ()
            parts = [*more.T, more.mean(1), more[adam].mean(1), more[~adam].mean(1)]
            shown = [not kinds] * 4 + [kinds in ((), ADAMS), kinds in ((), SGD)]
            cells = [difference(x) if show else "" for x, show in zip(parts, shown, strict=True)]
        share = np.mean([row["diverged"] for row in by_name[name]]) / (base.size * SEEDS)
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {share:.1%} |")
    if len(scores[BASE]) > 1:
        spread = scores[BASE].mean((1, 2)).std(ddof=1)
        lines.append(f"\nThe standard deviation of the base over its {len(scores[BASE])} seeds is {spread:.3f}.")
    return "\n".join(lines)


def difference(values: Array) -> str:
    """A mean with its standard error; nothing where there is none."""
    return "" if len(values) < 2 else f"{values.mean():+.3f} ({values.std(ddof=1) / len(values) ** 0.5:.3f})"


def main(settings: Settings) -> None:
    """Trains what is missing, and prints the table."""
    for observed, table in OBSERVATIONS.items():
        register_observation(observed, table, replace_existing=True)
    register_reward("ablation-fall-at-end", fall_at_end, replace_existing=True)
    if unknown := set(settings.arms) - ARMS.keys():
        raise SystemExit(f"there is no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    tasks = TaskDistribution(LIMIT).tasks("selection", settings.tasks, FIRST_TASK)

    def rows() -> dict[tuple[str, int], Row]:
        """Those of these tasks, in the order in which they are told."""
        order = [*REFERENCES, TUNED, *ARMS]
        current = (row["version"] == VERSION and row["tasks"] == settings.tasks for row in json_lines(settings.out))
        kept = [row for row, good in zip(json_lines(settings.out), current, strict=True) if good]
        kept.sort(key=lambda row: (order.index(row["arm"]), row["seed"]))
        return {(row["arm"], row["seed"]): row for row in kept}

    wanted: list[tuple[str, int, Callable[[], Row]]] = []
    for name in REFERENCES:
        agent = make_agent(name)
        wanted.append((name, 0, partial(row_of, name, 0, tasks, partial(falls, agent, first_rate=OWN_RATE))))
    wanted.append((TUNED, 0, partial(row_of, TUNED, 0, tasks, tuned)))
    for seed in settings.seeds:
        for name in settings.arms:
            wanted.append((name, seed, partial(trained_row, name, seed, tasks, settings.runs)))
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    for name, seed, found in wanted:
        if (name, seed) not in rows():
            append_line(settings.out, json.dumps(found()))
    print(told(list(rows().values())))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
