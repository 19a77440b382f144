"""Charts with axes: lines over edits, named points, scores with their spread.

Every line, point and row has its name beside it, so no legend is needed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from nse_plugin.report.figures import SIZE, empty_figure, hover, percent_axis
from nse_plugin.report.theme import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_MARKERS = "osD^vP"
_BEYOND = 0.02
"""An axis of shares extends at most so far beyond 0 and 1."""
_TICKS = 8
"""Largest number of ticks of an axis of measured points."""
_NAME = SIZE - 1.5
_LINE = 1.25 * _NAME / 72
"""Height of a line of a name, in inches."""
_LONGEST = 22
"""Longest line of a name in characters, if the name can be broken."""


def lines(table: DataFrame, *, x: str, y: str, percent: bool = False, **options: Any) -> Figure:
    """:func:`line_panels` of one table of ``y``, whose values are shares if ``percent``."""
    return line_panels({y: table}, x=x, shares=[y] if percent else [], **options)


def line_panels(
    tables: Mapping[str, DataFrame],
    *,
    x: str,
    title: str = "",
    shares: Container[str] = (),
    limits: tuple[float | None, float | None] = (0.0, None),
    theme: Theme = LIGHT,
) -> Figure:
    """A line per column of each table, with its name at its end; NaN is left out.

    Ticks are only at values of the index.

    Args:
        tables: by the label of their values; a panel for each, one below the other.
        x: label of the index.
        shares: the tables whose values are shares, labelled as percent.
        limits: of the y axis; None adapts to the values.
    """
    least = 2.6 if len(tables) == 1 else 1.7
    heights = [
        max(least, _tall(table.columns) * table.shape[1] + 0.5) if table.shape[1] > 1 else least
        for table in tables.values()
    ]
    figure, panels = empty_figure(theme, heights, title)
    for axes, height, (y, table) in zip(panels, heights, tables.items()):
        names = [str(name) for name in table.columns]
        colours = [theme.series[at % len(theme.series)] for at in range(len(names))]
        for at, column in enumerate(table.columns):
            values = table[column].dropna()
            every = max(1, len(values) // 20)
            (line,) = axes.plot(
                values.index,
                values.to_numpy(float),
                color=colours[at],
                marker=_MARKERS[at % len(_MARKERS)],
                markersize=3.5,
                markevery=every,
                linestyle=("-", "--", ":")[at // len(theme.series) % 3],
                label=names[at],
            )
            form = ".1%" if y in shares else ".4g"
            marked = [item for item in values.iloc[::every].items() if isfinite(item[1])]
            hover(line, (f"{names[at]}, {x} {where}: {value:{form}}" for where, value in marked))
        _label(axes, x, y, limits, theme)
        axes.set_xticks(spread_out(sorted(table.index.tolist()), _TICKS))
        if y in shares:
            percent_axis(axes.yaxis)
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -_BEYOND), min(high, 1 + _BEYOND))
        if len(names) > 1:
            ends = [(table[c].dropna().index[-1], float(table[c].dropna().iloc[-1]))
                    for c in table.columns]  # fmt: skip
            _name_ends(axes, names, ends, colours, height, theme)
    return figure


def points(table: DataFrame, *, x: str, y: str, theme: Theme = LIGHT) -> Figure:
    """A named point per row, by its first column (x) and its second (y), a share.

    Rows with NaN are left out.

    Args:
        x: label of the first column.
        y: label of the second.
    """
    shown = table.dropna()
    height = max(3.0, _tall(shown.index) * len(shown) + 0.5)
    figure, (axes,) = empty_figure(theme, [height])
    colours = [theme.series[at % len(theme.series)] for at in range(len(shown))]
    places = [(float(a), float(b)) for a, b in shown.itertuples(index=False, name=None)]
    for at, (across, up) in enumerate(places):
        marker = _MARKERS[at % len(_MARKERS)]
        (dot,) = axes.plot(
            [across], [up], marker=marker, markersize=5, color=colours[at], linestyle=""
        )
        hover(dot, [f"{shown.index[at]}: {x} {across:.3g}, {y} {up:.1%}"])
    _label(axes, x, y, (None, None), theme)
    axes.margins(x=0.1, y=0.1)
    percent_axis(axes.yaxis)
    _name_ends(axes, [str(name) for name in shown.index], places, colours, height, theme)
    return figure


def dots(means: DataFrame, spreads: DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Shares with their spread: rows down, a panel per column; the best of a column is filled.

    Args:
        means: from 0 to 1; NaN is left out.
        spreads: half the length of each bar; NaN if there is none.
    """
    from matplotlib.ticker import MaxNLocator

    names = [wrapped(str(name)) for name in means.index]
    height = max(1.0, (_tall(means.index) + 0.35 * _LINE) * len(names) + 0.35)
    figure, panels = empty_figure(theme, [height] * means.shape[1])
    rows = list(range(len(names)))
    for at, (axes, column) in enumerate(zip(panels, means.columns)):
        values = means[column].to_numpy(float)
        best = means[column].max()
        colour = theme.series[at % len(theme.series)]
        errors = spreads[column].fillna(0).to_numpy(float)
        for row, value, error in zip(rows, values, errors):
            if value != value:
                continue
            face = colour if value == best else theme.background
            dot, *_ = axes.errorbar(
                [value], [row], xerr=[error] if error else None, fmt="o", markersize=4.5,
                color=colour, markerfacecolor=face, capsize=2, elinewidth=1,
            )  # fmt: skip
            hover(dot, [f"{means.index[row]}: {value:.1%}" + (f" ± {error:.1%}" if error else "")])
        axes.set_yticks(rows, names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.set_xlabel(str(column))
        percent_axis(axes.xaxis)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -_BEYOND), min(high, 1 + _BEYOND))
    return figure


def wrapped(name: str) -> str:
    """A name in several lines if it is long: that of a variant is broken after its semicolons."""
    lines = [""]
    for part in re.findall("[^;]+;?", name):
        if lines[-1] and len(lines[-1] + part) > _LONGEST:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _tall(names: Iterable[Any]) -> float:
    """Height of the tallest of these names, in inches."""
    return _LINE * max((wrapped(str(name)).count("\n") + 1 for name in names), default=1)


def spread_out(values: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the values, at regular distances, including the first and the last."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(at * step)] for at in range(most)]


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1 that are ``gap`` apart and as near to the values in [0, 1] as possible.

    If there are too many for that gap, they have equal distances.
    """
    gap = min(gap, 1 / max(1, len(values) - 1))
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[float]] = []  # each: sum of the wanted beginnings, members, beginning
    for index in order:
        groups.append([values[index], 1, values[index]])
        while True:
            total, members, _ = groups[-1]
            begin = min(max(total / members, 0.0), 1 - gap * (members - 1))
            groups[-1][2] = begin
            if len(groups) < 2 or groups[-2][2] + gap * groups[-2][1] <= begin + 1e-12:
                break
            last = groups.pop()
            groups[-1][0] += last[0] - last[1] * gap * groups[-1][1]
            groups[-1][1] += last[1]
    places = [begin + gap * at for _, members, begin in groups for at in range(int(members))]
    found = [0.0] * len(values)
    for index, place in zip(order, places):
        found[index] = place
    return found


def _label(
    axes: Axes, x: str, y: str, limits: tuple[float | None, float | None], theme: Theme
) -> None:
    """Label the axes, bound the y axis, and draw the grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(*limits)
    axes.grid(color=theme.grid, linewidth=0.6)


def _name_ends(
    axes: Axes,
    names: Sequence[str],
    ends: Sequence[tuple[Any, float]],
    colours: Sequence[str],
    height: float,
    theme: Theme,
) -> None:
    """Write names to the right of the axes without overlaps, each with a thin line to its end.

    Args:
        height: of the panel in inches, of which labels take 0.6.
    """
    axes.autoscale_view()
    low, high = axes.get_ylim()
    wanted = [min(max((up - low) / (high - low), 0.0), 1.0) for _, up in ends]
    places = apart(wanted, _tall(names) / (height - 0.6))
    for name, end, colour, place in zip(names, ends, colours, places):
        axes.annotate(
            wrapped(name), end, (1.06, place), textcoords="axes fraction", fontsize=_NAME,
            va="center", color=theme.text,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
