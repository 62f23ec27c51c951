"""Tuning-free optimizers as agents: `prodigy()` makes one, as does `make_agent("prodigy")`; `lrenv.evaluate` runs it.

A factory's defaults are what the package's authors recommend, and its docstring says where. Settings of several:

- `base`: the method that is scaled, of the package's own names for them.
- `schedule`: what the rate is multiplied by beside the method, over the budget: "constant", "linear" (1 - t / T), or
  "cosine" ((1 + cos(pi t / T)) / 2). Only the last two know the budget.

Momenta are the authors' too. The weight decay is the task's: decoupled where the package can and the task's optimizer
is (AdamW), or where the package has no other kind (`schedule-free`, `momo`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lrenv.agents.hyperparameters import show
from lrenv.controllers.agent import AgentError, View
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.lookup import lookup
from lrenv.networks.initialisation import build
from lrenv.training.optimizers import make_optimizer
from lrenv.training.tasks import Task

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
"""Name -> (part of the budget that has passed) -> what the rate is multiplied by."""
TAKEN = "d_of_the_last_step"
"""The key in an optimizer's first group that keeps the estimate d of the distance that the last step took."""


@dataclass(frozen=True, repr=False)
class TuningFree(OptimizerAgent):
    """An optimizer from a package of its own.

    Attributes:
        name: the agent's.
        package: what pip calls the package.
        module: what Python calls it.
        settings: (name, value) pairs, as the factory got them.
        make: (module, parameters, task, whether weight decay is decoupled) -> optimizer.
        scale: optimizer -> what its `lr` was multiplied by in the last step.
        lr: before `schedule` scales it.
        schedule: a name in `SCHEDULES`.
        needs_loss: whether a step is told the loss.
        warmup: inner steps in which the method itself raises the rate, or a part of the budget below 1.
    """

    name: str
    package: str
    module: str
    settings: tuple[tuple[str, Any], ...]
    make: Callable[[ModuleType, list[nn.Parameter], Task, bool], Any]
    scale: Callable[[Any], float]
    lr: float
    schedule: str = "constant"
    needs_loss: bool = False
    warmup: float = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be meant.

        Raises:
            ValueError: an unknown schedule, a rate that isn't positive, or an impossible warm-up.
        """
        lookup(SCHEDULES, self.schedule, "schedule")
        _positive("lr", self.lr)
        if not _is_number(self.warmup) or not 0 <= self.warmup < math.inf:
            raise ValueError(f"warmup={self.warmup!r}: warmup must be inner steps, or a part of the budget below 1")

    def __repr__(self) -> str:
        return show(self.name, self.settings)

    @property
    def view(self) -> View:  # type: ignore[override]
        """What stands for it in tables: whether it knows the budget."""
        return View(control="set-raw", observe="clock", horizon=self.schedule != "constant" or 0 < self.warmup < 1)

    def optimizer(self, parameters: list[nn.Parameter], task: Task) -> Any:
        """Makes the optimizer of one run.

        Raises:
            AgentError: the package isn't installed.
        """
        try:
            module = import_module(self.module)
        except ModuleNotFoundError as error:
            raise AgentError(
                f"agent {self.name!r} needs the package {self.package}, which isn't installed: pip install "
                f"{self.package}, or pip install 'lrenv[baselines]' for those of all tuning-free optimizers"
            ) from error
        decoupled = make_optimizer(task.optimizer).decoupled
        made = self.make(module, parameters, task, decoupled)
        for group in made.param_groups:  # of what a constructor is told of weight decay, some print a line
            group["weight_decay"] = task.hyper.get("weight_decay", 0.0)
            if "decouple" in group:
                group["decouple"] = decoupled
        return made

    def step(self, optimizer: Any, loss: Tensor, progress: float) -> None:
        """Makes an inner step at the scheduled rate."""
        if self.schedule != "constant":
            for group in optimizer.param_groups:
                group["lr"] = self.lr * SCHEDULES[self.schedule](progress)
        group = optimizer.param_groups[0]
        if "d" in group:  # which is raised within the step that takes it as it was before
            group[TAKEN] = group["d"]
        if self.needs_loss:
            optimizer.step(loss=loss)
        else:
            optimizer.step()

    def rate(self, optimizer: Any) -> float:
        """Returns the rate of the last step; of methods that have none before the first, 0."""
        return float(optimizer.param_groups[0]["lr"]) * float(self.scale(optimizer))

    def source(self) -> str:
        """Returns which version of the package is installed."""
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            return self.package


class Averaged:
    """DoG with the average of its iterates, at which the network is measured.

    Args:
        optimizer: DoG.
        averager: makes the package's average of a module.
        parameters: that the optimizer trains.
    """

    def __init__(self, optimizer: Any, averager: Callable[[nn.Module], Any], parameters: list[nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._averager = averager(nn.ParameterList(parameters))
        self._trained: list[Tensor] = []
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        """A step of DoG, which the average takes up."""
        self._optimizer.step()
        self._averager.step()

    def eval(self) -> None:
        """Brings the parameters to the average."""
        self._trained = [parameter.detach().clone() for parameter in self._parameters]
        self._put(list(self._averager.averaged_model.parameters()))

    def train(self) -> None:
        """Brings them back."""
        self._put(self._trained)

    def _put(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=False):
            parameter.data.copy_(weight)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(name: str, value: float) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: {name} must be a positive number")


def _bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: {name} must be True or False")


def _distance(optimizer: Any) -> float:
    """The estimate d that the last step took; over the norm of the first gradient where steps are divided by that."""
    group = optimizer.param_groups[0]
    return float(group.get(TAKEN, group["d"])) / float(group.get("g0_norm") or 1.0)


def schedule_free(base: str = "adamw", lr: float | None = None, warmup: float = 0.02) -> TuningFree:
    """Schedule-free learning: no decay, the network is measured at an average of its iterates.

    The README of `schedulefree` 1.4.1 recommends warm-up and says that the rate is to be tuned; its default is taken
    here, 2.5e-3 for AdamW and RAdam, and 1 for SGD.

    Args:
        base: "adamw"; "radam", which needs no warm-up; or "sgd".
        lr: the rate, the package's default if None.
        warmup: inner steps if it is 1 or more, and else a part of the budget: 0.02 is that of the submission to
            AlgoPerf's self-tuning track, which comes with the package.
    """
    kind = lookup({"adamw": "AdamWScheduleFree", "radam": "RAdamScheduleFree", "sgd": "SGDScheduleFree"}, base, "base")
    rate = (1.0 if base == "sgd" else 2.5e-3) if lr is None else lr

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        steps = round(warmup * task.budget if warmup < 1 else warmup)
        own = {} if base == "radam" else {"warmup_steps": steps}
        return getattr(module, kind)(parameters, lr=rate, **own)

    def scale(optimizer: Any) -> float:
        group = optimizer.param_groups[0]
        return float(group["scheduled_lr"]) / float(group["lr"])

    warmup = 0 if base == "radam" else warmup
    settings = (("base", base), ("lr", rate), ("warmup", warmup))
    return TuningFree("schedule-free", "schedulefree", "schedulefree", settings, make, scale, rate, warmup=warmup)


def prodigy(schedule: str = "cosine", lr: float = 1.0) -> TuningFree:
    """Prodigy: Adam whose rate is an estimate of the distance from the solution.

    The README of `prodigyopt` 1.1.2 recommends a rate of 1 for all networks, and no schedule or cosine annealing.

    Args:
        schedule: "cosine", or "constant" for none.
        lr: what the estimate is multiplied by.
    """

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        return module.Prodigy(parameters, lr=lr)

    settings = (("schedule", schedule), ("lr", lr))
    return TuningFree("prodigy", "prodigyopt", "prodigyopt", settings, make, _distance, lr, schedule)


def d_adaptation(base: str = "adam", schedule: str = "linear", lr: float = 1.0) -> TuningFree:
    """D-Adaptation: the rate is a lower bound of the distance from the solution, which grows as training tells more.

    The README of `dadaptation` 3.2 recommends a rate of 1 and the schedule that one would take without it.

    Args:
        base: "adam", or "sgd" with a momentum of 0.9.
        schedule: linear decay is what stands for a usual schedule here.
        lr: what the bound is multiplied by.
    """
    kind = lookup({"adam": "DAdaptAdam", "sgd": "DAdaptSGD"}, base, "base")

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        own = {} if base == "adam" else {"momentum": 0.9}
        return getattr(module, kind)(parameters, lr=lr, **own)

    settings = (("base", base), ("schedule", schedule), ("lr", lr))
    return TuningFree("d-adaptation", "dadaptation", "dadaptation", settings, make, _distance, lr, schedule)


def dog(layerwise: bool = False, averaged: bool = True, reps_rel: float | None = None) -> TuningFree:
    """DoG: the largest distance from the start so far over the root of the sum of squared gradients.

    The README of `dog-optimizer` 1.0.3 says that it must be combined with the package's average of iterates; the
    network is measured there.

    Args:
        layerwise: L-DoG, which does this for each tensor by itself; the rate that is reported is that of the first.
        averaged: whether the average is measured, or the last iterate.
        reps_rel: length of the first step relative to 1 + |w_0|; if None, what is suggested there, 1e-6, and 1e-4 where
            the network has batch norm.
    """

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        first = (1e-4 if _has_batch_norm(task) else 1e-6) if reps_rel is None else reps_rel
        kind = module.LDoG if layerwise else module.DoG
        made = kind(parameters, reps_rel=first)
        return Averaged(made, module.PolynomialDecayAverager, parameters) if averaged else made

    _bool("layerwise", layerwise)
    _bool("averaged", averaged)
    if reps_rel is not None:
        _positive("reps_rel", reps_rel)
    settings = (("layerwise", layerwise), ("averaged", averaged), ("reps_rel", reps_rel))
    return TuningFree("dog", "dog-optimizer", "dog", settings, make, _first_eta, 1.0)


def _first_eta(optimizer: Any) -> float:
    return float(optimizer.param_groups[0].get("eta", (0.0,))[0])


def _has_batch_norm(task: Task) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in build(task.module, 0).modules())


def mechanic(base: str = "adam", schedule: str = "linear", lr: float = 1.0) -> TuningFree:
    """Mechanic: online learning of what the updates of another optimizer are multiplied by.

    The README of `mechanic-pytorch` 0.0.1 says that it goes with any schedule and that `lr` may be anything.

    Args:
        base: "adam" (AdamW where the task's weight decay is decoupled), or "sgd" with a momentum of 0.9.
        schedule: linear decay is what stands for a usual schedule here.
        lr: of the other optimizer.
    """
    lookup({"adam": None, "sgd": None}, base, "base")

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        kind: Any = torch.optim.SGD if base == "sgd" else torch.optim.AdamW if decoupled else torch.optim.Adam
        own = {"momentum": 0.9} if base == "sgd" else {}
        return module.mechanize(kind)(parameters, lr=lr, **own)

    def scale(optimizer: Any) -> float:
        state: Mapping[str, Any] = optimizer.state.get("_mechanic", {})
        return float(state["s"].sum()) if state else 0.0

    settings = (("base", base), ("schedule", schedule), ("lr", lr))
    return TuningFree("mechanic", "mechanic-pytorch", "mechanic_pytorch", settings, make, scale, lr, schedule)


def momo(base: str = "adam", lr: float | None = None, use_fstar: bool = False) -> TuningFree:
    """MoMo: Polyak's step for a model of the loss from past batches, at most `lr`.

    The README of `momo-opt` 0.1.0 recommends a constant `lr` of 1e-2 for Adam and 1 for SGD with momentum, and to take
    the base that works on the task without it. Figures show `lr`, the cap: the package doesn't tell its steps.

    Args:
        base: "adam" or "sgd".
        lr: the cap, the recommended one if None.
        use_fstar: whether the lowest value that the loss can have is estimated; if not it is 0, which the README finds
            good in many cases.
    """
    kind, usual = lookup({"adam": ("MomoAdam", 1e-2), "sgd": ("Momo", 1.0)}, base, "base")
    _bool("use_fstar", use_fstar)
    rate = usual if lr is None else lr

    def make(module: ModuleType, parameters: list[nn.Parameter], task: Task, decoupled: bool) -> Any:
        return getattr(module, kind)(parameters, lr=rate, use_fstar=use_fstar)

    settings = (("base", base), ("lr", rate), ("use_fstar", use_fstar))
    return TuningFree("momo", "momo-opt", "momo", settings, make, lambda _: 1.0, rate, needs_loss=True)
