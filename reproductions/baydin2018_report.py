"""Figures and the table of claims of `baydin2018.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flow import COLOURS, Claim, Lines, Report, markdown, panels

Array = NDArray[np.float64]
FAMILIES = {"sgd": "sgd-hd", "nesterov": "nesterov-hd", "adam": "adam-hd"}
"""Plain method -> the one with hypergradients."""
STYLES = {
    "sgd": (COLOURS[0], "--"), "sgd-hd": (COLOURS[0], "-"), "nesterov": (COLOURS[1], "--"),
    "nesterov-hd": (COLOURS[1], "-"), "adam": (COLOURS[2], "--"), "adam-hd": (COLOURS[2], "-"),
    "adam-decayed": (COLOURS[2], ":"),
}  # fmt: skip
"""Method -> colour and line, in the order of tables."""
BETA = {"sgd-hd": 1e-3, "nesterov-hd": 1e-3, "adam-hd": 1e-7}
"""Of the paper's experiments, but for 1e-8 with Adam-HD on VGG; figures show these and claims are about them."""
PUBLISHED = {
    "sgd": 0.3737, "sgd-hd": 0.2878, "nesterov": 0.2846, "nesterov-hd": 0.2719, "adam": 0.2719, "adam-hd": 0.2723,
}  # fmt: skip
"""Validation loss of logistic regression after 10 epochs from the rate 1e-3, one seed each: `results/logreg` of the
authors' repository, github.com/gbaydin/hypergradient-descent."""
LOW_RATES = (1e-3, 1e-4, 1e-5, 1e-6)
"""From which hypergradients are to help; Adam is at its best from the first of them."""
HIGH_RATES = (1e-1, 1e-2)
"""From which there is less to win, and more to lose."""


def report(lines: Lines, networks: Collection[str]) -> Report:
    """Losses, claims, tuning.png, online-*.png and beta.png, of the networks that there are runs of."""
    networks = [name for name in networks if lines.where(network=name)]
    text = "\nLosses are validation losses after the last epoch, means over seeds ± standard deviations.\n"
    for name in networks:
        text += f"\n## {name}\n\n{losses(lines, name)}\nFrom 0.001, after the longest training:\n\n{ends(lines, name)}"
    figures: dict[str, Callable[[], Figure]] = {"tuning.png": partial(draw_tuning, lines, networks)}
    figures |= {f"online-{name}.png": partial(draw_online, lines, name) for name in networks}
    return Report(list(claims(lines, networks)), text, figures | {"beta.png": partial(draw_beta, lines)})


def final(results: Iterable[dict[str, Any]], name: str = "val_loss") -> Array:
    """Where the runs ended, (n,); infinite where they diverged."""
    return np.array([np.inf if (last := r["curves"][name][-1]) is None else last for r in results])


def curves(results: Iterable[dict[str, Any]], name: str) -> Array:
    """(n, epochs), NaN after divergence."""
    return np.array([r["curves"][name] for r in results], np.float64)


def cells(lines: Lines, **where: Any) -> dict[float, Array]:
    """Initial rate -> final validation losses, falling rates first."""
    results = lines.where(**where)
    return {a: final(r for r in results if r["alpha0"] == a) for a in sorted({r["alpha0"] for r in results})[::-1]}


def settings(lines: Lines, network: str) -> list[tuple[str, float, int]]:
    """(method, beta, epochs) of which there are runs, in the order of tables."""
    found = dict.fromkeys((r["method"], r["beta"], r["epochs"]) for r in lines.where(network=network))
    order = list(STYLES)
    return sorted(found, key=lambda s: (order.index(s[0]), s[2], -s[1]))


def losses(lines: Lines, network: str) -> str:
    """The table of final validation losses: a row per method, beta and length, a column per initial rate."""
    rates = sorted({r["alpha0"] for r in lines.where(network=network)})[::-1]
    rows = []
    for method, beta, epochs in settings(lines, network):
        row = cells(lines, network=network, method=method, beta=beta, epochs=epochs)
        published = PUBLISHED.get(method) if network == "logreg" and beta == BETA.get(method, 0.0) else None
        shown = [shortly(row.get(rate)) for rate in rates]
        rows.append((method, f"{beta:g}" if beta else "", epochs, *shown, published or ""))
    return markdown(
        ("method", "beta", "epochs", *(f"from {rate:g}" for rate in rates), "authors' run from 0.001"), rows
    )


def ends(lines: Lines, network: str) -> str:
    """The table of where runs from the rate 1e-3 ended: a row per method."""
    longest = max(r["epochs"] for r in lines.where(network=network))
    rows = []
    for method, beta, epochs in settings(lines, network):
        runs = lines.where(network=network, method=method, beta=beta, epochs=epochs, alpha0=1e-3)
        if runs and epochs == longest and beta == BETA.get(method, 0.0):
            curves = (("train_loss", ".4f"), ("val_loss", ".4f"), ("val_accuracy", ".4f"), ("lr", ".2e"))
            rows.append((method, len(runs), *(shortly(final(runs, name), form) for name, form in curves)))
    return markdown(("method", "runs", "train loss", "validation loss", "validation accuracy", "last rate"), rows)


def shortly(values: Array | None, form: str = ".4f") -> str:
    """Mean and standard deviation, and how many diverged."""
    if values is None or not len(values):
        return ""
    finite = values[np.isfinite(values)]
    mark = f" ({len(values) - len(finite)} of {len(values)} diverged)" if len(finite) < len(values) else ""
    if not len(finite):
        return mark.strip(" ()")
    return f"{finite.mean():{form}}" + (f" ± {finite.std(ddof=1):{form}}" if len(finite) > 1 else "") + mark


def claims(lines: Lines, networks: Collection[str]) -> Iterator[Claim]:
    """What the paper claims of initial rates and betas, and what others found, for the networks that there are."""
    for network in networks:
        for plain, hd in FAMILIES.items():
            yield better(lines, network, plain, hd, BETA[hd], (1e-3,))
            for beta in (BETA[hd], 1e-4):
                yield better(lines, network, plain, hd, beta, LOW_RATES[plain == "adam" :])
                yield better(lines, network, plain, hd, beta, HIGH_RATES)
        exploded = [r["diverged"] for r in lines.where(network=network, method="adam-hd", beta=1e-4)]
        claim = f"{network}: adam-hd with beta 1e-4 diverges from every rate"
        found = f"{sum(exploded)} of {len(exploded)} runs diverged"
        yield Claim("Tran and Rauf 2019, section 3.1, of the mlp", claim, "", found, verdict(exploded))
    for plain, hd in FAMILIES.items():
        yield robust(lines, plain, hd)


def better(lines: Lines, network: str, plain: str, hd: str, beta: float, rates: tuple[float, ...]) -> Claim:
    """Whether hypergradients end lower from every one of the rates, on average over seeds, in the longest runs."""
    runs = lines.where(network=network, method=hd, beta=beta)
    epochs = max((r["epochs"] for r in runs if r["alpha0"] == rates[-1]), default=0)
    name = f"from {rates[0]:g}" if len(rates) == 1 else f"from every rate in {rates[-1]:g} to {rates[0]:g}"
    claim = f"{network}, {epochs} epoch{'s' * (epochs != 1)}: {hd} with beta {beta:g} ends below {plain} {name}"
    place = "not in it" if rates == HIGH_RATES else "experiments"
    told = network == "logreg" and rates == (1e-3,) and beta == BETA[hd]
    published = f"{PUBLISHED[hd]} against {PUBLISHED[plain]}" if told else ""
    ours = cells(lines, network=network, method=hd, beta=beta, epochs=epochs)
    theirs = cells(lines, network=network, method=plain, epochs=epochs)
    if not set(rates) <= set(ours) & set(theirs):
        return Claim(place, claim, published, "", "not run")
    held = [bool(ours[rate].mean() < theirs[rate].mean()) for rate in rates]
    numbers = "; ".join(f"{rate:g}: {shortly(ours[rate])} against {shortly(theirs[rate])}" for rate in rates)
    return Claim(place, claim, published, numbers, verdict(held))


def robust(lines: Lines, plain: str, hd: str) -> Claim:
    """The paper's figure 4: a region of small betas in which hypergradients never do worse, whatever the first rate."""
    claim = f"logreg: {hd} ends no higher than {plain} from any rate, if beta is small enough"
    grid = lines.where(network="logreg", method=hd, seed=0)
    theirs = {r["alpha0"]: final([r])[0] for r in lines.where(network="logreg", method=plain, seed=0)}
    betas = sorted({r["beta"] for r in grid})
    if len(betas) < 3 or not theirs:
        return Claim("figure 4", claim, "", "", "not run")
    # A beta too small to matter leaves the loss as it is, up to rounding.
    never_worse = {
        beta: all(final([r])[0] <= 1.001 * theirs[r["alpha0"]] for r in grid if r["beta"] == beta) for beta in betas
    }
    good = ", ".join(f"{beta:g}" for beta in betas if never_worse[beta])
    found = f"within 0.1 % or lower from all rates for beta = {good or 'none'}"
    return Claim("figure 4", claim, "", found, verdict([never_worse[betas[0]]]))


def verdict(held: Collection[bool]) -> str:
    """In words, of several conditions."""
    return "not run" if not held else "yes" if all(held) else f"no ({sum(held)} of {len(held)})"


def draw_tuning(lines: Lines, networks: list[str]) -> Figure:
    """Losses and rates from 1e-3: a column per network."""
    figure, axes = panels(3, len(networks))
    for column, network in enumerate(networks):
        longest = max(r["epochs"] for r in lines.where(network=network))
        for ax, name in zip(axes[:, column], ("train_loss", "val_loss", "lr"), strict=True):
            for method, beta, epochs in settings(lines, network):
                if epochs == longest and beta == BETA.get(method, 0.0):
                    runs = lines.where(network=network, method=method, beta=beta, epochs=epochs, alpha0=1e-3)
                    line(ax, runs, name, *STYLES[method], method)
            dress(ax, name)
        axes[0, column].set_title(network)
    name_lines(axes)
    return figure


def draw_online(lines: Lines, network: str) -> Figure:
    """Losses and rates from every rate: a column per family, plain methods dashed."""
    figure, axes = panels(3, len(FAMILIES))
    epochs = max((r["epochs"] for r in lines.where(network=network, alpha0=1e-6)), default=0)
    rates = sorted({r["alpha0"] for r in lines.where(network=network, epochs=epochs)})[::-1]
    for column, (plain, hd) in enumerate(FAMILIES.items()):
        for ax, name in zip(axes[:, column], ("train_loss", "val_loss", "lr"), strict=True):
            for number, rate in enumerate(rates):
                for method, style in ((plain, "--"), (hd, "-")):
                    beta = BETA.get(method, 0.0)
                    runs = lines.where(network=network, method=method, beta=beta, epochs=epochs, alpha0=rate)
                    line(ax, runs, name, COLOURS[number], style, f"{rate:g}" if style == "-" else None)
            dress(ax, name)
        axes[0, column].set_title(f"{plain} (dashed), {hd}")
    name_lines(axes, "initial rate")
    return figure


def dress(ax: Any, name: str) -> None:
    """Names and scales the axes; rates may be 0 or negative."""
    ax.set(xlabel="epoch", ylabel=name.replace("_", " "), yscale="log")
    if name == "lr":
        ax.set_yscale("symlog", linthresh=1e-6)


def name_lines(axes: Any, title: str | None = None) -> None:
    """A legend in the last panel of the first row that has lines."""
    drawn = [ax for ax in axes[0] if ax.get_legend_handles_labels()[0]]
    if drawn:
        drawn[-1].legend(title=title, fontsize="x-small", framealpha=0.7)


def line(ax: Any, results: list[dict[str, Any]], name: str, colour: Any, style: str, label: str | None) -> None:
    """The mean over seeds of a curve."""
    if results:
        mean = curves(results, name).mean(0)
        ax.plot(np.arange(1, len(mean) + 1), mean, style, color=colour, label=label, linewidth=1.2)


def draw_beta(lines: Lines) -> Figure:
    """Final validation losses of logistic regression over beta and initial rate; the last row is the plain method."""
    figure, axes = panels(1, len(FAMILIES))
    for ax, (plain, hd) in zip(axes[0], FAMILIES.items(), strict=True):
        runs = lines.where(network="logreg", seed=0, method=hd) + lines.where(network="logreg", seed=0, method=plain)
        if not runs:
            continue
        betas = sorted({r["beta"] for r in runs})
        rates = sorted({r["alpha0"] for r in runs})
        grid = np.full((len(betas), len(rates)), np.nan)
        for r in runs:
            grid[betas.index(r["beta"]), rates.index(r["alpha0"])] = final([r])[0]
        shown = ax.imshow(np.where(np.isfinite(grid), grid, np.nan), origin="lower", vmin=0.26, vmax=0.6, aspect="auto")
        ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=45)
        ax.set_yticks(range(len(betas)), [f"{beta:g}" if beta else "plain" for beta in betas])
        ax.set(title=hd, xlabel="initial rate", ylabel="beta")
        ax.grid(False)
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                text = f"{value:.2f}" if np.isfinite(value) else "div."
                colour = "white" if value < 0.4 else "black"
                ax.text(j, i, text, color=colour, ha="center", va="center", fontsize=6)
        figure.colorbar(shown, ax=ax, label="validation loss")
    return figure
