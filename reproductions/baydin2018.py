"""Hypergradient descent as published: `python reproductions/baydin2018.py --scale cpu --out runs/baydin2018`.

Baydin et al. 2018, "Online learning rate adaptation with hypergradient descent" (arXiv:1703.04782), in the settings of
their experiments and of the reproduction by Tran and Rauf 2019 (COMP6248 reproducibility challenge): MNIST and
CIFAR-10, all training images to train on and the test images to validate on, batches of 128, weight decay 1e-4,
momentum 0.9.

- online: from rates of 1e-6 to 1e-1, with and without hypergradients.
- tuning: six optimizers from the rate 1e-3, and Adam with the paper's decay by 1 / sqrt(t).
- beta: rates of the rate against initial rates, on logistic regression (the paper's figure 4).

Two things differ from the published code. An epoch has 468 steps instead of 469, for the last, smaller batch is left
out. And MNIST is normalised by its own mean and deviation, which are the published 0.1307 and 0.3081 to these digits.

Each run is a line of `runs.jsonl`, with what it reached after every epoch.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import flow
from baydin2018_report import BETA, report
from flow import Report, Reproduction, Result, command, cut, short
from lrenv.agents import Agent
from lrenv.agents.hypergradient.descent import adam_hd, nesterov_hd, sgd_hd
from lrenv.agents.schedules.agent import constant, inverse_sqrt
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task, make_task

Numbers = Sequence[float]


class Method(NamedTuple):
    """An optimizer and how its rate goes."""

    optimizer: str
    agent: Callable[[Numbers, Numbers], Agent]
    """(initial rates, betas), one per environment -> agent."""


METHODS = {
    "sgd": Method("sgd", lambda rates, _: constant(rates)),
    "sgd-hd": Method("sgd", lambda rates, betas: sgd_hd(rates, betas)),
    "nesterov": Method("nesterov", lambda rates, _: constant(rates)),
    "nesterov-hd": Method("nesterov", lambda rates, betas: nesterov_hd(rates, betas)),
    "adam": Method("adam", lambda rates, _: constant(rates)),
    "adam-decayed": Method("adam", lambda rates, _: inverse_sqrt(rates, timescale=1)),
    "adam-hd": Method("adam", lambda rates, betas: adam_hd(rates, betas)),
}
RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
GRID = {
    "sgd-hd": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "nesterov-hd": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "adam-hd": (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
}


@dataclass(frozen=True)
class Run:
    """One training; all fields together are its name."""

    network: str
    method: str
    alpha0: float
    beta: float
    """0 for methods without."""
    epochs: int
    seed: int


class Network(NamedTuple):
    """What is trained, and for how long."""

    task: str
    tuning_epochs: int
    online_epochs: int
    seeds: int = 5
    online_seeds: int = 5
    at_once: int = 36
    """Trainees in a batch of runs, which is what an interruption may cost."""


LOGREG = Network("mnist-logreg", tuning_epochs=10, online_epochs=10)
SCALES = {
    "smoke": {
        "logreg": Network("digits-logreg", tuning_epochs=2, online_epochs=2, seeds=2, online_seeds=1),
        "mlp": Network("digits-mlp", tuning_epochs=2, online_epochs=1, seeds=2, online_seeds=1),
    },
    "cpu": {
        "logreg": LOGREG,
        "mlp": Network("mnist-mlp", tuning_epochs=10, online_epochs=1, online_seeds=1, at_once=1),
    },
    "paper": {
        "logreg": LOGREG,
        "mlp": Network("mnist-mlp", tuning_epochs=100, online_epochs=100, online_seeds=1, at_once=5),
        "vgg": Network("cifar10-vgg16", tuning_epochs=200, online_epochs=0, at_once=5),
    },
}
"""Scale -> networks, the quick ones first. `smoke` trains on 8x8 digits, to see whether everything works; `paper` has
the epochs of the authors' published scripts."""


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """How long: smoke for seconds, cpu for hours on one core, paper for days."""
    part: Literal["tuning", "online", "beta", "all"] = "all"
    """Which experiments."""
    out: Path = Path("runs/baydin2018")
    """Where results go."""
    compile: bool = False
    """Compile inner steps."""


def tuning(name: str, network: Network) -> list[Run]:
    """All methods from the rate 1e-3."""
    betas = BETA | ({"adam-hd": 1e-8} if name == "vgg" else {})
    return [
        Run(name, method, 1e-3, betas.get(method, 0.0), network.tuning_epochs, seed)
        for method, seed in itertools.product(METHODS, seeds_for("report", network.seeds))
    ]


def online(name: str, network: Network) -> list[Run]:
    """All initial rates; with hypergradients at the beta of the other experiments, and at the paper's 1e-4."""
    return [
        Run(name, method, alpha0, beta, network.online_epochs, seed)
        for method in METHODS
        if method != "adam-decayed" and network.online_epochs
        for beta in ((BETA[method], 1e-4) if method in BETA else (0.0,))
        for alpha0, seed in itertools.product(RATES, seeds_for("report", network.online_seeds))
    ]


def beta(name: str, network: Network) -> list[Run]:
    """The grid of beta and initial rate, and the plain methods from all of these rates."""
    if name != "logreg":
        return []
    return [
        Run(name, method, alpha0, beta, network.online_epochs, 0)
        for method in ("sgd", "nesterov", "adam", *GRID)
        for beta, alpha0 in itertools.product(GRID.get(method, (0.0,)), RATES)
    ]


PARTS = {"online": online, "tuning": tuning, "beta": beta}


def batches(runs: Iterable[Run], networks: dict[str, Network]) -> list[list[Run]]:
    """The runs in batches of one network, method and length each."""
    groups: dict[tuple[str, str, int], dict[Run, None]] = {}
    for run in runs:
        groups.setdefault((run.network, run.method, run.epochs), {})[run] = None
    found = [list(part) for (name, _, _), group in groups.items() for part in cut(list(group), networks[name].at_once)]
    # Quick networks first; then a seed of everything before the next one of anything.
    return sorted(found, key=lambda batch: (list(networks).index(batch[0].network), batch[0].seed))


def task_of(run: Run, network: Network) -> Task:
    """The run's task; plain methods act every few steps, for decisions cost time."""
    task = make_task(network.task, optimizer=METHODS[run.method].optimizer, batch_size=128, weight_decay=1e-4)
    if task.name.startswith(("mnist", "cifar10")):
        task = make_task(task, data_options={"whole_train": True})
    epoch = len(task.load().train.targets) // task.batch_size
    several = next(steps for steps in range(12, 0, -1) if epoch % steps == 0)
    interval = several if run.method in ("sgd", "nesterov", "adam") else 1
    return make_task(task, budget=run.epochs * epoch, interval=interval, measure_interval=epoch)


def train(batch: Sequence[Run], task: Task, compile: bool, status: Callable[[str], None]) -> list[Result]:
    """What each run of a batch reached after every epoch; numbers end where a run diverged."""
    n, first = len(batch), batch[0]
    agent = METHODS[first.method].agent([run.alpha0 for run in batch], [run.beta for run in batch])
    view = {"interval": task.interval} | agent.view.settings()
    envs = LearningRateVectorEnv(n, task, **view, compile=compile, autoreset_mode="Disabled")
    observation, info = envs.reset(seed=[run.seed for run in batch])
    state, ended = None, np.zeros(n, dtype=bool)
    decisions = task.budget // task.interval // first.epochs
    curves = {name: np.full((first.epochs, n), np.nan) for name in ("train_loss", "val_loss", "val_accuracy", "lr")}
    for epoch in range(first.epochs):
        losses = np.full((decisions, n), np.nan)
        for decision in range(decisions):
            if ended.all():
                break
            action, state = agent.predict(observation, state, deterministic=True)
            observation, _, terminated, _, info = envs.step(action)
            losses[decision] = info["train_loss"]
            ended = ended | terminated
            status(f"{first.network} {first.method}, epoch {epoch + 1} of {first.epochs}")
        measured = {"train_loss": losses.mean(0)} | {name: info[name] for name in curves if name != "train_loss"}
        for name, values in measured.items():
            curves[name][epoch] = np.where(info["diverged"], np.nan, values)
    return [
        {"diverged": bool(diverged), "curves": {name: short(curve[:, i]) for name, curve in curves.items()}}
        for i, diverged in enumerate(info["diverged"])
    ]


class Baydin2018(Reproduction[Settings, Run]):
    """Hypergradient descent."""

    paper, title = "Baydin et al. 2018", "Hypergradient descent"
    name, scales = Run, SCALES

    def runs(self) -> Iterable[Sequence[Run]]:
        """The parts asked for, on every network."""
        parts = [part for name, part in PARTS.items() if self.settings.part in (name, "all")]
        wanted = (run for name, own in self.scale.items() for part in parts for run in part(name, own))
        return batches(wanted, self.scale)

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        """Trains."""
        return train(batch, task_of(batch[0], self.scale[batch[0].network]), self.settings.compile, self.status)

    def report(self) -> Report:
        """Losses by method and initial rate."""
        return report(self.lines, self.scale)


if __name__ == "__main__":
    sys.exit(command(Baydin2018, Settings, __doc__))
