"""Data that a seed generates, and resampled ones: functions without arguments that give a `Data`, as a task takes them.

Each kind is a frozen dataclass: two with equal settings are equal and give the same data in every process, up to the
rounding of a machine's matrix products; nothing is kept, so that thousands of them cost no memory. What a network must
be built for, `shape` and `outputs`, is known before anything is generated.

Inputs are normalised by their own mean and standard deviation, over all features at once, so that features whose
spreads differ stay so. Targets that are numbers have the standard deviation `scale`, noise aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lrenv.data.registry import load
from lrenv.data.types import Data, Split, with_statistics

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Generated:
    """What all kinds have.

    Attributes:
        seed: of everything that is drawn.
        examples: of the training split.
        held_out: examples of the validation split, and as many of the test split.
    """

    seed: int
    examples: int
    held_out: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many numbers a network is to give for an example, or for each place of a sequence."""
        raise NotImplementedError

    def __call__(self) -> Data:
        """The data."""
        inputs, targets = self.drawn(np.random.default_rng(self.seed), self.examples + 2 * self.held_out)
        pool = Split(_tensor(inputs), _tensor(targets))
        train, val, test = pool.cut(self.examples, self.held_out, self.held_out)
        return with_statistics(train, val, test, 0 if targets.dtype.kind == "f" else self.outputs)

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Independent examples and their targets."""
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianMixture(Generated):
    """Classes that are mixtures of Gaussians with unit covariance, each class with equally many examples.

    Attributes:
        features: d.
        classes: k.
        modes: Gaussians per class.
        separation: the root of the mean squared distance between two centres.
        label_noise: the share of the labels of all splits that are replaced by one drawn with equal chance.
    """

    features: int
    classes: int
    modes: int = 1
    separation: float = 4.0
    label_noise: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return (self.features,)

    @property
    def outputs(self) -> int:
        """The classes."""
        return self.classes

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, NDArray[np.int64]]:
        """Examples (m, d) and their labels (m,)."""
        centres = rng.standard_normal((self.classes, self.modes, self.features))
        centres *= self.separation / np.sqrt(2 * self.features)
        labels = rng.permutation(np.arange(number) % self.classes)
        inputs = centres[labels, rng.integers(self.modes, size=number)] + rng.standard_normal((number, self.features))
        return inputs, _noisy(labels, self.label_noise, self.classes, rng)


@dataclass(frozen=True)
class Teacher(Generated):
    """What a random network with one hidden layer of tanh says of Gaussian inputs.

    Attributes:
        features: d.
        width: hidden units of the teacher.
        answers: numbers that the teacher gives, or classes.
        says: "numbers" are targets (m, answers); "bits" are their signs as 0 and 1; "classes" are the largest.
        decay: the variance of feature k is k^-decay: 0 is white, and 2 makes features nearly useless.
        noise: of "numbers", the standard deviation of noise in units of `scale`; else the share of wrong answers, each
            drawn with equal chance.
        scale: the standard deviation of each of the "numbers".
    """

    features: int
    width: int
    answers: int
    says: Literal["numbers", "bits", "classes"] = "classes"
    decay: float = 0.0
    noise: float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return (self.features,)

    @property
    def outputs(self) -> int:
        """The answers."""
        return self.answers

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, NDArray[np.generic]]:
        """Examples (m, d) and the teacher's answers, perturbed."""
        spread = np.arange(1, self.features + 1) ** (-self.decay / 2)
        inputs = rng.standard_normal((number, self.features)) * spread
        first = rng.standard_normal((self.features, self.width)) * 2 / np.sqrt((spread**2).sum())
        second = rng.standard_normal((self.width, self.answers))
        scores = np.tanh(inputs @ first + rng.standard_normal(self.width)) @ second
        scores = (scores - scores.mean(0)) / scores.std(0)
        if self.says == "numbers":
            return inputs, self.scale * (scores + self.noise * rng.standard_normal(scores.shape))
        if self.says == "bits":
            return inputs, _noisy((scores > 0).astype(np.int64), self.noise, 2, rng).astype(np.float64)
        return inputs, _noisy(scores.argmax(1), self.noise, self.answers, rng)


@dataclass(frozen=True)
class PowerLawRegression(Generated):
    """Linear regression with the exponents of `lrenv.training.power_law`, on Gaussian features.

    Feature k has the variance lambda_k = k^-capacity, and lambda_k (w_k)^2 = k^-(1 + source capacity).

    Attributes:
        features: d.
        capacity: beta > 1, how fast the spectrum falls.
        source: s > 0, how fast the target is learned.
        noise: the standard deviation of noise in units of `scale`.
        scale: the standard deviation of the targets without noise.
    """

    features: int
    capacity: float
    source: float
    noise: float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return (self.features,)

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, Array]:
        """Examples (m, d) and their targets (m,)."""
        k = np.arange(1, self.features + 1)
        share = k ** (-(1 + self.source * self.capacity))  # of the variance of the targets
        white = rng.standard_normal((number, self.features))
        targets = white @ np.sqrt(share / share.sum()) + self.noise * rng.standard_normal(number)
        return white * k ** (-self.capacity / 2), self.scale * targets


@dataclass(frozen=True)
class Sines(Generated):
    """A sum of sines over the cube from -1 to 1.

    Attributes:
        features: d, axes of the cube.
        terms: how many sines are added, with Gaussian amplitudes.
        frequency: the standard deviation of each component of their frequencies, in periods per unit.
        noise: the standard deviation of noise in units of `scale`.
        scale: the standard deviation of the targets without noise.
    """

    features: int
    terms: int
    frequency: float
    noise: float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return (self.features,)

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, Array]:
        """Examples (m, d) and their targets (m,)."""
        inputs = rng.uniform(-1, 1, (number, self.features))
        frequencies = self.frequency * rng.standard_normal((self.features, self.terms))
        waves = np.sin(2 * np.pi * (inputs @ frequencies + rng.random(self.terms)))
        targets = waves @ rng.standard_normal(self.terms)
        targets = (targets - targets.mean()) / targets.std()
        return inputs, self.scale * (targets + self.noise * rng.standard_normal(number))


@dataclass(frozen=True)
class Sequences(Generated):
    """Sequences of symbols, of which the next one is asked after each place.

    Attributes:
        symbols: how many there are.
        length: L, symbols that are seen.
    """

    symbols: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return (self.length,)

    @property
    def outputs(self) -> int:
        """The symbols."""
        return self.symbols

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets, both (m, L)."""
        whole = self.sequences(rng, number)
        return whole[:, :-1], whole[:, 1:]

    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Independent sequences (m, L + 1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class MarkovChain(Sequences):
    """Each symbol is drawn given those before it, by a random table.

    Attributes:
        order: how many symbols before it decide.
        concentration: of the Dirichlet distribution that each row of the table is drawn from; small ones make the next
            symbol nearly certain.
    """

    order: int = 1
    concentration: float = 0.2

    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Independent sequences (m, L + 1)."""
        rows = self.symbols**self.order
        sums = rng.dirichlet(np.full(self.symbols, self.concentration), rows).cumsum(1)[:, :-1]
        found = rng.integers(self.symbols, size=(number, self.length + 1))
        weights = self.symbols ** np.arange(self.order)
        for place in range(self.order, self.length + 1):
            row = found[:, place - self.order : place] @ weights
            found[:, place] = (sums[row] < rng.random((number, 1))).sum(1)
        return found


@dataclass(frozen=True)
class Copying(Sequences):
    """A random word, and then the same word again and again: what comes next can be known from its second time on.

    The words of a data set have lengths from L // 4 to L // 2, each drawn with equal chance.
    """

    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Independent sequences (m, L + 1)."""
        words = rng.integers(self.symbols, size=(number, self.length // 2))
        period = rng.integers(self.length // 4, self.length // 2 + 1, size=(number, 1))
        return np.take_along_axis(words, np.arange(self.length + 1) % period, 1)


@dataclass(frozen=True)
class Resampled(Generated):
    """Some examples of digits or MNIST-1D.

    Attributes:
        source: which set.
        label_noise: the share of the training labels that are replaced by one drawn with equal chance.
        scale: the standard deviation of the inputs as the network sees them.

    Raises:
        ValueError: more examples than the set has.
    """

    source: Literal["digits", "mnist1d"]
    label_noise: float = 0.0
    scale: float = 1.0

    SHAPES = {"digits": (1, 8, 8), "mnist1d": (40,)}
    LARGEST = {"digits": (1200, 297), "mnist1d": (3000, 1000)}
    """Examples that there are to train on, and to validate and to test."""

    def __post_init__(self) -> None:
        largest = self.LARGEST[self.source]
        if self.examples > largest[0] or self.held_out > largest[1]:
            raise ValueError(f"{self.source} has {largest[0]} examples and {largest[1]} held out, too few for {self}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return self.SHAPES[self.source]

    @property
    def outputs(self) -> int:
        """The classes."""
        return 10

    def __call__(self) -> Data:
        """The data."""
        whole, rng = load(self.source), np.random.default_rng(self.seed)
        chosen = torch.from_numpy(rng.permutation(len(whole.train.targets))[: self.examples])
        labels = _noisy(whole.train.targets[chosen].numpy(), self.label_noise, whole.classes, rng)
        train = Split(whole.train.inputs[chosen], torch.from_numpy(labels))
        val, test = (Split(split.inputs[: self.held_out], split.targets[: self.held_out]) for split in whole[1:3])
        data = with_statistics(train, val, test, whole.classes)
        return data._replace(std=data.std / self.scale)


def _noisy(labels: NDArray[np.int64], share: float, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels of which a share is replaced by one drawn with equal chance."""
    wrong = rng.random(labels.shape) < share
    return np.where(wrong, rng.integers(classes, size=labels.shape), labels)


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
