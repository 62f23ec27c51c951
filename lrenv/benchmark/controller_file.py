"""Files of trained controllers: tensors and JSON in one safetensors file, written whole or not at all, no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "lrenv-controller"
VERSION = 1
PACKAGES = ("lrenv", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")


class ControllerFileError(ValueError):
    """A file that can't be used as a controller."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a controller or a checkpoint; an interrupted write leaves the old file as it was.

    Args:
        path: the file.
        tensors: name -> tensor.
        metadata: JSON values; versions of the packages in play are added.
    """
    header = {"format": FORMAT, "version": VERSION, "versions": {name: version(name) for name in PACKAGES}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, partial, {"lrenv": json.dumps(header | dict(metadata))})
    os.replace(partial, path)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file that `write` made.

    Raises:
        FileNotFoundError: no such file.
        ControllerFileError: truncated, of another format, or of a newer version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no controller file {path}; train one with `python train_controller.py --help`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("lrenv", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ControllerFileError(
            f"{path} is damaged or no safetensors file ({error}); train or copy it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ControllerFileError(f"{path} is a safetensors file, but not one of lrenv's controllers")
    if metadata["version"] != VERSION:
        raise ControllerFileError(
            f"{path} has format version {metadata['version']}, this lrenv reads {VERSION}; it was written by lrenv "
            f"{metadata['versions']['lrenv']}: install that, or train again"
        )
    return metadata


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `write` made; raises as `read_metadata` does."""
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_agent(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of an agent's file.

    Raises:
        FileNotFoundError: no such file.
        ControllerFileError: it holds another agent or none, or as `read_metadata` says.
    """
    tensors, metadata = read(path)
    held = metadata.get("agent")
    if held != name:
        what = f"the agent {held!r}" if held else "the state of a training"
        raise ControllerFileError(f"{path} holds {what}, not the agent {name!r}")
    return tensors, metadata


def checked_state(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads `tensors` into `module`.

    Raises:
        ControllerFileError: names or shapes differ from the module's.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ControllerFileError(f"{path} doesn't hold the weights that its metadata promises: {error}") from error
