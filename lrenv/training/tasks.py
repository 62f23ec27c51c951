"""Tasks: what a trainee learns, with which network, loss, optimizer, batch size and budget.

`make_task(name)` gives a `Task`, a frozen dataclass of settings; nothing is loaded until an environment is made.
`register_task` adds one; it can then be used everywhere a task is named, and as `lrenv/<name>-v0`. lrenv's own are
listed in `built_in_tasks.py`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from lrenv import sources, specs
from lrenv.data import Data, load
from lrenv.data.augment import AUGMENTATIONS
from lrenv.data.types import DataCorrupt, check_data
from lrenv.lookup import NAME, check_new, count, lookup, raised_line, what_is
from lrenv.networks.architectures import NetworkFactory, Shape
from lrenv.training.losses import LOSSES, PerExample
from lrenv.training.optimizers import Optimizer, OptimizerFactory, make_optimizer, wrapped


@dataclass(frozen=True)
class LogUniform:
    """Initial learning rates drawn uniformly on a log scale between two rates."""

    low: float
    high: float


InitialLR = float | tuple[float, ...] | LogUniform
"""One rate, several to draw from with equal chance, or a range."""


@dataclass(frozen=True)
class Task:
    """Everything that defines a trainee's training, except the learning rate.

    Counts may be given as integers of NumPy's, and are kept as Python's.

    Attributes:
        name: how the task is called.
        data: name of a data set (`lrenv.data.datasets()`), or a function that gives a `Data`.
        network: (shape of an example, outputs) -> module; outputs are as many as there are classes, or numbers in a
            target.
        summary: one line for `lrenv tasks`.
        data_options: what `lrenv.data.load` gets besides the name.
        loss: a name in `lrenv.training.losses.LOSSES`, or a function (outputs (b, ...), targets (b, ...)) -> a loss
            per example (b,), of one network; what it is must be clear to `torch.func.vmap`.
        optimizer: a name in `lrenv.training.optimizers.OPTIMIZERS`, also with a wrapper, as in "adam+ema", an
            `Optimizer`, or an `OptimizerFactory`.
        momentum: mu, or beta_1 for the Adam family; None is the optimizer's own.
        weight_decay: None is the optimizer's own.
        batch_size: b, examples an inner step.
        budget: T, inner steps per episode.
        interval: N, inner steps between two actions. Environments take an interval beyond the budget for the budget.
        initial_lr: the rate before the first action.
        augment: a name in `lrenv.data.augment.AUGMENTATIONS`; None leaves images as they are.
        replacement: draw each example of a batch independently instead of by epochs.
        val_examples: validation examples that a decision measures, always the same; None measures all, as does a
            number beyond their end.
        measure_interval: inner steps between two measurements on the validation split, a multiple of `interval`; in
            between, what was last measured stands. None measures at every decision, which agents that act at every
            inner step can ill afford.
    """

    name: str
    data: str | Callable[[], Data]
    network: NetworkFactory
    summary: str = ""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str | PerExample = "cross_entropy"
    optimizer: str | Optimizer | OptimizerFactory = "adam"
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int = 64
    budget: int = 300
    interval: int = 10
    initial_lr: InitialLR = (1e-2, 1e-3, 1e-4)
    augment: str | None = None
    replacement: bool = False
    val_examples: int | None = None
    measure_interval: int | None = None

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant.

        Raises:
            TypeError: a count that is no integer, or an object where a function or a name is wanted.
            ValueError: an unknown name, a count below 1, an impossible rate; the message says what to do.
        """
        kind = self.network if isinstance(self.network, type) else type(self.network)
        if isinstance(self.network, nn.Module) or kind.__module__.startswith("torch.nn."):
            raise TypeError(
                "network must be a function (shape of an example, number of classes) -> module, which builds a new one "
                f"in each call, not {kind.__name__} itself: every trainee has its own weights"
            )
        if not callable(self.network):
            raise TypeError(
                "network must be a function (shape of an example, number of classes) -> module, which specs have no "
                f"names for, not {what_is(self.network)}; a task of your own has one: see docs/extending.md"
            )
        if not (isinstance(self.data, str) or callable(self.data)):
            raise TypeError(
                "data must be a data set's name, or a function without arguments that gives a lrenv.data.Data, not "
                f"{what_is(self.data)}; lrenv.data.from_arrays makes one from arrays of examples"
            )
        for name in ("batch_size", "budget", "interval", "val_examples", "measure_interval"):
            value = getattr(self, name)
            if value is not None or name not in ("val_examples", "measure_interval"):
                # Python's: one of NumPy's overflows in what is computed of it, and torch takes some for no size.
                object.__setattr__(self, name, count(name, value))
        if not isinstance(self.replacement, bool):
            raise TypeError(f"replacement must be True or False, not {self.replacement!r}")
        if self.measure_interval is not None and self.measure_interval % self.interval:
            raise ValueError(
                f"measure_interval={self.measure_interval} must be a multiple of interval={self.interval}: "
                "measurements end decisions"
            )
        if isinstance(self.loss, str):
            lookup(LOSSES, self.loss, "loss")
        elif not callable(self.loss):
            raise TypeError(f"loss must be a name or a function (outputs, targets) -> losses, not {what_is(self.loss)}")
        known = make_optimizer(self.optimizer).hyper
        if self.augment is not None:
            lookup(AUGMENTATIONS, self.augment, "augmentation")
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            if value is not None and name not in known:
                raise ValueError(f"{name}={value}, but optimizer {self.optimizer!r} has no {name}; leave it out")
            if value is not None and not _is_number(value):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if value is not None and not 0 <= value < (1 if name == "momentum" else math.inf):
                raise ValueError(f"{name} must be at least 0{' and below 1' * (name == 'momentum')}, not {value}")
        initial_rates(self.initial_lr)

    def load(self) -> Data:
        """Returns the data; a named set is loaded once and kept, a function is called each time.

        Raises:
            TypeError: the function gives something else than a `Data`, or labels that aren't int64.
            ValueError: a split without examples, a label of no class, or a batch larger than the training split.
        """
        data = load(self.data, **self.data_options) if isinstance(self.data, str) else self._own_data(self.data)
        if not isinstance(data, Data):
            raise TypeError(
                f"task {self.name!r}: its data function must give a lrenv.data.Data, not {what_is(data)}; "
                "lrenv.data.from_arrays makes one of six arrays"
            )
        if isinstance(self.loss, str):  # one's own may mark examples by labels of no class
            check_data(f"task {self.name!r}: its", data)
        if self.batch_size > len(data.train.targets) and not self.replacement:
            raise ValueError(
                f"task {self.name!r}: batch_size={self.batch_size} is larger than the {len(data.train.targets)} "
                "training examples; choose a smaller one"
            )
        return data

    def _own_data(self, function: Callable[[], Data]) -> Data:
        try:
            return function()
        except (OSError, MemoryError, DataCorrupt):  # they say which file, or what is missing
            raise
        except Exception as error:
            raise ValueError(f"task {self.name!r}: its data function raised {raised_line(error)}") from error

    def module(self) -> nn.Module:
        """Returns a freshly initialised network for this task's data, drawn from torch's global generator."""
        data = self.load()
        return self.make_network(data.train.inputs.shape[1:], data.outputs)

    def make_network(self, shape: Shape, outputs: int) -> nn.Module:
        """Returns what the network function makes for examples of that shape and so many outputs.

        Raises:
            TypeError: the function raises one; the message names the task and says how it was called.
            ValueError: the function raises anything else.
        """
        try:
            return self.network(shape, outputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"task {self.name!r}: its network function, called with (shape, outputs) = ({shape}, {outputs}), "
                f"raised {raised_line(error)}"
            ) from error

    @property
    def hyper(self) -> dict[str, float]:
        """The optimizer's hyperparameters besides the learning rate."""
        own = {name: getattr(self, name) for name in ("momentum", "weight_decay")}
        return self._defaults | {name: value for name, value in own.items() if value is not None}

    @property
    def _defaults(self) -> dict[str, float]:
        return make_optimizer(self.optimizer).hyper


LARGEST_RATE = 1e38
"""What float32 holds."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def initial_rates(initial_lr: InitialLR) -> tuple[float, ...]:
    """Returns the rates that bound or list `initial_lr`.

    Raises:
        TypeError: something else than numbers.
        ValueError: an empty choice, a rate that is negative or not finite, or a range that is not one.
    """
    if isinstance(initial_lr, LogUniform):
        if strange := [bound for bound in (initial_lr.low, initial_lr.high) if not _is_number(bound)]:
            raise TypeError(f"LogUniform takes two rates, not {strange[0]!r}")
        if not 0 < initial_lr.low <= initial_lr.high <= LARGEST_RATE:
            raise ValueError(f"LogUniform needs 0 < low <= high <= {LARGEST_RATE:g}, not {initial_lr}")
        return initial_lr.low, initial_lr.high
    given = initial_lr if isinstance(initial_lr, tuple | list) else (initial_lr,)
    if strange := [rate for rate in given if not _is_number(rate)]:
        raise TypeError(f"initial_lr must be a rate, several rates, or a LogUniform, not {what_is(strange[0])}")
    rates = tuple(map(float, given))
    if not rates:
        raise ValueError("initial_lr is empty: give a rate, several rates, or a LogUniform")
    for rate in rates:
        if not 0 <= rate <= LARGEST_RATE:
            raise ValueError(f"initial_lr must be at least 0 and at most {LARGEST_RATE:g}, not {rate}")
    return rates


_TASKS: dict[str, Task] = {}
_SOURCES: dict[str, str] = {}
"""Name -> where the task was registered, for errors."""
_BUILT_IN: set[str] = set()
"""The names of lrenv's own tasks."""
GROUP = "lrenv.tasks"
"""The entry points under which packages advertise tasks, or functions that give one."""


def register_task(task: Task, replace_existing: bool = False) -> Task:
    """Makes `task` available under its name, also as the Gymnasium id `lrenv/<name>-v0`; what raises changes nothing.

    Args:
        task: the task.
        replace_existing: overwrite a task of the same name, other than lrenv's own, instead of refusing.

    Raises:
        TypeError: no task.
        ValueError: the name is taken, or none that specs and Gymnasium can hold.
        gymnasium.error.Error: Gymnasium refuses the id.
    """
    if not isinstance(task, Task):
        raise TypeError(f"register_task takes a lrenv.Task, not {what_is(task)}")
    caller = sys._getframe(1)
    source = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    told = f": {_SOURCES.get(task.name)} registers it, and {source} would again" if task.name in _TASKS else ""
    check_new("task", task.name, _TASKS, _BUILT_IN, replace_existing, told)
    if _BUILT_IN and task.name in sources.advertised(GROUP):  # lrenv's own are registered as it is imported
        point = sources.source(sources.advertised(GROUP)[task.name][0])
        raise ValueError(f"task {task.name!r} is that of {point}; choose another name")
    _register_id(task.name)
    _TASKS[task.name], _SOURCES[task.name] = task, source
    return task


def register_built_in(own: Iterable[Task]) -> None:
    """Registers lrenv's own tasks, and makes those that packages advertise known to Gymnasium."""
    for task in own:
        register_task(task)
    _BUILT_IN.update(_TASKS)
    for name in sources.advertised(GROUP):
        if name not in _TASKS and NAME.fullmatch(name):
            _register_id(name)


def _register_id(name: str) -> None:
    """Makes the task of that name known to Gymnasium; what raises changes nothing."""
    env_id = f"lrenv/{name}-v0"
    before = gym.registry.pop(env_id, None)  # of a task that this one replaces; Gymnasium would warn of it
    try:
        gym.register(
            env_id,
            entry_point="lrenv.envs.env:LearningRateEnv",
            vector_entry_point="lrenv.envs.vector_env:LearningRateVectorEnv",
            kwargs={"task": name},
        )
    except BaseException:
        if before is not None:
            gym.registry[env_id] = before
        raise


def tasks() -> tuple[str, ...]:
    """Returns the names of all tasks: those that are registered, and those that installed packages advertise."""
    return tuple(dict.fromkeys((*_TASKS, *sources.advertised(GROUP))))


def _found(spec: specs.Spec, settings: dict[str, Any]) -> tuple[Task, tuple[str, ...]]:
    """The task that a spec names, before its settings, and the names of those that make it.

    The latter are taken out of `settings`.

    One that comes from elsewhere under a registered task's name, but is another, is called as in the spec.
    """
    if spec.own is not None:
        found: object = sources.load_own(spec.own)
    elif spec.name in sources.advertised(GROUP):
        if spec.name in _TASKS:
            point = sources.source(sources.advertised(GROUP)[spec.name][0])
            raise ValueError(
                f"there are two of task {spec.name!r}: {_SOURCES.get(spec.name)} registers one, and {point} is "
                "another; give one another name, or uninstall the package"
            )
        found = sources.load_advertised(GROUP, spec.name, "task")
    else:
        known: dict[str, Any] = dict.fromkeys(tasks()) | _TASKS
        task: Task = lookup(known, spec.name, "task")
        return task, ()
    makes: tuple[str, ...] = ()
    if inspect.isroutine(found):
        signature = inspect.signature(found)
        makes = tuple(signature.parameters)
        own = {name: settings.pop(name) for name in makes if name in settings}
        try:
            signature.bind(**own)
        except TypeError as error:
            for name in settings.keys() - {f.name for f in fields(Task)}:
                lookup(dict.fromkeys(makes), name, "setting of a task")
            raise ValueError(f"task {spec.name!r}: {error}, as in {spec.name}:key=value") from None
        try:
            found = found(**own)
        except (Exception, SystemExit) as error:
            if spec.own is None or isinstance(error, ValueError | OSError):
                raise
            raise ValueError(f"task {spec.name!r} raised {raised_line(error)} when it was made") from error
    if not isinstance(found, Task):
        raise ValueError(f"{spec.name} must be a lrenv.Task, or a function that gives one, not {what_is(found)}")
    if found.name in tasks() and found != _TASKS.get(found.name):
        # Results would be taken for those of the task that has the name.
        name = spec.name if spec.own is None else f"{Path(spec.own.file).name}:{spec.own.name}"
        return replace(found, name=name), makes
    return found, makes


def make_task(task: str | Task, **settings: Any) -> Task:
    """Returns the task of that name with some settings changed: `make_task("digits-mlp", budget=500)`.

    Args:
        task: a name, a task of one's own in a Python file, `my_tasks.py:mine`, or a task to change. A spec may hold
            settings, such as `digits-mlp:budget=500` (`lrenv.specs`). Where the file holds a function that gives a
            task, it is called with the settings that it takes. Where the task in the file has the name of another one,
            as a changed one of lrenv's has, its name becomes `my_tasks.py:mine`.
        **settings: fields of `Task`; the optimizer "+ema" is the task's own with an average. Where the data
            are a `folder`, `path=`, and whatever else is no field, goes to `data_options`.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it is neither a name nor a task.
        ValueError: the task is unknown, one's own file raises, or a setting cannot be meant.
    """
    makes: tuple[str, ...] = ()
    if isinstance(task, str):
        spec = specs.parse(task)
        settings = spec.settings | settings
        base, makes = _found(spec, settings)
    elif isinstance(task, Task):
        base = task
    else:
        raise TypeError(f"a task is a name or a lrenv.Task, not {what_is(task)}")
    known = {f.name for f in fields(Task)}
    options = {name: settings.pop(name) for name in list(settings) if name not in known}
    if options and settings.get("data", base.data) != "folder":
        name = next(iter(options))
        lookup(dict.fromkeys((*known, *makes)), name, "setting of a task")
    own = settings.get("optimizer")
    if isinstance(own, str) and own.startswith("+"):
        settings["optimizer"] = wrapped(base.optimizer, own)
    options = {**base.data_options, **settings.pop("data_options", {}), **options}
    return replace(base, **settings, data_options=options)
