"""What is said to the user: a warning of each kind once, in one of several processes."""

from __future__ import annotations

import warnings

from lrenv.home.processes import is_first


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
            self.said.append(kind)
            if is_first():
                warnings.warn(sentence, stacklevel=2)

    def again(self, kind: str) -> None:
        """Lets there be another warning of this kind."""
        self.said = [said for said in self.said if said != kind]
