"""Where data files live, and tensors kept there so that they are made only once."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor


def data_root() -> Path:
    """Where data files live: `$LRENV_DATA`, or `~/.cache/lrenv/data`."""
    return Path(os.environ.get("LRENV_DATA") or "~/.cache/lrenv/data").expanduser().absolute()


def stored(name: str, version: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors kept below `data_root()/tensors`, or else those of `make`, which are then put there.

    A new version deletes the old ones. A file that cannot be read is made anew; a folder that cannot be
    written costs the next process the same work, nothing else. Both warn.
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
