"""Where the things come from that a spec names: installed packages, which advertise them, and one's own Python files.

A package advertises by entry points: a name, and the object behind it, which is imported when it is used. A file is run
when a spec names something in it, once as long as its content stays the same. Nothing but a spec that somebody has
written makes a file run; in particular no controller file does.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from lrenv.lookup import error_line, lookup
from lrenv.specs import Own

_MODULES: dict[Path, tuple[str, ModuleType]] = {}
"""Path -> (digest of what the file held, what running it made)."""


@cache
def advertised(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Returns what installed packages advertise under an entry-point group.

    Returns:
        Name -> its entry points, more than one where packages disagree.
    """
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, {})[point.value] = point
    return {name: tuple(points.values()) for name, points in sorted(found.items())}


def load_advertised(group: str, name: str, kind: str) -> Any:
    """Returns the object that a package advertises under a name.

    Args:
        group: the entry-point group.
        name: the name.
        kind: what the group holds, for errors: "agent".

    Raises:
        ValueError: nothing has that name, and the message gives the near ones; two packages advertise it; or the
            package is broken.
    """
    first, *others = lookup(advertised(group), name, kind)
    if others:
        told = " and ".join(map(source, (first, *others)))
        raise ValueError(f"there are two of {kind} {name!r}: {told}; uninstall one of the packages")
    try:
        return first.load()
    except Exception as error:
        raise ValueError(
            f"{kind} {name!r} is advertised as {first.value}, which can't be loaded ({error_line(error)}); install its "
            "package again"
        ) from error


def source(point: EntryPoint) -> str:
    """Returns an entry point in words: what it refers to, and whose it is."""
    return f"{point.value} of the package {point.dist.name}" if point.dist else point.value


def load_own(own: Own) -> Any:
    """Returns the object that a Python file holds under a name.

    The file runs as a module of its own, with its folder at the head of Python's path meanwhile, as a script's would
    be; it can import what lies beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file raises, or nothing in it has that name; the message lists what it has.
    """
    module = _module(own.file)
    held = vars(module)
    if own.name in held:
        return held[own.name]
    return lookup({name: x for name, x in held.items() if _is_own(name, x, module)}, own.name, f"name in {own.file}")


def digest(path: Path) -> str:
    """Returns a hash that tells a file from another of the same name."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def own_path(own: Own) -> Path:
    """Returns the path of the file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(own.file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {own.file} in {Path.cwd()}; my_file.py:name is a Python file's path and a name in it"
        )
    return path.resolve()


def _module(file: str) -> ModuleType:
    """The file as a module; it runs unless it has run with the same content."""
    path = own_path(Own(file, ""))
    content = digest(path)
    if path in _MODULES and _MODULES[path][0] == content:
        return _MODULES[path][1]
    spec = spec_from_file_location(_free_name(path), path)
    assert isinstance(spec, ModuleSpec)
    module = module_from_spec(spec)
    # Dataclasses and pickle look a class's module up.
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module
    try:
        with _importing_beside(path):
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = before
        told = error_line(error, str(path))
        raise ValueError(f"{file} can't be used, since running it raises {told}") from error
    _MODULES[path] = content, module
    return module


def _free_name(path: Path) -> str:
    """What the file's module is called: no name of a module that somebody may import.

    It is the same in every process that runs files of one stem in the same order: the second one's has a 2 behind it.
    """
    taken = {module.__name__ for other, (_, module) in _MODULES.items() if other != path}
    names = (f"own_{path.stem}{number}" for number in ("", *range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Within the block, modules that lie beside the file are found first."""
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _is_own(name: str, value: object, module: ModuleType) -> bool:
    """Whether a name in a module is worth listing: no private one, and nothing that was imported."""
    imported = isinstance(value, type | FunctionType) and value.__module__ != module.__name__
    return not (name.startswith("_") or isinstance(value, ModuleType) or imported or name == "annotations")
