"""The documentation site: ``python -m sphinx -W docs build/site``, then open build/site/index.html.

The pages are the Markdown files of this folder as they are.  Only index.md is changed on the way:
its lists of links become the site's contents.  Pages made from the code are written anew by each
build: settings.md, and those in ``docs/generated``, which are not kept in git.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import reference  # noqa: E402

from nse_plugin import __version__  # noqa: E402

project = "nse_plugin"
author = "the nse_plugin authors"
copyright = f"{author}, MIT licence"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"nse_plugin {release}"
html_copy_source = html_show_sourcelink = False
pygments_dark_style = "monokai"

myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def setup(app):
    """Write the generated pages, and make the contents of index.md."""
    reference.write_pages()
    app.connect("source-read", reference.edit_source)
