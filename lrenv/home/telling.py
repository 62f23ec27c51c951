"""What is said to the user: a warning of each kind once, in one of several processes."""

from __future__ import annotations

import sys
import warnings

from lrenv.home.processes import is_first

NOT_THE_USERS = ("lrenv", "torch", "accelerate", "lightning", "pytorch_lightning", "transformers")
"""Packages whose lines tell the user nothing."""


def outside(level: int) -> int:
    """The stack level of the first caller beyond `NOT_THE_USERS`, whose line a warning is to point at.

    Args:
        level: of the caller of this function, as `warnings.warn` counts there.
    """
    frame = sys._getframe(level)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    return level


class Telling:
    """Warns once of each kind of thing.

    Attributes:
        said: the kinds of which there was a warning.
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, kind: str, sentence: str) -> None:
        """Warns, if this is the first time and the process that speaks for all."""
        if kind not in self.said:
            self.never(kind)
            if is_first():
                warnings.warn(sentence, stacklevel=outside(2))

    def never(self, kind: str) -> None:
        """Lets there be no warning of this kind."""
        if kind not in self.said:
            self.said.append(kind)

    def again(self, kind: str) -> None:
        """Lets there be another warning of this kind."""
        self.said = [said for said in self.said if said != kind]
