"""Figures from tables in the colours of a theme: heat maps, and the basis of all figures.

A function takes tables of pandas, draws a figure (without a window or global state) and returns
it; :func:`to_png` and :func:`to_svg` turn it into reproducible bytes.  Figures are 4.2 inches wide,
so that their text can be read on a phone.
"""

from __future__ import annotations

import io
import re
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nse_plugin.report.theme import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from pandas import DataFrame

WIDTH = 4.2
"""Inches."""
SIZE = 9
"""Size of the text, in points."""
_UNSEEN = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", re.DOTALL)
_SHORTER = (
    (re.compile(r"\b([1-9]\d*\.\d\d)\d+"), r"\1"),  # decimals of a coordinate, in points
    (re.compile(r"^<svg .*?(viewBox=\"[^\"]*\").*?>"), r"<svg \1>"),
    (re.compile(r'<g id="[^"]*"'), "<g"),  # nothing refers to a group
    (re.compile("xlink:href"), "href"),
    (re.compile('(?<=[:;]) |font-family: [^;"]*;?'), ""),  # in styles
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r"(?<=[MLQCz]) (?=[-\d])| (?=[MLQCz][ \"])"), ""),  # in outlines
)
"""Abbreviations of matplotlib's SVG tags."""
_ID = re.compile(r'(?<=[#"])(?:[mp]|image)[0-9a-f]{10}(?=[")])')
"""The id of a clip path, a marker or an image: a hash of its content, including its colours."""
_HOVER = re.compile(r"<g id=([\"'])hover:(.*?)\1>(.*?)</g>", re.DOTALL)
_MARKER = re.compile("<use ([^>]*)/>")
_ROOM = 12
"""Largest number of rows and columns for which a heat map shows its numbers."""


def heat_map(table: DataFrame, **options: Any) -> Figure:
    """:func:`heat_maps` of one table."""
    return heat_maps({"": table}, **options)


def heat_maps(
    tables: Mapping[str, DataFrame],
    *,
    x: str,
    y: str,
    value: str,
    percent: bool = False,
    limits: tuple[float | None, float | None] = (0.0, None),
    theme: Theme = LIGHT,
) -> Figure:
    """Heat maps, one below the other; cells without a value are grey.

    Up to twelve rows and columns, the cells show their numbers.

    Args:
        tables: by title.
        x: label of the columns.
        y: label of the rows.
        value: label of the colours.
        percent: values are shares, labelled as percent.
        limits: of the colours, which all tables share; None adapts to the values.
    """
    figure, panels = empty_figure(theme, [_height(table) for table in tables.values()])
    scale = _scale(tables.values(), limits, theme)
    low, high = scale.get_clim()
    for axes, (name, table) in zip(panels, tables.items()):
        values = table.to_numpy(float)
        axes.imshow(
            values, aspect="auto", interpolation="none", cmap=scale.cmap, vmin=low, vmax=high
        )
        axes.set_title(name, fontsize=SIZE, color=theme.muted, loc="left")
        axes.set_ylabel(y)
        _name_cells(axes, table)
        if max(table.shape) <= _ROOM:
            _number_cells(axes, scale, values, ".0%" if percent else ".2f", theme)
    panels[-1].set_xlabel(x)
    above = any((table > high).any(axis=None) for table in tables.values())
    bar = figure.colorbar(
        scale, ax=panels, pad=0.02, fraction=0.05, aspect=24, extend="max" if above else "neither"
    )
    bar.set_label(value, color=theme.text, fontsize=SIZE)
    bar.outline.set_edgecolor(theme.grid)
    bar.ax.tick_params(colors=theme.muted, labelsize=SIZE - 1)
    if percent:
        percent_axis(bar.ax.yaxis)
    return figure


def binned(table: DataFrame, bins: int = 128) -> DataFrame:
    """Average the columns in equal bins, if there are more columns than bins.

    A bin has the name of its first column.  NaN is ignored; a bin without a value is NaN.
    """
    width = -(-table.shape[1] // bins)
    if width <= 1:
        return table
    stretch = [at // width for at in range(table.shape[1])]
    means = table.T.groupby(stretch).mean().T
    means.columns = table.columns[::width]
    return means


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, on its own background."""
    settings = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    return _saved(figure, format="png", dpi=dpi, **settings)


def to_svg(figure: Figure, name: str = "figure") -> str:
    """The figure as an SVG element of an HTML page, with its text as text.

    Invisible parts of matplotlib's output are left out: comments, indents, metadata, names of
    groups, and the third and later decimals of coordinates.  A marker shows its text of
    :func:`hover` under the mouse.

    Args:
        name: prefix of the ids inside.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "nse", "svg.fonttype": "none"}):
        text = _saved(figure, format="svg", metadata={"Date": None, "Creator": None}).decode()
    text = _HOVER.sub(_with_titles, _UNSEEN.sub("", text[text.index("<svg") :]))
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    text = re.sub("<[^>]*>", _shorter, text)
    ids: dict[str, str] = {}
    return _ID.sub(lambda found: ids.setdefault(found[0], f"{name}-{len(ids)}"), text).strip()


def hover(line: Artist, texts: Iterable[str]) -> None:
    """Give each marker of a line a text for :func:`to_svg`."""
    line.set_gid("hover:" + "\n".join(texts))


def _with_titles(group: re.Match[str]) -> str:
    texts = iter(re.split("\n|&#10;", group[2]))

    def titled(marker: re.Match[str]) -> str:
        return f"<use {marker[1]}><title>{next(texts)}</title></use>"

    return f"<g>{_MARKER.sub(titled, group[3])}</g>"


def _shorter(tag: re.Match[str]) -> str:
    text = tag[0]
    for long, short in _SHORTER:
        text = long.sub(short, text)
    return text


def _saved(figure: Figure, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor=figure.get_facecolor(), **settings)
    return buffer.getvalue()


def empty_figure(
    theme: Theme, heights: Sequence[float], title: str = ""
) -> tuple[Figure, list[Axes]]:
    """An empty figure with an axes of each height, in the theme's colours."""
    from matplotlib.figure import Figure

    room = 0.3 if title else 0.0
    figure = Figure((WIDTH, sum(heights) + room), facecolor=theme.background, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=SIZE + 1, color=theme.text)
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axes in panels:
        axes.set_facecolor(theme.background)
        axes.tick_params(colors=theme.muted, labelsize=SIZE - 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(theme.text)
            axis.label.set_fontsize(SIZE)
        for spine in axes.spines.values():
            spine.set_color(theme.grid)
    return figure, list(panels)


def _height(table: DataFrame) -> float:
    """Height of a heat map in inches: flat for few rows, nearly square for square tables."""
    rows, columns = table.shape
    per_row = 0.29 if columns <= _ROOM else 0.13
    return 3.5 if rows == columns else min(max(1.7, 0.7 + per_row * rows), 3.5)


def _scale(
    tables: Iterable[DataFrame], limits: tuple[float | None, float | None], theme: Theme
) -> ScalarMappable:
    """The colours of values between the limits, or between the extremes of all tables."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = [v for table in tables for v in table.to_numpy(float).ravel().tolist() if v == v]
    low, high = limits
    low = min(values, default=0.0) if low is None else low
    high = max(values, default=1.0) if high is None else high
    colours = matplotlib.colormaps[theme.colour_map].with_extremes(bad=theme.absent)
    return ScalarMappable(Normalize(low, high if high > low else low + 1.0), colours)


def _name_cells(axes: Axes, table: DataFrame) -> None:
    """Up to a dozen names of rows and columns along the axes."""
    for axis, names, most in ((axes.xaxis, table.columns, 9), (axes.yaxis, table.index, _ROOM)):
        axis.set_ticks(*_ticks(names.tolist(), most))


def _ticks(names: list[Any], most: int) -> tuple[list[float], list[str]]:
    """Positions and texts of tick labels: all that fit; for rising numbers, round ones."""
    from matplotlib.ticker import MaxNLocator

    if len(names) > most and all(isinstance(n, int) for n in names) and names == sorted(names):
        values = MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]).tick_values(
            names[0], names[-1]
        )
        shown = [int(v) for v in values if names[0] <= v <= names[-1]]
        return [float(bisect(names, v) - 1) for v in shown], [str(v) for v in shown]
    step = -(-len(names) // most)
    return [float(at) for at in range(0, len(names), step)], [str(n) for n in names[::step]]


def _number_cells(axes: Axes, scale: ScalarMappable, values: Any, spec: str, theme: Theme) -> None:
    """Write each cell's number, in the one of the theme's two colours with more contrast."""
    ends = sorted((theme.background, theme.text), key=_luminance)
    for row, column in zip(*(~(values != values)).nonzero()):
        value = values[row, column]
        cell = _luminance(scale.to_rgba(value))
        text = format(value, spec).removesuffix("%")
        colour = ends[0] if cell > 0.2 else ends[1]
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SIZE - 1.5)


def _luminance(colour: Any) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.1)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def percent_axis(axis: Any) -> None:
    """Label an axis of shares as percent, from 0 to 100 at most."""
    from matplotlib.ticker import PercentFormatter

    class Shares(PercentFormatter):
        def __call__(self, x: float, pos: Any = None) -> str:
            return super().__call__(x, pos) if -1e-9 < x < 1 + 1e-9 else ""

    axis.set_major_formatter(Shares(1.0))
