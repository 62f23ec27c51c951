"""Tables and figures of `xu2019.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flow import COLOURS, Claim, Lines, Report, markdown, panels
from lrenv.benchmark.statistics import mean_std, paired_t, welch
from xu2019_tasks import Version

Array = NDArray[np.float64]

SCHEDULES = {"step": "step decay", "linear": "linear decay", "cosine": "cosine"}
ACTORS = {"mlp": "perceptron", "lstm": "LSTM"}
SETTINGS = {"paper": "The paper's setting", "ours": "Our setting"}
NAMES = {"fashion-mnist": "Fa. MNIST", "cifar10": "CIFAR10", "cifar10-jpeg": "CIFAR10"}
"""Data set -> what the paper's tables call it."""
METRICS = {"test_loss": "test loss", "test_accuracy": "test accuracy"}


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
"""Section 4.2 and figure 2. On CIFAR-10 the CNN's rate is flat before it rises; on Fashion-MNIST the ResNet's falls
like an exponential."""
RISE, FALL = 1.25, 0.5
"""A rate that reaches this many times its first value warmed up; one that ends at this part of its highest decayed."""


class Chosen(NamedTuple):
    """The outcome of a grid search."""

    settings: dict[str, float]
    val_loss: float
    tried: int
    """Combinations that there are results of."""
    seconds: float


class Cell(NamedTuple):
    """Runs of a method on a row, sorted by seed."""

    data: str
    network: str
    method: str
    source: str
    start: float
    seeds: list[int]
    numbers: dict[str, Array]
    """Name -> (seeds,), of the checkpoint with the lowest validation loss."""
    curves: dict[str, Array]
    """Name -> (seeds, decisions + 1); NaN behind a divergence."""
    version: Version
    tried: int = 0
    """Combinations that a schedule is the best of."""

    @property
    def row(self) -> str:
        """The data set and the network."""
        return f"{self.data} {self.network}" + (f", from {self.source}" if self.source != self.data else "")

    @property
    def title(self) -> str:
        """The method."""
        if self.method in SCHEDULES:
            return titled(self.method, self.tried)
        setting, actor = self.method.split("-")
        return f"PPO ({setting}), {ACTORS[actor]}, from {self.start:g}"


def titled(schedule: str, tried: int) -> str:
    """A schedule in tables."""
    return SCHEDULES[schedule] + (f", best of {tried}" if tried else "")


def best(lines: Lines, data: str, network: str, schedule: str) -> Chosen | None:
    """The combination with the lowest validation loss on a data set, of those tried so far."""
    found = lines.where(stage="tune", data=data, network=network, method=schedule)
    tried = [combination for line in found for combination in line["combinations"]]
    if not tried:
        return None
    losses = np.array([np.inf if c["val_loss"] is None else c["val_loss"] for c in tried])
    settings = dict(tried[int(losses.argmin())])
    return Chosen(settings, settings.pop("val_loss"), len(tried), sum(line["seconds"] for line in found))


def cells(lines: Lines) -> list[Cell]:
    """All reported runs, in the order in which their first ones were made."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines.where(stage="report"):
        key = tuple(line[name] for name in ("data", "network", "method", "source", "start"))
        groups.setdefault(key, []).append(line)
    found = []
    for (data, network, method, source, start), own in groups.items():
        own.sort(key=lambda line: line["part"])
        names = ("val_loss", "test_loss", "test_accuracy", "diverged")
        numbers = {name: np.concatenate([np.array(line[name], np.float64) for line in own]) for name in names}
        curves = {
            name: np.concatenate([np.array(line["curves"][name], np.float64) for line in own])
            for name in ("val_loss", "lr")
        }
        seeds = [seed for line in own for seed in line["seeds"]]
        version, chosen = Version(*own[0]["version"]), best(lines, source, network, method)
        tried = chosen.tried if chosen else 0
        found.append(Cell(data, network, method, source, start, seeds, numbers, curves, version, tried))
    return found


def contest(ours: Cell, theirs: Cell, metric: str) -> tuple[str, str]:
    """Whether a controller's runs are better than a baseline's, and the numbers.

    Runs with the same seed are pairs, for they start from the same weights and see the same batches. The verdict is
    Welch's, as in the paper: yes or no where it has p < 0.05, else level. A run without a number, which was broken from
    the start, leaves nothing to test.
    """
    shared = [seed for seed in ours.seeds if seed in theirs.seeds]
    a, b = (cell.numbers[metric][[cell.seeds.index(seed) for seed in shared]] for cell in (ours, theirs))
    gain = (b - a) if metric == "test_loss" else (a - b)
    p = welch(a, b)
    verdict = "?" if np.isnan(p) else "level" if p >= 0.05 else "yes" if gain.mean() > 0 else "no"
    numbers = f"{spread(b)} → {spread(a)}; p = {p:.2g}, paired {paired_t(gain):.2g}"
    return verdict, f"{numbers}; better on {int((gain > 0).sum())} of {len(shared)} seeds"


def spread(values: Array) -> str:
    """Mean (standard deviation), as the paper writes it."""
    mean, std = mean_std(values)
    return f"{mean:.4f} ({std:.4f})"


def lacking(found: list[Cell], others: Lines | None) -> list[Cell]:
    """Whole runs of schedules among other lines, for rows that have none of their own."""

    def whole(cells: list[Cell]) -> dict[tuple[str, ...], Cell]:
        return {(c.data, c.network, c.source, c.method): c for c in cells if c.version == Version()}

    own = whole(found)
    theirs = {} if others is None else whole(cells(others))
    return [cell for key, cell in theirs.items() if cell.method in SCHEDULES and key not in own]


def claims(found: list[Cell], setting: str, beside: Sequence[Cell] = ()) -> Iterator[Claim]:
    """The paper's claims about controllers, for those of a setting; baselines may be beside what was found."""
    for cell in found:
        if not cell.method.startswith(f"{setting}-"):
            continue
        carried = cell.source != cell.data
        table, place = (TABLE2, "table 2") if carried else (TABLE1, "table 1")
        for rival in (*found, *beside):
            same = all(getattr(rival, name) == getattr(cell, name) for name in ("data", "network", "source", "version"))
            if rival.method not in SCHEDULES or not same:
                continue
            for metric, name in METRICS.items():
                if rival.method != "step" and metric != "test_loss":
                    continue
                key = (NAMES.get(cell.data, ""), cell.network.partition("-")[0], metric)
                told = table.get(key) if rival.method == "step" and cell.version == Version() else None
                verdict, numbers = contest(cell, rival, metric)
                yield Claim(
                    f"{place}, {cell.row}" if rival.method == "step" else "not in it",
                    f"{cell.row}: {cell.title}: {name} better than {rival.title}",
                    f"{told.baseline} → {told.controller}" if told else "",
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


def courses(found: list[Cell], setting: str) -> Iterator[Claim]:
    """The paper's claims about the rates themselves (section 4.2)."""
    for cell in found:
        if not cell.method.startswith(f"{setting}-") or cell.source != cell.data:
            continue
        whole = cell.curves["lr"][np.isfinite(cell.curves["lr"]).all(1)]
        if not len(whole):
            continue
        mean = np.exp(np.log(whole).mean(0))
        top = int(mean.argmax())
        each = [shape(rates) for rates in whole]
        published = SHAPES.get((NAMES.get(cell.data, ""), cell.network.partition("-")[0]), "")
        happens = shape(mean)
        yield Claim(
            f"figure 2, {cell.row}",
            f"{cell.title}: the rate {published or 'has a shape'}",
            published,
            f"{happens} (so {each.count(happens)} of {len(each)} runs): {mean[0]:.2g} first, {mean[top]:.2g} after "
            f"{top} of {len(mean) - 1} decisions, {mean[-1]:.2g} last",
            "" if not published else "yes" if happens == published else "no",
        )


def baselines(found: Sequence[Cell]) -> Iterator[Claim]:
    """How near step decay comes to the paper's, whose CNN is not given: on every plausible one."""
    for cell in found:
        for metric, name in METRICS.items():
            table = TABLE1 if cell.source == cell.data else TABLE2
            told = table.get((NAMES.get(cell.data, ""), cell.network.partition("-")[0], metric))
            if cell.method == "step" and cell.version == Version() and told:
                runs = f"{spread(cell.numbers[metric])}, {len(cell.seeds)} runs"
                yield Claim(f"baseline, {cell.row}", f"{cell.row}: {name} of {cell.title}", told.baseline, runs, "")


def levels(lines: Lines, found: list[Cell]) -> Iterator[tuple[str, ...]]:
    """Every method on every row: what it reached, what it was set to."""
    for cell in found:
        chosen = best(lines, cell.source, cell.network, cell.method) if cell.method in SCHEDULES else None
        settings = ", ".join(f"{name} {value:g}" for name, value in chosen.settings.items()) if chosen else ""
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
            numbers = ("", f"{chosen.tried}", f"{chosen.seconds:.0f}")
            yield f"{data} {network}", titled(method, chosen.tried), *numbers, "as reported"
        else:
            (line,) = lines.where(stage="train", data=data, network=network, method=method)
            told = Version(*line["version"]).told(network)
            numbers = (f"{line['episodes']}", f"{line['runs_spent']}", f"{line['seconds']:.0f}")
            yield f"{data} {network}", f"PPO ({method})", *numbers, told


def report(lines: Lines, others: Lines | None = None) -> Report:
    """Contests and courses in the paper's setting and in ours, levels, costs, figure1.png and figure2.png."""
    found = cells(lines)
    beside = lacking(found, others)
    text = "\nMean (standard deviation) over runs, of the checkpoint with the lowest validation loss; baseline →"
    text += " controller. Holds: yes or no where Welch's t-test has p < 0.05, as the paper's asterisks; else level."
    text += " Published numbers stand beside whole rows only; the others are reduced, as the last column of the levels"
    text += " says. Sizes of the paper's CNN are not given: `cnn` is LeNet-5, so levels differ."
    if others is not None and beside:
        text += f" Schedules that have no whole runs here have those of `--beside {others.path.parent.name}` in the"
        text += " claims; the numbers of the claims are over the seeds that both have."
    text += "\n"
    header = ("row", "method", "settings", *METRICS.values(), "validation loss", "runs", "diverged", "version")
    text += f"\n## Levels\n\n{markdown(header, levels(lines, found))}"
    text += "\n## Costs\n\nRuns of tuning, and of training with its evaluations.\n\n"
    text += markdown(("row", "method", "episodes", "runs", "seconds", "on"), costs(lines))
    rows = [row for setting in SETTINGS for row in (*claims(found, setting, beside), *courses(found, setting))]
    rows += baselines(found)
    return Report(rows, text, figures(found))


def figures(found: list[Cell]) -> dict[str, Callable[[], Figure]]:
    """Figure 1, validation losses, and figure 2, rates, if there are runs to show."""
    if not any(cell.source == cell.data for cell in found):
        return {}
    return {
        "figure1.png": partial(draw, found, "val_loss", "validation loss"),
        "figure2.png": partial(draw, found, "lr", "learning rate"),
    }


def draw(found: list[Cell], curve: str, label: str) -> Figure:
    """A curve of all methods: a column per row of the tables, panels per setting."""
    own = [cell for cell in found if cell.source == cell.data]
    rows = list(dict.fromkeys(cell.row for cell in own))
    # A controller has the same colour in all panels of its setting, and a schedule in all panels.
    controllers = {s: sorted({cell.title for cell in own if cell.method.startswith(f"{s}-")}) for s in SETTINGS}
    figure, axes = panels(len(SETTINGS), len(rows), dpi=80)
    for line, (setting, title) in zip(axes, SETTINGS.items(), strict=True):
        names = [*SCHEDULES, *controllers[setting]]
        for ax, row in zip(line, rows, strict=True):
            shown = [c for c in own if c.row == row and (c.method in SCHEDULES or c.title in controllers[setting])]
            if not shown:
                ax.set_visible(False)
                continue
            for cell in shown:
                colour = COLOURS[names.index(cell.method if cell.method in SCHEDULES else cell.title) % len(COLOURS)]
                # A schedule has no rate before its first interval.
                first = int(curve == "lr" and cell.method in SCHEDULES)
                values = np.log(cell.curves[curve])[:, first:]
                steps = cell.version.interval * (first + np.arange(values.shape[1]))
                low, middle, high = np.exp(np.nanpercentile(values, (10, 50, 90), axis=0))
                ax.plot(steps, middle, color=colour, label=cell.title, linewidth=1)
                ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.set(title=f"{row}\n{title}", yscale="log", xlabel="inner steps", ylabel=label)
            ax.legend(fontsize=5)
    return figure
