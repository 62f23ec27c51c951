"""Draws by name, for settings: each is a function of a key and of what it is called, so none depends on the others."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Draws by name: each is a hash of the key and of what is drawn.

    Numbers are rounded to three digits, so that the mathematical libraries of all machines give the same ones.
    """

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key))

    def uniform(self, what: str) -> float:
        """Draws a number in [0, 1)."""
        digest = hashlib.blake2b(f"{self._key}/{what}".encode(), digest_size=8).digest()
        return float((int.from_bytes(digest) >> 11) * 2.0**-53)

    def between(self, what: str, low: float, high: float) -> float:
        """Draws a number uniformly."""
        return float(f"{low + (high - low) * self.uniform(what):.3g}")

    def scale(self, what: str, low: float, high: float) -> float:
        """Draws a number uniformly on a logarithmic scale."""
        return float(f"{low * (high / low) ** self.uniform(what):.3g}")

    def count(self, what: str, low: int, high: int) -> int:
        """Returns a whole number from low to high, as good as uniform on a logarithmic scale."""
        return min(int(low * ((high + 1) / low) ** self.uniform(what)), high)

    def whether(self, what: str, share: float) -> bool:
        """Draws True with this chance."""
        return self.uniform(what) < share

    def one_of(self, what: str, weights: Mapping[T, float]) -> T:
        """Draws one with chances in proportion to the weights."""
        chance = self.uniform(what) * sum(weights.values())
        sums = itertools.accumulate(weights.values())
        return next(name for name, total in zip(weights, sums, strict=True) if chance < total)
