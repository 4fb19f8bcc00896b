"""Sphinx settings; `make docs` builds with warnings as errors."""

import re

from sphinx.application import Sphinx

import medgen

project = "medgen"
author = "The medgen authors"
copyright = author
version = release = medgen.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # single backticks in docstrings link to what they name, where it is documented

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]

html_theme = "pydata_sphinx_theme"
html_title = f"medgen {release}"
html_show_sourcelink = False
html_extra_path = ["extra"]  # pages that are made elsewhere, such as reports
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}


def escape_shapes(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Keep the stars of shapes such as (B, *shape), and the bars of |x|, from being read as markup."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<![\w*])\*(?=\w)|\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "``".join(parts)


def setup(app: Sphinx) -> None:
    """Runs before napoleon, whose own output must not be touched."""
    app.connect("autodoc-process-docstring", escape_shapes, priority=400)
