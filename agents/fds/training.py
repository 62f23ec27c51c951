"""FDS: schedules found by forward-mode differentiation with hyperparameter sharing, and what it is compared with.

Micaelli and Storkey 2021, "Gradient-based hyperparameter optimization over long horizons" (NeurIPS), and their code.
Learning rate, momentum and weight decay are piecewise constant over the training. Forward mode carries the tangents Z
of the weights by each of their values through all inner steps (`lrenv.training.hypergradients.forward`), so memory does
not grow with the horizon, and the derivative is that of the last validation loss, not of the next one. The steps of a
segment share a value, which averages their hypergradients; an outer step, `sign_step`, takes the sign of the average
alone, with a step size that is halved when the sign flips.

With windows of reverse mode in place of forward mode, the same outer steps are those of a greedy method (windows of one
inner step) or of truncated backpropagation.

Left out are the published code's clamps of gradients and Hessian-vector products, which bias what they bound, and its
shorter first outer step. New are the average over trainees and the bounds: no value leaves the range of agents' actions
(`lrenv.envs.actions`), and no rate is negative.

Signs need finite hypergradients: under a schedule with which all trainees diverge, a search stands still. Smaller first
steps keep it from reaching such schedules. `tests/reference/fds.py` has the method in NumPy.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrenv.agents.fds.agent import FDS, HIGHEST
from lrenv.agents.fds.settings import FDSSettings
from lrenv.agents.outer.training import Training
from lrenv.runtime.memory import choose_device
from lrenv.training.hypergradients import Hypergradient, forward, reverse
from lrenv.training.trainee import Trainee

SHRINK = 0.5
"""The factor on a step size when the sign flips."""
CONVERGED = 0.05
"""A value has converged when its step size is a smaller fraction of it than this."""


class Searched(NamedTuple):
    """The values of a hyperparameter between two outer steps."""

    values: Tensor  # lambda, (S,)
    sizes: Tensor  # gamma, (S,), the step sizes
    signs: Tensor  # (S,), of the last hypergradients


def sign_step(searched: Searched, gradient: Tensor, highest: float) -> Searched:
    """Returns the outer step lambda <- lambda - gamma sign(g) on the values of a hyperparameter.

    Args:
        searched: the values, their step sizes gamma, and the last signs.
        gradient: g, (S,), hypergradients; 0 and NaN have no sign, and leave their value as it is.
        highest: the bound of the values; the lower one is 0.
    """
    signs = gradient.nan_to_num(0.0).sign()
    sizes = torch.where(signs * searched.signs < 0, SHRINK * searched.sizes, searched.sizes)
    return Searched((searched.values - signs * sizes).clamp(0, highest), sizes, signs)


class ScheduleTraining(Training[FDSSettings]):
    """A search for a schedule.

    Args:
        settings: of the search.

    Attributes:
        agent: the kind of agent that it makes.
    """

    unit = "outer steps"
    agent: type[FDS] = FDS

    def __init__(self, settings: FDSSettings) -> None:
        super().__init__(settings, settings.make_task())
        self.trainee = Trainee(self.task, choose_device(settings.device), compile=settings.compile)

    @property
    @abstractmethod
    def schedule(self) -> dict[str, Tensor]:
        """The schedule so far, hyperparameter -> (S,) values, float64."""

    @property
    def iterations(self) -> int:
        """The number of outer steps of the whole search."""
        return self.settings.outer_steps

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far."""
        return self.iteration * self.settings.trainees

    def controller(self) -> FDS:
        """Returns the schedule as an agent."""
        values = {name: tuple(values.tolist()) for name, values in self.schedule.items()}
        return self.agent(**values, optimizer=self.settings.optimizer)

    def groups(self) -> list[slice]:
        """Returns the trainees of an outer step in groups that are trained together."""
        sizes = self.trainee.chunks(self.settings.trainees)
        return [slice(last - n, last) for n, last in zip(sizes, accumulate(sizes), strict=True)]

    def status(self, row: dict[str, float]) -> str:
        """Returns the validation loss, and the schedule."""
        shown = "  ".join(f"{name} {' '.join(f'{x:.2g}' for x in values)}" for name, values in self.schedule.items())
        return f"val loss {row['episode/val_loss']:.4f}  {shown}"

    @abstractmethod
    def outer_step(self) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Trains the trainees of an outer step, and updates the schedule.

        Returns:
            The last validation losses (n,) of the trainees, and what to log: name -> hyperparameter -> (S,).
        """

    def iterate(self) -> dict[str, float]:
        """Takes an outer step; gives what to log of it, for each value of the schedule."""
        begin = time.perf_counter()
        losses, columns = self.outer_step()
        finite = losses[losses.isfinite()]
        typical = finite.median() if len(finite) else torch.nan
        row = {
            "inner_steps": float((self.iteration + 1) * self.settings.trainees * self.task.budget),
            "episode/val_loss": float(typical),
            "episode/diverged": float(len(losses) - len(finite)),
            "time/seconds": time.perf_counter() - begin,
        }
        for column, values in ({"schedule": self.schedule} | columns).items():
            row |= {f"{column}/{name}_{s}": float(x) for name, own in values.items() for s, x in enumerate(own)}
        return row


class FDSTraining(ScheduleTraining):
    """A search by sign steps against hypergradients, from a schedule of zeros.

    At a rate of 0 the weights stay the same, but their tangents do not: the first outer step changes the rates, and
    later ones the other hyperparameters, too.

    Attributes:
        searched: the schedule's values with the state of their search.
    """

    def __init__(self, settings: FDSSettings) -> None:
        super().__init__(settings)
        methods: dict[str, Callable[..., Hypergradient]] = {
            "fds": forward,
            "greedy": partial(reverse, truncation=1),
            "truncated": partial(reverse, truncation=settings.window),
        }
        self._hypergradient = methods[settings.method]
        self.searched = {}
        for name, s in settings.numbers_of_segments.items():
            zeros = torch.zeros(s, dtype=torch.float64)
            self.searched[name] = Searched(zeros, zeros + settings.first_steps[name], zeros)

    @property
    def schedule(self) -> dict[str, Tensor]:
        """Hyperparameter -> (S,) values."""
        return {name: searched.values for name, searched in self.searched.items()}

    @property
    def converged(self) -> bool:
        """Whether all step sizes are small fractions of their hyperparameters."""
        return all(bool((x.sizes < CONVERGED * x.values).all()) for x in self.searched.values())

    @property
    def iterations(self) -> int:
        """The number of outer steps of the whole search, which ends when it has converged."""
        return self.iteration if self.converged else self.settings.outer_steps

    @property
    def over(self) -> str:
        """Why there is nothing to do, in a line of status."""
        return "the search has converged: no step would change a value by much" if self.converged else super().over

    def outer_step(self) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Computes hypergradients, and takes a sign step on each hyperparameter."""
        losses, gradient = self.hypergradient()
        for name, searched in self.searched.items():
            self.searched[name] = sign_step(searched, gradient[name], HIGHEST[name])
        sizes = {name: searched.sizes for name, searched in self.searched.items()}
        return losses, {"hypergradient": gradient, "step_size": sizes}

    def hypergradient(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the last validation losses (n,), and mean hypergradients (S,) of trainees that have finite ones."""
        seeds = self.training_seeds(self.settings.trainees, self.episodes)
        parts = []
        for group in self.groups():
            start = self.trainee.init(seeds[group])
            schedule = {name: values.expand(len(start.seed), -1) for name, values in self.schedule.items()}
            parts.append(self._hypergradient(self.trainee, start, schedule, self.task.budget))
        # To the host in one transfer, for it waits for all that was computed.
        columns = [torch.cat([p.objective[:, None], *(p.gradient[name] for name in self.schedule)], 1) for p in parts]
        objective, *each = torch.cat(columns).cpu().split([1, *map(len, self.schedule.values())], 1)
        finite = {name: x.double().where(x.isfinite(), torch.nan) for name, x in zip(self.schedule, each, strict=True)}
        return objective[:, 0], {name: x.nanmean(0) for name, x in finite.items()}

    def state(self) -> dict[str, Any]:
        """Returns the tensors that the next outer step depends on."""
        return self.searched

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the search goes on exactly as it would have."""
        self.searched = state
