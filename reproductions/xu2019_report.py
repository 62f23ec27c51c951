"""Tables and figures of `xu2019.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from flow import COLOURS, Claim, Lines, Report, markdown, panels
from lrenv.benchmark.statistics import mean_std, paired_interval, paired_t, welch
from xu2019_cells import SCHEDULES, Array, Cell, best, cells, lacking, titled
from xu2019_tasks import Version

SETTING_TITLES = {"paper": "The paper's setting", "ours": "Our setting"}
NAMES = {"fashion-mnist": "Fa. MNIST", "cifar10": "CIFAR10", "cifar10-jpeg": "CIFAR10"}
"""Data set -> what the paper's tables call it."""
METRICS = {"test_loss": "test loss", "test_accuracy": "test accuracy"}
TABLE_START = 1e-3
"""The first rate of the controllers whose courses are compared with figure 2: one that begins at its peak can't warm
up."""


class Published(NamedTuple):
    """A cell of the paper's tables, mean (standard deviation): of the baseline and of the controller."""

    baseline: str
    controller: str
    """An asterisk says that the paper's own t-test has p < 0.05."""


TABLE1 = {
    ("Fa. MNIST", "cnn", "test_loss"): Published("0.2497 (0.0042)", "0.2351* (0.0038)"),
    ("Fa. MNIST", "cnn", "test_accuracy"): Published("0.9102 (0.0019)", "0.9201* (0.0022)"),
    ("Fa. MNIST", "resnet", "test_loss"): Published("0.2346 (0.0074)", "0.2296 (0.0069)"),
    ("Fa. MNIST", "resnet", "test_accuracy"): Published("0.9188 (0.0029)", "0.9192 (0.0028)"),
    ("CIFAR10", "cnn", "test_loss"): Published("0.9539 (0.0140)", "0.9361* (0.0104)"),
    ("CIFAR10", "cnn", "test_accuracy"): Published("0.6759 (0.0048)", "0.6787 (0.0041)"),
    ("CIFAR10", "resnet", "test_loss"): Published("0.8317 (0.0155)", "0.6288* (0.0196)"),
    ("CIFAR10", "resnet", "test_accuracy"): Published("0.7395 (0.0206)", "0.8181* (0.0069)"),
}
TABLE2 = {
    ("Fa. MNIST", "cnn", "test_loss"): Published("0.2730 (0.0031)", "0.2598* (0.0071)"),
    ("Fa. MNIST", "cnn", "test_accuracy"): Published("0.9021 (0.0013)", "0.9074* (0.0030)"),
    ("Fa. MNIST", "resnet", "test_loss"): Published("0.2443 (0.0040)", "0.2315* (0.0072)"),
    ("Fa. MNIST", "resnet", "test_accuracy"): Published("0.9166 (0.0025)", "0.9212* (0.0034)"),
}
SHAPES = {
    ("Fa. MNIST", "cnn"): "warms up, then decays", ("Fa. MNIST", "resnet"): "decays",
    ("CIFAR10", "cnn"): "warms up, then decays", ("CIFAR10", "resnet"): "warms up, then decays",
}  # fmt: skip
"""Section 4.2 and figure 2. On CIFAR-10 the CNN's rate is flat before it rises, and on Fashion-MNIST the ResNet's falls
like an exponential, which isn't judged here. From which first rate is not said."""
SOONER = (("Fa. MNIST", "cnn"), ("CIFAR10", "resnet"))
"""Where controllers reach a lower validation loss faster, by section 4.1 and figure 1."""
COLUMNS = 4
"""Panels side by side in a figure."""
RISE, FALL = 1.25, 0.5
"""A rate that reaches this many times its first value warmed up; one that ends at this part of its highest decayed."""


def contest(ours: Cell, theirs: Cell, metric: str) -> tuple[str, str]:
    """Whether a controller's runs are better than a baseline's, and the numbers.

    Runs with the same seed are pairs, for they start from the same weights and see the same batches; the difference is
    told with half its 95 % interval. The verdict is Welch's: yes or no where it has p < 0.05, else level. A run without
    a number, which was broken from the start, leaves nothing to test.
    """
    shared = [seed for seed in ours.seeds if seed in theirs.seeds]
    a, b = (cell.numbers[metric][[cell.seeds.index(seed) for seed in shared]] for cell in (ours, theirs))
    gain = (b - a) if metric == "test_loss" else (a - b)
    p = welch(a, b)
    verdict = "?" if np.isnan(p) else "level" if p >= 0.05 else "yes" if gain.mean() > 0 else "no"
    change, half = paired_interval(a, b)
    numbers = f"{spread(b)} → {spread(a)}, {change:+.4f} ± {half:.4f}; p = {p:.2g}, paired {paired_t(gain):.2g}"
    return verdict, f"{numbers}; better on {int((gain > 0).sum())} of {len(shared)} seeds"


def spread(values: Array) -> str:
    """Mean (standard deviation), as the paper writes it; the mean alone where there is no deviation."""
    mean, std = mean_std(values)
    return f"{mean:.4f}" + ("" if np.isnan(std) else f" ({std:.4f})")


def key_of(cell: Cell) -> tuple[str, str]:
    """Where the paper's tables have a row."""
    return NAMES.get(cell.data, ""), cell.network.partition("-")[0]


def is_of(cell: Cell, setting: str) -> bool:
    """Whether a controller that was trained in this setting acts."""
    return cell.method.startswith(f"{setting}-")


def rivals(cell: Cell, others: Sequence[Cell]) -> Iterator[Cell]:
    """Schedules on a cell's row."""
    for other in others:
        names = ("data", "network", "source", "version")
        if other.is_schedule and all(getattr(other, name) == getattr(cell, name) for name in names):
            yield other


def claims(found: Sequence[Cell], others: Sequence[Cell], setting: str) -> Iterator[Claim]:
    """The paper's claims about controllers of a setting, against schedules among the others (tables 1 and 2)."""
    for cell in (cell for cell in found if is_of(cell, setting)):
        table, place = (TABLE2, "table 2") if cell.source != cell.data else (TABLE1, "table 1")
        for rival in rivals(cell, others):
            theirs = rival.method == "step" and cell.is_the_papers and rival.is_the_papers
            for metric, name in METRICS.items():
                if rival.method != "step" and metric != "test_loss":
                    continue
                published = table.get((*key_of(cell), metric)) if theirs else None
                verdict, numbers = contest(cell, rival, metric)
                yield Claim(
                    f"{place if theirs else 'not in it'}, {cell.row}",
                    f"{cell.title}: {name} better than {rival.title}",
                    f"{published.baseline} → {published.controller}" if published else "",
                    numbers,
                    verdict,
                )


def shape(rates: Array) -> str:
    """What a rate's course (decisions + 1,), which begins with the first rate, does."""
    highest = float(rates.max())
    rises, falls = highest >= RISE * rates[0], rates[-1] <= FALL * highest
    return {
        (True, True): "warms up, then decays", (True, False): "rises",
        (False, True): "decays", (False, False): "stays",
    }[bool(rises), bool(falls)]  # fmt: skip


def courses(found: Sequence[Cell], setting: str) -> Iterator[Claim]:
    """The paper's claims about the rates themselves (section 4.2)."""
    for cell in found:
        if not is_of(cell, setting) or cell.source != cell.data:
            continue
        whole = cell.curves["lr"][np.isfinite(cell.curves["lr"]).all(1)]
        if not len(whole):
            continue
        mean = np.exp(np.log(whole).mean(0))
        top = int(mean.argmax())
        each = [shape(rates) for rates in whole]
        published = SHAPES.get(key_of(cell), "") if cell.is_the_papers and cell.start == TABLE_START else ""
        happens = shape(mean)
        yield Claim(
            f"figure 2, {cell.row}",
            f"{cell.title}: the rate {published or 'has a shape'}",
            published,
            f"{happens} (so {each.count(happens)} of {len(each)} runs): {mean[0]:.2g} first, {mean[top]:.2g} after "
            f"{top} of {len(mean) - 1} decisions, {mean[-1]:.2g} last",
            "" if not published else "yes" if happens == published else "no",
        )


def speeds(found: Sequence[Cell], others: Sequence[Cell], setting: str) -> Iterator[Claim]:
    """Whether controllers get to the lowest validation loss of step decay, and sooner (section 4.1, figure 1).

    Curves are geometric means over runs, as the figure has the logarithm of the loss.
    """
    for cell in found:
        for rival in rivals(cell, others):
            if not is_of(cell, setting) or cell.source != cell.data or rival.method != "step":
                continue
            ours, theirs = (np.exp(np.log(c.curves["val_loss"]).mean(0)) for c in (cell, rival))
            if np.isnan([*ours, *theirs]).any():
                continue
            last, lowest = int(theirs.argmin()), theirs.min()
            after = int((ours <= lowest).argmax()) if ours.min() <= lowest else None
            of = len(ours) - 1
            published = key_of(cell) in SOONER and cell.is_the_papers and rival.is_the_papers
            yield Claim(
                f"{'figure 1' if published else 'not in it'}, {cell.row}",
                f"{cell.title}: gets sooner to the lowest validation loss of {rival.title}",
                "yes" if published else "",
                f"{lowest:.4f} after {last} of {of} decisions → "
                + (f"after {after}" if after is not None else f"never, lowest {ours.min():.4f}"),
                "yes" if after is not None and after < last else "no",
            )


def baselines(found: Sequence[Cell]) -> Iterator[Claim]:
    """How near step decay comes to the paper's, whose CNN is not given: on every plausible one."""
    for cell in found:
        table = TABLE1 if cell.source == cell.data else TABLE2
        for metric, name in METRICS.items():
            published = table.get((*key_of(cell), metric))
            if cell.method == "step" and cell.version == Version() and published:
                runs = f"{spread(cell.numbers[metric])}; runs: {len(cell.seeds)}"
                yield Claim(f"baseline, {cell.row}", f"{name} of {cell.title}", published.baseline, runs, "")


def levels(found: Sequence[Cell]) -> Iterator[tuple[str, ...]]:
    """Every method on every row: what it reached, what it was set to."""
    for cell in found:
        settings = ", ".join(f"{name} {value:g}" for name, value in cell.chosen.settings.items()) if cell.chosen else ""
        yield (
            cell.row, cell.title, settings, *(spread(cell.numbers[name]) for name in (*METRICS, "val_loss")),
            f"{len(cell.seeds)}", f"{int(cell.numbers['diverged'].sum())}", cell.version.told(cell.network),
        )  # fmt: skip


def costs(lines: Lines) -> Iterator[tuple[str, ...]]:
    """What tuning and training took."""
    rows: dict[tuple[str, str, str], None] = {}
    for stage in ("tune", "train"):
        rows |= dict.fromkeys((line["data"], line["network"], line["method"]) for line in lines.where(stage=stage))
    for data, network, method in rows:
        if method in SCHEDULES:
            chosen = best(lines, data, network, method)
            assert chosen is not None
            numbers = ("", f"{len(chosen.tried)}", f"{chosen.seconds:.0f}")
            yield f"{data} {network}", titled(method, chosen), *numbers, "as reported"
        else:
            (line,) = lines.where(stage="train", data=data, network=network, method=method)
            numbers = (f"{line['episodes']}", f"{line['runs_spent']}", f"{line['seconds']:.0f}")
            yield f"{data} {network}", f"PPO ({method})", *numbers, Version(*line["version"]).told(network)


def report(lines: Lines, others: Lines | None = None) -> Report:
    """Contests and courses in the paper's setting and in ours, levels, costs, figure1.png and figure2.png.

    Args:
        lines: the results.
        others: those of another folder, whose whole runs of schedules stand in where these have none.
    """
    own = cells(lines)
    beside = lacking(own, others)
    everything = [*own, *beside]
    text = (
        "\nMean (standard deviation) over runs, of the checkpoint with the lowest validation loss; baseline →"
        " controller, and the mean difference by pairs of runs, ± half its 95 % interval. Holds: yes or no where"
        " Welch's t-test has p < 0.05, else level; the paper's asterisks are of an independent two-sample t-test, it"
        " doesn't say which. Published numbers stand beside whole rows only, where controllers were trained on the"
        " row; what is reduced is told by the last column of the levels and of the costs. Sizes of the paper's CNN"
        " are not given: `cnn` is LeNet-5, so levels differ; `cifar10-jpeg` is CIFAR-10, compressed once more."
    )
    if others is not None and beside:
        text += f" Schedules that have no whole runs here are those of `--beside {others.path.parent.name}`; the"
        text += " numbers of the claims are over the seeds that both have."
    header = ("row", "method", "settings", *METRICS.values(), "validation loss", "runs", "diverged", "version")
    text += f"\n\n## Levels\n\n{markdown(header, levels(everything))}"
    text += "\n## Costs\n\nRuns of tuning, and of training with its evaluations. Seconds are of a clock on the wall,"
    text += " beside whatever else the machine did.\n\n"
    text += markdown(("row", "method", "episodes", "runs", "seconds", "on"), costs(lines))
    rows: list[Claim] = []
    for setting in SETTING_TITLES:
        rows += [*claims(own, everything, setting), *speeds(own, everything, setting), *courses(own, setting)]
    return Report([*rows, *baselines(own)], text, figures(everything))


def figures(found: Sequence[Cell]) -> dict[str, Callable[[], Figure]]:
    """Figure 1, validation losses, and figure 2, rates, if there are runs to show."""
    if not any(cell.source == cell.data for cell in found):
        return {}
    return {
        "figure1.png": partial(draw, found, "val_loss", "validation loss"),
        "figure2.png": partial(draw, found, "lr", "learning rate"),
    }


def draw(found: Sequence[Cell], curve: str, label: str) -> Figure:
    """A curve of all methods: a panel per row of the tables and setting of its controllers, or of schedules alone."""
    own = [cell for cell in found if cell.source == cell.data]
    shown = [
        (row, setting)
        for row in dict.fromkeys(cell.row for cell in own)
        for setting in [s for s in SETTING_TITLES if any(c.row == row and is_of(c, s) for c in own)] or [""]
    ]
    columns = min(len(shown), COLUMNS)
    figure, axes = panels(-(-len(shown) // columns), columns, dpi=80)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax, (row, setting) in zip(axes.flat, shown, strict=False):
        # A controller has the same colour in all panels of its setting, and a schedule in all panels.
        names = [*SCHEDULES, *sorted({cell.title for cell in own if is_of(cell, setting)})]
        for cell in own:
            if cell.row != row or not (cell.is_schedule or is_of(cell, setting)):
                continue
            colour = COLOURS[names.index(cell.method if cell.is_schedule else cell.title) % len(COLOURS)]
            # A schedule has no rate before its first interval.
            first = int(curve == "lr" and cell.is_schedule)
            values = np.log(cell.curves[curve])[:, first:]
            steps = cell.version.interval * (first + np.arange(values.shape[1]))
            low, middle, high = np.exp(np.nanpercentile(values, (10, 50, 90), axis=0))
            ax.plot(steps, middle, color=colour, label=cell.title, linewidth=1)
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        title = f"{row}\n{SETTING_TITLES[setting]}" if setting else row
        ax.set(title=title, yscale="log", xlabel="inner steps", ylabel=label)
        ax.legend(fontsize=5)
    return figure
