"""One HTML page in one file: no script, style, font or picture comes from anywhere else.

A page is built from plain values and written once::

    page = Page("Run of 200 edits", subtitle="NSE on atlas:gpt2")
    section = page.section("Rounds", "What each round did.")
    section.add(Table.of(frame, "Rounds"))
    section.add(Picture("norm", "Norm of the change", alt="...", draw=draw))
    page.write(Path("run.html"))

It follows the system's light or dark setting until its button is used, can be read on a phone, and
forbids itself every request by a content security policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from nse_plugin.files import require, write_text
from nse_plugin.report.figures import to_svg
from nse_plugin.report.table import Table
from nse_plugin.report.theme import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn once for each theme."""

    name: str
    """Short, fit for a file name."""
    caption: str
    alt: str
    """What it shows, for those who do not see it: the kind of figure and what is to be seen."""
    draw: Callable[[Theme], Figure]

    def data_uri(self, theme: Theme) -> str:
        """The figure as ``data:image/svg+xml``, fit for an attribute in double quotes."""
        svg = to_svg(self.draw(theme)).decode().replace('"', "'")
        return "data:image/svg+xml," + quote(svg, safe=" !$()*+,-./:;=?@_~'")


@dataclass
class Section:
    """A heading and the content below it."""

    title: str
    intro: str = ""
    items: list[str | Table | Picture] = field(default_factory=list)
    """Paragraphs, tables and pictures, in order."""

    def add(self, *items: str | Table | Picture) -> Section:
        """Append content."""
        self.items += items
        return self


@dataclass
class Page:
    """A page with a title and sections.  Texts are plain: what looks like HTML is escaped."""

    title: str
    subtitle: str = ""
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str, intro: str = "") -> Section:
        """A new section at the end."""
        self.sections.append(Section(title, intro))
        return self.sections[-1]

    def html(self) -> str:
        """The whole page."""
        return load_template().render(page=self, light=LIGHT, dark=DARK)

    def write(self, path: Path) -> None:
        """Write the page, in full or not at all."""
        write_text(path, self.html())


def load_template() -> Template:
    """The template of a page."""
    jinja2 = require("jinja2", "the HTML page")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nse_plugin.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda item: isinstance(item, Table)
    environment.tests["picture"] = lambda item: isinstance(item, Picture)
    return environment.get_template("page.html")
