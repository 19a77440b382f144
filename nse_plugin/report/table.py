"""A table whose cells are text already, for the terminal and for a page."""

from __future__ import annotations

import math
import numbers
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nse_plugin.printable import printable

if TYPE_CHECKING:
    from pandas import DataFrame

Format = str | Callable[[Any], str]
"""A format spec (``.1%``), or a function from value to text."""
_WIDTH = 96
NOTHING = "–"
"""Shown for None and NaN."""


@dataclass(frozen=True)
class Table:
    """Rows of text under heads; the first column names its row."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = ()
    """Which columns are aligned to the right; none if empty."""
    note: str = ""
    """A sentence below: what a column means, or where the rest is."""
    searchable: bool = False
    """On a page, it is sorted by a click on a head and has a field that filters its rows."""

    @classmethod
    def of(
        cls,
        frame: DataFrame,
        caption: str,
        *,
        heads: Mapping[Any, str] | None = None,
        formats: Mapping[Any, Format] | None = None,
        index: bool = True,
        note: str = "",
    ) -> Table:
        """From a table of pandas.

        Args:
            heads: another head for a column, by its name; the index goes by its own name.
            formats: of a column's cells, by its name; otherwise numbers have four digits.
            index: the index becomes the first column.
        """
        frame = frame.reset_index() if index else frame
        heads, formats = heads or {}, formats or {}
        columns = [frame[name].tolist() for name in frame.columns]
        texts = [
            [_text(value, formats.get(name)) for value in column]
            for name, column in zip(frame.columns, columns)
        ]
        return cls(
            caption=caption,
            heads=tuple(heads.get(name, str(name)) for name in frame.columns),
            rows=tuple(zip(*texts)),
            numeric=tuple(_numeric(column) for column in columns),
            note=note,
        )

    def text(self, max_rows: int = 24) -> str:
        """The table for a terminal; of more rows the middle ones are left out, which is said."""
        rows: list[Sequence[str]] = list(self.rows)
        left_out = len(rows) - max_rows
        if left_out > 0:
            half = max_rows // 2
            rows[half : half + left_out] = [["…"] * len(self.heads)]
        rows = [[printable(cell, one_line=True) for cell in row] for row in rows]
        widths = [max(len(line[i]) for line in (self.heads, *rows)) for i in range(len(self.heads))]
        right = self.numeric or (False,) * len(self.heads)

        def line(cells: Sequence[str]) -> str:
            padded = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(cells, widths, right))
            return "  ".join(padded).rstrip()

        below = [f"({left_out} rows left out)"] if left_out > 0 else []
        below += textwrap.wrap(self.note, _WIDTH)
        return "\n".join([printable(self.caption), line(self.heads), *map(line, rows), *below])

    def markdown(self) -> str:
        """The table in Markdown, without its caption."""
        right = self.numeric or (False,) * len(self.heads)
        rules = ("---:" if r else "---" for r in right)
        lines = (self.heads, rules, *self.rows)
        body = ("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
        return "\n".join([*body, *(["", self.note] if self.note else [])])


def percent(value: float | None) -> str:
    """A share as a cell of a table."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def _text(value: Any, how: Format | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if callable(how):
        return how(value)
    if how is not None:
        return format(value, how)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)


def _numeric(column: Sequence[Any]) -> bool:
    return all(v is None or isinstance(v, numbers.Number) for v in column)
