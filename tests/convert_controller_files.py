"""Rewrites controller files of format version 1 in place: `python tests/convert_controller_files.py FILE ...`.

Tensors and facts stay the same to the last bit, also which packages wrote them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open

from lrenv.controllers import controller_file


def convert(path: Path) -> bool:
    """Whether the file was of version 1, and now is of the present one."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["lrenv"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if metadata["version"] != 1:
        return False
    controller_file.write(path, tensors, metadata)
    return True


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {'converted' if convert(Path(name)) else 'already converted'}")
