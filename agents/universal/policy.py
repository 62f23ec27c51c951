"""The policy: a schedule that a perceptron corrects, as functions of a batch of parameters theta (n, D).

The schedule's peak is a power law in what is known before training, with exponents of its own for each family of
optimizers; the perceptron sees how training goes. Per layer k, with its fan-in f_k and the geometric mean f of all,

    log r_k = sum_i a_i phi_i - e log(f_k / f) + log s(p) + c_k,
    phi = (1, log(batch size / 32), log(f / 64), log((1 - momentum) / 0.1), log(budget / 400)).

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
from lrenv.envs.observations import FAN_IN, HORIZON, SETUP, TRAINING, Signal

RANGE = 10.0
"""The most that the rate is above or below the schedule's."""
KEPT = 0.5
"""The part of a correction that is kept at a decision. The perceptron sees the correction, so it can hold on to it; if
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
    "adaptive": {"one": math.log(0.027), "batch_size": 0.25, "fan_in": -0.25, "kept": 0.0, "budget": -0.25},
    "sgd": {"one": math.log(0.07), "batch_size": 0.25, "fan_in": -0.25, "kept": 1.0, "budget": -0.1},
}
"""Family of optimizers -> the a_i of an untrained policy, where trainings begin: rounded from a first search on 400
other drawn tasks, of the kind of `benchmarks/drawn_peaks.py`, which has found similar ones since. A momentum of m makes
steps 1 / (1 - m) times as long."""
USUAL = {"batch_size": 32.0, "fan_in": 64.0, "kept": 0.1, "budget": 400.0}
"""What phi is the logarithm of, where phi is 0. In the adaptive family momentum plays no role."""
WARMUP, WARMUP_STEPS = 0.05, 10.0
"""w of an untrained policy that knows the budget, and the steps of warm-up of one that doesn't."""
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
        hidden: units of the perceptron; with none the correction is a linear function of its inputs.
    """

    layers: bool = False
    horizon: bool = True
    gradients: bool = False
    hidden: int = 0

    @property
    def tables(self) -> dict[str, dict[str, Signal]]:
        """The sets of signals that it sees, by name."""
        return {"training": TRAINING, "setup": SETUP} | ({"horizon": HORIZON} if self.horizon else {})

    @property
    def features(self) -> tuple[str, ...]:
        """The names of phi."""
        return ("one", "batch_size", "fan_in", "kept") + ("budget",) * self.horizon

    @property
    def observe(self) -> tuple[str, ...]:
        """What the environment has to show."""
        return (*self.tables, *GRADIENTS * self.gradients, FAN_IN)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The perceptron's inputs, keys of `CENTRES`."""
        signals = [name for each, table in self.tables.items() if each != "setup" for name in table]
        of_layers = ("share", "fan_in", "place") if self.layers else ()
        cosine = ("cosine",) if self.gradients else ()
        return (*signals, *cosine, *(x for x in of_layers if x != "share" or self.gradients), "correction")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parts of theta, in order."""
        return {
            "schedule": (len(SCHEDULE),), "peak": (len(PEAK), len(self.features)),
            "w": (len(self.inputs),), "b": (1,),
            "w1": (len(self.inputs), self.hidden), "b1": (self.hidden,), "w2": (self.hidden,),
        }  # fmt: skip

    @property
    def size(self) -> int:
        """D."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def init(self, seed: int) -> Tensor:
        """Returns the theta (D,) of an untrained policy, which is its schedule: the perceptron puts out 0."""
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


class Decision(NamedTuple):
    """What a policy does."""

    rates: Tensor  # (n, K)
    correction: Tensor  # (n, K), c after the decision


Observation = Mapping[str, Tensor]
"""Name of a set of signals -> (n, signals), and white-box part -> (n, K)."""


def shown(step: TimeStep) -> Observation:
    """What an environment shows at a decision."""
    assert isinstance(step.observation, dict), "fan_in is a white-box part"
    return step.observation


def decide(architecture: Architecture, theta: Tensor, observation: Observation, correction: Tensor) -> Decision:
    """Makes one decision for n trainees with K rates each.

    Args:
        architecture: of the policy.
        theta: (n, D), the parameters of each trainee's own policy.
        observation: what the environment shows.
        correction: (n, K), c before the decision; 0 at the start of an episode.
    """
    parts = architecture.parts(theta)
    seen = signals(architecture, observation)
    x = torch.stack(
        [value.expand_as(correction) for value in inputs(architecture, observation, correction).values()], -1
    )
    hidden = torch.tanh(x @ parts["w1"] + parts["b1"][:, None])
    output = (x * parts["w"][:, None]).sum(-1) + parts["b"] + (hidden * parts["w2"][:, None]).sum(-1)
    correction = KEPT * correction + (1 - KEPT) * math.log(RANGE) * torch.tanh(output)
    fan_in = observation[FAN_IN].to(correction.dtype).log()
    mean = fan_in.mean(1, keepdim=True)
    log_peak = power_law(architecture, parts["peak"], seen, mean)
    rates = log_peak + log_shape(architecture, parts["schedule"], seen) + correction
    if architecture.layers:
        exponent = EXPONENT + parts["schedule"][:, SCHEDULE.index("exponent"), None]
        rates = rates - exponent * (fan_in - mean)
    return Decision(rates.exp(), correction)


def signals(architecture: Architecture, observation: Observation) -> dict[str, Tensor]:
    """The signals that are seen, by name, (n, 1) each."""
    return {
        name: column for each, table in architecture.tables.items()
        for name, column in zip(table, observation[each].split(1, -1), strict=True)
    }  # fmt: skip


def inputs(architecture: Architecture, observation: Observation, correction: Tensor) -> dict[str, Tensor]:
    """The perceptron's inputs by name, normalised; (n, 1) where they are the same for all layers, else (n, K)."""
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


def features(architecture: Architecture, seen: Mapping[str, Tensor], mean: Tensor) -> Tensor:
    """phi, (n, features).

    Args:
        architecture: of the policy.
        seen: the signals.
        mean: (n, 1), log f.
    """
    logs = {name: seen[name] * math.log(10) for name in ("batch_size", "kept")} | {"fan_in": mean}
    if architecture.horizon:
        logs["budget"] = seen["steps_in_all"] * math.log(10)
    found = {name: value - math.log(USUAL[name]) for name, value in logs.items()}
    found["kept"] = (1 - seen["adaptive"]) * found["kept"]
    return torch.cat([found.get(name, torch.ones_like(mean)) for name in architecture.features], -1)


def power_law(architecture: Architecture, learned: Tensor, seen: Mapping[str, Tensor], mean: Tensor) -> Tensor:
    """The logarithm of the peak (n, 1).

    Args:
        architecture: of the policy.
        learned: (n, families, features).
        seen: the signals.
        mean: (n, 1), log f.
    """
    own = learned.new_tensor([[a[name] for name in architecture.features] for a in PEAK.values()])
    of_families = ((own + learned) * features(architecture, seen, mean)[:, None]).sum(-1)
    adaptive = seen["adaptive"]
    return adaptive * of_families[:, :1] + (1 - adaptive) * of_families[:, 1:]


def log_shape(architecture: Architecture, learned: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """The logarithm of s (n, 1) in the middle of the interval to come.

    Args:
        architecture: of the policy.
        learned: (n, 3), in the order of `SCHEDULE`.
        seen: the signals.
    """
    of: dict[str, Tensor] = dict(zip(SCHEDULE, learned.split(1, -1), strict=True))
    half: Tensor = 10 ** seen["steps_per_decision"] / 2
    if not architecture.horizon:
        steps = 10 ** seen["steps"] - 1 + half
        warmed: Tensor = (steps / (WARMUP_STEPS * of["log_warmup"].exp())).clamp(max=1)
        return warmed.log()
    budget: Tensor = 10 ** seen["steps_in_all"]
    middle: Tensor = (seen["progress"] + half / budget).clamp(max=1 - 0.5 / budget)
    warmed = (middle / (WARMUP * of["log_warmup"].exp())).clamp(max=1)
    return warmed.log() + of["log_power"].exp() * (1 - middle).log()
