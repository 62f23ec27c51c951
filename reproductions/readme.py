"""Draws the committed results from their lines: `python reproductions/readme.py`.

Every `results/*/results.md` with its figures, and the table of all claims in `README.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import baydin2018
import fu2017
import metz2019
import metz2019_hypergradients
import micaelli2021
import xu2019
from flow import COLUMNS, HERE, LINES, Reproduction, Settings, markdown
from lrenv.runtime.files import replace_file
from lrenv.runtime.process import status_of

RESULTS = HERE / "results"
README = HERE / "README.md"
TITLE = "## All claims\n"
"""What follows it in README.md is drawn."""


ALL: dict[str, tuple[Any, type[Settings], dict[str, Any]]] = {
    "xu2019": (xu2019.Xu2019, xu2019.Settings, {"scale": "gpu"}),
    "xu2019_cpu": (xu2019.Xu2019, xu2019.Settings, {"scale": "cpu", "beside": RESULTS / "xu2019"}),
    "baydin2018": (baydin2018.Baydin2018, baydin2018.Settings, {"scale": "cpu"}),
    "fu2017": (fu2017.Fu2017, fu2017.Settings, {"scale": "cpu"}),
    "metz2019": (metz2019.Metz2019, metz2019.Settings, {"scale": "cpu"}),
    "metz2019_hypergradients": (
        metz2019_hypergradients.Hypergradients, metz2019_hypergradients.Settings, {"scale": "cpu"}
    ),
    "micaelli2021": (micaelli2021.Micaelli2021, micaelli2021.Settings, {"scale": "cpu"}),
}  # fmt: skip
"""Folder of results -> the reproduction, and the settings that it was made with."""


def committed() -> list[Reproduction[Any, Any]]:
    """The reproductions whose lines are committed."""
    return [
        kind(settings(out=RESULTS / name, **own))
        for name, (kind, settings, own) in ALL.items()
        if (RESULTS / name / LINES).exists()
    ]


def table(reproductions: list[Reproduction[Any, Any]]) -> str:
    """All claims under one another, with the page that each is from."""
    rows = [
        (f"[{own.paper}]({page_of(own.out)}): {claim.paper}", *claim[1:])
        for own in reproductions
        for claim in own.report().claims
    ]
    return markdown(COLUMNS, rows)


def page_of(out: Path) -> str:
    """The page of results in a folder, from README.md."""
    return (out / "results.md").relative_to(HERE).as_posix()


def main() -> None:
    """Draws everything anew."""
    found = committed()
    for own in found:
        own.draw()
    text, _, _ = README.read_text().partition(TITLE)
    replace_file(README, f"{text}{TITLE}\n{table(found)}")


if __name__ == "__main__":
    sys.exit(status_of(main))
