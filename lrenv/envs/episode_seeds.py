"""The seeds of episodes: a function of the seed that an environment was given and of how many episodes came since."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrenv.randomness import draws
from lrenv.randomness.seeds import random_seed, seeds_given

Mask = NDArray[np.bool_]


class EpisodeSeeds:
    """The seeds of n environments.

    Attributes:
        env_seeds: (n,), of the environments.
        episodes: (n,), how many came before the present one since the environment was seeded.
    """

    def __init__(self, n: int) -> None:
        self.env_seeds = np.zeros(n, dtype=np.int64)
        self.episodes = np.zeros(n, dtype=np.int64)
        self._given = np.zeros(n, dtype=np.bool_)

    def give(self, seed: int | Sequence[int | None] | None, mask: Mask) -> int | None:
        """Gives seeds to the environments where the mask (n,) holds.

        Args:
            seed: as `reset` of a vector environment takes it. None goes on to the next episodes, but draws seeds for
                environments that have none yet.
            mask: which are about to begin an episode.

        Returns:
            s, where the seeds are s, s + 1, ...

        Raises:
            ValueError: too few or too many seeds, or such as are none.
        """
        if seed is None and self._given[mask].all():
            self.advance(mask)
            return None
        seeds, first = seeds_given(seed, len(mask))
        for i in np.flatnonzero(mask):
            given = seeds[i]
            if given is None and self._given[i]:
                self.episodes[i] += 1
            else:
                self.env_seeds[i], self.episodes[i] = random_seed() if given is None else given, 0
        self._given |= mask
        return first

    def advance(self, mask: Mask) -> None:
        """Goes on to the next episodes where the mask (n,) holds."""
        self.episodes[mask] += 1

    def present(self) -> NDArray[np.int64]:
        """Returns the seeds (n,) of the present episodes."""
        return draws.episode_seeds(self.env_seeds, self.episodes)

    def upcoming(self, begun: Mask) -> NDArray[np.int64]:
        """Returns the seeds (n,) of the present episodes where `begun` (n,) holds, and of the next ones elsewhere."""
        return draws.episode_seeds(self.env_seeds, self.episodes + ~begun)

    def copied(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Copies of the environments' seeds and of the numbers of their episodes, for a snapshot."""
        return self.env_seeds.copy(), self.episodes.copy()

    def restore(self, env_seeds: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Goes on from what `copied` gave."""
        self.env_seeds, self.episodes = env_seeds.copy(), episodes.copy()
        self._given[:] = True
