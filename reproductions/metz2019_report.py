"""Figures, tables and claims of `metz2019.py`."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flow import COLOURS, Claim, Lines, Report, markdown, panels
from lrenv.agents.learned_optimizer.baselines import BASELINES
from lrenv.agents.learned_optimizer.settings import OUTER_LR
from lrenv.benchmark.statistics import mean_std
from lrenv.controllers import controller_file

Array = NDArray[np.float64]
Contest = dict[tuple[str, str], list[dict[str, Any]]]
"""(method, objective) -> its runs on a problem."""

OBJECTIVES: tuple[Literal["train", "valid"], ...] = ("train", "valid")
"""What optimizers are trained and tuned for."""
METHODS = {"held-out": ("learned", *BASELINES), "generalise": ("learned", "adam")}
"""Part -> who competes."""
DPI = 65
"""There are many panels."""
ESTIMATES = ("es", "reparameterisation", "merged")
SMOOTHED = 3
"""Intervals that a training loss is the mean of: the losses of single batches are noisy."""
COLOUR: dict[Any, Any] = dict(zip((*itertools.product(["learned"], OBJECTIVES), *BASELINES), COLOURS, strict=False))
LOSSES = {
    "train_loss": "training loss at the end", "final_test_loss": "test loss at the end",
    "best_test_loss": "test loss of the best checkpoint",
}  # fmt: skip
PAPERS = {
    "reparameterisation only": "worse", "ES only": "worse", "short unrolls": "worse", "long unrolls": "varies more",
    "no momentum": "fails", "no RMS": "nearly as good", "no time": "nearly as good",
}  # fmt: skip
"""What figure 7 has for each ablation."""

PAPERS_TRAININGS = (
    ("train, paper", "", "", "50 to 10,000", "0.1", "0.003", "", "128", ""),
    ("valid, paper", "", "", "50 to 10,000", "0.1", "0.0003", "", "128", ""),
)
"""Sections 3 and 4.3, appendix C.3: runs have 10,000 steps, and unrolls are as long after 5,000 updates."""


def report(lines: Lines, interval: int, out: Path) -> Report:
    """Contests, variances and ablations, held-out.png, variance.png, generalise.png and ablations.png.

    Args:
        lines: the results.
        interval: inner steps between two points of a curve.
        out: folder of the trainings, whose logs are drawn, too.
    """
    held_out, others = contests(lines, "held-out"), contests(lines, "generalise")
    variances, ablations = by_unroll(lines), lines.where(part="ablations")
    text = "\nThe best tuned optimizer is that with the lowest loss on the tuning seeds; with hindsight, on these.\n"
    figures: dict[str, Callable[[], Figure]] = {}
    if found := list(trainings(out)):
        text += "\n## Trainings\n\n"
        header = ("for", "updates", "kept after", "steps of an unroll", "sigma", "outer rate", "clip", "pairs", "runs")
        text += markdown(header, [*found, *PAPERS_TRAININGS])
    if held_out:
        text += f"\n## Held-out problems\n\n{overlap(held_out)}\n\n"
        text += "Seconds of a batch of runs, measurements included, mean over problems: "
        text += f"{', '.join(seconds(held_out))}.\n{tables(held_out)}"
        figures["held-out.png"] = partial(draw_held_out, held_out, interval)
    if variances:
        text += "\n## Variances of outer gradients, mean over weights\n\n"
        text += markdown(
            ("theta", "inner steps", *ESTIMATES),
            [(theta, unroll, *(f"{x:.2g}" for x in own.values())) for (theta, unroll), own in variances.items()],
        )
        figures["variance.png"] = partial(draw_variances, variances, out)
    if others:
        text += f"\n## Other problems\n\n{failures(others)}\n{tables(others)}"
        figures["generalise.png"] = partial(draw_others, others, interval)
    if ablations:
        text += "\n## Ablations\n\nTraining loss on held-out problems, mean over steps, problems and runs.\n\n"
        rows = [(name, summary(own), PAPERS.get(name, "")) for name, own in ablation_losses(ablations).items()]
        text += markdown(("training", "loss", "paper"), rows)
        figures["ablations.png"] = partial(draw_ablations, ablations, out)
    text += "\nWhat a step costs (appendix F): `benchmarks/learned_optimizer.py`, `benchmarks/RESULTS.md`.\n"
    return Report(claims(held_out, variances), text, figures)


def trainings(out: Path) -> Iterator[tuple[str, ...]]:
    """What the two optimizers were trained with, by their files and logs, of those whose training has ended."""
    for objective in OBJECTIVES:
        file = out / objective / "controller.safetensors"
        held = controller_file.read_metadata(file) if file.exists() else {}
        if held.get("finished"):
            own, runs = held["settings"], held["runs"]
            _, unrolls = logged(out / objective, "iteration", "outer/unroll")
            rate = OUTER_LR[objective] if own["outer_lr"] is None else own["outer_lr"]
            cost = f"{runs['training']} of training, {runs['selection']} of selection"
            numbers = (f"{own['sigma']:g}", f"{rate:g}", f"{own['clip']:g}", f"{own['workers'] * own['pairs']}", cost)
            steps = f"{unrolls[0]:.0f} to {unrolls[-1]:.0f}"
            yield objective, f"{len(unrolls)}", f"{held['iteration']}", steps, *numbers


def overlap(held_out: dict[str, Contest]) -> str:
    """How many problems there are, how long their runs are, and that they are not independent."""
    classes = {case: set(case.partition(";")[0].split(", ")) for case in held_out}
    pairs = list(itertools.combinations(classes.values(), 2))
    sharing = sum(bool(one & other) for one, other in pairs)
    return (
        f"{len(held_out)} problems, out of {len(set().union(*classes.values()))} classes. {sharing} of the {len(pairs)}"
        " pairs of problems share a class, and with it examples: they are not independent."
    )


def failures(others: dict[str, Contest]) -> str:
    """On which other problems the optimizer for validation ends above Adam, and by how much."""
    told = []
    for name in ("final_test_loss", "best_test_loss"):
        means = {case: [ends(contest[m, "valid"], name).mean() for m in ("learned", "adam")]
                 for case, contest in others.items()}  # fmt: skip
        above = [f"{case} ({ours:.4f} against {adam:.4f})" for case, (ours, adam) in means.items() if not ours < adam]
        told.append(f"{LOSSES[name]}, {' and '.join(above) or 'none'}")
    return f"Where the optimizer for validation is not below tuned Adam: {'; '.join(told)}."


def contests(lines: Lines, part: str) -> dict[str, Contest]:
    """Problem -> its contest, of those on which every method has run."""
    found: dict[str, Contest] = {}
    for run in lines.where(part=part):
        found.setdefault(run["case"], {}).setdefault((run["method"], run["objective"]), []).append(run)
    everyone = set(itertools.product(METHODS[part], OBJECTIVES))
    return {case: contest for case, contest in found.items() if everyone <= contest.keys()}


def numbers(values: Iterable[Any]) -> Array:
    """An array with infinity where there was no number, because a run diverged."""
    return np.nan_to_num(np.array(list(values), np.float64), nan=np.inf)


def curves(runs: list[dict[str, Any]], name: str) -> Array:
    """(seeds, points); the first one is before any training."""
    return numbers(run["curves"][name] for run in runs)


def smoothed(curve: Array) -> Array:
    """The mean of the last intervals up to each, (..., points - 1)."""
    ends = range(1, curve.shape[-1])
    return np.stack([curve[..., max(1, end + 1 - SMOOTHED) : end + 1].mean(-1) for end in ends], -1)


def ends(runs: list[dict[str, Any]], name: str) -> Array:
    """A loss (seeds,) of runs that are over."""
    return smoothed(curves(runs, name))[:, -1] if name == "train_loss" else numbers(run[name] for run in runs)


def best_tuned(contest: Contest, objective: str) -> str:
    """The optimizer with the lowest loss at its best rate, on the seeds that rates are tuned on."""
    tuned = {method: runs[0]["tuning_loss"] for (method, own), runs in contest.items() if own == objective}
    return min((method for method in tuned if method != "learned"), key=lambda method: tuned[method])


def improvement(contest: Contest, objective: str, name: str, hindsight: bool = False) -> float:
    """How far the learned optimizer's mean loss is below that of the best tuned one.

    Args:
        contest: on one problem.
        objective: what optimizers were trained and tuned for.
        name: of the loss.
        hindsight: the best one is that with the lowest of these very losses.
    """
    means = {method: ends(runs, name).mean() for (method, own), runs in contest.items() if own == objective}
    ours = means.pop("learned")
    return float((min(means.values()) if hindsight else means[best_tuned(contest, objective)]) - ours)


def reached(contest: Contest) -> float:
    """The share of the budget that the learned optimizer takes to the best tuned one's final training loss."""
    target = ends(contest[best_tuned(contest, "train"), "train"], "train_loss").mean()
    curve = smoothed(curves(contest["learned", "train"], "train_loss").mean(0))
    there = np.flatnonzero(curve <= target)
    return float((there[0] + 1) / len(curve)) if len(there) else np.inf


def slowdown(contest: Contest) -> float:
    """How many times as long as the best tuned one's steps those of the learned optimizer take."""
    ours, theirs = (contest[method, "train"][0]["seconds"] for method in ("learned", best_tuned(contest, "train")))
    return float(ours / theirs)


def by_unroll(lines: Lines) -> dict[tuple[str, int], dict[str, float]]:
    """(theta, inner steps) -> estimator -> variance, infinite where a gradient is."""
    return {
        (run["method"], int(run["case"])): {name: float(numbers([run[name]])[0]) for name in ESTIMATES}
        for run in lines.where(part="variance")
    }


def claims(held_out: dict[str, Contest], variances: dict[tuple[str, int], dict[str, float]]) -> list[Claim]:
    """The paper's claims beside what is found here."""
    rows = []
    if held_out:
        for name, hindsight in itertools.product(("final_test_loss", "best_test_loss"), (False, True)):
            wins = [improvement(contest, "valid", name, hindsight) > 0 for contest in held_out.values()]
            best = "the best tuned one" + " with hindsight" * hindsight
            claim = f"trained for validation, it ends below {best}: {LOSSES[name]}"
            found = f"on {100 * np.mean(wins):.0f} % of held-out problems ({sum(wins)} of {len(wins)})"
            if (name, hindsight) == ("final_test_loss", False):
                claim += ", on at least 80 % of held-out problems"
                rows.append(Claim("section 4.4", claim, "98 %", found, verdict(bool(np.mean(wins) >= 0.8))))
            else:
                rows.append(Claim("not in it", claim, "", found, ""))
        shares = np.array([reached(contest) for contest in held_out.values()])
        times = shares * np.array([slowdown(contest) for contest in held_out.values()])
        claim = "trained for training loss, it is where the best tuned one ends after"
        half, holds = f"{claim} at most 50 % of the steps", verdict(bool(np.median(shares) <= 0.5))
        rows.append(Claim("figure 1", half, "", spread(shares), holds))
        rows.append(Claim("figure 1a", f"{claim} a share of the time", "below 20 %", spread(times), ""))
    if variances:
        ratios = [own["merged"] / min(own["es"], own["reparameterisation"]) for own in variances.values()]
        claim = "the variance of the merged estimate is at most 1.1 times the smaller of the others"
        found = f"{min(ratios):.2f} to {max(ratios):.2f} times"
        rows.append(Claim("section 3", claim, "at most 1", found, verdict(max(ratios) <= 1.1)))
    return rows


def verdict(holds: bool) -> str:
    """In a table."""
    return "yes" if holds else "no"


def spread(shares: Array) -> str:
    """Median and range over problems."""
    never = int(np.isinf(shares).sum())
    middle, low, high = (
        "never" if np.isinf(x) else f"{100 * x:.0f} %" for x in (np.median(shares), shares.min(), shares.max())
    )
    return f"median {middle} ({low} to {high}), never on {never} of {len(shares)} problems"


def seconds(held_out: dict[str, Contest]) -> list[str]:
    """What each method's batches take."""
    times = {
        method: np.mean([run["seconds"] for contest in held_out.values() for run in contest[method, "train"]])
        for method in METHODS["held-out"]
    }
    return [f"{method} {time:.2g}" for method, time in times.items()]


def summary(losses: Array) -> str:
    """Mean ± standard deviation, in a table; of a single run there is none."""
    diverged = int(np.isinf(losses).sum())
    if len(losses) == 1 and not diverged:
        return f"{losses[0]:.4f}"
    return f"{diverged} of {len(losses)} diverged" if diverged else "{:.4f} ± {:.4f}".format(*mean_std(losses))


def tables(found: dict[str, Contest]) -> str:
    """A table per loss: mean over seeds ± standard deviation, with each rate; a star marks the best on tuning seeds."""
    text = ""
    for objective, name in (("train", "train_loss"), ("valid", "final_test_loss"), ("valid", "best_test_loss")):
        rows = []
        for case, contest in found.items():
            star, row = best_tuned(contest, objective), [case]
            for method in (method for method, own in contest if own == objective):
                runs = contest[method, objective]
                rate = "" if method == "learned" else f" ({runs[0]['rate']:.2g}){'*' * (method == star)}"
                row.append(summary(ends(runs, name)) + rate)
            rows.append(row)
        methods = [method for method, own in next(iter(found.values())) if own == objective]
        title = f"Trained and tuned for {'training' if objective == 'train' else 'validation'}: {LOSSES[name]}"
        text += f"\n{title}\n\n{markdown(('problem', *methods), rows)}"
    return text


def ablation_losses(ablations: list[dict[str, Any]]) -> dict[str, Array]:
    """Name -> losses (trainings,)."""
    names = dict.fromkeys(run["method"] for run in ablations)
    return {name: numbers(run["loss"] for run in ablations if run["method"] == name) for name in names}


def folder(out: Path, ablation: str, seed: int) -> Path:
    """Of an ablation's training."""
    return out / "ablations" / f"{ablation.replace(' ', '-')}-{seed}"


def logged(folder: Path, *names: str) -> Array:
    """Columns (names, rows) of a training's log, without the rows that lack one; (names, 0) where there is no log."""
    path = folder / "progress.csv"
    if not path.exists():
        return np.empty((len(names), 0))
    with path.open() as file:
        rows = [[row.get(name) for name in names] for row in csv.DictReader(file)]
    return np.array([row for row in rows if all(row)], np.float64).reshape(-1, len(names)).T


def plot(ax: Axes, found: Sequence[Contest], objective: str, name: str, interval: int, timed: bool = False) -> None:
    """Both learned optimizers and those tuned for the objective: losses, mean over problems and seeds."""
    for method, own in found[0]:
        if method != "learned" and own != objective:
            continue
        curve = np.mean([curves(contest[method, own], name).mean(0) for contest in found], 0)
        times = [contest[method, own][0]["seconds"] for contest in found]
        end = np.mean(times) if timed else interval * (len(curve) - 1)
        label, key = (f"learned, {own}", (method, own)) if method == "learned" else (method, method)
        ax.plot(np.linspace(0, end, len(curve)), curve, color=COLOUR[key], label=label, linewidth=1)
    ax.set(xlabel="seconds" if timed else "inner steps", ylabel=name.replace("_", " ").replace("train ", "training "))
    ax.set_yscale("log")


def draw_held_out(held_out: dict[str, Contest], interval: int) -> Figure:
    """Figure 1: losses by steps and by time, and how far below the best tuned optimizer they end."""
    figure, axes = panels(2, 3, DPI)
    found = list(held_out.values())
    for row, objective, name in zip(axes, OBJECTIVES, ("train_loss", "test_loss"), strict=True):
        for ax, timed in zip(row, (False, True), strict=False):
            plot(ax, found, objective, name, interval, timed)
        measure = "final_test_loss" if name == "test_loss" else name
        gains = np.array([improvement(contest, objective, measure) for contest in found])
        row[2].hist(gains[np.isfinite(gains)], bins=15, color=COLOUR["learned", objective])
        row[2].axvline(0, color="black", linewidth=0.8)
        row[2].set(xlabel=f"{LOSSES[measure]}: improvement", ylabel="held-out problems")
    axes[0, 0].legend(fontsize=7)
    return figure


def draw_variances(variances: dict[tuple[str, int], dict[str, float]], out: Path) -> Figure:
    """By the length of unrolls, and figure 5a: over the two trainings, whose unrolls grow."""
    figure, axes = panels(1, 3, DPI)
    for ax, theta in zip(axes[0], ("fresh", "trained"), strict=False):
        unrolls = sorted(unroll for state, unroll in variances if state == theta)
        for colour, name in zip(COLOURS, ESTIMATES, strict=False):
            ax.loglog(unrolls, [variances[theta, n][name] for n in unrolls], ".-", color=colour, label=name)
        ax.set(xlabel="inner steps of an unroll", ylabel="variance", title=f"{theta} theta")
    for objective, style in zip(OBJECTIVES, ("-", ":"), strict=True):
        for colour, name in zip(COLOURS, ESTIMATES[:2], strict=False):
            log = logged(out / objective, "iteration", f"outer/{name}_variance")
            axes[0, 2].semilogy(*log, style, color=colour, linewidth=0.7, label=f"{name}, {objective}")
    axes[0, 2].set(xlabel="updates", ylabel="variance", title="while training")
    for ax in axes[0, ::2]:
        ax.legend(fontsize=7)
    return figure


def draw_others(others: dict[str, Contest], interval: int) -> Figure:
    """Figure 6: a column per problem."""
    figure, axes = panels(2, len(others), DPI)
    for column, (case, contest) in zip(axes.T, others.items(), strict=True):
        for ax, objective, name in zip(column, OBJECTIVES, ("train_loss", "test_loss"), strict=True):
            plot(ax, [contest], objective, name, interval)
        column[0].set(title=case)
    axes[0, 0].legend(fontsize=7)
    return figure


def draw_ablations(ablations: list[dict[str, Any]], out: Path) -> Figure:
    """Figures 7 and 15: what each training ends with, and its validation on the way."""
    figure, axes = panels(1, 2, DPI)
    losses = ablation_losses(ablations)
    colours = dict(zip(losses, COLOURS, strict=False))
    for i, (name, own) in enumerate(losses.items()):
        axes[0, 0].barh(i, np.nan_to_num(own.mean(), posinf=0), color=colours[name])
        axes[0, 0].plot(own, np.full(len(own), i), "k.", markersize=4)
    for run in ablations:
        log = logged(folder(out, run["method"], run["seed"]), "iteration", "eval/val_loss")
        axes[0, 1].plot(*log, ".-", color=colours[run["method"]], linewidth=1, markersize=3)
    axes[0, 0].set_yticks(range(len(losses)), list(losses))
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="training loss on held-out problems")
    axes[0, 1].set(xlabel="updates", ylabel="training loss on validation problems")
    return figure
