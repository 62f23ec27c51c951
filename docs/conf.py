"""Sphinx's configuration: `make docs` builds the pages of this folder, and those that are made of the code itself."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import generator
import mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "lrenv"
author = "the lrenv authors"
copyright = author
release = version = version_of("lrenv")

extensions = ["myst_parser", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "figures"]
smartquotes_action = "D"  # dashes alone
html_theme = "furo"
html_title = "lrenv"
html_static_path = ["static"]
html_css_files = ["lrenv.css"]
html_math_renderer = "mathml"
maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True


def _generate(app: Sphinx) -> None:
    generator.write(Path(app.srcdir) / "generated")


def _as_files(app: Sphinx, name: str, text: list[str]) -> None:
    """Lets links to Markdown outside of this folder, which is no page, lead to the file itself."""
    text[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", text[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes the generated pages before any is read, and formulas in HTML itself."""
    app.connect("builder-inited", _generate)
    app.connect("source-read", _as_files)
    app.add_html_math_renderer("mathml", mathml.inline_renderers, mathml.block_renderers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
