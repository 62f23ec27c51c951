"""The study of hypergradients, from its command to its files, at its smallest scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from flow import Lines
from metz2019_hypergradients import HILL, OUTER_RATE, TOY_RATE, Hypergradients, Settings
from metz2019_hypergradients_report import claims

LOSS = Polynomial.fromroots([4, 3, 0, 0])
Results = dict[str, list[dict[str, Any]]]
"""Part -> its results."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metz2019")


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    Hypergradients(Settings(scale="smoke", out=out)).run()
    parts: Results = {}
    for result in Lines(out / "runs.jsonl", ("part", "setting")).where():
        parts.setdefault(result["part"], []).append(result)
    return parts


def test_slopes_by_momentum_are_those_of_the_recursion(results: Results) -> None:
    """v = mu v + l'(w), w = w - lr v, and the same differentiated by mu."""
    slope, curvature = LOSS.deriv(), LOSS.deriv(2)
    for result in results["momentum"]:
        mu = np.array(result["momentum"])
        w, v = np.full_like(mu, np.float32(-1.2)), np.zeros_like(mu)
        dw, dv = np.zeros_like(mu), np.zeros_like(mu)
        for _ in range(result["setting"]):
            dv = v + mu * dv + curvature(w) * dw
            v = mu * v + slope(w)
            w, dw = w - TOY_RATE * v, dw - TOY_RATE * dv
        np.testing.assert_allclose(result["weight"], w, rtol=1e-8)
        np.testing.assert_allclose(result["loss"], LOSS(w), rtol=1e-8)
        np.testing.assert_allclose(result["slope"], slope(w) * dw, rtol=1e-7)


def test_the_path_leads_to_where_training_ends(results: Results) -> None:
    (path,) = results["trajectory"]
    short = min(results["momentum"], key=lambda result: result["setting"])
    ends = dict(zip(short["momentum"], short["weight"], strict=True))
    expected = [ends[momentum] for momentum in path["momentum"]]
    assert path["weights"][short["setting"]] == pytest.approx(expected, rel=1e-9)


def test_the_transition_is_where_the_weight_first_ends_beyond_the_hill(results: Results) -> None:
    for result in results["momentum"]:
        end = dict(zip(result["momentum"], result["weight"], strict=True))
        assert end[result["transition"]] > HILL
        assert all(weight <= HILL for momentum, weight in end.items() if momentum < result["transition"])
    assert LOSS.deriv()(HILL) == pytest.approx(0, abs=1e-12)
    assert LOSS.deriv(2)(HILL) < 0


def test_windows_cover_the_training(results: Results) -> None:
    assert {r["setting"]: r["steps"] for r in results["windows"]} == {3: [3, 6, 9, 12], 12: [12]}
    for result in results["learned"]:
        assert result["lr"][0] == pytest.approx(1e-3)
        # Adam's first step has the length of its rate, against the sign of the sum of all windows.
        (windows,) = (r for r in results["windows"] if r["setting"] == result["setting"])
        expected = -OUTER_RATE * np.sign(sum(windows["slopes"]))
        assert np.log(result["lr"][1] / result["lr"][0]) == pytest.approx(expected, rel=1e-3)


def test_figures_and_tables_are_there_and_nothing_is_computed_again(out: Path, results: Results) -> None:
    for name in ("momentum.png", "horizon.png", "truncation.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    table = (out / "results.md").read_text()
    assert len(results["learned"]) == sum(line.startswith(("| 3 |", "| 12 |")) for line in table.splitlines())
    before = (out / "runs.jsonl").read_bytes()
    Hypergradients(Settings(scale="smoke", out=out)).run()
    assert (out / "runs.jsonl").read_bytes() == before


def test_claims_follow_the_numbers() -> None:
    slopes = [{"setting": n, "slope": [0.0, None, x]} for n, x in ((5, 1.0), (10, -3.0), (20, 2.0))]
    sizes = [{"setting": 0.5, "steps": [2, 8], "slopes": [[1.0, 1.0], [4.0, x]]} for x in (4.0, 5.0)]
    windows = [{"slopes": [3.0, -1.0]}, {"slopes": [-0.5]}]

    def learned_to(*losses: float) -> list[Any]:
        """By short windows and by whole trainings; the last two of eight steps count."""
        pairs = zip((3, 12), (2e-3, 5e-4), losses, strict=True)
        made = [{"setting": n, "lr": [1e-3, lr], "loss": [1.0] * 6 + [x, x + 0.01]} for n, lr, x in pairs]
        return list(zip(made, windows, strict=True))

    pairs = learned_to(0.8, 0.7)
    rows = list(claims(slopes, sizes, pairs))
    assert [row.holds for row in rows] == ["no (1 of 2)", "yes", "no", "yes", "yes"]
    assert rows[0].ours == "largest slope 1 after 5, 3 after 10, 2 after 20 steps"
    assert rows[-1].ours == "+2 against -0.5"
    assert rows[3].ours == (
        "in the mean of the last 2 outer steps 0.8050 up to a rate of 0.002, against 0.7050 up to a rate of 0.0005"
    )
    assert [row.holds for row in claims([], sizes[:1], pairs[::-1])] == ["no", "yes", "no", "yes"]
    assert [row.holds for row in claims([], [], learned_to(0.71, 0.7))] == ["no", "level", "yes"]
    assert not list(claims(slopes[:1], [], pairs[:1]))
