"""Figures and the table of numbers of `metz2019_hypergradients.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from lrenv.benchmark.selection import selection_losses
from lrenv.runtime.files import replace_file
from plumbing import COLOURS, Lines, markdown, panels, save_figure

Array = NDArray[np.float64]


def report(lines: Lines, scale: str, out: Path) -> None:
    """Draws momentum.png (figure 3), horizon.png and truncation.png (figure 4), and writes results.md."""
    parts = {name: lines.where(scale=scale, part=name) for name in ("momentum", "horizon", "windows", "learned")}
    (path,) = lines.where(scale=scale, part="trajectory")
    (grid,) = lines.where(scale=scale, part="grid")
    draw_momentum(path, parts["momentum"], out / "momentum.png")
    draw_horizon(parts["horizon"], out / "horizon.png")
    draw_truncation(grid, parts["windows"], parts["learned"], out / "truncation.png")
    text = f"# Hypergradients through long training (Metz et al. 2019)\n\nScale: {scale}.\n"
    for title, (columns, rows) in tables(parts, grid).items():
        text += f"\n## {title}\n\n{markdown(columns, rows)}"
    replace_file(out / "results.md", text)


def tables(
    parts: dict[str, list[dict[str, Any]]], grid: dict[str, Any]
) -> dict[str, tuple[tuple[str, ...], list[tuple[object, ...]]]]:
    """Title -> (columns, rows)."""
    momentum = [
        (
            r["setting"],
            f"{r['transition']:.4f}",
            f"{np.nanmax(np.abs(numbers(r['slope']))):.2g}",
        )
        for r in parts["momentum"]
    ]
    horizon = [(r["setting"], *(f"{x:.1g}" for x in medians(r))) for r in parts["horizon"]]
    learned = [
        (
            r["setting"],
            f"{np.nansum(numbers(w['slopes'])):+.3g}",
            f"{r['lr'][-1]:.2g}",
            f"{r['loss'][0]:.4f}",
            f"{r['loss'][-1]:.4f}",
        )
        for r, w in zip(parts["learned"], parts["windows"], strict=True)
    ]
    best = best_of(grid)
    return {
        "Momentum on the toy problem": (
            ("steps", "momentum of the first transition", "largest slope of the loss"), momentum,
        ),
        "Size of the hypergradient by SGD's rate on a perceptron, median over seeds": (
            ("rate", *(f"{steps} steps" for steps in parts["horizon"][0]["steps"])), horizon,
        ),
        f"Learning Adam's rate; the best of a grid is {grid['lr'][best]:.2g}, with the loss {grid['loss'][best]:.4f}": (
            ("steps a window", "sum of single windows", "last rate", "first loss", "last loss"), learned,
        ),
    }  # fmt: skip


def numbers(values: list[float | None]) -> Array:
    """With NaN where a result was not finite."""
    return np.array(values, np.float64)


def medians(result: dict[str, Any]) -> Array:
    """Of the seeds, for each horizon; a hypergradient that overflowed counts as infinite."""
    return np.median(np.nan_to_num(numbers(result["slopes"]), nan=np.inf), axis=1)


def best_of(grid: dict[str, Any]) -> int:
    """The position of the best rate."""
    losses = numbers(grid["loss"])
    return int(selection_losses(losses, np.isnan(losses)).argmin())


def draw_momentum(path: dict[str, Any], results: list[dict[str, Any]], file: Path) -> None:
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
    save_figure(figure, file)


def draw_horizon(results: list[dict[str, Any]], file: Path) -> None:
    """The median hypergradient by horizon, a line a rate."""
    figure, axes = panels(1, 1)
    for colour, result in zip(COLOURS, results, strict=False):
        axes[0, 0].loglog(result["steps"], medians(result), ".-", color=colour, label=f"rate {result['setting']:g}")
    axes[0, 0].set(xlabel="inner steps", ylabel="|d validation loss / d rate|")
    axes[0, 0].legend(frameon=False, fontsize="small")
    save_figure(figure, file)


def draw_truncation(
    grid: dict[str, Any], windows: list[dict[str, Any]], learned: list[dict[str, Any]], file: Path
) -> None:
    """Figure 4: (a) rates and losses as they are learned, (b) hypergradients of windows, (c) their sums so far."""
    figure, axes = panels(2, 2)
    (rates, losses), (single, summed) = axes
    for colour, single_windows, curve in zip(COLOURS, windows, learned, strict=False):
        label = f"{curve['setting']} steps a window"
        rates.semilogy(curve["lr"], color=colour, label=label)
        losses.semilogy(numbers(curve["loss"]), color=colour)
        steps, slopes = single_windows["steps"], numbers(single_windows["slopes"])
        single.plot(steps, slopes, ".-", color=colour, linewidth=0.8, markersize=3)
        summed.plot(steps, np.cumsum(slopes), ".-", color=colour, linewidth=0.8, markersize=3)
    best = best_of(grid)
    rates.axhline(grid["lr"][best], color="black", linestyle="--", linewidth=0.8, label="best of a grid")
    losses.axhline(grid["loss"][best], color="black", linestyle="--", linewidth=0.8)
    rates.set(xlabel="outer steps", ylabel="Adam's rate")
    losses.set(xlabel="outer steps", ylabel="final validation loss")
    single.set(xlabel="inner steps", ylabel="hypergradient of a window")
    summed.set(xlabel="inner steps", ylabel="sum so far")
    for ax in (single, summed):
        ax.axhline(0, color="black", linewidth=0.6)
    rates.legend(frameon=False, fontsize="small")
    save_figure(figure, file)
