"""The state of a training in a controller file: a tree of nested tuples and dicts of tensors, arrays and JSON values.

The name of a leaf is its path, such as `env.trainee.params`. A state is read against a template, a tree of the same
structure, so that a file of another training raises an error that names the difference, before anything is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from lrenv.controllers.controller_file import ControllerFileError
from lrenv.runtime.json_values import json_value

T = TypeVar("T")
Scalar = bool | int | float | str | None


class Stored(NamedTuple):
    """The leaves of a tree by their paths, as `lrenv.controllers.controller_file.write` takes them."""

    tensors: dict[str, Tensor]
    values: dict[str, Scalar]  # JSON


def stored(tree: Any) -> Stored:
    """Returns the leaves of a tree by their paths; tensors are copied, so that further training doesn't change them."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Scalar] = {}
    for name, leaf in _leaves(tree)[0]:
        if isinstance(leaf, Tensor):
            tensors[name] = leaf.detach().clone()
        elif isinstance(leaf, np.ndarray):
            tensors[name] = torch.from_numpy(np.array(leaf))
        else:
            values[name] = json_value(leaf, exact=True)
    return Stored(tensors, values)


def restored(template: T, tensors: Mapping[str, Tensor], values: Mapping[str, Any], what: object) -> T:
    """Returns a tree with the structure, devices and types of the template, and the leaves that `stored` took.

    Args:
        template: a tree of the same structure, whose leaves have the shapes and types that are wanted.
        tensors: path -> tensor.
        values: path -> number or text.
        what: names their source in errors.

    Raises:
        lrenv.controllers.controller_file.ControllerFileError: names, shapes or types differ.
    """
    leaves, structure = _leaves(template)
    names = {name for name, _ in leaves}
    found = tensors.keys() | values.keys()
    if names != found:
        lacking, beyond = (", ".join(map(repr, sorted(some))) for some in (names - found, found - names))
        says = " and ".join(f"{verb} {some}" for verb, some in (("lacks", lacking), ("holds", beyond)) if some)
        raise _differs(what, says)
    tree: T = tree_unflatten([_leaf(name, leaf, tensors, values, what) for name, leaf in leaves], structure)
    return tree


def _leaf(name: str, like: Any, tensors: Mapping[str, Tensor], values: Mapping[str, Any], what: object) -> Any:
    if isinstance(like, Tensor | np.ndarray):
        wanted = like if isinstance(like, Tensor) else torch.from_numpy(like)
        held = tensors.get(name)
        if held is None or held.shape != wanted.shape or held.dtype != wanted.dtype:
            raise _differs(what, f"has {_described(held)} as {name!r}, where {_described(wanted)} is wanted")
        # A copy, since tensors from a file may lie at addresses at which products are rounded differently.
        return held.to(wanted.device, copy=True) if isinstance(like, Tensor) else held.clone().numpy()
    held_value = values.get(name)
    if isinstance(like, float) and isinstance(held_value, str | float | int):
        return float(held_value)
    if type(held_value) is not type(like):
        raise _differs(what, f"has {held_value!r} as {name!r}, where {like!r} stands at the beginning")
    return held_value


def _differs(what: object, says: str) -> ControllerFileError:
    return ControllerFileError(
        f"{what} {says}: it was written with other settings, or by another version of lrenv; start anew elsewhere"
    )


def _described(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _leaves(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    leaves, structure = tree_flatten_with_path(tree)
    return [(".".join(map(_step, path)), leaf) for path, leaf in leaves], structure


def _step(key: Any) -> str:
    """Returns the name of a step of a path: a field, a key of a dict, or a place in a tuple."""
    return str(next(getattr(key, name) for name in ("name", "key", "idx") if hasattr(key, name)))
