"""Snapshots: vector environments between two decisions as values, and what two environments must share to swap them."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lrenv.data.registry import may_change
from lrenv.envs import observations, rewards
from lrenv.envs.episode import Episode, EpisodeState
from lrenv.envs.observations import OBSERVATIONS
from lrenv.envs.rewards import REWARDS
from lrenv.networks.initialisation import build
from lrenv.training.optimizers import Optimizer
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

SHOWN = 60
"""Characters of a setting that an error shows."""


class Snapshot(NamedTuple):
    """A vector environment between two decisions, as a value: `restore` continues from it.

    On the same machine, with the same number of threads and the same build of PyTorch, it continues bit for bit, and
    otherwise up to rounding. Later steps don't change it, and it can be pickled.
    """

    state: EpisodeState
    env_seeds: NDArray[np.int64]  # (n,)
    episodes: NDArray[np.int64]  # (n,), how many came before the present one since the env was seeded
    ended: NDArray[np.bool_]  # (n,)
    settings: dict[str, Any]  # what an environment must share to go on from here


def settings_of(episode: Episode, view: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an episode depends on besides its state, in words and numbers that can be compared anywhere.

    Args:
        episode: the dynamics.
        view: what it was made of, in names or one's own objects: `control`, `observe`, `reward`, `precision`.
    """
    task, trainee = episode.task, episode.trainee
    plain = (
        "loss", "batch_size", "budget", "interval", "measure_interval", "initial_lr", "augment", "replacement",
    )  # fmt: skip
    return {
        "task": task.name,
        "data": _data(task, trainee),
        "network": _network(task, trainee),
        "optimizer": described(task.optimizer),
        **task.hyper,
        **{name: described(getattr(task, name)) for name in plain},
        "val_examples": len(trainee.val.targets),
        **{name: _in_view(value, REWARDS if name == "reward" else OBSERVATIONS) for name, value in view.items()},
        "dtype": str(trainee.dtype),
    }


def _in_view(value: Any, known: Mapping[str, Any]) -> str:
    """Names, and what stands behind those that are not lrenv's own."""
    if isinstance(value, tuple | list):
        return ", ".join(_in_view(each, known) for each in value)
    if not isinstance(value, str):
        return described(value)
    built_in = value not in known or value in (rewards if known is REWARDS else observations).BUILT_IN
    return value if built_in else f"{value} {described(known[value])}"


def contents_of(task: Task) -> dict[str, str]:
    """Returns in checksums what the settings of a task leave open: what files hold, and what somebody's own code makes.

    Nothing of a task whose data and network come with lrenv. What functions of one's own read from elsewhere, a file or
    a variable of their module, is not in the functions, and so the data and the network that they make are looked at.
    """
    made_by = [part for part in (task.data, task.network) if not isinstance(part, str)]
    while any(isinstance(part, partial) for part in made_by):
        made_by = [part.func if isinstance(part, partial) else part for part in made_by]
    found = {}
    if isinstance(task.data, str) and may_change(task.data):
        found["data"] = f"{task.data} [{_checksum(task.load()[:3])}]"
    if not all(str(getattr(part, "__module__", "")).partition(".")[0] == "lrenv" for part in made_by):
        trainee = Trainee(task)
        found = {"data": _data(task, trainee), "network": _network(task, trainee)} | found
    return found


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns each setting that differs, as "name theirs (here ours)"; an optimizer may have ones of its own."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} {_short(theirs.get(name))} (here {_short(ours.get(name))})" for name in names]


def _data(task: Task, trainee: Trainee) -> str:
    """Named data by their name and options, those of a function by their contents."""
    if isinstance(task.data, str):
        options = ", ".join(f"{name}={value!r}" for name, value in sorted(task.data_options.items()))
        return f"{task.data}({options})"
    splits = trainee.train, trainee.val, trainee.test
    return f"{len(splits[0].targets)} training examples [{_checksum(splits)}]"


def _network(task: Task, trainee: Trainee) -> str:
    module = build(partial(task.network, trainee.train.inputs.shape[1:], trainee.outputs), 0)
    # How large weights begin, in few digits: their last bits may differ between machines.
    sizes = [f"{float(p.detach().abs().double().square().mean().sqrt()):.3g}" for p in module.parameters()]
    structure = f"{module}{trainee.network.shapes}{sizes}{[_own(part) for part in module.modules()]}"
    return f"{type(module).__name__} of {trainee.network.size} parameters [{_checksum(structure)}]"


def _own(part: nn.Module) -> list[Any]:
    """A module's own attributes and methods; torch's modules show their settings in their `repr`."""
    kinds = [kind for kind in type(part).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
    methods = [x for kind in kinds for x in vars(kind).values() if isinstance(x, FunctionType)]
    held = {name: x for name, x in vars(part).items() if kinds and name not in vars(nn.Module())}
    return [[_code(method.__code__) for method in methods], described(held)]


def described(value: object) -> str:
    """Returns a setting in words that are the same in every process of one version of Python.

    What a function does and encloses counts, what a callable object does and holds, and what tensors and arrays hold,
    as checksums.
    """
    return _described(value, ())


def _described(value: object, within: tuple[object, ...]) -> str:
    """The same of a value that the values `within` hold, one of which it may be."""
    if any(value is holder for holder in within):
        return type(value).__qualname__

    def described(part: object) -> str:
        return _described(part, (*within, value))

    if isinstance(value, Optimizer):
        return f"Optimizer [{_checksum([described(part) for part in vars(value).values()])}]"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{part.name}={described(getattr(value, part.name))}" for part in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, partial):
        return f"partial({described(value.func)}, {described(value.args)}, {described(value.keywords)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {described(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, MethodType):
        return f"{described(value.__func__)} of {described(value.__self__)}"
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        enclosed = [described(x) for x in [*cells, value.__defaults__, value.__kwdefaults__] if x is not value]
        return f"{value.__module__}.{value.__qualname__} [{_checksum([_code(value.__code__), *enclosed])}]"
    if isinstance(value, Tensor):
        return f"tensor [{_checksum(value)}]"
    if isinstance(value, np.ndarray):
        return f"array [{_checksum([str(value.dtype), *value.shape, *value.flat])}]"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if callable(value) or type(value).__repr__ is object.__repr__:
        call = inspect.getattr_static(type(value), "__call__", None)
        does = _code(call.__code__) if isinstance(call, FunctionType) else []
        return f"{type(value).__qualname__} [{_checksum([*does, described(_held(value))])}]"
    return str(value)


def _held(value: object) -> dict[str, Any]:
    """The attributes of an object, those in slots included."""
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    inside = {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}
    return inside | getattr(value, "__dict__", {})


def _code(code: CodeType) -> list[Any]:
    """What a function's code is, as a tree of texts: its instructions, and the names and constants that they mean."""
    constants = [_code(x) if isinstance(x, CodeType) else _constant(x) for x in code.co_consts]
    return [code.co_code.hex(), *code.co_names, *constants]


def _constant(value: object) -> str:
    """A set has another order in every process."""
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never bound
        return None


def _checksum(tree: Any) -> str:
    total = 0
    for leaf in tree_leaves(tree):
        held = np.ascontiguousarray(leaf.detach().cpu().numpy()) if isinstance(leaf, Tensor) else None
        total = zlib.crc32(str(leaf).encode() if held is None else held.view(np.uint8).data, total)
    return f"{total:08x}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
