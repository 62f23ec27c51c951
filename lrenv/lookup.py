"""Checks of names, numbers and objects, and what their errors say."""

from __future__ import annotations

import inspect
import operator
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What is registered under a name can be written in specs (`lrenv.specs`) if it is of this form."""


def lookup(table: Mapping[str, T], name: str, kind: str, hint: str = "") -> T:
    """Returns `table[name]`.

    Args:
        table: name -> what it means.
        name: the name.
        kind: what the names are of, for errors: "reward".
        hint: what else may have been meant, for errors.

    Raises:
        ValueError: the name is not in the table; the message gives the near names, all of them, and the hint.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        near = get_close_matches(str(name), table, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "it has no near name."
        known = ", ".join(sorted(table))
        raise ValueError(f"unknown {kind} {name!r}: {meant} Known: {known}{hint}") from None


def what_is(value: object) -> str:
    """Describes an object for an error: "a str", "a tuple of 2", "the class Linear", "None"."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    name = type(value).__name__
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{_article(name)} {name}{length}"


def count(name: str, value: int, least: int = 1) -> int:
    """Checks that `value` counts something.

    Raises:
        TypeError: not an integer.
        ValueError: below the least.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return number


def check_arguments(kind: str, function: Callable[..., object], *names: str) -> None:
    """Checks that a function can be called with these arguments.

    Args:
        kind: what the function is, for errors: "reward".
        function: the function; one that doesn't tell its arguments passes.
        names: what the arguments are, in order.

    Raises:
        TypeError: it takes others.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    try:
        signature.bind(*names)
    except TypeError:
        called = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{_article(kind)} {kind} is called with ({', '.join(names)}), which {called}{signature} doesn't take"
        ) from None


def check_settings(whose: str, function: Callable[..., object], given: Iterable[str], hint: str = "") -> None:
    """Checks that a function has arguments of the names that are given; one that doesn't tell its arguments passes.

    Args:
        whose: for errors, such as "agent 'cosine'".
        function: what is to be called with them.
        given: the names.
        hint: what else may have been meant, for errors.

    Raises:
        ValueError: it has no argument of a name; the message gives the near names, all of them, and the hint.
    """
    try:
        arguments = inspect.signature(function).parameters
    except ValueError:
        return
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return
    for name in given:
        if not arguments:
            raise ValueError(f"{whose} takes no settings, but got {name}{hint}")
        lookup(arguments, name, f"setting of {whose}:", hint)


def check_new(
    kind: str, name: str, taken: Collection[str], own: Collection[str], replace_existing: bool, told: str = ""
) -> None:
    """Checks that something may be registered under a name.

    Args:
        kind: of what is registered, for errors: "reward".
        name: for it.
        taken: names of that kind.
        own: those among them that are lrenv's own, which nothing replaces.
        replace_existing: whether a taken name may be used again.
        told: what else the error says of the one that has the name.

    Raises:
        ValueError: the name has another form than `NAME`, or is taken.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{_article(kind)} {kind} can't be named {name!r}: use letters, digits, '_', '.' and '-' of ASCII"
        )
    if name in own:
        raise ValueError(f"{kind} {name!r} is lrenv's own; choose another name")
    if name in taken and not replace_existing:
        raise ValueError(
            f"{_article(kind)} {kind} {name!r} exists{told}; choose another name or pass replace_existing=True"
        )


def _article(noun: str) -> str:
    return "an" if noun[0] in "AEIOUaeiou" else "a"


def error_line(error: BaseException, file: str | None = None) -> str:
    """Returns an error in a line: what it is, what it says, and where in the code that it came from.

    Args:
        error: the error, with its traceback.
        file: the path of the file whose last line in the traceback is told; that of the innermost one if None.
    """
    trace = traceback.extract_tb(error.__traceback__)
    where = trace[1:][-1:] if file is None else [frame for frame in trace if frame.filename == file][-1:]
    said = " ".join(str(error).split())
    at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}{': ' * bool(said)}{said}{at}"


def raised_line(error: BaseException) -> str:
    """Returns the line of an error that somebody else's function raised, with the last place in the function's file.

    Args:
        error: the error, caught by the caller of the function.
    """
    trace = traceback.extract_tb(error.__traceback__)
    return error_line(error, trace[1].filename if len(trace) > 1 else None)
