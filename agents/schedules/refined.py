"""The refined schedule: computed from the gradient norms of one earlier run (Defazio et al. 2023, arXiv:2310.07831).

`refine(agent, task)` makes that run and gives the schedule; its peak is to be tuned as any other's:

    >>> import numpy as np
    >>> agent = refined(norms=(4.0, 2.0, 1.0, 1.0, 1.0, 1.0), peak=0.1, smoothing=0.0)
    >>> clock = np.array([[t, 6, 1, 1.0, 1.0] for t in range(6)], float)
    >>> agent.predict(clock)[0][:, 0].round(4).tolist()
    [0.0089, 0.0333, 0.1, 0.0667, 0.0333, 0.0]

High norms at the beginning make a warm-up, and the sum of what is left a decay to 0. The formula is in
`lrenv.agents.schedules.formulas.refined`, and in plain Python in `tests/reference/schedules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from lrenv.agents.hyperparameters import Array, Hyperparameter, checked
from lrenv.agents.schedules import formulas
from lrenv.agents.schedules.base import RateAgent, settings, view_of_schedule, warmed_up
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import Agent, called
from lrenv.controllers.controller_file import TensorSpec
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.lookup import lookup
from lrenv.randomness.seeds import seeds_for
from lrenv.training.optimizers import make_optimizer
from lrenv.training.tasks import Task, make_task

NORMS = {"l2": ("gradient_square", 2.0), "l1": ("gradient_absolute", 1.0)}
"""Norm -> what is observed of it, and the exponent that belongs to it: l2 for SGD, l1 for Adam and its kind."""
_NUMBERS = ("peak", "smoothing", "exponent", "warmup", "fan_in", "weight_decay")
_METADATA = schema.record(dict.fromkeys(_NUMBERS, schema.optional(schema.number(-1, 1e38))), {})


@dataclass(frozen=True, repr=False)
class Refined(RateAgent[tuple[()]]):
    """An agent that follows a refined schedule; see `refined`.

    Attributes:
        norms: G_1, ..., G_m of a run of any length; number floor(t m / T) stands for inner step t of T.
        smoothing: part of the run that the median is taken over.
        exponent: of the norms.
    """

    norms: tuple[float, ...]
    smoothing: float
    exponent: float

    def rate(self, clock: Mapping[str, Array], values: dict[str, Array], carry: tuple[()]) -> tuple[Array, tuple[()]]:
        """The schedule, with the warm-up in front."""
        fractions = _fractions(self.norms, self.smoothing, self.exponent)
        t = np.maximum(clock["inner_step"] - values["warmup"], 0)
        place = t * len(fractions) // np.maximum(clock["budget"] - values["warmup"], 1)
        place = place.clip(max=len(fractions) - 1).astype(np.int64)
        return warmed_up(values["peak"], clock, values, values["peak"] * fractions[place]), carry

    def save(self, path: Path, trained: Mapping[str, Any]) -> None:
        """Writes the schedule to a controller file, which also tells that a run was spent on it.

        Args:
            path: of the file.
            trained: metadata of how it came to be.

        Raises:
            ValueError: a hyperparameter has one value per env, where a file has one for all.
        """
        given = dict.fromkeys(_NUMBERS) | dict(self.hyperparameters)
        given |= {"smoothing": self.smoothing, "exponent": self.exponent}
        for name, value in given.items():
            if isinstance(value, tuple):
                raise ValueError(f"{name} has {len(value)} values, one per env; save an agent that has one")
        about = {"agent": self.name, "runs": {"training": 1, "selection": 0}, **given, **trained}
        controller_file.write(path, {"norms": torch.tensor(self.norms, dtype=torch.float64)}, about)

    @classmethod
    def load(cls, path: Path) -> Refined:
        """Reads a schedule.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no refined schedule, damaged, or of another version.
        """
        with controller_file.opened_agent(path, "refined") as file:
            _METADATA("metadata", file.metadata)
            tensors = file.tensors({"norms": TensorSpec((None,), ("F64",), low=0)})
            return refined(tensors["norms"].tolist(), **{name: file.metadata[name] for name in _NUMBERS})


@lru_cache(maxsize=16)
def _fractions(norms: tuple[float, ...], smoothing: float, exponent: float) -> Array:
    """The schedule, which takes long to compute and is asked for at every decision."""
    return formulas.refined(np.asarray(norms), smoothing=smoothing, exponent=exponent)


def refined(
    norms: Sequence[float],
    peak: Hyperparameter,
    smoothing: float = 0.1,
    exponent: float = 2.0,
    warmup: Hyperparameter = 0,
    fan_in: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
) -> Refined:
    """The refined schedule of the gradient norms of one earlier run (Defazio et al. 2023, algorithm 1).

    Args:
        norms: of the gradients of an earlier run in order, of each inner step or each interval.
        peak: the highest rate.
        smoothing: tau, the part of the run that medians are taken over; the authors' value.
        exponent: 2 for l2 norms and SGD, 1 for l1 norms and Adam.
        warmup: linear warm-up; schedules from norms have one of their own where it pays.
        fan_in: rates per layer.
        weight_decay: instead of the task's.

    Raises:
        ValueError: a hyperparameter is wrong, or the norms are not positive numbers, two or more.
    """
    array = np.asarray(norms, np.float64)
    if array.ndim != 1 or len(array) < 2 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            "norms must be positive numbers, two or more, the gradient norms of a run in order; "
            "lrenv.agents.schedules.refined.record_norms gives them"
        )
    given = settings(peak=peak, warmup=warmup, fan_in=fan_in, weight_decay=weight_decay)
    own = {name: float(np.asarray(value)) for name, value in checked(smoothing=smoothing, exponent=exponent)}
    return Refined("refined", given, view_of_schedule(given, horizon=True), tuple(array.tolist()), **own)


def record_norms(
    agent: Agent, task: Task | str, norm: str = "l2", seed: int | None = None, device: str | None = None
) -> tuple[float, ...]:
    """The gradient norm of each inner step of one run.

    Args:
        agent: what sets the rate of that run, a schedule with one rate per trainee; it acts at every step.
        task: what is trained.
        norm: "l2" or "l1".
        seed: of the run; the first of the seeds for tuning by default, never one of those that results are reported on.
        device: where the trainee lives.

    Raises:
        ValueError: an unknown norm, an agent that looks at more than the time, or a run that diverged.
    """
    part, _ = lookup(NORMS, norm, "norm")
    if agent.view.observe != "clock":
        raise ValueError(f"{called(agent)} observes {agent.view.observe}; record norms with a schedule without fan_in")
    if getattr(agent, "counts_measurements", False):
        raise ValueError(
            f"{called(agent)} counts the validation losses of its decisions, and would decide at every step here: "
            "record norms with a schedule that looks at the time alone"
        )
    task = make_task(task)
    task = make_task(task, interval=1, measure_interval=task.measure_interval or task.interval)
    view = replace(agent.view, observe=("clock", part), interval=1)
    envs = LearningRateVectorEnv(1, task, **view.settings(), device=device, autoreset_mode=AutoresetMode.DISABLED)
    seen: Any = envs.reset(seed=seeds_for("tuning", 1)[0] if seed is None else seed)[0]
    state, norms, ended = None, [], False
    while not ended:
        norms.append(float(seen[part].sum()))  # of the gradient that the next step will use
        action, state = agent.predict(seen["clock"], state, deterministic=True)
        seen, _, terminated, _, info = envs.step(action)
        ended = bool(terminated[0])
    if info["diverged"][0]:
        raise ValueError(
            f"the run of {called(agent)} diverged at inner step {len(norms)}; record norms at a lower rate"
        )
    return tuple(x**0.5 for x in norms) if norm == "l2" else tuple(norms)


def refine(
    agent: Agent,
    task: Task | str,
    peak: Hyperparameter,
    norm: str = "l2",
    smoothing: float = 0.1,
    seed: int | None = None,
    device: str | None = None,
) -> Refined:
    """Makes one run, which counts among the runs spent, and gives its refined schedule.

    Args:
        agent: what sets the rate of that run, such as a tuned linear decay.
        task: what is trained.
        peak: of the refined schedule.
        norm: "l2", for SGD with or without momentum, or "l1", for Adam and its kind.
        smoothing: as in `refined`.
        seed: of the run.
        device: where the trainee lives.
    """
    norms = record_norms(agent, task, norm, seed, device)
    return refined(norms, peak, smoothing, NORMS[norm][1])


def norms_of_run(agent: Agent, task: Task, device: str | None = None) -> dict[str, Any]:
    """The settings that one run of another agent gives: l1 norms for Adam and its kind, l2 norms for SGD.

    Args:
        agent: what sets the rate of that run.
        task: what is trained.
        device: where the trainee lives.

    Raises:
        ValueError: as in `record_norms`.
    """
    norm = "l1" if make_optimizer(task.optimizer).adaptive else "l2"
    return {"norms": record_norms(agent, task, norm, device=device), "exponent": NORMS[norm][1]}


refined.load = Refined.load  # type: ignore[attr-defined]
# For suites (`lrenv.benchmark.suite`): what the key `after` calls, and what stands for that where a sample will do.
refined.after = norms_of_run  # type: ignore[attr-defined]
refined.sample = {"norms": (1.0, 1.0)}  # type: ignore[attr-defined]
