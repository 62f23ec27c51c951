"""Files of trained controllers: tensors and JSON in one safetensors file, written whole or not at all, no pickle.

A file is checked part by part, each before the next is read: it is a regular file with a header of bounded size; its
metadata have the checksum that is written beside them and fit the schema; its tensors have the shapes that the metadata
describe; their bytes have the checksum in the metadata, and their values are finite. Nothing is built from a number in
the file before that.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lrenv.controllers import schema
from lrenv.runtime.files import replace_file

FORMAT = "lrenv-controller"
VERSION = 2
PACKAGES = ("lrenv", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")
"""The packages whose versions are written into a file."""
LARGEST_HEADER = 2**19
"""The largest number of bytes of names, shapes and metadata; a thousand tensors take a fifth of it."""
LARGEST_METADATA = 2**17
"""The largest number of characters of JSON, parsed within 0.1 s; a hundred settings take a thirtieth of it."""
LARGEST_WEIGHT = 1e12
"""The largest weight: trained ones are smaller, and sums of `schema.LARGEST_SIZE` such are finite in float32."""


class ControllerFileError(ValueError):
    """An error: a file can't be used as a controller."""


class TensorSpec(NamedTuple):
    """The shape, type and range that a tensor in a file must have.

    Attributes:
        shape: None stands for any length.
        dtypes: the dtypes that it may have, by their names in safetensors.
        low: the lowest value that it may hold.
        high: the highest value.
    """

    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...] = ("F32",)
    low: float = -LARGEST_WEIGHT
    high: float = LARGEST_WEIGHT


class ControllerFile:
    """An open file, whose metadata are as they were written and fit the schema.

    Attributes:
        path: the file's path.
        metadata: JSON values.
        table: name -> (dtype, shape) of its tensors.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.metadata = _checked_metadata(path, file.metadata() or {})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        self.table = {name: (str(x.get_dtype()), tuple(x.get_shape())) for name, x in slices.items()}

    def tensors(self, wanted: Mapping[str, TensorSpec] | None = None) -> dict[str, Tensor]:
        """Reads all tensors into memory that is aligned to 64 bytes.

        In the file their place depends on the length of the header, and matrix products round differently at addresses
        that are not aligned: a training that continues from a file would end elsewhere than an uninterrupted one.

        Args:
            wanted: name -> spec of the tensors that the file must hold, and no others; any tensors if None.

        Raises:
            ControllerFileError: the tensors don't fit their specs, or are not as they were written.
        """
        if wanted is not None:
            self._compare(wanted)
        tensors = {name: self._file.get_tensor(name).clone() for name in sorted(self.table)}
        if _digest(tensors) != self.metadata["sha256"]:
            raise ControllerFileError(f"{self.path} is damaged: its checksum is another; train or copy it again")
        for name, spec in (wanted or {}).items():
            x = tensors[name]
            if not bool(((x >= spec.low) & (x <= spec.high)).all()):
                bounds = f"finite numbers from {spec.low:g} to {spec.high:g}"
                raise ControllerFileError(
                    f"{self.path}: the values of {name} must be {bounds}; the training that wrote it has broken down, "
                    "so train again with smaller rates"
                )
        return tensors

    def _compare(self, wanted: Mapping[str, TensorSpec]) -> None:
        for name, spec in wanted.items():
            if name not in self.table:
                self._refuse(f"{name} is missing")
            dtype, shape = self.table[name]
            fits = len(shape) == len(spec.shape) and all(
                asked in (None, found) for asked, found in zip(spec.shape, shape, strict=True)
            )
            if not fits:
                self._refuse(f"{name} has shape {shape}, not {spec.shape}")
            if dtype not in spec.dtypes:
                self._refuse(f"{name} has dtype {dtype}, not {' or '.join(spec.dtypes)}")
        if others := self.table.keys() - wanted.keys():
            self._refuse(f"{_short(min(others))} is one too many")

    def _refuse(self, why: str) -> None:
        raise ControllerFileError(
            f"{self.path} doesn't hold the weights that its metadata describe: {why}; train or copy it again"
        )


@contextmanager
def opened(path: Path) -> Iterator[ControllerFile]:
    """Opens a file that `write` made; a ValueError in the block becomes a ControllerFileError that names the file.

    Raises:
        FileNotFoundError: there is no such file.
        ControllerFileError: the file is unreadable, damaged, of another format or version, or its metadata don't fit
            the schema.
    """
    try:
        _check_regular(path)
        with safe_open(path, framework="pt") as file:
            yield ControllerFile(path, file)
    except (ControllerFileError, FileNotFoundError):
        raise
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ControllerFileError(
            f"{path} is damaged or no safetensors file ({_short(reason)}); train or copy it again"
        ) from error
    except ValueError as error:
        raise ControllerFileError(f"{path} can't be used: {error}; train it again, or take another file") from error


@contextmanager
def opened_agent(path: Path, name: str) -> Iterator[ControllerFile]:
    """Opens the file of an agent.

    Raises:
        FileNotFoundError: there is no such file.
        ControllerFileError: it holds another agent or none, or `opened` refuses it.
    """
    with opened(path) as file:
        held = file.metadata.get("agent")
        if held != name:
            what = f"the agent {held!r}" if held else "the state of a training"
            raise ControllerFileError(f"{path} holds {what}, not the agent {name!r}")
        yield file


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns tensors, aligned to 64 bytes, and metadata of a file that `write` made; raises as `opened` does."""
    with opened(path) as file:
        return file.tensors(), file.metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a file that `write` made, without reading its tensors; raises as `opened` does."""
    with opened(path) as file:
        return file.metadata


def agent_name(path: Path) -> str:
    """Returns the name of the agent that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ControllerFileError: it holds none, or `opened` refuses it.
    """
    name: str | None = read_metadata(path).get("agent")
    if name is None:
        raise ControllerFileError(f"{path} holds no agent but the state of a training; take the controller beside it")
    return name


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a controller, if the metadata name its agent, or else a checkpoint.

    The file is written as a whole or not at all.

    Args:
        path: the file.
        tensors: name -> tensor.
        metadata: JSON values that fit `schema.KINDS`; the versions of `PACKAGES` are added.

    Raises:
        ValueError: `read` would refuse the metadata, or there are too many tensors.
        OSError: the file can't be written; the old one stays as it was.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    kind = "controller" if "agent" in metadata else "checkpoint"
    fixed = {"format": FORMAT, "version": VERSION, "kind": kind, "sha256": _digest(plain)}
    text = json.dumps({"versions": {name: version(name) for name in PACKAGES}} | dict(metadata) | fixed)
    schema.KINDS[kind]("metadata", json.loads(text))
    # The library's own function to write files would leave one of a random name behind when it is killed.
    content = _ordered(save(plain, {"lrenv": text, "sha256": _sha256(text)}))
    if int.from_bytes(content[:8], "little") > LARGEST_HEADER or len(text) > LARGEST_METADATA:
        raise ValueError(f"{path} would have too many tensors, or metadata that are too long, to be read again")
    replace_file(path, content)


def _checked_metadata(path: Path, beside: Mapping[str, str]) -> dict[str, Any]:
    """Returns the metadata in a safetensors header, checked."""
    text = beside.get("lrenv", "null")
    if "sha256" in beside and beside["sha256"] != _sha256(text):
        raise ControllerFileError(f"{path} is damaged: the checksum of its metadata is another; train or copy it again")
    if len(text) > LARGEST_METADATA:
        raise ControllerFileError(f"{path} has metadata of {len(text)} characters, too many; take another file")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ControllerFileError(f"{path} has damaged metadata ({_short(error)}); train or copy it again") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ControllerFileError(f"{path} is a safetensors file, but not one of lrenv's controllers; take another")
    if metadata.get("version") != VERSION or "sha256" not in beside:
        raise ControllerFileError(
            f"{path} has format version {_short(repr(metadata.get('version')))}, this lrenv reads {VERSION}; train "
            "again, or use the lrenv that wrote it"
        )
    fixed = {"format": schema.TEXT, "version": schema.integer(1), "sha256": schema.TEXT}
    schema.record(fixed | {"kind": schema.one_of(schema.KINDS)}, {})("metadata", metadata)
    schema.KINDS[metadata["kind"]]("metadata", metadata)
    if ("agent" in metadata) != (metadata["kind"] == "controller"):
        raise ControllerFileError(f"{path} is a checkpoint that names an agent; train or copy it again")
    return metadata


def _check_regular(path: Path) -> None:
    """Checks, before a file is opened, that it is a regular file and that its header is short enough."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no controller file {path}; `lrenv train --help` says how to train one") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ControllerFileError(f"{path} is {what}; name the file of a controller, which ends in .safetensors")
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except PermissionError as error:
        raise ControllerFileError(f"{path} may not be read; ask its owner for the permission, or copy it") from error
    if size > LARGEST_HEADER:
        raise ControllerFileError(
            f"{path} is damaged or no safetensors file (a header of {size} bytes); train or copy it again"
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of the tensors in the order of their names: name, dtype and shape as JSON, then the bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _ordered(content: bytes) -> bytes:
    """Sorts the metadata by name, since the library's order changes from write to write; returns the file's bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(text: object) -> str:
    """Returns the beginning of a message that may be as long as the file."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:200]}..."
