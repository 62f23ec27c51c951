"""A comparison as one HTML page, which needs no other file: for screens of any width, dark or light, and for print."""

from __future__ import annotations

import html

from lrenv.benchmark import figures, wording
from lrenv.benchmark.figures import Style
from lrenv.benchmark.rows import Comparison, Row


def page(comparison: Comparison) -> str:
    """Returns the text of the page."""
    style = figures.styles(comparison)
    shown = _shown(comparison)
    finished = figures.finished(comparison)
    return PAGE.format(
        css=CSS,
        title=html.escape(wording.title(comparison)),
        verdict=html.escape(wording.verdict(comparison)),
        head="".join(f"<th scope=col>{html.escape(heading)}</th>" for heading in shown.values()),
        body="".join(_row(row, comparison, shown, style[row.label]) for row in comparison.ranked),
        caption=html.escape(f"{wording.caption(comparison)} {SPENT}"),
        legend="".join(f"<li>{_swatch(style[row.label])} {html.escape(row.label)}</li>\n" for row, _ in finished),
        figures="".join(
            f'<figure role="img" aria-label="{html.escape(name)}">{figures.svg(comparison, draw)}</figure>\n'
            for name, draw in (figures.PANELS.items() if finished else ())
        ),
        key=KEY if finished else "",
        views=_views(comparison),
        command=html.escape(comparison.about["command"]),
        machine=html.escape(comparison.about["machine"]),
    )


def _shown(comparison: Comparison) -> dict[str, str]:
    """The headings of columns that say anything, without the settings, which stand below the agent's name."""
    entries = [wording.cells(row, comparison) for row in comparison.rows if row.result is not None]
    empty = {"metric": "-", "val_loss": "-", "diverged": "0"}
    return {
        name: heading for name, heading in wording.headings(comparison).items()
        if name != "settings" and not (name in empty and all(entry[name] == empty[name] for entry in entries))
    }  # fmt: skip


def _row(row: Row, comparison: Comparison, shown: dict[str, str], style: Style) -> str:
    """A row of the table; why an agent failed takes all the columns of its numbers. An agent alone ahead is bold."""
    entries = {name: html.escape(entry) for name, entry in wording.cells(row, comparison).items()}
    settings = entries["settings"]
    below = f"<small>{settings}</small>" if settings else ""
    body = f"<th scope=row>{_swatch(style)} {entries['agent']}{below}</th>"
    if row.result is None:
        body += f"<td colspan={len(shown) - 1} class=failed>{entries['failure']}</td>"
    else:
        body += "".join(
            f'<td data-column="{html.escape(heading)}">{entries[name]}</td>'
            for name, heading in shown.items()
            if name != "agent"
        )
    return f"<tr{' class=best' if comparison.best == [row] else ''}>{body}</tr>\n"


def _swatch(style: Style) -> str:
    """A piece of the row's line, as in the figures."""
    dashes = f' stroke-dasharray="{" ".join(f"{2 * x:g}" for x in style.dashes)}"' if style.dashes else ""
    return (
        f'<svg class=swatch viewBox="0 0 26 10" aria-hidden=true><path d="M0 5H26" stroke="{style.colour}" '
        f"stroke-width=3{dashes} /></svg>"
    )


def _views(comparison: Comparison) -> str:
    """A line per kind of view, with the agents that have it."""
    agents: dict[str, list[str]] = {}
    for row, result in figures.finished(comparison):
        agents.setdefault(wording.what(result.view), []).append(row.label)
    return "".join(
        f"<li><b>{html.escape(', '.join(labels))}</b>: {html.escape(said)}</li>\n" for said, labels in agents.items()
    )


SPENT = "Runs spent are the trainings that tuning, learning, and choosing among what was learned took."
KEY = (
    "Curves show the median over seeds and the range of the middle half. A dot is a run; the upright bar is the mean, "
    "and the line below it the 95 % interval of the mean difference."
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody></table></div>
<p class="small">{caption}</p>
<ul class="legend">
{legend}</ul>
<div class="figures">
{figures}<p class="small">{key}</p></div>
<h2>What each agent observes and controls</h2>
<ul>
{views}</ul>
<p class="small">Made by <code>{command}</code> on {machine}.</p>
</html>
"""
CSS = """:root {
  color-scheme: light dark; --ink: #1c2026; --faint: #5b626c; --line: #d5d9de; --paper: #fff; --code: #f1f3f5
}
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #a2a9b3; --line: #3a4048; --paper: #15181c; --code: #23272d }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2rem }
.verdict { font-size: 1.05rem; max-width: 52rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; font-weight: 600 }
th:first-child { text-align: left; padding-left: 0 }
tbody th { font-weight: 400 }
tbody th small { display: block; color: var(--faint); padding-left: 2rem }
td { white-space: nowrap }
td:last-child { white-space: normal }
td.failed { white-space: normal; text-align: left }
tr.best, tr.best th { font-weight: 700 }
.swatch { width: 1.6rem; height: .65rem; fill: none }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; padding: 0; margin: 1.5rem 0 .5rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem 1.5rem }
figure { margin: 0; break-inside: avoid }
figure svg { width: 100%; height: auto; display: block; font-family: system-ui, sans-serif }
figure + p.small { align-self: center; margin: 0 }
.small { color: var(--faint); font-size: .9rem; max-width: 52rem }
code { background: var(--code); padding: .1rem .25rem; overflow-wrap: anywhere }
li { overflow-wrap: anywhere }
@media screen and (max-width: 44rem) {
  body { margin: 1rem auto }
  table, tbody, tr, tbody th, td { display: block }
  thead { display: none }
  tr { padding: .6rem 0; border-bottom: 1px solid var(--line) }
  th, td { border: 0; padding: .05rem 0 }
  td { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; white-space: normal }
  td::before { content: attr(data-column); color: var(--faint) }
}
@media print {
  @page { margin: 14mm }
  body { font-size: 8.5pt; margin: 0; max-width: none; padding: 0 }
  h1 { font-size: 14pt; margin: 0 } h2 { font-size: 11pt; margin-top: 1rem }
  p, .verdict, .small { font-size: 8.5pt; max-width: none }
  .wide { overflow: visible }
  table { font-size: 8pt; width: 100% }
  th, td { padding: .15rem .25rem }
  tr, ul, p { break-inside: avoid }
  .legend, h2 { break-after: avoid }
  .figures { grid-template-columns: 1fr 1fr; gap: .5rem 1rem }
}
"""
