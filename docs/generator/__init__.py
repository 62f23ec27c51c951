"""Pages that are made of docstrings and registries when the documentation is built, so that nothing is written twice.

Docstrings are Markdown with the sections of Google's style. Read `docstrings.py` first (a docstring as text and
sections), then `source.py` (the public names of a file, without importing it), `links.py` (from names in backticks to
their places), and the pages: `api.py`, `agent_pages.py`, `catalogue.py`.
"""

from __future__ import annotations

from pathlib import Path

from generator import agent_pages, api, catalogue, docstrings, links

__all__ = ["agent_pages", "api", "catalogue", "docstrings", "links", "pages", "write"]

Pages = dict[str, str]
"""Path below `docs/generated`, without its suffix -> the page, in Markdown."""


def pages() -> Pages:
    """Returns all generated pages."""
    return {**agent_pages.pages(), **catalogue.pages(), **api.pages()}


def write(folder: Path) -> None:
    """Writes the pages that are new or have changed, and removes those that there no longer are."""
    made = {folder / f"{name}.md": text for name, text in pages().items()}
    for path in set(folder.rglob("*.md")) - set(made):
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
