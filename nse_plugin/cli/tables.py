"""Tables on a terminal: aligned and wrapped to its width, with all digits of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from nse_plugin.printable import printable
from nse_plugin.table import Mark, Table

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
_NARROW = 14
"""Least width of a column with longer words, in characters."""
_NAME = 0.4
"""Least width of the first column, which names the row, as a share of the terminal's."""
_STYLES: dict[Mark, str] = {"good": "bold green", "bad": "bold red"}


def draw(table: Table, stream: TextIO) -> None:
    """Draw a table; columns that do not fit beside the others follow below them.

    Markup in cells is not interpreted.  ``NO_COLOR`` and ``TERM=dumb`` switch colours off.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(printable(table.caption), style="bold"))
    rows = table.picked()
    lines = [table.top(), *(table.line(row, one_line=False) for row in rows)]
    columns = list(zip(*lines))
    widest = [int(_NAME * console.width), *[_NARROW] * len(columns[1:])]
    least = [
        _least(column, None if table.right(at) else widest[at]) for at, column in enumerate(columns)
    ]
    for number, band in enumerate(_bands(least, console.width)):
        if number:
            console.print()
        widths = _shared_out(
            [least[at] for at in band],
            [max(map(_wide, columns[at])) for at in band],
            console.width - _GAP * (len(band) - 1),
        )
        _draw_band(console, table, rows, lines, dict(zip(band, widths)))
    for text in table.below():
        console.print(Text(printable(text), style="dim"))


def _draw_band(
    console: Console,
    table: Table,
    rows: Sequence[int | None],
    lines: Sequence[Sequence[str]],
    widths: dict[int, int],
) -> None:
    """Draw the columns with a width."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    padding = (0, _GAP - 1, 0, 0)  # and the box's divider
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for at, width in widths.items():
        grid.add_column(
            Text(lines[0][at]),
            justify="right" if table.right(at) else "left",
            width=width,
            overflow="fold",
        )
    for row, cells in zip(rows, lines[1:]):
        marks = {at: table.marks.get((row, at)) for at in widths} if row is not None else {}
        styles = {at: _STYLES[mark] for at, mark in marks.items() if mark is not None}
        grid.add_row(*(Text(cells[at], style=styles.get(at, "")) for at in widths))
    console.print(grid)


def _least(column: Sequence[str], widest: int | None) -> int:
    """The least width of a column.

    Args:
        widest: longer words are broken; None for numbers, which are never broken.
    """
    head, *cells = column
    words = [_wide(word) for word in head.split()]
    if widest is None:
        return max([*words, *map(_wide, cells)], default=1)
    longest = max((_wide(word) for cell in cells for word in cell.split()), default=1)
    return max([*words, min(longest, widest)])


def _bands(least: Sequence[int], room: int) -> list[list[int]]:
    """Bands of columns that fit beside each other; each begins with the first column."""
    bands, used = [[0]], least[0]
    for column in range(1, len(least)):
        used += _GAP + least[column]
        if used > room and len(bands[-1]) > 1:
            bands.append([0])
            used = least[0] + _GAP + least[column]
        bands[-1].append(column)
    return bands


def _shared_out(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Widths between the least and the natural ones; columns share the spare room evenly."""
    widths, spare = list(least), room - sum(least)
    needy = sorted(range(len(least)), key=lambda at: natural[at] - least[at])
    for left, at in zip(range(len(needy), 0, -1), needy):
        given = max(0, min(natural[at] - least[at], spare // left))
        widths[at] += given
        spare -= given
    return widths


def _wide(text: str) -> int:
    """Width of the longest line of a text on a terminal."""
    from rich.cells import cell_len

    return max(map(cell_len, text.expandtabs().split("\n")))
