"""The folder of data files, and tensors that are kept in it so that they are computed only once."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor


def data_root() -> Path:
    """Returns the folder of data files: `$LRENV_DATA`, or `~/.cache/lrenv/data`."""
    return Path(os.environ.get("LRENV_DATA") or "~/.cache/lrenv/data").expanduser().absolute()


def stored(name: str, version: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors kept below `data_root()/tensors`, or else those of `make`, which are then kept there.

    A file that can't be read is written again. Where the folder can't be written, the next process computes the tensors
    again. Both cases warn.

    Args:
        name: names the tensors.
        version: names what they depend on; writing one version deletes the others.
        make: computes name -> tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = data_root() / "tensors" / f"{name}-{version}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"stored tensors {path} cannot be read ({error}): making them again", stacklevel=2)
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written elsewhere, then moved: another process sees a whole file or none.
        with TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, whole)
            whole.replace(path)
        for old in {*path.parent.glob(f"{name}-*.safetensors")} - {path}:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"tensors could not be stored in {path} ({error})", stacklevel=2)
    return tensors


def digest(parts: Iterable[object]) -> str:
    """Returns a short hash of how the parts print."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
