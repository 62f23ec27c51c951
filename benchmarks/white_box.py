"""What it costs to observe gradients: `python benchmarks/white_box.py --compile`.

Environments that observe one part each take turns; the baseline observes losses and the clock. Small intervals show the
most: `--interval 1` is how hypergradient descent acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import tyro

from environments import decisions
from harness import STEPS_RATE, Build, Sized, race, report

PARTS = {
    "hypergradient": ("set-raw", "hypergradient"),
    "hypergradient of each layer": ("set-raw/layer", "hypergradient"),
    "hypergradient of each parameter": ("set-raw/parameter", "hypergradient"),
    "mean gradient": ("set-raw", "mean_gradient"),
}
"""Contestant -> control and part."""


@dataclass(frozen=True)
class WhiteBox(Sized):
    """Environments that observe different things."""

    interval: int = 10
    """Inner steps a decision. The validation split is measured every ten inner steps in any case."""


def main(settings: WhiteBox) -> None:
    """Runs and reports the race."""
    options = settings.options | {"interval": settings.interval, "measure_interval": max(10, settings.interval)}
    own = partial(decisions, settings.task, settings.envs, settings.decisions, settings.compile, **options)
    contestants: dict[str, Build] = {"losses and the clock": partial(own, observe="clock")}
    for name, (control, part) in PARTS.items():
        contestants[name] = partial(own, control=control, observe=("clock", part))
    title = f"{settings.variant}: {settings.envs} environments that observe gradients, interval {settings.interval}"
    report(race(title, STEPS_RATE, contestants, settings.turns, "losses and the clock"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(WhiteBox, description=__doc__))
