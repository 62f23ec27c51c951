"""Neural optimizers with hypergradients: Fu et al. 2017.

    python reproductions/fu2017.py --scale cpu

A perceptron of two hidden layers of 20 sigmoid units learns MNIST with Adam, batch 120. An LSTM (NOH) learns in five
such runs to set a rate for every parameter. Of its policies along the way, the one with the lowest training loss at the
end of held-out runs is kept, and stays as it is: on new seeds, for four times as long, and on other data sets. Against
it stand Adam at constant rates and Adam-HD, each the best of a grid on the very seeds that are reported, Adam with
linear and cosine decay to 0, whose peaks are tuned on other seeds, and an LSTM that puts out the update itself (DMopt),
trained for as long. Adam-HD and DMopt run on the first data set alone.

What is not in the paper: hypergradients look one step ahead, so `noh-layers` and `noh-parameters` are the same LSTM,
with a rate per layer and per parameter, trained by the validation loss at the end of runs as in
`agents/noh/evolution.py`, of which it takes many more. Of their policies, too, the best one on held-out runs is kept,
by that loss.

Losses are those of training batches, before the step on them, means over 50 steps at a time. `curves.png` is the
paper's figure 3. `noh/`, `dmopt/` and so on hold the policies and the logs of their training.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import flow
from flow import Lines, Report, Reproduction, Result, command, short
from fu2017_report import EVERY, NOHS, SCHEDULES, TITLES, best, report
from lrenv.agents import Agent, make_agent
from lrenv.agents.hypergradient.descent import adam_hd
from lrenv.agents.noh.agent import NOH, DMopt, LSTMPolicy
from lrenv.agents.noh.evolution import lstm_training
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.noh.training import LSTMTraining
from lrenv.agents.schedules.agent import constant
from lrenv.data import DataMissing, load
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.randomness.seeds import seeds_for
from lrenv.training.tasks import Task, make_task, register_task


class Learned(NamedTuple):
    """A policy, and how it is trained."""

    policy: type[LSTMPolicy]
    settings: type[NOHSettings]
    own: dict[str, Any] = {}
    """Settings that are not the default, at any scale."""


MERGED: dict[str, Any] = {"estimator": "merged", "pairs": 4, "sigma": 0.03, "meta_lr": 0.05}
"""Evolution strategies merged with what comes through the whole run by differentiation, for thousands of weights are
too many for evolution strategies alone: after eleven updates of 16 pairs the rate had moved by 2 %. With the default
outer rate, 25 updates had not made it fall."""
POLICIES: dict[str, Learned] = {
    "noh": Learned(NOH, NOHSettings),
    "dmopt": Learned(DMopt, DMoptSettings),
    "noh-layers": Learned(NOH, NOHSettings, MERGED | {"per": "layer"}),
    "noh-parameters": Learned(NOH, NOHSettings, MERGED),
}
"""Method -> what is learned."""
SHOWN = 12
"""Parameters, or layers, whose rates are kept, drawn at random where there are more."""
STEPS = 10
"""Inner steps that a schedule stands still for."""
TUNING = 3
"""Seeds that a schedule's peak is tuned on."""


@dataclass(frozen=True)
class Run:
    """One training; all fields together are its name."""

    data: str
    method: str
    alpha0: float
    """The first rate; 0 for learned optimizers, which choose it, and for schedules at their tuned peaks."""
    beta: float
    """Of Adam-HD; 0 for others."""
    seed: int
    budget: int
    """Inner steps, at the end of which a schedule is at 0. Others don't know it, and are compared on the way, too."""


class Scale(NamedTuple):
    """How much of it."""

    data: tuple[str, ...]
    """The first is learned from; of the others, those that are there."""
    budget: int = 2000
    """Inner steps of a meta-iteration; methods are compared after as many and after `longer` times as many."""
    longer: int = 4
    seeds: int = 5
    rates: tuple[float, ...] = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
    peaks: tuple[float, ...] = (3e-2, 1e-2, 3e-3, 1e-3)
    """Of Adam's schedules."""
    hd_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    betas: tuple[float, ...] = (1e-5, 1e-6, 1e-7)
    nohs: tuple[str, ...] = NOHS
    """The kinds of NOH."""
    learned: dict[str, dict[str, Any]] = {}
    """Method -> settings of its training that are not the default."""


QUICK: dict[str, Any] = {"hidden": 4, "meta_iterations": 1, "eval_seeds": 1}
PAIR = QUICK | {"pairs": 2}
FRUGAL = {"eval_seeds": 2}
WHOLE_RUNS = {"meta_iterations": 60, "eval_every": 3}
"""Three quarters of an hour of one core."""
FIGURE = ("mnist", "fashion-mnist", "cifar10-jpeg", "svhn", "cifar10")
SCALES = {
    "smoke": Scale(
        ("digits",), budget=100, longer=2, seeds=2, rates=(1e-2, 1e-3), peaks=(1e-1, 1e-2), hd_rates=(1e-2,),
        betas=(1e-5,), learned={"noh": QUICK, "dmopt": QUICK, "noh-layers": PAIR, "noh-parameters": PAIR},
    ),
    "cpu": Scale(
        FIGURE, nohs=("noh", "noh-layers"), learned={"noh": FRUGAL, "dmopt": FRUGAL, "noh-layers": WHOLE_RUNS}
    ),
    "paper": Scale(
        FIGURE, rates=tuple(10.0**-i for i in range(1, 11)),
        learned={"dmopt": {"meta_iterations": 2000}, "noh-layers": WHOLE_RUNS, "noh-parameters": WHOLE_RUNS},
    ),
}  # fmt: skip
"""Scale -> what is run. `smoke` is for seeing whether everything works, on 8x8 digits; `paper` trains DMopt for the
2000 meta-iterations that it needs, and has the paper's grid."""


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """How much: smoke for seconds, cpu for an hour or so on a core, paper for days."""
    out: Path = Path("runs/fu2017")
    """Where results go."""
    data: tuple[str, ...] = field(default_factory=tuple)
    """Only these of the scale's data sets."""
    methods: tuple[str, ...] = field(default_factory=tuple)
    """Only these: adam, linear, cosine, adam-hd, dmopt, noh, noh-layers, noh-parameters."""


def task_of(data: str, **settings: Any) -> Task:
    """The paper's perceptron on a data set (section 3)."""
    return make_task("mnist-mlp20", data=data, name=f"{data}-mlp20-b120", batch_size=120, optimizer="adam", **settings)


def training(method: str, scale: Scale, out: Path) -> tuple[Callable[[Any], LSTMTraining], NOHSettings]:
    """How a policy is trained, on the scale's first data set."""
    learned = POLICIES[method]
    name = register_task(task_of(scale.data[0], budget=scale.budget), replace_existing=True).name
    own = learned.own | scale.learned.get(method, {})
    return partial(lstm_training, learned.policy), learned.settings(
        task=name, out=out / method, val_examples=1000, **own
    )


def wanted(data: str, scale: Scale) -> Iterator[list[Run]]:
    """The runs on a data set, in batches of a method."""
    seeds, longest = seeds_for("report", scale.seeds), scale.budget * scale.longer
    yield [Run(data, "adam", rate, 0.0, seed, longest) for rate, seed in itertools.product(scale.rates, seeds)]
    for budget, method in itertools.product(dict.fromkeys((scale.budget, longest)), SCHEDULES):
        grid = itertools.product(scale.peaks, seeds_for("tuning", TUNING))
        yield [Run(data, method, peak, 0.0, seed, budget) for peak, seed in grid]
        yield [Run(data, method, 0.0, 0.0, seed, budget) for seed in seeds]
    for method in scale.nohs:
        yield [Run(data, method, 0.0, 0.0, seed, longest) for seed in seeds]
    if data == scale.data[0]:
        pairs = itertools.product(scale.hd_rates, scale.betas, seeds)
        yield [Run(data, "adam-hd", rate, beta, seed, longest) for rate, beta, seed in pairs]
        yield [Run(data, "dmopt", 0.0, 0.0, seed, longest) for seed in seeds]


def agent_of(batch: Sequence[Run], lines: Lines) -> Agent:
    """What controls the runs of a batch, of a method that is not trained."""
    (first, *_), rates = batch, [run.alpha0 for run in batch]
    method = first.method
    if method == "adam":
        return constant(rates)
    if method in SCHEDULES:
        tuned = best(lines, first.data, method, first.budget)
        return make_agent(method, peak=rates if first.alpha0 or tuned is None else tuned[0])
    return adam_hd(rates, [run.beta for run in batch])


def trained(batch: Sequence[Run], agent: Agent, status: Callable[[int], None]) -> list[Result]:
    """Losses and rates of a batch of runs every so many steps; null from where one diverged."""
    n, budget = len(batch), batch[0].budget
    task = task_of(batch[0].data, budget=budget, val_examples=1000)
    view = {"interval": STEPS if batch[0].method in SCHEDULES else EVERY} | agent.view.settings()
    envs = LearningRateVectorEnv(n, task, **view, measure_interval=budget, autoreset_mode="Disabled")
    observation, info = envs.reset(seed=[run.seed for run in batch])
    state, decisions = None, EVERY // envs.task.interval
    losses = np.full((budget // EVERY, decisions, n), np.nan)
    rates: list[Any] = []
    for row in losses:
        if info["diverged"].all():
            break
        for decision in range(decisions):
            action, state = agent.predict(observation, state, deterministic=True)
            observation, _, _, _, info = envs.step(action)
            row[decision] = np.where(info["diverged"], np.nan, info["train_loss"])
        rates.append(action)
        status(int(info["inner_step"].max()))
    shown = np.random.default_rng(0).choice(action.shape[1], min(SHOWN, action.shape[1]), replace=False)
    curves = losses.mean(1)
    return [
        {"loss": short(curves[:, i]), "rate": short(np.exp(np.log(np.abs(r[i]) + 1e-30).mean()) for r in rates)}
        | {"rates": [short(r[i, k] for r in rates) for k in shown] if run.method in NOHS and run.seed == 0 else []}
        for i, run in enumerate(batch)
    ]


def available(data: str) -> bool:
    """Whether a data set is there."""
    try:
        load(data)
    except DataMissing as error:
        print(f"leaving {data} out: {str(error).splitlines()[0]}")
        return False
    return True


class Fu2017(Reproduction[Settings, Run]):
    """Neural optimizers.

    Raises:
        ValueError: settings ask for a data set, or a method, that is none of the scale's.
    """

    paper, title = "Fu et al. 2017", "Neural optimizers with hypergradients"
    name, scales = Run, SCALES

    def __init__(self, settings: Settings) -> None:
        scale = SCALES[settings.scale]
        methods = tuple(name for name in TITLES if name in scale.nohs or name not in NOHS)
        for name, given, known in (("data", settings.data, scale.data), ("methods", settings.methods, methods)):
            if unknown := set(given) - set(known):
                raise ValueError(f"--{name} {' '.join(sorted(unknown))}: this scale has {', '.join(known)}")
        super().__init__(settings)

    def runs(self) -> Iterator[list[Run]]:
        """Every method on every data set, but for those that are not there; without the first nothing goes."""
        for data in self.settings.data or self.scale.data:
            if data == self.scale.data[0] or available(data):
                for batch in wanted(data, self.scale):
                    if batch[0].method in (self.settings.methods or [batch[0].method]):
                        yield batch

    def compute(self, batch: Sequence[Run]) -> list[Result]:
        """Trains, by a policy that is trained before if need be."""
        method = batch[0].method
        if method in POLICIES:
            file = self.controller_of(*training(method, self.scale, self.out))
            agent: Agent = POLICIES[method].policy.load(file)
        else:
            agent = agent_of(batch, self.lines)
        return trained(batch, agent, lambda step: self.status(f"{batch[0].data} {method}, step {step}"))

    def report(self) -> Report:
        """Final losses by data set and horizon."""
        return report(self.lines, self.scale.data, self.scale.budget, self.scale.longer, self.out)


if __name__ == "__main__":
    sys.exit(command(Fu2017, Settings, __doc__))
