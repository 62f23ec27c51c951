"""How a comparison is shown: order, what is bold, who is said to be ahead, figures, and a page that stands alone."""

from __future__ import annotations

import html
import io
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from lrenv.benchmark import Comparison, compare, evaluate, figures
from lrenv.benchmark.evaluation import Result
from lrenv.benchmark.figures import INK, figure, styles
from lrenv.benchmark.page import page
from lrenv.benchmark.report import save_report, table
from lrenv.benchmark.rows import Row, Runs
from lrenv.benchmark.statistics import paired, paired_interval, welch
from lrenv.benchmark.wording import cells, headings, verdict
from lrenv.training.tasks import make_task

NOISY = make_task("noisy-quadratic", budget=20, interval=5)
VOID = {"meta", "path", "use"}


def result_of(test_loss: list[float], diverged: bool = False) -> Result:
    one = evaluate("constant:peak=0.1", NOISY, range(len(test_loss)), device="cpu")
    return replace(one, test_loss=np.array(test_loss), diverged=np.array([diverged, *[False] * (len(test_loss) - 1)]))


def comparison_of(results: dict[str, Result | None], baseline: str) -> Comparison:
    rows = [Row(label, label, "", Runs(), result, "" if result else "no") for label, result in results.items()]
    seeds = max(len(result.seeds) for result in results.values() if result)
    return Comparison(NOISY, seeds, baseline, rows, {"command": "lrenv compare", "machine": "a machine"})


@pytest.fixture(scope="module")
def mixed() -> Comparison:
    """`b` is lowest, `a` level with it, `c` worse on every seed; a run of `d` diverged, and `e` failed."""
    return comparison_of(
        {
            "e": None, "c": result_of([0.60, 0.72, 0.81, 0.70]), "d": result_of([0.1, 0.1, 0.1, 0.1], diverged=True),
            "a": result_of([0.50, 0.41, 0.62, 0.53]), "b": result_of([0.40, 0.52, 0.61, 0.50]),
        },
        "a",
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone() -> Comparison:
    """`b` alone is ahead: seed by seed `a` is worse, whatever the spread between seeds."""
    return comparison_of({"a": result_of([0.43, 0.55, 0.63, 0.54]), "b": result_of([0.40, 0.52, 0.61, 0.50])}, "a")


def losses(comparison: Comparison, label: str) -> NDArray[Any]:
    return next(result.test_loss for row, result in comparison.whole if row.label == label)


def test_an_interval_by_hand() -> None:
    """Differences 1 to 5: the mean 3, the deviation sqrt(2.5), and t = 2.7764 for four degrees of freedom."""
    baseline = np.array([7.0, -3.0, 0.5, 2.0, 11.0])
    mean, half = paired_interval(baseline + np.arange(1.0, 6.0), baseline)
    assert mean == pytest.approx(3)
    assert half == pytest.approx(2.7764 * np.sqrt(2.5 / 5), rel=1e-4)
    assert paired_interval(baseline + 1, baseline) == (1.0, 0.0)


def test_an_interval_holds_zero_where_the_test_finds_nothing() -> None:
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(200):
        ours, theirs = rng.normal(0.3, 1, 6), rng.normal(0, 1, 6)
        for level in (0.8, 0.95):
            mean, half = paired_interval(ours, theirs, level)
            assert (abs(mean) <= half) == (paired(ours, theirs) >= 1 - level)
            found.add(bool(abs(mean) <= half))
            low, high = stats.ttest_rel(ours, theirs).confidence_interval(level)
            assert (mean - half, mean + half) == pytest.approx((low, high))
    assert found == {True, False}


def test_an_interval_at_its_edges() -> None:
    one = paired_interval(np.array([2.0]), np.array([1.5]))
    assert one[0] == 0.5
    assert np.isnan(one[1])
    assert np.isnan(paired_interval(np.array([np.inf, 1.0]), np.array([np.inf, 2.0]))).all()


def test_rows_are_in_the_order_of_the_test_loss(mixed: Comparison) -> None:
    assert [row.label for row in mixed.ranked] == ["b", "a", "c", "d", "e"]
    assert [row.label for row in mixed.best] == ["b", "a"]
    text = page(mixed)
    places = [text.index(f"</svg> {label}</th>") for label in "bacde"]
    assert places == sorted(places)


def test_only_who_is_alone_ahead_is_bold(mixed: Comparison, alone: Comparison) -> None:
    assert welch(losses(alone, "a"), losses(alone, "b")) > 0.5
    assert "class=best" not in page(mixed)
    assert page(alone).count("<tr class=best>") == 1
    assert re.search(r"<tr class=best><th scope=row>.*? b</th>", page(alone))
    for comparison, bold in ((mixed, ()), (alone, ("b",))):
        shown = table(comparison)
        names = [str(cell) for cell in shown.columns[0].cells]
        assert [name for name, row in zip(names, shown.rows, strict=True) if row.style == "bold"] == list(bold)


def test_the_verdict(mixed: Comparison, alone: Comparison) -> None:
    mean, half = paired_interval(losses(mixed, "c"), losses(mixed, "b"))
    assert mean == pytest.approx(0.2)
    said = verdict(mixed)
    assert "b has the lowest test loss. It is level with a (+0.0075 ± " in said
    assert f"and ahead of c (+0.2000 ± {half:.4f})." in said
    assert said.endswith("Left out: e (failed), d (1 of 4 runs diverged).")
    assert "It is ahead of a (+0.0300 ± " in verdict(alone)
    assert "level" not in verdict(alone)
    assert "so none is ahead" in verdict(comparison_of({"d": result_of([0.1, 0.2], True)}, "d"))
    assert verdict(comparison_of({"a": result_of([0.1, 0.2])}, "a")) == "a is the only agent; there is none to compare."
    assert "One seed" in verdict(comparison_of({"a": result_of([0.1]), "b": result_of([0.2])}, "a"))


def test_small_losses_keep_three_digits() -> None:
    small = comparison_of({"a": result_of([1.234e-5, 1.244e-5]), "b": result_of([2e-6, 2.2e-6])}, "a")
    entries = cells(small.rows[0], small)
    assert entries["test_loss"] == "0.0000124 (0.0000001)"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([2053.961, 2233.408], "2143.7 (126.9)"),
        ([20539.6, 22334.1], "21437 (1269)"),
        ([12.3456, 12.5], "12.423 (0.109)"),
        ([9.87654, 9.5], "9.6883 (0.2663)"),
    ],
)
def test_large_losses_have_five_digits(values: list[float], shown: str) -> None:
    large = comparison_of({"a": result_of(values), "b": result_of([3 * x for x in values])}, "a")
    assert cells(large.rows[0], large)["test_loss"] == shown
    mixed = comparison_of({"a": result_of(values), "b": result_of([0.5, 0.6])}, "a")
    assert cells(mixed.rows[1], mixed)["test_loss"] == "0.5500 (0.0707)", "nobody loses digits to another"


def test_cells_against_scipy(mixed: Comparison) -> None:
    row = next(row for row in mixed.rows if row.label == "b")
    entries = cells(row, mixed)
    test = stats.ttest_rel(losses(mixed, "b"), losses(mixed, "a"))
    low, high = test.confidence_interval(0.95)
    assert entries["difference"] == f"-0.0075 ± {(high - low) / 2:.4f}"
    assert entries["test_loss"] == "0.5075 (0.0862)"


def test_the_terminal_shows_every_row(mixed: Comparison) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(mixed))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for row in mixed.rows:
        line = next(line for line in text.splitlines() if re.match(rf" +{row.label}( |$)", line))
        entries = cells(row, mixed)
        shown = (entries["test_loss"], entries["difference"]) if row.result else ("(failed)",)
        assert all(entry in line for entry in shown)
    assert "noisy-quadratic: 20 steps" in text
    assert "e failed: no" in " ".join(text.split())


class Tags(HTMLParser):
    """The tags of a page with their attributes, in a tree that closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(mixed: Comparison, tmp_path: Path) -> None:
    text = save_report(mixed, tmp_path / "a" / "out").read_text()
    assert "http" not in text
    tags = Tags(text)
    assert tags.open == []
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands for one thing"
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert used
    assert {first or second for first, second in used} <= set(ids)
    assert len([tag for tag, _ in tags.found if tag == "figure"]) == 5
    assert INK not in text.split("</style>", 1)[1], "text of figures has the page's colour, in dark mode too"


def test_the_page_holds_every_number(mixed: Comparison) -> None:
    text = page(mixed)
    for row in mixed.rows:
        entries = {name: html.escape(entry) for name, entry in cells(row, mixed).items() if name != "settings"}
        assert f" {entries.pop('agent')}</th>" in text
        if row.result is None:
            assert f"class=failed>{entries['failure']}</td>" in text
            continue
        for name, number in entries.items():
            assert name == "metric" or f'<td data-column="{headings(mixed)[name]}">{number}</td>' in text
    assert "test metric" not in text, "there is nothing but the loss"
    assert ">diverged</th>" in text
    assert html.escape(verdict(mixed)) in text


def test_the_page_tells_what_an_agent_was_given() -> None:
    given = ["constant:peak=0.1", "linear:peak=0.1", "adam-hd:initial_lr=0.1:beta=1e-4"]
    text = page(compare(NOISY, given, 1, device="cpu"))
    assert "<li><b>constant, linear</b>: observation clock, control set-raw</li>" in text
    adam = "observation hypergradient, control set-raw, an action at every step, optimizer adam"
    assert f"<li><b>adam-hd</b>: {adam}</li>" in text
    assert "<small>initial_lr=0.1, beta=0.0001</small>" in text
    assert ">diverged</th>" not in text, "no run did"


def test_dots_are_the_seeds(mixed: Comparison) -> None:
    """A dot per run at its test loss, and at its difference from the baseline, on the lines of the table's order."""
    *_, absolute, relative = figure(mixed).axes
    names = [label.get_text() for label in absolute.get_yticklabels()]
    assert names == ["b", "a", "c", "d"]
    heights = dict(zip(names, absolute.get_yticks(), strict=True))
    assert heights["b"] > heights["a"] > heights["c"] > heights["d"]
    for axes, reference in ((absolute, 0), (relative, losses(mixed, "a"))):
        dots = [x.get_offsets() for x in axes.collections if isinstance(x, PathCollection)]
        points = {height: values[:, 0] for height in heights.values() for values in dots if
                  len(values) == 4 and (values[:, 1] == height).all()}  # fmt: skip
        for label in ("b", "c"):
            np.testing.assert_allclose(points[heights[label]], losses(mixed, label) - reference)


def test_the_end_of_the_curves_is_magnified() -> None:
    """Its axis holds those that end low, and leaves out one that is far above them."""
    compared = compare(NOISY, [f"constant:peak={peak}" for peak in (0.1, 0.12, 0.14, 1e-6)], 3, device="cpu")
    whole, end, *_ = figure(compared).axes
    assert end.get_xlim() == (16, 20)
    finals = [np.median(result.curves["val_loss"][-1]) for _, result in compared.whole]
    low, high = end.get_ylim()
    assert [low < value < high for value in finals[:2]] == [True, True]
    assert finals[-1] > high
    bottom, top = whole.get_ylim()
    assert all(bottom < value < top for value in finals)


def test_rows_of_an_agent_share_its_colour() -> None:
    rows = [Row(spec, f"{spec} {i}", "", Runs(), None) for spec in "ab" for i in range(3)]
    found = styles(Comparison(NOISY, 2, "a 0", rows, {}))
    assert len({style.colour for style in found.values()}) == 2
    assert len(set(found.values())) == 6


@pytest.mark.parametrize(("task", "scale"), [("two-minima", "linear"), ("noisy-quadratic:budget=20", "log")])
def test_only_losses_below_zero_need_a_linear_scale(task: str, scale: str) -> None:
    shown = compare(task, ["constant:peak=0.01"], 1, device="cpu")
    result = shown.rows[0].result
    assert result is not None
    assert (result.curves["val_loss"] < 0).any() == (scale == "linear")
    assert figure(shown).axes[0].get_yscale() == scale


def labelled(*labels: str) -> Comparison:
    """A comparison whose agents are called so."""
    shown = compare(NOISY, ["constant:peak=0.1"], 2, device="cpu")
    rows = [replace(shown.rows[0], spec=label, label=label) for label in labels]
    return replace(shown, rows=rows, baseline=labels[0])


def test_long_labels_are_shortened_from_the_left_and_stay_distinct() -> None:
    long = "y" * 10 + "-" * 50 + "z" * 9
    names = [label.get_text() for label in figure(labelled(long, "linear")).axes[3].get_yticklabels()]
    assert names == ["…" + long[-figures.LONGEST + 1 :], "linear"]
    alike = [f"{letter}-trained-on-drawn-tasks from 0.001" for letter in "ab"]
    names = [label.get_text() for label in figure(labelled(*alike)).axes[3].get_yticklabels()]
    assert names == alike


def test_the_legend_stays_within_the_figure() -> None:
    starts = [f"house-seed-{seed} from {start}" for seed in "abcd" for start in (0.01, 0.001, 0.0001)]
    drawn = figure(labelled(*starts))
    drawn.draw_without_rendering()
    (legend,) = drawn.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawn.bbox.width
    assert len(legend.get_texts()) == 12


def test_any_label_is_drawn_as_it_is(mixed: Comparison) -> None:
    """Neither formulas, nor markup, nor so wide that panels have no room; a rate of 0 has no place on a log axis."""
    rows = compare(NOISY, ["constant:peak=0", "constant:peak=0.1", "linear:peak=0.1"], 2, device="cpu")
    named = [replace(row, label=f"{i}$\\foo$ [/b]{'m' * 14}") for i, row in enumerate(rows.rows)]
    odd = replace(rows, rows=named, baseline=named[0].label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures.png(odd)
        text = page(odd)
    assert "2$\\foo$ [/b]" in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(replace(odd, task=replace(odd.task, name="quad [b]"))))
    shown = console.export_text()
    assert "quad [b]" in shown
    assert all(f" {i}$\\foo$" in shown for i in range(3)), "what tells them apart is not cut"
