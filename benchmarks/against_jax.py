"""The environment against the same work in JAX: `python benchmarks/against_jax.py --compile`.

JAX's trainees (`jax_trainees.py`) have the same network, batch size and Adam, and measure the validation loss once per
interval. They draw batches with replacement, which spares them the shuffle, and XLA has its default flags.
`pip install -e '.[bench]'` installs JAX.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import tyro

from environments import entrants
from harness import STEPS_RATE, Sized, Turn, race, report


def in_jax(*args: Any, **settings: Any) -> Turn:
    """Builds `jax_trainees.trainees`, importing JAX in the contestant's own process alone."""
    from jax_trainees import trainees

    return trainees(*args, **settings)


def main(settings: Sized) -> None:
    """Runs and reports the race."""
    if find_spec("jax") is None:
        raise SystemExit("JAX is missing: pip install -e '.[bench]'")
    jax = partial(in_jax, settings.task, settings.envs, settings.decisions, **settings.options)
    contestants = {"JAX, vmap": jax, "JAX, one by one": partial(jax, sequential=True)} | entrants(settings)
    title = f"{settings.label}: {settings.envs} environments against JAX"
    report(race(title, STEPS_RATE, contestants, settings.turns, "JAX, vmap"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(Sized, description=__doc__))
