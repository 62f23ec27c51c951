"""Docstrings: Markdown, with the sections of Google's style."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

SECTIONS = ("Args", "Attributes", "Returns", "Raises")
_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):$")
_ENTRY = re.compile(r"^(\*{0,2}[\w.]+): +(.*)$")
_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{5})\b")
_LIMITS = re.compile(r"^Limits: (.+)$", re.DOTALL)


class Docstring(NamedTuple):
    """A docstring in parts."""

    text: str
    """What comes before the sections."""
    limits: str
    """The paragraph that begins with "Limits:", which is not in `text`; empty where there is none."""
    sections: dict[str, dict[str, str]]
    """Section -> name -> what it says of it; of `Returns` all is under the name ""."""

    @property
    def summary(self) -> str:
        """The first paragraph, in one line."""
        return " ".join(self.text.partition("\n\n")[0].split())

    @property
    def rest(self) -> str:
        """The text without its first paragraph."""
        return self.text.partition("\n\n")[2]


def parse(docstring: str | None) -> Docstring:
    """Returns a docstring in parts."""
    text: list[str] = []
    sections: dict[str, list[str]] = {}
    within = text
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading = _HEADING.match(line)
        if heading:
            within = sections.setdefault(heading[1], [])
        else:
            if within is not text and line and not line.startswith(" "):
                within = text  # a paragraph after a section
            within.append(line)
    kept, limits = [], ""
    for paragraph in "\n".join(text).strip().split("\n\n"):
        match = _LIMITS.match(paragraph)
        if match:
            limits = match[1][:1].upper() + match[1][1:]
        else:
            kept.append(paragraph)
    return Docstring("\n\n".join(kept), limits, {name: _entries(name, lines) for name, lines in sections.items()})


def _entries(section: str, lines: list[str]) -> dict[str, str]:
    body = inspect.cleandoc("\n" + "\n".join(lines))
    if section == "Returns":
        return {"": body}
    entries: dict[str, list[str]] = {}
    name = ""
    for line in body.splitlines():
        match = _ENTRY.match(line)
        if match:
            name = match[1]
            entries[name] = [match[2]]
        else:
            entries.setdefault(name, []).append(line.strip())
    return {name: " ".join(" ".join(text).split()) for name, text in entries.items()}


def with_papers(text: str) -> str:
    """Returns a text whose arXiv numbers are links."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def cell(text: object) -> str:
    """Returns a text as a cell of a table, in one line."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table; of cells that hold bars, these are written as such."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(each) for each in line)} |" for line in lines)
