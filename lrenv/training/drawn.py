"""Drawn tasks: endlessly many small ones of many kinds, for controllers that are to work on tasks they never saw.

Task number i is a function of i, of the `VERSION` of this file, and of the limit on its cost, and of nothing else: each
setting comes from a hash of these and of the setting's name. `drawn:number=1000017` names one wherever a task is
named. Numbers have purposes (`lrenv.randomness.seeds`): those from 1,000,000 on are for training, those below 10,000
for reports.

What is drawn, each with the chances below: data (`lrenv.data.generated`), network (`lrenv.networks.families`: linear
models, perceptrons with and without layer norm, residual perceptrons, small transformers), loss, optimizer with its
momentum and weight decay, batch size, and the decisions and inner steps of an episode. There are no batch norm, no
dropout, no convolutions and no recurrence, and no data of the world but digits and MNIST-1D: what
`lrenv.benchmark.held_out` reports on differs from all of this in data and in network.

**Batches of trainees.** An episode has one data set and one network, so a drawn task is what a batch of trainees has in
common: data, network, loss, optimizer, weight decay, batch size, budget, interval. What differs within the batch is
what an environment's seed decides: initial weights, the order of examples, and the initial rate, which is drawn per
trainee from `LogUniform(1e-5, 1e-1)`. So `num_envs` trainees of one drawn task run as one batch; two drawn tasks never
do, even where their shapes agree.

**Cost.** The FLOPs of an episode of one trainee, in matrix products, with F and B those of an example's forward and
backward pass, b the batch size, D the decisions, N the interval, and m the validation examples:

    D N b (F + B) + (D + 1) m F + b F:

the inner steps; the measurements, that of the untrained network among them; and its loss on a first batch. The test is
not counted. Sizes are drawn again until the cost is within the limit and no example is seen more than ten times; the
kinds of data and of network stay, so that costly ones keep their share.

What 1,000 draws look like (`python benchmarks/drawn_tasks.py`):

| quantile | least | 10% | 25% | 50% | 75% | 90% | most |
|---|---:|---:|---:|---:|---:|---:|---:|
| flops | 2.6e5 | 2.2e7 | 6.9e7 | 3.6e8 | 1.5e9 | 3.0e9 | 5.0e9 |
| budget | 100 | 144 | 220 | 446 | 1,045 | 1,809 | 2,992 |
| decisions | 20 | 25 | 36 | 68 | 145 | 220 | 300 |
| interval | 1 | 1 | 3 | 6 | 15 | 33 | 148 |
| batch size | 8 | 8 | 8 | 32 | 64 | 128 | 256 |

    data (%): Teacher 33, Resampled 25, GaussianMixture 13, PowerLawRegression 8, Sines 8, Copying 7, MarkovChain 6
    network (%): perceptron 43, linear model 17, residual 17, transformer 12, layer norm 11
    loss (%): cross_entropy 64, mse 18, huber 11, bce 7
    optimizer (%): adam 39, adamw 33, momentum 28
    weight decay (%): none 50, some 50
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from lrenv.data.generated import (
    Copying,
    GaussianMixture,
    Generated,
    MarkovChain,
    PowerLawRegression,
    Resampled,
    Sines,
    Teacher,
)
from lrenv.lookup import count
from lrenv.networks.families import Family, Perceptron, ResidualPerceptron, Transformer
from lrenv.randomness.named import Chance
from lrenv.randomness.seeds import TRAINING, seeds_for
from lrenv.training.tasks import LogUniform, Task

VERSION = 2
"""Of the distribution. Any change of what a number draws is another version.

In version 1 two of five tasks saw their examples more than thirty times. What is best there is a rate so low that the
network doesn't overfit, and constant rates were as good as those that decay.
"""
LIMIT = 5e9
"""FLOPs per trainee: some seconds of one core for a batch of them."""
CHEAPEST = 5e8
"""The lowest limit: few draws of the costliest kinds are within it."""
INITIAL_LR = LogUniform(1e-5, 1e-1)
BUDGETS, DECISIONS = (100, 3000), (20, 300)
"""Fewest and most, per episode."""
BATCHES = (8, 16, 32, 64, 128, 256)
EPOCHS = (0.3, 10.0)
"""How often an episode sees its examples, about as often as in most trainings that are worth a schedule."""
EXAMPLES = (500, 50_000)
HELD_OUT = (200, 600)
"""Examples of the validation split; few enough for measurements to be noisy, as they are for those with little data."""
WIDTHS = (8, 256)
NOISE = (0.05, 0.5)
"""Of numbers, in units of their standard deviation; or the share of wrong labels, which half of the tasks have."""
SCALES = (0.3, 3.0)
"""Of numbers to be predicted, and of the pixels of digits and MNIST-1D."""
TEACHERS: dict[str, Literal["classes", "bits", "numbers"]] = {
    "teacher-classes": "classes", "teacher-bits": "bits", "teacher-numbers": "numbers",
}  # fmt: skip
"""Kind of data -> what the teacher says."""

DATA = {
    "mixture": 3.0, "teacher-classes": 3.0, "digits": 3.0, "mnist1d": 3.0, "teacher-bits": 2.0,
    "teacher-numbers": 3.0, "power-law": 2.0, "sines": 2.0, "markov": 1.5, "copying": 1.5,
}  # fmt: skip
"""Kind of data -> its weight."""
NETWORKS = {"linear": 1.5, "perceptron": 5.0, "layer-norm": 1.5, "residual": 2.0}
"""Kind of network of examples that are no sequences -> its weight; sequences have transformers."""
OWN_NETWORKS = {
    "power-law": {"linear": 3.0, "perceptron": 1.0},
    "sines": {"perceptron": 3.0, "layer-norm": 1.0, "residual": 2.0},  # a linear model of a sine learns nothing
    "markov": {"transformer": 1.0},
    "copying": {"transformer": 1.0},
}
ACTIVATIONS = {"relu": 4.0, "tanh": 2.0, "gelu": 2.0, "sigmoid": 2.0}
OPTIMIZERS = {"adam": 4.0, "adamw": 3.0, "momentum": 3.0}
MOMENTA = {0.9: 3.0, 0.8: 1.0, 0.95: 1.0}
"""Of "momentum"; the others have their own."""
DECAYS = {"adam": (1e-5, 1e-3), "adamw": (1e-3, 1e-1), "momentum": (1e-5, 1e-2)}
"""Optimizer -> the range of weight decays; half of the tasks have none."""


@dataclass(frozen=True)
class TaskDistribution:
    """Drawn tasks by number.

    Attributes:
        limit: the most FLOPs that an episode of one trainee may take; tasks whose first sizes are within two limits are
            the same under both.

    Raises:
        TypeError: a limit that is no number.
        ValueError: a limit below `CHEAPEST`, or without an end, which no name of a task could tell.
    """

    limit: float = LIMIT

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int | float):
            raise TypeError(f"limit must be a number of FLOPs, not {self.limit!r}")
        if self.limit == math.inf:
            raise ValueError("limit=inf must be a finite number of FLOPs")
        if not self.limit >= CHEAPEST:
            raise ValueError(f"limit={self.limit} FLOPs are too few for a drawn task; take {CHEAPEST:g} or more")
        object.__setattr__(self, "limit", float(self.limit))  # names of tasks tell it

    def task(self, number: int) -> Task:
        """Returns task number i.

        Raises:
            TypeError: no integer.
            ValueError: a negative number.
        """
        number = count("number", number, 0)
        kinds, attempt = Chance(VERSION, number), 0
        while (task := self._drawn(number, kinds, Chance(VERSION, number, attempt))) is None:
            attempt += 1
        return task

    def tasks(self, purpose: str, number: int, first: int = 0, training: int = 0) -> list[Task]:
        """Tasks for a purpose, by the ledger of seeds, so that no task serves two.

        "training" s has numbers of its own; the best controller of a training is chosen on "validation", the design
        and the settings of trainings on "selection", and results are on "report".

        Args:
            purpose: as `lrenv.randomness.seeds.seeds_for` takes it, like the other arguments.
            number: how many.
            first: the place of the first of them.
            training: the seed of the training.
        """
        return [self.task(i) for i in seeds_for(purpose, number, first, training)]

    def describe(self, number: int) -> dict[str, Any]:
        """Returns the settings that a number draws, as plain values."""
        task = self.task(number)
        data, network = parts(task)
        return {
            "number": number,
            "kind": type(data).__name__,
            "data": str(data),
            "network": str(network),
            "flops": flops(task),
            "decisions": task.budget // task.interval,
            **{name: getattr(task, name) for name in ("loss", "optimizer", "batch_size", "budget", "interval")},
            **task.hyper,
        }

    def _drawn(self, number: int, kinds: Chance, sizes: Chance) -> Task | None:
        """A task with the sizes of an attempt; None if it is too costly, or has too few examples."""
        kind = kinds.one_of("data", DATA)
        network = _network(kinds.one_of("network", OWN_NETWORKS.get(kind, NETWORKS)), kinds, sizes)
        optimizer = kinds.one_of("optimizer", OPTIMIZERS)
        decisions = sizes.count("decisions", *DECISIONS)
        interval = sizes.count("interval", -(-BUDGETS[0] // decisions), BUDGETS[1] // decisions)
        largest = 64 if isinstance(network, Transformer) else BATCHES[-1]
        batch_size = sizes.one_of("batch", {b: 1.0 for b in BATCHES if b <= largest})
        seen = decisions * interval * batch_size
        examples = round(seen / sizes.scale("epochs", *EPOCHS))
        data = _data(kind, min(max(examples, EXAMPLES[0]), EXAMPLES[1]), sizes)
        if seen > EPOCHS[1] * data.examples:
            return None
        task = Task(
            f"drawn:number={number}" + (f":limit={self.limit!r}" if self.limit != LIMIT else ""),
            data,
            network,
            loss=_loss(data, kinds),
            optimizer=optimizer,
            momentum=kinds.one_of("momentum", MOMENTA) if optimizer == "momentum" else None,
            weight_decay=kinds.scale("decay", *DECAYS[optimizer]) if kinds.whether("decays", 0.5) else 0.0,
            batch_size=batch_size,
            budget=decisions * interval,
            interval=interval,
            initial_lr=INITIAL_LR,
        )
        cost = flops(task)
        if cost > self.limit:
            return None
        return replace(task, summary=f"drawn task {number}: {kind}, {network}, {cost / 1e9:.2g} GFLOP")


def drawn(number: int = TRAINING, limit: float = LIMIT) -> Task:
    """Returns task `number` of the distribution with this limit, as the spec `drawn:number=1000017` does."""
    return TaskDistribution(limit).task(number)


def check_for_training(task: Task) -> Task:
    """Returns the task, if it is no drawn one whose number is kept for validation, selection or reports.

    Raises:
        ValueError: it is one.
    """
    named = re.match(r"drawn:number=(\d+)", task.name)
    if named and int(named[1]) < TRAINING:
        raise ValueError(
            f"task {task.name!r} is not for training, so that results on it count: train on a drawn task whose number "
            f"is {TRAINING} or more"
        )
    return task


def parts(task: Task) -> tuple[Generated, Family]:
    """Returns the data and the network of a drawn task.

    Raises:
        TypeError: it is another task.
    """
    if not (isinstance(task.data, Generated) and isinstance(task.network, Family)):
        raise TypeError(f"task {task.name!r} is none that was drawn")
    return task.data, task.network


def flops(task: Task) -> int:
    """Returns the FLOPs of an episode of one trainee of a drawn task, as defined above."""
    data, network = parts(task)
    forward, backward = network.flops(data.shape, data.outputs)
    measured = min(data.held_out, task.val_examples or data.held_out)
    decisions = -(-task.budget // task.interval)
    training = decisions * task.interval * task.batch_size * (forward + backward)
    return training + forward * ((decisions + 1) * measured + task.batch_size)


def _data(kind: str, examples: int, chance: Chance) -> Generated:
    """Of a kind, with as many examples as asked, or as there are, and with the other sizes that are drawn.

    Numbers always have some noise: losses that fall to nothing would outweigh all others where losses are compared by
    their ratios.
    """
    seed = int(chance.uniform("seed") * 2**31)
    held_out = chance.count("held out", *HELD_OUT)
    features = chance.count("features", 4, 256)
    noise, scale = chance.scale("noise", *NOISE), chance.scale("scale", *SCALES)
    wrong = noise if chance.whether("wrong labels", 0.5) else 0.0
    match kind:
        case "digits" | "mnist1d":
            most, most_held_out = Resampled.LARGEST[kind]
            return Resampled(seed, min(examples, most), min(held_out, most_held_out), kind, wrong, scale)
        case "mixture":
            classes, modes = chance.count("classes", 2, 20), chance.count("modes", 1, 4)
            separation = chance.between("separation", 2, 7)
            return GaussianMixture(seed, examples, held_out, features, classes, modes, separation, wrong)
        case "teacher-classes" | "teacher-bits" | "teacher-numbers":
            says = TEACHERS[kind]
            answers = chance.count("answers", 2 if says == "classes" else 1, 10)
            width, decay = chance.count("width of the teacher", 2, 32), chance.between("decay of features", 0, 2)
            doubt = noise if says == "numbers" else wrong
            return Teacher(seed, examples, held_out, features, width, answers, says, decay, doubt, scale)
        case "power-law":
            capacity, source = chance.between("capacity", 1.1, 2.5), chance.between("source", 0.2, 1.5)
            return PowerLawRegression(seed, examples, held_out, features, capacity, source, noise, scale)
        case "sines":
            axes, terms = chance.count("axes", 1, 4), chance.count("terms", 1, 8)
            return Sines(seed, examples, held_out, axes, terms, chance.scale("frequency", 0.2, 1), noise, scale)
        case "copying":
            return Copying(seed, examples, held_out, chance.count("symbols", 4, 24), chance.count("length", 8, 24))
    symbols, length = chance.count("symbols", 4, 16), chance.count("length", 8, 24)
    order, concentration = chance.count("order", 1, 2), chance.scale("concentration", 0.05, 1)
    return MarkovChain(seed, examples, held_out, symbols, length, order, concentration)


def _network(kind: str, kinds: Chance, sizes: Chance) -> Family:
    """Of a kind, at the sizes that are drawn."""
    activation = kinds.one_of("activation", ACTIVATIONS)
    if kind == "transformer":
        width = sizes.one_of("width", {8: 1.0, 16: 2.0, 24: 1.0, 32: 1.0})
        return Transformer(width, sizes.one_of("heads", {1: 1.0, 2: 2.0, 4: 1.0}), sizes.count("layers", 1, 2))
    if kind == "residual":
        return ResidualPerceptron(sizes.count("width", 8, 64), sizes.count("blocks", 1, 3), activation)
    depth = 0 if kind == "linear" else sizes.count("depth", 1, 4)
    widths = tuple(sizes.count(f"width {layer}", *WIDTHS) for layer in range(depth))
    if sizes.whether("equal widths", 0.5):
        widths = widths[:1] * depth
    return Perceptron(widths, activation if depth else "relu", kind == "layer-norm")


def _loss(data: Generated, chance: Chance) -> str:
    if isinstance(data, PowerLawRegression | Sines) or (isinstance(data, Teacher) and data.says == "numbers"):
        return chance.one_of("loss", {"mse": 2.0, "huber": 1.0})
    return "bce" if isinstance(data, Teacher) and data.says == "bits" else "cross_entropy"
