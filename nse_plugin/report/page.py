"""One HTML page in one file, which loads nothing from anywhere else.

A page is built from plain values and written once::

    page = Page("Run of 200 edits", subtitle="NSE on atlas:gpt2")
    section = page.section("Rounds", "What each round did.")
    section.add(Table.of(frame, "Rounds"))
    section.add(Picture("norm", "Norm of the change", alt="...", draw=draw))
    page.write(Path("run.html"))

It follows the system's light or dark setting until its button is used, can be read on a phone, and
has a content security policy that forbids every request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nse_plugin.files import write_text
from nse_plugin.report.figures import to_svg
from nse_plugin.report.theme import DARK, LIGHT, THEMES, Theme
from nse_plugin.table import Table

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure


_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


@dataclass(frozen=True)
class Picture:
    """A figure in the colours of a theme."""

    name: str
    """Short, fit for a file name."""
    caption: str
    alt: str
    """Alternative text: the kind of the figure and what it shows."""
    draw: Callable[[Theme], Figure]

    def drawings(self, name: str) -> list[str]:
        """The figure as SVG elements, of which a page shows one at a time.

        One element has the colours of both themes.  There are two if more differs than colours: the
        cells of a heat map are an image.

        Args:
            name: the figure's name within its page.
        """
        light, dark = (to_svg(self.draw(theme), name) for theme in THEMES)
        if _COLOUR.sub("#", light) != _COLOUR.sub("#", dark):
            dark = dark.replace(f"{name}-", f"{name}-dark-")
            return [self._labelled(light, "light"), self._labelled(dark, "dark")]
        pairs = zip(_COLOUR.findall(light), _COLOUR.findall(dark))
        both = _COLOUR.sub(lambda _: f"light-dark({','.join(next(pairs))})", light)
        return [self._labelled(both, "light dark")]

    def _labelled(self, svg: str, themes: str) -> str:
        label = escape(self.alt)
        return svg.replace("<svg", f'<svg class="{themes}" role="img" aria-label="{label}"', 1)


@dataclass
class Section:
    """A heading and the content below it."""

    title: str
    intro: str = ""
    items: list[str | Table | Picture] = field(default_factory=list)
    """Paragraphs, tables and pictures, in order."""

    def add(self, *items: str | Table | Picture | None) -> Section:
        """Append content; None is left out."""
        self.items += [item for item in items if item is not None]
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
        return _template().render(page=self, light=LIGHT, dark=DARK)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        write_text(path, self.html())


def _template() -> Template:
    """The template of a page."""
    import jinja2

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
