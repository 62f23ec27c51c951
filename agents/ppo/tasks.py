"""The tasks of a training over several: listed ones, in turn, or drawn ones, each of which comes once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lrenv import specs
from lrenv.benchmark.held_out import held_out
from lrenv.envs.rewards import BUILT_IN
from lrenv.training.drawn import TaskDistribution, check_for_training
from lrenv.training.tasks import Task, make_task

IN_LOGARITHMS = ("improvement", "log_val_loss")
"""Built-in rewards that are differences or values of logarithms, which tasks of other losses share."""


class Tasks(ABC):
    """What the trainees of a training learn, cohort after cohort, and what its controllers are chosen on.

    Attributes:
        scales: how many statistics of returns there are, by which rewards are divided.
    """

    scales: int

    @abstractmethod
    def task(self, place: int) -> Task:
        """Returns the task of the cohort that begins after `place` others."""

    @abstractmethod
    def scale(self, place: int) -> int:
        """Returns which of the statistics the rewards of that cohort belong to."""

    @abstractmethod
    def validation(self, number: int) -> list[Task]:
        """Returns the tasks on which controllers are compared, `number` of them where they are drawn."""


class Listed(Tasks):
    """Several tasks that come in turn; controllers are compared on the same tasks, with the seeds of validation.

    Each has statistics of its own, since each comes many times: losses of one task may be a hundred times those of
    another, and a policy learns most from where rewards are largest.

    Args:
        tasks: one or more.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = list(tasks)
        self.scales = len(self.tasks)

    def task(self, place: int) -> Task:
        """Returns the task whose turn it is."""
        return self.tasks[place % len(self.tasks)]

    def scale(self, place: int) -> int:
        """Returns the place of the task in the list."""
        return place % len(self.tasks)

    def validation(self, number: int) -> list[Task]:
        """Returns all tasks of the list."""
        return self.tasks


class Drawn(Tasks):
    """Tasks drawn for a training, another one for each cohort; controllers are compared on those for validation.

    All share one statistic of returns. One for each task is out of the question, since a drawn task comes once: when
    something is known of its returns, its trainees have learned. A run of a reference beforehand would tell, but takes
    nearly as long as the cohort itself, for a small batch costs little less than one trainee. It isn't needed, either,
    where rewards are in logarithms of the loss: these have no unit, and with `improvement` and gamma 1 the sum of
    rewards is, up to what the policy can't change, the logarithm that validation averages over tasks. Scaling tasks
    apart would maximise another mean. Rewards in units of the loss are refused instead.

    Args:
        distribution: what they are drawn from.
        training: the seed of the training.
    """

    scales = 1

    def __init__(self, distribution: TaskDistribution, training: int) -> None:
        self.distribution, self.training = distribution, training

    def task(self, place: int) -> Task:
        """Returns the drawn task whose number is that of the ledger of seeds."""
        return self.distribution.tasks("training", 1, place, self.training)[0]

    def scale(self, place: int) -> int:
        """Returns 0, as all tasks share one statistic."""
        return 0

    def validation(self, number: int) -> list[Task]:
        """Returns the first drawn tasks of those for validation."""
        return self.distribution.tasks("validation", number)


def tasks_of(listed: str, training: int, reward: str, control: str | tuple[str, ...], given: dict[str, Any]) -> Tasks:
    """Returns the tasks that a setting names.

    Args:
        listed: "drawn" or "drawn:limit=5e8", or specs of tasks, separated by commas.
        training: the seed of the training.
        reward: what the policy maximises.
        control: what it sets.
        given: settings of tasks that are not their own.

    Raises:
        ValueError: no task is named; a task is unknown, held out, or not for training; settings, a
            reward or a control that don't go with drawn tasks.
    """
    each = specs.split(listed)
    if not each:
        raise ValueError("tasks names no task: give specs of tasks separated by commas, or drawn")
    if not any(map(is_distribution, each)):
        return Listed([check_not_held_out(check_for_training(make_task(spec, **given))) for spec in each])
    if len(each) > 1:
        raise ValueError(f"tasks={listed!r}: drawn stands alone; one drawn task among others is drawn:number=1000017")
    if given:
        raise ValueError(f"drawn tasks come with their own {' and '.join(given)}: leave {' and '.join(given)} out")
    if reward in BUILT_IN and reward not in IN_LOGARITHMS:
        raise ValueError(
            f"reward {reward!r} has the unit of the loss, which differs from drawn task to drawn task: use "
            f"{' or '.join(IN_LOGARITHMS)}"
        )
    for name in (control,) if isinstance(control, str) else control:
        if name.partition("/")[2] not in ("", "trainee"):
            raise ValueError(
                f"control {name!r} sets several rates per trainee, of which networks of drawn tasks need different "
                f"numbers: use {name.partition('/')[0]!r}"
            )
    settings = specs.parse(each[0]).settings
    if unknown := settings.keys() - {"limit"}:
        raise ValueError(f"{each[0]!r}: drawn tasks come with their own {', '.join(sorted(unknown))}; give limit alone")
    return Drawn(TaskDistribution(**settings), training)


def is_distribution(spec: str) -> bool:
    """Returns whether a spec stands for all drawn tasks."""
    parsed = specs.parse(spec)
    return parsed.name == "drawn" and "number" not in parsed.settings


def check_not_held_out(task: Task) -> Task:
    """Returns the task, if it is none of the held-out list, whatever its settings and its name.

    Raises:
        ValueError: it is one: it has the data and the network of one.
    """
    for other in held_out():
        if (task.data, task.network) == (other.data, other.network):
            raise ValueError(
                f"task {task.name!r} is on the held-out list, on which controllers of many tasks are reported "
                "(lrenv.benchmark.held_out): train on other data, or on another network"
            )
    return task
