"""Inner steps under a schedule, in which each value of a hyperparameter is shared by a segment of the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lrenv.lookup import count, lookup
from lrenv.training import rollout as loop
from lrenv.training.optimizers import Hyper
from lrenv.training.trainee import Trainee, TraineeState

Schedule = Mapping[str, Tensor]
"""Hyperparameter -> (n, S) values, one for each of S equal segments of the training: of T inner steps, step t belongs
to segment floor(t S / T). S may differ from one hyperparameter to the next; those left out are the task's own.
Hypergradients of long horizons are noisy, and sharing a value among contiguous steps averages them (Micaelli & Storkey
2021)."""


@dataclass(frozen=True)
class ScheduledTraining:
    """T inner steps of n trainees under a schedule.

    Attributes:
        trainee: what is trained.
        schedule: name -> (n, S) values, on the trainees' device.
        steps: T.
    """

    trainee: Trainee
    schedule: dict[str, Tensor]
    steps: int

    @classmethod
    def of(cls, trainee: Trainee, start: TraineeState, schedule: Schedule, steps: int) -> ScheduledTraining:
        """Checks that trainee, initial state, schedule and number of steps fit.

        Raises:
            ValueError: the schedule does not fit the trainee, the number of trainees or that of steps.
        """
        count("steps", steps)
        if "lr" not in schedule:
            raise ValueError("the schedule has no 'lr', which the task does not set either; add values of it")
        n = len(start.params)
        for name, values in schedule.items():
            lookup({"lr": None, **trainee.task.hyper}, name, "hyperparameter")
            if values.ndim != 2 or len(values) != n or not values.shape[1]:
                raise ValueError(
                    f"values of {name!r} must have shape ({n}, S), one per trainee and "
                    f"segment, not {tuple(values.shape)}"
                )
            if values.shape[1] > steps:
                raise ValueError(f"{name!r} has {values.shape[1]} values for {steps} steps; give at most one per step")
        # Copies, for no gradient can be asked for tensors from `torch.inference_mode`.
        own = {name: values.to(start.params, copy=True) for name, values in schedule.items()}
        return cls(trainee, own, steps)

    def segment(self, name: str, step: int) -> int:
        """Returns the segment of a hyperparameter that an inner step belongs to, floor(t S / T)."""
        return step * self.schedule[name].shape[1] // self.steps

    def values(self, step: int) -> Hyper:
        """Returns the hyperparameters of an inner step, name -> (n, 1)."""
        return {name: values[:, self.segment(name, step), None] for name, values in self.schedule.items()}

    def constant_ranges(self, window: range) -> list[range]:
        """Returns the inner steps of a window in ranges over which the hyperparameters stay the same.

        A range is no longer than an interval of the task, which bounds how many batches are drawn at a time.
        """
        cuts = {window.start, window.stop, *range(0, self.steps, self.trainee.task.interval)}
        for values in self.schedule.values():
            cuts |= {-(-s * self.steps // values.shape[1]) for s in range(values.shape[1])}
        inside = sorted(cut for cut in cuts if window.start <= cut <= window.stop)
        return [range(*pair) for pair in pairwise(inside)]

    def unroll(self, state: TraineeState, values: Hyper, steps: int) -> TraineeState:
        """Takes inner steps under constant values (n, 1)."""
        hyper = self.trainee.hyper(len(state.params)) | values
        return self.trainee.unroll(state, hyper.pop("lr"), hyper, steps)[0]

    def train(self, state: TraineeState, window: range) -> TraineeState:
        """Takes the inner steps of a window."""

        def step(training: ScheduledTraining, state: TraineeState, steps: range) -> tuple[tuple[()], TraineeState]:
            return (), training.unroll(state, training.values(steps.start), len(steps))

        return loop.rollout(step, self, state, self.constant_ranges(window))[1]
