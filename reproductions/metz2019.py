"""A learned optimizer trained without exploding or biased gradients: Metz et al. 2019.

    python reproductions/metz2019.py --scale cpu --out runs/metz2019

"Learned optimizers that outperform SGD on wall-clock and test loss" (arXiv:1810.10180). Two optimizers, one for
training loss and one for validation loss, are trained on problems with the first half of a data set's classes. They
are then frozen.

- train: the two trainings; the others make them, too, if they are missing.
- held-out: problems with the other half of the classes, every selection of them in every width, beside momentum,
  RMSprop and Adam at their best rates of a grid (figure 1).
- generalise: other networks, other data, a longer budget, beside Adam at its best rates (figure 6).
- variance: of the two estimators of the outer gradient and of the merged one, by the length of the unroll (figure 5a).
- ablations: shorter trainings without one of the ideas at a time (figure 7).

What a step costs (appendix F) is in `benchmarks/learned_optimizer.py`.

The lines of `train` say what the trainings came to; their optimizers and logs are in folders of their own.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import flow
from flow import Report, Reproduction, Result, command, short
from lrenv import networks
from lrenv.agents import Agent
from lrenv.agents.learned_optimizer.agent import LearnedOptimizer
from lrenv.agents.learned_optimizer.baselines import tune_optimizers
from lrenv.agents.learned_optimizer.problems import NETWORKS, class_subset, problems
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining, unrolled
from lrenv.agents.outer.gradient_estimators import merged, paired, perturbations, sampled
from lrenv.agents.schedules.agent import constant
from lrenv.benchmark import evaluation
from lrenv.controllers import controller_file
from lrenv.data import Data
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.memory import choose_device
from lrenv.training.tasks import Task, make_task, register_task
from lrenv.training.trainee import Trainee
from metz2019_report import METHODS, OBJECTIVES, folder, report

Objective = Literal["train", "valid"]
Part = Literal["train", "held-out", "generalise", "variance", "ablations"]


RESAMPLES = 300
"""Estimates of an outer gradient whose variance is taken."""


@dataclass(frozen=True)
class Run:
    """One result; all fields together are its name."""

    part: str
    case: str
    """A problem, or the inner steps of an unroll."""
    method: str
    objective: str
    """What it was trained or tuned for."""
    seed: int


class Scale(NamedTuple):
    """What is trained, and for how long."""

    task: str
    """Its first half of classes is trained on; problems of the others are held out."""
    budget: int
    interval: int
    training: dict[str, Any]
    """Settings of the training that are not the default."""
    selections: int | None = None
    """Of classes, for held-out problems; all there are by default."""
    seeds: int = 5
    """Runs of each optimizer on each problem."""
    unrolls: tuple[int, ...] = ()
    """Inner steps over which estimators of outer gradients are compared."""
    batches: int = 16
    """Of as many pairs as an update of the training has, from which estimates are drawn to see how they vary."""
    others: dict[str, dict[str, Any]] = {}
    """Name -> how a problem differs from the first held-out one."""
    ablated: dict[str, Any] = {}
    """Settings of shorter trainings that are not those of `training`."""
    ablation_seeds: int = 1
    ablation_problems: int = 4
    """Held-out problems that they are compared on."""


SCALES = {
    "smoke": Scale(
        "digits-mlp", budget=40, interval=10,
        training={"classes": 3, "network": "mlp", "widths": "4", "problems": 4, "workers": 2, "pairs": 2,
         "first_unroll": 10, "updates": 4, "eval_every": 2, "eval_seeds": 1},
        selections=2, seeds=2, unrolls=(5, 20), batches=4,
        others={"one layer of 8": {"network": networks.mlp(8)}, "twice as long": {"budget": 80}},
        ablated={"updates": 2, "last_unroll": 20, "curriculum": 2}, ablation_problems=1,
    ),
    "cpu": Scale(
        "mnist1d-mlp", budget=300, interval=10,
        training={"classes": 3, "network": "mlp", "widths": "16,32", "problems": 8, "workers": 4, "pairs": 4,
         "sigma": 0.02, "first_unroll": 50, "last_unroll": 150, "curriculum": 1000, "updates": 300, "outer_lr": 3e-3,
         "eval_every": 20},
        unrolls=(10, 30, 100, 300),
        others={
            "four times as long": {"budget": 1200},
            "two layers of 64": {"network": networks.mlp(64, 64)},
            "three layers of 32": {"network": networks.mlp(32, 32, 32)},
            "8x8 digits": {"data": "digits"},
            "8x8 digits, conv net": {"data": "digits", "network": networks.conv3(8)},
        },
        ablated={"updates": 100, "last_unroll": 100, "curriculum": 100, "workers": 2},
    ),
    "paper": Scale(
        "cifar10-mlp20", budget=10_000, interval=100,
        training={"classes": 3, "network": "conv3", "widths": "32", "problems": 8, "workers": 32, "pairs": 4,
         "updates": 10_000},
        unrolls=(10, 100, 1000, 10_000),
        others={
            "twice as long": {"budget": 20_000},
            "128 units": {"network": networks.conv3(128)},
            "MNIST": {"data": "mnist"},
            "MNIST, three layers of 128": {"data": "mnist", "network": networks.mlp(128, 128, 128)},
        },
        ablation_seeds=5, ablation_problems=10,
    ),
}  # fmt: skip
"""Scale -> the setting: seconds, or hours on a core. `paper` was never run: it has the paper's network, budget,
curriculum and number of pairs, but selections of three out of CIFAR-10's classes instead of ten out of ImageNet's."""


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """How much."""
    out: Path = Path("runs/metz2019")
    """Where results go."""
    parts: tuple[Part, ...] = ("train", "held-out", "generalise", "variance", "ablations")
    """Which parts."""
    objectives: tuple[Objective, ...] = OBJECTIVES
    """What optimizers `train` trains; other parts need both."""


def of_classes(task: Task, classes: Sequence[int]) -> Data:
    """Some classes of a task's data."""
    return class_subset(task.load(), classes)


def halves(scale: Scale) -> tuple[Task, range, range]:
    """The task, the classes to train on, and those that are held out."""
    task = make_task(scale.task, budget=scale.budget, interval=scale.interval)
    classes = task.load().classes
    return task, range(classes // 2), range(classes // 2, classes)


def half(scale: Scale) -> str:
    """The task with the classes to train on, registered; gives its name."""
    task, first, _ = halves(scale)
    named = replace(task, name=f"{scale.task}-first-half", data=partial(of_classes, task, first))
    return register_task(named, replace_existing=True).name


def held_out(scale: Scale) -> list[Task]:
    """Every selection of held-out classes, in every width."""
    task, _, second = halves(scale)
    selections = itertools.combinations(second, scale.training["classes"])
    network, widths = scale.training["network"], scale.training["widths"].split(",")
    return [
        replace(
            task,
            name=f"{', '.join(map(str, chosen))}; {network} {width}",
            data=partial(of_classes, task, chosen),
            network=NETWORKS[network](int(width)),
        )
        for chosen in itertools.islice(selections, scale.selections)
        for width in widths
    ]


def training_settings(scale: Scale, objective: Objective, out: Path, **changes: Any) -> LearnedOptimizerSettings:
    """How an optimizer is trained."""
    return LearnedOptimizerSettings(task=half(scale), objective=objective, out=out, **scale.training | changes)


def shown_test(task: Task) -> Data:
    """A task's data with the test split in place of the validation split."""
    data = task.load()
    return data._replace(val=data.test)


def curve(run: evaluation.Result, name: str, task: Task) -> NDArray[np.float64]:
    """A curve (points, seeds) as long as the budget, also where all runs ended before: NaN from there on."""
    whole = np.full((math.ceil(task.budget / task.interval) + 1, len(run.seeds)), np.nan)
    whole[: len(run.curves[name])] = run.curves[name]
    return whole


def measured(agent: Agent, task: Task, seeds: Sequence[int]) -> list[Result]:
    """What an optimizer does on a problem, a result per seed."""
    run = evaluation.evaluate(agent, task, seeds)
    # The same runs again, for test losses along the way. Nothing is chosen by them: the best checkpoint is that above.
    again = evaluation.evaluate(agent, replace(task, data=partial(shown_test, task)), seeds)
    curves = {name: curve(run, name, task) for name in ("train_loss", "val_loss")}
    curves["test_loss"] = curve(again, "val_loss", task)
    return [
        {
            "final_test_loss": float(curves["test_loss"][-1, i]),
            "best_test_loss": float(run.test_loss[i]),
            "best_test_accuracy": float(run.test_metric[i]),
            "diverged": bool(run.diverged[i]),
            # Of the whole batch; the faster of two runs, which is disturbed less.
            "seconds": float(f"{min(run.seconds, again.seconds):.4g}"),
            "curves": {name: short(points[:, i]) for name, points in curves.items()},
        }
        for i in range(len(seeds))
    ]


def ablations(scale: Scale) -> dict[str, dict[str, Any]]:
    """Name -> how a training differs from a whole one."""
    whole = scale.training | scale.ablated
    long = whole.get("last_unroll", scale.budget)
    return {
        "whole": {},
        "reparameterisation only": {"estimator": "reparameterisation"},
        "ES only": {"estimator": "es"},
        "PES": {"estimator": "pes"},
        "short unrolls": {"last_unroll": whole.get("first_unroll", 50)},
        "long unrolls": {"first_unroll": long},
        "no momentum": {"momentum": False},
        "no RMS": {"rms": False},
        "no time": {"time": False},
    }


class Metz2019(Reproduction[Settings, Run]):
    """A learned optimizer against tuned ones."""

    paper, title = "Metz et al. 2019", "A learned optimizer"
    name, scales = Run, SCALES

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._learned: dict[Objective, LearnedOptimizer] = {}

    @cached_property
    def problems(self) -> dict[str, list[Task]]:
        """Part -> the problems on which optimizers compete."""
        tasks = held_out(self.scale)
        others = [replace(tasks[0], name=name, **changes) for name, changes in self.scale.others.items()]
        return {"held-out": tasks, "generalise": others}

    def runs(self) -> Iterator[list[Run]]:
        """All that is asked for, in the order of the parts: a problem, a variance, or a training at a time."""
        scale, parts = self.scale, self.settings.parts
        if "train" in parts:
            for objective in self.settings.objectives:
                yield [Run("train", "", "learned", objective, 0)]
        for part, tasks in self.problems.items():
            for task in tasks if part in parts else ():
                names = itertools.product([part], [task.name], METHODS[part], OBJECTIVES, range(scale.seeds))
                yield list(itertools.starmap(Run, names))
        if "variance" in parts:
            for theta, unroll in itertools.product(("fresh", "trained"), scale.unrolls):
                yield [Run("variance", str(unroll), theta, "train", 0)]
        if "ablations" in parts:
            for seed, name in itertools.product(range(scale.ablation_seeds), ablations(scale)):
                yield [Run("ablations", "", name, "train", seed)]

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        """What the part asks of the runs."""
        first = batch[0]
        if first.part == "train":
            return [self.cost(objective) for objective in OBJECTIVES if objective == first.objective]
        if first.part == "variance":
            return [self.variances(first.method == "fresh", int(first.case))]
        if first.part == "ablations":
            return [self.ablated(first.method, first.seed)]
        (task,) = (task for task in self.problems[first.part] if task.name == first.case)
        return self.contest(task, METHODS[first.part][1:])

    def report(self) -> Report:
        """Contests, variances, ablations."""
        return report(self.lines, self.scale.interval, self.out)

    def trained(self, settings: LearnedOptimizerSettings) -> LearnedOptimizer:
        """The best optimizer of a training."""
        return LearnedOptimizer.load(self.controller_of(LearnedOptimizerTraining, settings))

    def learned(self, objective: Objective) -> LearnedOptimizer:
        """The optimizer trained for this objective."""
        if objective not in self._learned:
            self._learned[objective] = self.trained(training_settings(self.scale, objective, self.out / objective))
        return self._learned[objective]

    def cost(self, objective: Objective) -> Result:
        """What the training for this objective came to."""
        self.learned(objective)
        held = controller_file.read_metadata(self.out / objective / "controller.safetensors")
        return {name: held[name] for name in ("iteration", "val_loss", "runs")}

    def contest(self, task: Task, baselines: Sequence[str]) -> list[Result]:
        """Learned optimizers and tuned ones on a problem, one after the other, each for both objectives."""
        seeds = seeds_for("report", self.scale.seeds)
        results: list[Result] = []
        for objective in OBJECTIVES:
            own = measured(self.learned(objective), task, seeds)
            results += [{"rate": None, "tuning_loss": None} | result for result in own]
        for optimizer, tuning in tune_optimizers(task, optimizers=baselines).items():
            for objective, losses in zip(OBJECTIVES, (tuning.train_loss, tuning.val_loss), strict=True):
                found = {"rate": tuning.best(objective), "tuning_loss": float(losses.min())}
                own = measured(constant(found["rate"]), make_task(task, optimizer=optimizer), seeds)
                results += [found | result for result in own]
        return results

    def variances(self, fresh: bool, unroll: int) -> Result:
        """The variance of three estimates of the outer gradient from the same pairs, mean over theta's weights.

        Estimates are from as many pairs as an update of the training has, drawn with replacement from many times as
        many: some samples are far from the rest, and the variance of a few dozen independent estimates would be an
        accident.
        """
        scale = self.scale
        chosen = training_settings(scale, "train", self.out / "train")
        shape = chosen.architecture
        theta = shape.init(chosen.seed) if fresh else self.learned("train").theta
        task = replace(problems(chosen).train[0], optimizer=LearnedOptimizer(theta, shape))
        trainee = Trainee(task, choose_device(chosen.device))
        theta, rollout = theta.to(trainee.device), unrolled(trainee, unroll, "train")
        k, generator = chosen.workers * chosen.pairs, torch.Generator().manual_seed(unroll)
        batches = []
        for i in range(scale.batches):
            noise = perturbations(k, theta, chosen.sigma, generator)
            samples = sampled(rollout, theta, noise, chosen.sigma, paired(trainee.init(seeds_for("report", k, k * i))))
            batches.append((samples.es, samples.reparameterisation))
        pools = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        estimates: dict[str, list[torch.Tensor]] = {"es": [], "reparameterisation": [], "merged": []}
        for _ in range(RESAMPLES):
            pairs = torch.randint(len(pools[0]), (k,), generator=generator)
            es, reparameterisation = (pool[pairs] for pool in pools)
            estimates["es"].append(es.double().mean(0))
            estimates["reparameterisation"].append(reparameterisation.double().mean(0))
            estimates["merged"].append(merged(reparameterisation, es).double())
        return {name: float(torch.stack(own).var(0).mean()) for name, own in estimates.items()}

    def ablated(self, name: str, seed: int) -> Result:
        """A shorter training, and the training loss of held-out problems, which it was for: mean over steps, runs."""
        scale = self.scale
        changes = scale.ablated | ablations(scale)[name] | {"seed": seed}
        agent = self.trained(training_settings(scale, "train", folder(self.out, name, seed), **changes))
        seeds = seeds_for("report", scale.seeds)
        tasks = self.problems["held-out"][: scale.ablation_problems]
        runs = [curve(evaluation.evaluate(agent, task, seeds), "train_loss", task) for task in tasks]
        mean = np.mean(runs, (0, 2))
        return {"loss": float(mean[1:].mean()), "curve": short(mean)}


if __name__ == "__main__":
    sys.exit(command(Metz2019, Settings, __doc__))
