"""The policy: a schedule, its guard, and what corrects both, as functions of a batch of parameters theta (n, D).

The equations are in the docstring of this package; `decide` puts them together, `power_law` is the peak, `log_warmup`
and `log_decay` are the schedule, `Guard` is the guard, and the correction is a linear function and, where there are
hidden units, a perceptron beside it.

`tests/reference/universal.py` has it in NumPy, for one trainee and one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lrenv.envs.episode import TimeStep
from lrenv.envs.observations import FAN_IN, HORIZON, SETUP, TRAINING, UNTRAINED, Signal

LEAST_LEFT = 0.01
"""The part of the squared weights that an interval leaves at least: movements count up to ten times their length."""
RANGE = 10.0
"""The most that the rate is above or below the schedule's."""
KEPT = 0.5
"""The part of a correction that is kept at a decision. What corrects sees the correction, so it can hold on to it; if
it had to undo what it added, a small error of the same sign at each of 300 decisions would be a large one."""
CENTRES = {
    "train_fall": (-0.5, 1.0), "train_change": (0.0, 0.2), "loss_spread": (-1.0, 1.0), "first_update": (-2.0, 1.0),
    "last_update": (-2.0, 1.0), "first_cosine": (0.0, 0.5), "last_cosine": (0.0, 0.5), "steps": (2.0, 1.0),
    "steps_per_decision": (1.0, 1.0), "adaptive": (0.5, 0.5), "progress": (0.5, 0.5), "steps_in_all": (2.7, 0.7),
    "cosine": (0.0, 0.3), "share": (-1.0, 1.0), "fan_in": (1.8, 0.5), "place": (0.5, 0.5), "correction": (0.0, 2.0),
}  # fmt: skip
"""What is seen -> about the middle and the spread of its values in ordinary trainings, which it is normalised by."""
CLIP = 3.0
"""Normalised values are clipped here; the least update that is seen, of a layer that has not moved, is far away."""
GRADIENTS = ("hypergradient", "gradient_square", "direction_square")
PEAK = {
    "adaptive": {"one": math.log(0.028), "batch_size": 0.35, "weight_size": 1.0, "layers": -0.7},
    "sgd": {"one": math.log(0.07), "batch_size": 0.35, "budget": -0.25, "kept": 1.0, "gradient": 0.6},
}
"""Family of optimizers -> the a_i, or b_i, of an untrained policy, where trainings begin: rounded from what
`benchmarks/drawn_peaks.py` finds on tasks for training, but that of Adam's `weight_size`, which is 1, so that weights
may be scaled. A momentum of m makes steps 1 / (1 - m) times as long. A policy that doesn't know the budget has the peak
of 400 steps."""
HIGHEST = {"adaptive": 0.1, "sgd": 10.0}
"""Family -> the highest peak. Adam moves a weight by about the rate at each step, so that far from what the exponents
were fitted to a bound is safer; on tasks for design it makes little difference (`benchmarks/drawn_peaks.py`). 10 is
what environments allow."""
USUAL = {"batch_size": 32.0, "budget": 400.0, "kept": 0.1, "weight_size": 0.1, "layers": 4.0, "gradient": 1.0}
"""Where the logarithms are 0."""
OF_WEIGHTS = {"weight_size": "weight_size", "gradient": "relative_gradient"}
"""What counts as usual -> the signal that is at its lowest then: where all weights begin at 0, as linear models' do."""
LARGEST_BATCH = 256
"""Larger batches count as this: drawn tasks have none."""
FARTHEST = 6.0
"""The logarithms are clipped here, at 400 times or a 400th of what is usual: drawn tasks have nothing beyond."""
WARMUP, WARMUP_STEPS = 0.15, 10.0
"""w of an untrained policy that knows the budget, and the steps of warm-up of one that doesn't."""
DECAY_STEPS, DECAY_POWER = 30.0, 0.5
"""The steps s over which the rate of a policy that doesn't know the budget falls, as (1 + t / s)^-q, and q of an
untrained one (`benchmarks/drawn_anytime.py`)."""
EXPONENT = 0.5
"""e of an untrained policy with a rate per layer."""
SCHEDULE = ("log_warmup", "log_power", "exponent")
"""The parameters of the shape, and e; like those of the peak, differences from those of an untrained policy."""


@dataclass(frozen=True)
class Architecture:
    """What a policy sees and sets.

    Attributes:
        layers: a rate per layer, else one for the network.
        horizon: whether it knows the budget.
        gradients: whether it sees gradients.
        hidden: units of the perceptron beside the linear correction; 0 for no perceptron.
    """

    layers: bool = False
    horizon: bool = True
    gradients: bool = False
    hidden: int = 0

    @property
    def tables(self) -> dict[str, dict[str, Signal]]:
        """The sets of signals that it sees, by name."""
        known = {"setup": SETUP, "untrained": UNTRAINED}
        return {"training": TRAINING} | known | ({"horizon": HORIZON} if self.horizon else {})

    @property
    def peak(self) -> dict[str, dict[str, float]]:
        """The power laws of an untrained policy."""
        return {
            family: {name: a for name, a in law.items() if self.horizon or name != "budget"}
            for family, law in PEAK.items()
        }

    @property
    def exponents(self) -> tuple[tuple[str, str], ...]:
        """The family and the name of each number of the power laws."""
        return tuple((family, name) for family, law in self.peak.items() for name in law)

    @property
    def observe(self) -> tuple[str, ...]:
        """What the environment has to show."""
        return (*self.tables, *GRADIENTS * self.gradients, FAN_IN)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the correction is a function of, keys of `CENTRES`."""
        signals = [name for each, table in self.tables.items() if table in (TRAINING, HORIZON) for name in table]
        of_layers = ("share", "fan_in", "place") if self.layers else ()
        cosine = ("cosine",) if self.gradients else ()
        return (*signals, *cosine, *(x for x in of_layers if x != "share" or self.gradients), "correction")

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the numbers of theta belong to, before those of a perceptron."""
        return (*SCHEDULE, *(f"{family}.{name}" for family, name in self.exponents), *self.inputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parts of theta, in order."""
        return {
            "schedule": (len(SCHEDULE),), "peak": (len(self.exponents),),
            "w": (len(self.inputs),), "b": (1,),
            "w1": (len(self.inputs), self.hidden), "b1": (self.hidden,), "w2": (self.hidden,),
        }  # fmt: skip

    @property
    def size(self) -> int:
        """D."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def init(self, seed: int) -> Tensor:
        """Returns the theta (D,) of an untrained policy, which is its schedule: the correction is 0."""
        generator = torch.Generator().manual_seed(seed)
        parts = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        parts["w1"] = torch.randn(self.shapes["w1"], generator=generator) / len(self.inputs) ** 0.5
        return torch.cat([part.flatten() for part in parts.values()])

    def parts(self, theta: Tensor) -> dict[str, Tensor]:
        """Cuts thetas (n, D) into their parts (n, ...)."""
        pieces = theta.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


@dataclass(frozen=True)
class Guard:
    """When the guard takes a rate to be too high; numbers, or tensors (n, 1) for trials of several.

    The defaults were chosen by what `benchmarks/drawn_guards.py` tells: they save much, at no cost where the peak is
    right. `examples` costs nothing there, and is for batches of one or two, which drawn tasks don't have.

    Attributes:
        watched: the part of the budget in which the ceiling may fall: while the rate is high. Later rises of the loss
            have other reasons. A policy that doesn't know the budget has its guard throughout.
        averaged: the steps over which training losses are averaged at least, where an interval is shorter.
        examples: the examples over which they are averaged at least, once there were so many: those of small batches
            scatter.
        offset: what is added to training losses, which are relative to the first one: small ones scatter by large
            factors.
        rise: the factor above the lowest of these sums, so far or since the last fall, from which on the rate falls.
        fall: the part that is left of the rate then.
        farthest: the farthest that both the first and the last layer may move in a step, in parts of their weights'
            length before it, as `log_movement` takes it; many steps may move them by this times the square root of
            their number.
    """

    watched: float | Tensor = 0.3
    averaged: float | Tensor = 10.0
    examples: float | Tensor = 320.0
    offset: float | Tensor = 0.3
    rise: float | Tensor = 1.6
    fall: float | Tensor = 1 / 3
    farthest: float | Tensor = 0.2

    def __call__(self, memory: Memory, seen: Mapping[str, Tensor]) -> Memory:
        """The memory with a lower ceiling, where the last interval has shown that its rate was too high.

        Args:
            memory: before the decision.
            seen: the signals.
        """
        steps: Tensor = 10 ** seen["steps_per_decision"]
        watched = seen["progress"] <= self.watched if "progress" in seen else torch.ones_like(steps, dtype=torch.bool)
        now = torch.log((10 ** seen["train_fall"] + self.offset) / (1 + self.offset))
        taken = 10 ** seen["steps"] - 1
        averaged = torch.minimum(self.examples / 10 ** seen["batch_size"], taken).clamp(min=self.averaged)
        loss = memory.loss + (1 - torch.exp(-steps / averaged)) * (now - memory.loss)
        lowest = torch.minimum(memory.lowest, loss)
        rises = watched & (loss > lowest + _log(self.rise)) & (seen["first_loss"] > UNTRAINED["first_loss"].low)
        too_far = log_movement(seen) - steps.log() / 2 - _log(self.farthest)
        ceiling = torch.where(watched & (too_far > 0), memory.reached - too_far, memory.ceiling)
        ceiling = torch.where(rises, torch.minimum(ceiling, memory.reached) + _log(self.fall), ceiling)
        # After a fall the average begins anew, or it would go on rising for some intervals by what is known already.
        loss, lowest = (torch.where(rises, now, x) for x in (loss, lowest))
        return memory._replace(ceiling=ceiling, loss=loss, lowest=lowest)


def log_movement(seen: Mapping[str, Tensor]) -> Tensor:
    """The logarithm (n, 1) of how far the first or the last layer moved, whichever moved less.

    What is seen is relative to the weights after the interval, of which a long way is a part of 1 at most. Here it is
    relative to those before, as if it had been at right angles to them. One of both may move far at any rate, such as a
    last layer that begins at zero; networks of one layer aren't looked at.
    """
    part = 10 ** torch.minimum(seen["first_update"], seen["last_update"])
    movement = part / (1 - part.square()).clamp(min=LEAST_LEFT).sqrt()
    return torch.where(seen["layers"] > 0, movement, 0).log()


def _log(x: float | Tensor) -> float | Tensor:
    return x.log() if isinstance(x, Tensor) else math.log(x)


class Memory(NamedTuple):
    """What a policy remembers between two decisions."""

    correction: Tensor  # (n, K), c
    ceiling: Tensor  # (n, 1), h, the logarithm of the highest rate, but for the decay
    reached: Tensor  # (n, 1), that of the last interval's rate
    loss: Tensor  # (n, 1), the smoothed logarithm of the training loss, as the guard takes it
    lowest: Tensor  # (n, 1), the lowest of these so far, or since the rate fell


GUARD = Guard()


class Decision(NamedTuple):
    """What a policy does."""

    rates: Tensor  # (n, K)
    memory: Memory  # after the decision


Observation = Mapping[str, Tensor]
"""Name of a set of signals -> (n, signals), and white-box part -> (n, K)."""


def shown(step: TimeStep) -> Observation:
    """What an environment shows at a decision."""
    assert isinstance(step.observation, dict), "fan_in is a white-box part"
    return step.observation


def first_memory(observation: Observation) -> Memory:
    """What is remembered at the start of an episode: nothing is corrected, and there is no ceiling yet."""
    correction = torch.zeros_like(observation[FAN_IN])
    zero = correction[:, :1]
    return Memory(correction, torch.full_like(zero, math.inf), zero, zero, zero)


def decide(architecture: Architecture, theta: Tensor, observation: Observation, memory: Memory) -> Decision:
    """Makes one decision for n trainees with K rates each.

    Args:
        architecture: of the policy.
        theta: (n, D), the parameters of each trainee's own policy.
        observation: what the environment shows.
        memory: before the decision; `first_memory` at the start of an episode.
    """
    parts = architecture.parts(theta)
    seen = signals(architecture, observation)
    x = torch.stack(
        [value.expand_as(memory.correction) for value in inputs(architecture, observation, memory.correction).values()],
        -1,
    )
    hidden = torch.tanh(x @ parts["w1"] + parts["b1"][:, None])
    output = (x * parts["w"][:, None]).sum(-1) + parts["b"] + (hidden * parts["w2"][:, None]).sum(-1)
    correction = KEPT * memory.correction + (1 - KEPT) * math.log(RANGE) * torch.tanh(output)
    memory = GUARD(memory, seen)
    wanted = power_law(architecture, parts["peak"], seen) + log_warmup(architecture, parts["schedule"], seen)
    reached = torch.minimum(wanted, memory.ceiling)
    rates = reached + log_decay(architecture, parts["schedule"], seen) + correction
    if architecture.layers:
        fan_in = observation[FAN_IN].to(correction.dtype).log()
        exponent = EXPONENT + parts["schedule"][:, SCHEDULE.index("exponent"), None]
        rates = rates - exponent * (fan_in - fan_in.mean(1, keepdim=True))
    return Decision(rates.exp(), memory._replace(correction=correction, reached=reached))


def signals(architecture: Architecture, observation: Observation) -> dict[str, Tensor]:
    """The signals that are seen, by name, (n, 1) each."""
    return {
        name: column for each, table in architecture.tables.items()
        for name, column in zip(table, observation[each].split(1, -1), strict=True)
    }  # fmt: skip


def inputs(architecture: Architecture, observation: Observation, correction: Tensor) -> dict[str, Tensor]:
    """The correction's inputs by name, normalised; (n, 1) where they are the same for all layers, else (n, K)."""
    found = signals(architecture, observation)
    if architecture.gradients:
        product, gradient, direction = (observation[name] for name in GRADIENTS)
        found["cosine"] = -product / (gradient * direction).sqrt().clamp(min=1e-30)
        found["share"] = (gradient / gradient.sum(1, keepdim=True).clamp(min=1e-30)).clamp(min=1e-6).log10()
    if architecture.layers:
        found["fan_in"] = observation[FAN_IN].clamp(min=1).log10()
        found["place"] = torch.linspace(0, 1, correction.shape[1], device=correction.device).expand_as(correction)
    found["correction"] = correction
    normalised = {}
    for name in architecture.inputs:
        centre, spread = CENTRES[name]
        normalised[name] = ((found[name].to(correction.dtype) - centre) / spread).clamp(-CLIP, CLIP)
    return normalised


def logarithms(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the powers of the peak are of, by name, as logarithms (n, 1) of multiples of what is usual.

    Args:
        seen: the signals.
    """
    decimal = {name: seen[name] for name in ("kept", "weight_size", "layers")}
    decimal["batch_size"] = seen["batch_size"].clamp(max=math.log10(LARGEST_BATCH))
    decimal["gradient"] = first_loss(seen) - seen["relative_gradient"]
    for name, signal in OF_WEIGHTS.items():
        nothing = seen[signal] <= UNTRAINED[signal].low
        decimal[name] = decimal[name].masked_fill(nothing, math.log10(USUAL[name]))
    if "steps_in_all" in seen:
        decimal["budget"] = seen["steps_in_all"]
    found = {name: x * math.log(10) - math.log(USUAL[name]) for name, x in decimal.items()}
    return {name: x.clamp(-FARTHEST, FARTHEST) for name, x in found.items()} | {
        "one": torch.ones_like(seen["adaptive"])
    }


def first_loss(seen: Mapping[str, Tensor]) -> Tensor:
    """The decimal logarithm (n, 1) of L_0; one that isn't above 0 says nothing, and counts as 1."""
    loss = seen["first_loss"]
    return loss.masked_fill(loss <= UNTRAINED["first_loss"].low, 0)


def power_law(architecture: Architecture, learned: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """The logarithm of the peak (n, 1).

    Args:
        architecture: of the policy.
        learned: (n, exponents), in the order of `Architecture.exponents`.
        seen: the signals.
    """
    found = logarithms(seen)
    log_peak = {"adaptive": torch.zeros_like(found["one"]), "sgd": -math.log(10) * first_loss(seen)}
    for (family, name), a in zip(architecture.exponents, learned.split(1, -1), strict=True):
        log_peak[family] = log_peak[family] + (architecture.peak[family][name] + a) * found[name]
    adaptive, sgd = (log_peak[family].clamp(max=math.log(highest)) for family, highest in HIGHEST.items())
    return seen["adaptive"] * adaptive + (1 - seen["adaptive"]) * sgd


def log_warmup(architecture: Architecture, learned: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """The logarithm of the warm-up (n, 1) in the middle of the interval to come.

    Args:
        architecture: of the policy.
        learned: (n, 3), in the order of `SCHEDULE`.
        seen: the signals.
    """
    longer = learned[:, SCHEDULE.index("log_warmup"), None].exp()
    warmed = middle_part(seen) / WARMUP if architecture.horizon else middle_step(seen) / WARMUP_STEPS
    return (warmed / longer).clamp(max=1).log()


def log_decay(architecture: Architecture, learned: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """The logarithm of the decay (n, 1) in the middle of the interval to come; the arguments are as of `log_warmup`."""
    power = learned[:, SCHEDULE.index("log_power"), None].exp()
    if architecture.horizon:
        return power * (1 - middle_part(seen)).log()
    return -power * DECAY_POWER * (1 + middle_step(seen) / DECAY_STEPS).log()


def middle_step(seen: Mapping[str, Tensor]) -> Tensor:
    """The inner steps t (n, 1) until the middle of the interval to come."""
    return 10 ** seen["steps"] - 1 + 10 ** seen["steps_per_decision"] / 2


def middle_part(seen: Mapping[str, Tensor]) -> Tensor:
    """The middle p (n, 1) of the interval to come, as a part of the budget."""
    budget: Tensor = 10 ** seen["steps_in_all"]
    part = (10 ** seen["steps_per_decision"] / budget).minimum(1 - seen["progress"])  # the last one may be shorter
    return (seen["progress"] + part / 2).clamp(max=1 - 0.5 / budget)
