"""Figures and the table of numbers of `metz2019_hypergradients.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flow import COLOURS, Claim, Lines, Report, markdown, panels
from lrenv.benchmark.selection import selection_losses
from lrenv.benchmark.statistics import welch

Array = NDArray[np.float64]


Results = list[dict[str, Any]]


def report(lines: Lines) -> Report:
    """Tables, claims, momentum.png (figure 3), horizon.png and truncation.png (figure 4), of the results so far."""
    momentum, horizon = lines.where(part="momentum"), lines.where(part="horizon")
    windows, learned = lines.where(part="windows"), lines.where(part="learned")
    text, figures = "", dict[str, Callable[[], Figure]]()
    columns: tuple[str, ...]
    if momentum:
        columns = ("steps", "momentum of the first transition", "largest slope of the loss")
        rows: list[Any] = [(r["setting"], f"{r['transition']:.4f}", f"{steepest(r):.2g}") for r in momentum]
        text += f"\n## Momentum on the toy problem\n\n{markdown(columns, rows)}"
        (path,) = lines.where(part="trajectory")
        figures["momentum.png"] = partial(draw_momentum, path, momentum)
    if horizon:
        columns = ("rate", *(f"{steps} steps" for steps in horizon[0]["steps"]))
        rows = [(r["setting"], *(f"{x:.1g}" for x in medians(r))) for r in horizon]
        title = "Size of the hypergradient by SGD's rate on a perceptron, median over seeds"
        text += f"\n## {title}\n\n{markdown(columns, rows)}"
        figures["horizon.png"] = partial(draw_horizon, horizon)
    pairs = list(zip(learned, windows, strict=False))
    if pairs:
        (grid,) = lines.where(part="grid")
        best, at_best = best_of(grid)
        columns = ("steps per window", "sum of single windows", "last rate", "first loss", "last loss")
        rows = [
            (r["setting"], f"{total(w):+.3g}", f"{r['lr'][-1]:.2g}", f"{r['loss'][0]:.4f}", f"{r['loss'][-1]:.4f}")
            for r, w in pairs
        ]
        title = f"Learning Adam's rate; the best of a grid is {best:.2g}, with the loss {at_best:.4f}"
        text += f"\n## {title}\n\n{markdown(columns, rows)}"
        figures["truncation.png"] = partial(draw_truncation, grid, windows, learned)
    return Report(list(claims(momentum, horizon, pairs)), text, figures)


def claims(momentum: Results, horizon: Results, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Claim]:
    """What the paper's sections 2.3 and 2.4 say, which give no numbers but rates, of the results so far."""
    if len(momentum) > 1:
        slopes = [steepest(r) for r in momentum]
        grown = [later > before for before, later in itertools.pairwise(slopes)]
        found = ", ".join(f"{x:.2g} after {r['setting']}" for x, r in zip(slopes, momentum, strict=True))
        claim = "the final loss gets steeper by the momentum with every number of steps"
        holds = "yes" if all(grown) else f"no ({sum(grown)} of {len(grown)})"
        yield Claim("section 2.3, figure 3c", claim, "", f"largest slope {found} steps", holds)
    for result in horizon[-1:]:
        sizes, steps = medians(result), result["steps"]
        claim = f"with SGD's rate at {result['setting']:g}, the hypergradient grows more than with the steps"
        found = f"{sizes[0]:.1g} after {steps[0]}, {sizes[-1]:.1g} after {steps[-1]} steps"
        holds = "yes" if sizes[-1] / sizes[0] > steps[-1] / steps[0] else "no"
        yield Claim("section 2.3", claim, "", found, holds)
    if len(pairs) > 1:
        (short, own), (long, whole) = pairs[0], pairs[-1]
        name = f"windows of {short['setting']:g} steps"
        rates = [r["lr"][-1] for r in (short, long)]
        claim = f"learned by {name}, Adam's rate falls below the first one"
        found = f"from {short['lr'][0]:.2g} to {rates[0]:.2g}"
        yield Claim("section 2.4, figure 4a", claim, "below 0.001", found, "yes" if rates[0] < short["lr"][0] else "no")
        claim = f"{name} end at a higher loss than the whole training of {long['setting']:g} steps"
        last = max(1, len(short["loss"]) // 4)  # one loss says little, for it jumps from one rate to the next
        losses = [numbers(r["loss"])[-last:] for r in (short, long)]
        by_rate = [f"{x.mean():.4f} up to a rate of {rate:.2g}" for x, rate in zip(losses, rates, strict=True)]
        found = f"in the mean of the last {last} outer steps {by_rate[0]}, against {by_rate[1]}"
        higher = "yes" if losses[0].mean() > losses[1].mean() else "no"
        yield Claim("section 2.4, figure 4a", claim, "", found, higher if welch(*losses) < 0.05 else "level")
        claim = f"the sum over {name} has another sign than the hypergradient of the whole training"
        sums = (total(own), total(whole))
        found = f"{sums[0]:+.3g} against {sums[1]:+.3g}"
        yield Claim("section 2.4, figure 4c", claim, "", found, "yes" if sums[0] * sums[1] < 0 else "no")


def steepest(result: dict[str, Any]) -> float:
    """The largest slope of the final loss by the momentum."""
    return float(np.nanmax(np.abs(numbers(result["slope"]))))


def total(windows: dict[str, Any]) -> float:
    """The sum of the hypergradients of single windows."""
    return float(np.nansum(numbers(windows["slopes"])))


def numbers(values: list[float | None]) -> Array:
    """With NaN where a result was not finite."""
    return np.array(values, np.float64)


def medians(result: dict[str, Any]) -> Array:
    """Of the seeds, for each horizon; a hypergradient that overflowed counts as infinite."""
    return np.median(np.nan_to_num(numbers(result["slopes"]), nan=np.inf), axis=1)


def best_of(grid: dict[str, Any]) -> tuple[float, float]:
    """The best rate, and its loss."""
    losses = numbers(grid["loss"])
    best = int(selection_losses(losses, np.isnan(losses)).argmin())
    return grid["lr"][best], grid["loss"][best]


def draw_momentum(path: dict[str, Any], results: Results) -> Figure:
    """Figures 3b and 3c, and the derivative of the latter."""
    figure, axes = panels(1, 3)
    weights, momenta = np.array(path["weights"], np.float64), path["momentum"]
    colours = matplotlib.colormaps["viridis_r"]
    shown = np.linspace(0, len(momenta) - 1, min(30, len(momenta))).astype(int)
    for i in shown:
        axes[0, 0].plot(weights[:, i], color=colours(momenta[i]), linewidth=0.8)
    axes[0, 0].set(xlabel="inner steps", ylabel="weight", title="dark: high momentum", ylim=(-2, 6))
    for colour, result in zip(COLOURS, results, strict=False):
        label, momenta = f"{result['setting']} steps", result["momentum"]
        axes[0, 1].plot(momenta, numbers(result["loss"]), color=colour, label=label, linewidth=0.9)
        slope = np.abs(numbers(result["slope"]))
        axes[0, 2].semilogy(momenta, np.where(slope > 1e-6, slope, np.nan), color=colour, linewidth=0.9)
    axes[0, 1].set(xlabel="momentum", ylabel="final loss")
    axes[0, 2].set(xlabel="momentum", ylabel="|d loss / d momentum|")
    axes[0, 1].legend(frameon=False, fontsize="small")
    return figure


def draw_horizon(results: Results) -> Figure:
    """The median hypergradient by horizon, a line per rate."""
    figure, axes = panels(1, 1)
    for colour, result in zip(COLOURS, results, strict=False):
        axes[0, 0].loglog(result["steps"], medians(result), ".-", color=colour, label=f"rate {result['setting']:g}")
    axes[0, 0].set(xlabel="inner steps", ylabel="|d validation loss / d rate|")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def draw_truncation(grid: dict[str, Any], windows: Results, learned: Results) -> Figure:
    """Figure 4: (a) rates and losses as they are learned, (b) hypergradients of windows, (c) their sums so far."""
    figure, axes = panels(2, 2)
    (rates, losses), (single, summed) = axes
    for colour, single_windows, curve in zip(COLOURS, windows, learned, strict=False):
        label = f"{curve['setting']} steps per window"
        rates.semilogy(curve["lr"], color=colour, label=label)
        losses.semilogy(numbers(curve["loss"]), color=colour)
        steps, slopes = single_windows["steps"], numbers(single_windows["slopes"])
        single.plot(steps, slopes, ".-", color=colour, linewidth=0.8, markersize=3)
        summed.plot(steps, np.cumsum(slopes), ".-", color=colour, linewidth=0.8, markersize=3)
    best, at_best = best_of(grid)
    rates.axhline(best, color="black", linestyle="--", linewidth=0.8, label="best of a grid")
    losses.axhline(at_best, color="black", linestyle="--", linewidth=0.8)
    rates.set(xlabel="outer steps", ylabel="Adam's rate")
    losses.set(xlabel="outer steps", ylabel="final validation loss")
    single.set(xlabel="inner steps", ylabel="hypergradient of a window")
    summed.set(xlabel="inner steps", ylabel="sum so far")
    for ax in (single, summed):
        ax.axhline(0, color="black", linewidth=0.6)
    rates.legend(frameon=False, fontsize="small")
    return figure
