"""How many trainees should go through a decision together: `python benchmarks/groups.py --task digits-mlp --envs 1024`.

`Trainee.chunks` follows from this: on a CPU, as many as its caches hold, and one where there are convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import tyro

from environments import decisions
from harness import STEPS_RATE, Build, Sized, race, report


@dataclass(frozen=True)
class Groups(Sized):
    """The settings of the race: the same trainees in chunks of several sizes."""

    sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 1024)
    """Trainees per chunk (`chunk_size`)."""


def main(settings: Groups) -> None:
    """Runs and reports the race; the environment's own choice is the baseline."""
    own = partial(decisions, settings.task, settings.envs, settings.decisions, settings.compile, **settings.options)
    contestants: dict[str, Build] = {"its own choice": own}
    contestants |= {f"groups of {size}": partial(own, chunk_size=size) for size in settings.sizes}
    title = f"{settings.variant}: {settings.envs} environments in groups"
    report(race(title, STEPS_RATE, contestants, settings.turns, "its own choice"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Groups, description=__doc__))
