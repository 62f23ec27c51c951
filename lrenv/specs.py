r"""Specs: how tasks, agents, rewards and observations are written in commands and in Python, with one parser.

    specs   = spec {"," spec}
    spec    = path | (name | file ":" object) {":" key "=" value}
    name    = a letter, digit or "_", then any of these and "." and "-"
    file    = the path of a Python file, which ends in ".py"
    object  = the name of something in that file
    key     = a Python identifier
    value   = a Python literal (0.1, 1e-3, (0.1, 0.01), 'text', True, None), or else plain text

- A path is whatever ends in `.safetensors`, all of it, whichever characters it holds:
  `runs/lr=0.1/controller.safetensors`, `C:\runs\x\controller.safetensors`. A value that ends so is quoted:
  `name:key='x.safetensors'`.
- One's own tasks, agents, rewards and observations are named by the file that holds them: `my_tasks.py:mine`,
  `C:\x\my_agents.py:Mine:rate=0.1`. A file whose path holds ":key=" is quoted: `'a:b=c/my_tasks.py':mine`.
- A ":" separates only where `key=` follows, so a value may hold colons: `name:time=12:30`.
- Within brackets and quotes neither "," nor ":" separates: `fds:lr=(0.1, 0.01),cosine`. A quote counts where a value
  may begin, so an apostrophe within a word doesn't.
- In a list, a file that exists is taken whole, commas and all: `runs/lr=0.1,seed=0/controller.safetensors,cosine`. The
  longest one counts. One that doesn't exist can be quoted.

>>> parse("cosine:peak=0.01:warmup=30")
Spec(name='cosine', settings={'peak': 0.01, 'warmup': 30})
>>> split("constant,fds:lr=(0.1, 0.01):optimizer='adam'")
['constant', "fds:lr=(0.1, 0.01):optimizer='adam'"]
>>> parse("runs/2026-11-26T12:21:20/controller.safetensors").is_path
True
>>> parse("examples/my_tasks.py:spirals:budget=200").own
Own(file='examples/my_tasks.py', name='spirals')
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lrenv.lookup import NAME

SUFFIX = ".safetensors"
_OWN = re.compile(r"""(?:'([^']*\.py)'|"([^"]*\.py)"|(.*\.py))\s*:\s*([^\W\d]\w*)""", re.DOTALL)
_SETTING = re.compile(r":\s*([^\W\d]\w*)\s*=")
QUOTES = ("'", '"')
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_LONGEST = 4096
"""Characters of a value that is read as a literal; longer than any setting, and far below what nests too deep."""


class Own(NamedTuple):
    """What somebody's own file holds.

    Attributes:
        file: the path of the Python file.
        name: what the object is called there.
    """

    file: str
    name: str


class Spec(NamedTuple):
    """A spec that was read.

    Attributes:
        name: the name that was given, or a path, or the file and the object in it.
        settings: the keyword arguments.
    """

    name: str
    settings: dict[str, Any]

    @property
    def is_path(self) -> bool:
        """Whether it names a controller file."""
        return self.name.endswith(SUFFIX)

    @property
    def own(self) -> Own | None:
        """The file and the object in it; None where an installed name or a path was given."""
        found = _OWN.fullmatch(self.name)
        return Own(found[1] or found[2] or found[3], found[4]) if found else None

    @property
    def short_name(self) -> str:
        """What the thing is called: the name, or that of the object in the file."""
        return self.own.name if self.own else self.name


def parse(spec: str) -> Spec:
    """Reads one spec.

    Raises:
        ValueError: it is none; the message says how one is written.
    """
    text = _unquoted(spec.strip())
    if text.endswith(SUFFIX):
        return Spec(text, {})
    begin = _file(text)
    free = {begin + i for i in _free(text[begin:])}
    marks = [mark for mark in _SETTING.finditer(text) if mark.start() in free]
    ends = [mark.start() for mark in marks] + [len(text)]
    name = text[: ends[0]].strip()
    if name.endswith(".py"):
        raise ValueError(f"{spec!r} names a file, but nothing in it: write {name}:NAME")
    if not NAME.fullmatch(name) and not _OWN.fullmatch(name):
        raise ValueError(
            f"{spec!r} is neither name:key=value:key=value, nor my_file.py:name:key=value, nor the path of a {SUFFIX} "
            "file"
        )
    settings: dict[str, Any] = {}
    for mark, end in zip(marks, ends[1:], strict=True):
        key, value = mark[1], text[mark.end() : end].strip()
        if key in settings:
            raise ValueError(f"{spec!r} gives {key} twice; give it once")
        if not value:
            raise ValueError(f"{spec!r} gives {key} no value; write {key}=value")
        settings[key] = _value(value)
    return Spec(name, settings)


def split(specs: str) -> list[str]:
    """Returns the specs of a list, still unread; empty ones are left out.

    Raises:
        ValueError: a bracket or quote is not closed.
    """
    found, rest = [], specs
    while rest:
        rest = rest.lstrip(" ,")
        begin = _file(rest)
        end = next((begin + i for i in _free(rest[begin:]) if rest[begin + i] == ","), len(rest))
        if item := rest[:end].strip():
            found.append(item)
        rest = rest[end:]
    return found


def _file(text: str) -> int:
    """Where the longest existing file ends that the text begins with, and that a spec may name; 0 if there is none."""
    ends = [len(text), *(i for i in range(len(text) - 1, 0, -1) if text[i] in ",:")]
    for end in ends:
        item = text[:end].strip()
        suffix = ".py" if text[end : end + 1] == ":" else SUFFIX
        if item.endswith(suffix) and os.path.isfile(item):
            return end
    return 0


def _free(text: str) -> Iterator[int]:
    """The places in a text that no bracket or quote encloses, one after the other.

    Raises:
        ValueError: at the end, if one is not closed.
    """
    closing: list[str] = []
    before, escaped = "", False
    for i, character in enumerate(text):
        if closing and closing[-1] in QUOTES:
            if character == closing[-1] and not escaped:
                closing.pop()
            escaped = character == "\\" and not escaped
        elif character in QUOTES and (not before.strip() or before in "=,:([{"):
            closing.append(character)
        elif character in _CLOSING:
            closing.append(_CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif not closing:
            yield i
        before = character
    if closing:
        raise ValueError(f"{text[:200]!r} lacks a closing {closing[-1]}")


def _unquoted(text: str) -> str:
    """The text without the quotes around all of it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES and text[0] not in text[1:-1]
    return text[1:-1] if quoted else text


def _value(text: str) -> Any:
    """A Python literal, or the text as it stands."""
    if len(text) > _LONGEST:
        raise ValueError(f"the value {text[:20]}... has {len(text)} characters; {_LONGEST} are allowed")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
