"""The environment against the plain PyTorch loop that it replaces: `python benchmarks/against_loop.py --compile`.

All train with the same network, data, batch size and optimizer, and measure the validation loss once per interval.
"""

from __future__ import annotations

from functools import partial

import tyro

from environments import entrants
from harness import STEPS_RATE, Sized, race, report
from loops import modules


def main(settings: Sized) -> None:
    """Runs and reports the race."""
    loop = partial(modules, settings.task, settings.decisions, **settings.options)
    loops = {
        "loop over modules": loop,
        "loop, kept memory": partial(loop, keep=True),
        "loop with a DataLoader": partial(loop, dataloader=True),
    }
    title = f"{settings.label}: {settings.envs} environments against a loop over modules"
    result = race(title, STEPS_RATE, loops | entrants(settings), settings.turns, "loop over modules")
    report(result, settings.record)


if __name__ == "__main__":
    main(tyro.cli(Sized, description=__doc__))
