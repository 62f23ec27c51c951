"""Looking a name up in a table, with an error that helps whoever mistyped it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
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
