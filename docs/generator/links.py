"""Links from names in backticks to the places that document them."""

from __future__ import annotations

import re
from functools import cache

from generator.source import exported, modules

_NAME = re.compile(r"`([\w.]+)(\(\))?`")
_SPAN = re.compile(r"(`[^`]+`)")
_BLOCK = re.compile(r"(?:^ {4}.*\n?)+|^```(?:.*\n)+?```$", re.MULTILINE)
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")


@cache
def known() -> dict[str, str]:
    """Returns the name of everything that has a place -> the name of that place; exported names lead to the origin."""
    names = {name: name for name in modules()}
    names |= {each.full: each.full for module in modules().values() for each in module.public}
    for module in modules():
        for name in exported(module):
            names.setdefault(f"{module}.{name}", origin(module, name))
    return names


@cache
def origin(module: str, name: str) -> str:
    """Returns the full name of what a module exports.

    Raises:
        LookupError: it can't be found.
    """
    wing = [each for each in modules() if each == module or each.startswith(f"{module}.")]
    for place in (*wing, *modules()):
        if any(public.name == name for public in modules()[place].public):
            return f"{place}.{name}"
    raise LookupError(f"{module}.__all__ names {name}, which no module defines publicly")


def placed(signature: str) -> str:
    """Returns a signature in which full names lead to their places; those without a place lose their modules."""
    return re.sub(r"\blrenv(?:\.\w+)+", lambda match: known().get(match[0], match[0].rpartition(".")[2]), signature)


def linked(text: str, module: str = "", within: str = "") -> str:
    """Returns a text whose names in backticks are links, where they have a place, and in which no word is an HTML tag.

    Args:
        text: Markdown.
        module: the module that it is about, whose names need no prefix.
        within: the class that it is about, whose members need none.
    """
    parts, end = [], 0
    for block in _BLOCK.finditer(text):  # code stays as it is
        parts += [_linked(text[end : block.start()], module, within), block[0]]
        end = block.end()
    return "".join([*parts, _linked(text[end:], module, within)])


def _linked(text: str, module: str, within: str) -> str:
    parts = _SPAN.split(text)
    return "".join(_link(part, module, within) if i % 2 else _TAG.sub(r"\<", part) for i, part in enumerate(parts))


def _link(code: str, module: str, within: str) -> str:
    match = _NAME.fullmatch(code)
    if match:
        for full in (match[1], f"{module}.{within}.{match[1]}", f"{module}.{match[1]}"):
            if full in known() and (full != match[1] or "." in full):
                role = "mod" if known()[full] in modules() else "obj"
                return f"{{py:{role}}}`{match[1]}{match[2] or ''} <{known()[full]}>`"
    return code
