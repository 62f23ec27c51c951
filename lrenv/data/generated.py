"""Data that are generated from a seed: functions without arguments that return a `Data`, as tasks take them.

Each kind is a frozen dataclass: two with equal settings are equal and return the same data in every process, up to the
rounding of a machine's matrix products; nothing is kept in memory. The `shape` of an example and the number of
`outputs`, for which a network is built, are known before anything is generated.

Inputs are normalised by one mean and standard deviation for all features, so that the ratios of the features' spreads
stay as they are. Targets that are numbers have the standard deviation `scale`, without the noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lrenv.data.registry import load
from lrenv.data.types import Data, Split, with_statistics

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Generated(ABC):
    """The settings and properties that all kinds share.

    Attributes:
        seed: the seed of everything that is drawn.
        examples: how many examples the training split has.
        held_out: how many the validation split has, and the test split as well.
    """

    seed: int
    examples: int
    held_out: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """The number of outputs that a network must have, per example or per place of a sequence."""

    @abstractmethod
    def __call__(self) -> Data:
        """Returns the data."""


@dataclass(frozen=True)
class Independent(Generated):
    """The kinds whose examples are drawn independently of one another."""

    def __call__(self) -> Data:
        """Returns the data."""
        inputs, targets = self.drawn(np.random.default_rng(self.seed), self.examples + 2 * self.held_out)
        pool = Split(_tensor(inputs), _tensor(targets))
        train, val, test = pool.cut(self.examples, self.held_out, self.held_out)
        return with_statistics(train, val, test, 0 if targets.dtype.kind == "f" else self.outputs)

    @abstractmethod
    def drawn(self, rng: np.random.Generator, number: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Draws independent examples and their targets."""


@dataclass(frozen=True)
class Vectors(Independent):
    """The kinds whose examples are vectors.

    Attributes:
        features: d, the components of an example.
    """

    features: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""
        return (self.features,)


@dataclass(frozen=True)
class GaussianMixture(Vectors):
    """Classes that are mixtures of Gaussians with unit covariance and have equally many examples.

    Attributes:
        classes: k, how many there are.
        modes: Gaussians per class.
        separation: the root of the mean squared distance between two centres.
        label_noise: the share of the labels of all splits that are replaced by one drawn with equal chance.
    """

    classes: int
    modes: int = 1
    separation: float = 4.0
    label_noise: float = 0.0

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return self.classes

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, NDArray[np.int64]]:
        """Draws examples (m, d) and their labels (m,)."""
        centres = rng.standard_normal((self.classes, self.modes, self.features))
        centres *= self.separation / np.sqrt(2 * self.features)
        labels = rng.permutation(np.arange(number) % self.classes)
        inputs = centres[labels, rng.integers(self.modes, size=number)] + rng.standard_normal((number, self.features))
        return inputs, _noisy(labels, self.label_noise, self.classes, rng)


@dataclass(frozen=True)
class Teacher(Vectors):
    """The outputs of a random network with one hidden layer of tanh (the teacher) for Gaussian inputs.

    Attributes:
        width: hidden units of the teacher.
        answers: how many outputs the teacher has.
        says: which targets are made of the outputs: "numbers" for themselves, (m, answers); "bits" for their signs as 0
            and 1; "classes" for the index of the largest, (m,).
        decay: the variance of feature k is k^-decay: at 0 the features are white, at 2 most are nearly useless.
        noise: for "numbers" the standard deviation of noise in units of `scale`; else the share of wrong targets, each
            drawn with equal chance.
        scale: the standard deviation of each of the "numbers".
    """

    width: int
    answers: int
    says: Literal["numbers", "bits", "classes"] = "classes"
    decay: float = 0.0
    noise: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """The number of the teacher's outputs."""
        return self.answers

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, NDArray[np.generic]]:
        """Draws examples (m, d), and targets with noise."""
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
class PowerLawRegression(Vectors):
    """Linear regression with the exponents of `lrenv.training.power_law`, on Gaussian features.

    Feature k has the variance lambda_k = k^-capacity, and lambda_k (w_k)^2 = k^-(1 + source capacity).

    Attributes:
        capacity: beta > 1, how fast the spectrum falls.
        source: s > 0, how fast the target is learned.
        noise: the standard deviation of noise in units of `scale`.
        scale: the standard deviation of the targets without noise.
    """

    capacity: float
    source: float
    noise: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """The number of outputs, which is 1."""
        return 1

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, Array]:
        """Draws examples (m, d) and their targets (m,)."""
        k = np.arange(1, self.features + 1)
        share = k ** (-(1 + self.source * self.capacity))  # of the variance of the targets
        white = rng.standard_normal((number, self.features))
        targets = white @ np.sqrt(share / share.sum()) + self.noise * rng.standard_normal(number)
        return white * k ** (-self.capacity / 2), self.scale * targets


@dataclass(frozen=True)
class Sines(Vectors):
    """A sum of sines over the cube from -1 to 1.

    Attributes:
        terms: how many sines are added, with Gaussian amplitudes.
        frequency: the standard deviation of each component of their frequencies, in periods per unit.
        noise: the standard deviation of noise in units of `scale`.
        scale: the standard deviation of the targets without noise.
    """

    terms: int
    frequency: float
    noise: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """The number of outputs, which is 1."""
        return 1

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[Array, Array]:
        """Draws examples (m, d) and their targets (m,)."""
        inputs = rng.uniform(-1, 1, (number, self.features))
        frequencies = self.frequency * rng.standard_normal((self.features, self.terms))
        waves = np.sin(2 * np.pi * (inputs @ frequencies + rng.random(self.terms)))
        targets = waves @ rng.standard_normal(self.terms)
        targets = (targets - targets.mean()) / targets.std()
        return inputs, self.scale * (targets + self.noise * rng.standard_normal(number))


@dataclass(frozen=True)
class Sequences(Independent):
    """Sequences of symbols, whose targets are the symbols that follow each place.

    Attributes:
        symbols: how many there are.
        length: L, the number of symbols in an example.
    """

    symbols: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""
        return (self.length,)

    @property
    def outputs(self) -> int:
        """The number of symbols."""
        return self.symbols

    def drawn(self, rng: np.random.Generator, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws inputs and targets, both (m, L)."""
        whole = self.sequences(rng, number)
        return whole[:, :-1], whole[:, 1:]

    @abstractmethod
    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Draws independent sequences (m, L + 1)."""


@dataclass(frozen=True)
class MarkovChain(Sequences):
    """A Markov chain with a random table of transitions.

    Attributes:
        order: how many symbols determine the distribution of the next one.
        concentration: the parameter of the Dirichlet distribution from which each row of the table is drawn; where it
            is small, the next symbol is nearly certain.
    """

    order: int = 1
    concentration: float = 0.2

    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Draws independent sequences (m, L + 1)."""
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
    """A random word, repeated: from its second occurrence on, what follows can be told from what came before.

    The words of a data set have lengths from L // 4 to L // 2, each drawn with equal chance. How long a word is shows
    in its repetition alone, so the first symbols of that can't be predicted with certainty; nor can others, where a
    word holds repetitions of its own.
    """

    def sequences(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Draws independent sequences (m, L + 1)."""
        words = rng.integers(self.symbols, size=(number, self.length // 2))
        period = rng.integers(self.length // 4, self.length // 2 + 1, size=(number, 1))
        return np.take_along_axis(words, np.arange(self.length + 1) % period, 1)


@dataclass(frozen=True)
class Resampled(Generated):
    """A random part of the training examples of digits or MNIST-1D.

    Attributes:
        source: which of the two.
        label_noise: the share of the training labels that are replaced by one drawn with equal chance.
        scale: the standard deviation of the network's inputs.

    Raises:
        ValueError: more examples are asked for than the set has.
    """

    source: Literal["digits", "mnist1d"]
    label_noise: float = 0.0
    scale: float = 1.0

    SHAPES = {"digits": (1, 8, 8), "mnist1d": (40,)}
    LARGEST = {"digits": (1200, 297), "mnist1d": (3000, 1000)}
    """Set -> how many examples its training split has, and how many validation and test have each."""

    def __post_init__(self) -> None:
        largest = self.LARGEST[self.source]
        if self.examples > largest[0] or self.held_out > largest[1]:
            raise ValueError(f"{self.source} has {largest[0]} examples and {largest[1]} held out, too few for {self}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""
        return self.SHAPES[self.source]

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return 10

    def __call__(self) -> Data:
        """Returns the data."""
        whole, rng = load(self.source), np.random.default_rng(self.seed)
        chosen = torch.from_numpy(rng.permutation(len(whole.train.targets))[: self.examples])
        labels = _noisy(whole.train.targets[chosen].numpy(), self.label_noise, whole.classes, rng)
        train = Split(whole.train.inputs[chosen], torch.from_numpy(labels))
        val, test = (Split(split.inputs[: self.held_out], split.targets[: self.held_out]) for split in whole[1:3])
        data = with_statistics(train, val, test, whole.classes)
        return data._replace(std=data.std / self.scale)


def _noisy(labels: NDArray[np.int64], share: float, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns labels of which a share is replaced by one drawn with equal chance."""
    wrong = rng.random(labels.shape) < share
    return np.where(wrong, rng.integers(classes, size=labels.shape), labels)


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
