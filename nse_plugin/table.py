"""A table of text cells, for the terminal and for a page."""

from __future__ import annotations

import math
import numbers
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nse_plugin.printable import printable

if TYPE_CHECKING:
    from pandas import DataFrame

Format = str | Callable[[Any], str]
"""A format spec (``.1%``), or a function from value to text."""
_WIDTH = 96
NOTHING = "–"
"""Shown for None and NaN."""
Mark = Literal["good", "bad"]
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class Table:
    """Rows of text with column heads; the first column names its row."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = ()
    """Whether each column is aligned to the right; empty for none."""
    note: str = ""
    """A sentence below the table, e.g. on the meaning of a column."""
    searchable: bool = False
    """On a page, a click on a head sorts the table, and a field filters its rows."""
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)
    """Highlighted cells by row and column: good ones or bad ones."""
    longest: int = 24
    """Maximum number of rows on a terminal."""

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
        """A table from a DataFrame.

        Args:
            heads: other heads of columns, by name; the index has its own name.
            formats: formats of columns, by name; by default numbers have four digits.
            index: whether the index becomes the first column.
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

    @classmethod
    def of_numbers(
        cls,
        caption: str,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        note: str = "",
        names: int = 1,
    ) -> Table:
        """A table whose first ``names`` columns name the row and whose others are numbers."""
        numeric = tuple(column >= names for column in range(len(heads)))
        return cls(caption, tuple(heads), tuple(map(tuple, rows)), numeric, note)

    def picked(self) -> list[int | None]:
        """Indices of the rows to show on a terminal; None stands for those left out."""
        rows: list[int | None] = list(range(len(self.rows)))
        if len(rows) > self.longest:
            half = self.longest // 2
            rows[half : half + len(rows) - self.longest] = [None]
        return rows

    def top(self) -> list[str]:
        """The heads, safe for a terminal."""
        return [printable(head, one_line=True) for head in self.heads]

    def line(self, row: int | None, one_line: bool = True) -> list[str]:
        """The cells of a row, safe for a terminal."""
        cells = ["…"] * len(self.heads) if row is None else self.rows[row]
        return [printable(cell, one_line=one_line) for cell in cells]

    def below(self) -> list[str]:
        """The lines below the table: the number of rows left out, and the note."""
        left_out = len(self.rows) - self.longest
        said = [f"({left_out} rows left out)"] if left_out > 0 else []
        return [*said, self.note] if self.note else said

    def right(self, column: int) -> bool:
        """Whether a column is aligned to the right."""
        return bool(self.numeric) and self.numeric[column]

    def text(self) -> str:
        """The table as text; of too many rows, the middle ones are left out."""
        lines = [self.top(), *map(self.line, self.picked())]
        widths = [max(map(len, column)) for column in zip(*lines)]

        def aligned(cells: Sequence[str]) -> str:
            padded = (
                cell.rjust(width) if self.right(column) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths))
            )
            return "  ".join(padded).rstrip()

        below = [part for text in self.below() for part in textwrap.wrap(text, _WIDTH)]
        return "\n".join([printable(self.caption), *map(aligned, lines), *below])

    def markdown(self) -> str:
        """The table in Markdown, without its caption."""

        def cell(text: str) -> str:
            return text.replace("|", "\\|").replace("\n", " ")  # a row is one line

        rules = ("---:" if self.right(column) else "---" for column in range(len(self.heads)))
        lines = (self.heads, rules, *self.rows)
        body = ("| " + " | ".join(map(cell, line)) + " |" for line in lines)
        return "\n".join([*body, *(["", self.note] if self.note else [])])


def best_of(
    rows: Sequence[Sequence[str]],
    better: Mapping[int, Callable[[Iterable[float]], float]],
    without: Collection[str] = (),
) -> dict[tuple[int, int], Mark]:
    """Marks of the best cells of columns in which rows differ.

    Args:
        better: max or min by column; the number at the beginning of each cell is compared.
        without: rows, by their first cell, that are not compared.
    """
    marks: dict[tuple[int, int], Mark] = {}
    for column, best in better.items():
        found = {
            number: float(there[0])
            for number, row in enumerate(rows)
            if row[0] not in without and (there := _NUMBER.match(row[column]))
        }
        if len(set(found.values())) > 1:
            top = best(found.values())
            marks |= {(number, column): "good" for number, value in found.items() if value == top}
    return marks


def percent(value: float | None) -> str:
    """A share in percent, as a cell of a table."""
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
