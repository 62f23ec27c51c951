"""What errors about names and objects say: which name was near, and what stands where something else is wanted."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`.

    Raises:
        ValueError: the name is not in the table; the message gives the near names, or all of them.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        near = get_close_matches(str(name), table, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it has no near name."
        known = ", ".join(sorted(table))
        raise ValueError(f"unknown {kind} {name!r}: {hint} Known: {known}") from None


def what_is(value: object) -> str:
    """What an object is, for an error: "a str", "a tuple of 2", "the class Linear", "None"."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    name = type(value).__name__
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}{length}"


def error_line(error: BaseException, file: str | None = None) -> str:
    """An error in a line: what it is, what it says, and where in the code that it came from.

    Args:
        error: the error, with its traceback.
        file: the path of the file whose last line in the traceback is told; that of the innermost one if None.
    """
    trace = traceback.extract_tb(error.__traceback__)
    where = trace[1:][-1:] if file is None else [frame for frame in trace if frame.filename == file][-1:]
    said = " ".join(str(error).split())
    at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}{': ' * bool(said)}{said}{at}"
