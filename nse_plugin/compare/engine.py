"""The interface of every engine of a comparison, and how often it retries a cell."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from nse_plugin.compare.plan import Cell
from nse_plugin.compare.results import CellResult

RETRIES = 1
"""How often a cell whose worker died is resumed after its last complete round."""

Found = tuple[Cell, CellResult]
Results = Generator[Found, None, None]


class Engine(Protocol):
    """Runs cells somewhere."""

    def run(self, cells: Sequence[Cell]) -> Results:
        """Each cell with its result, in the order they come.  Closing it ends the workers."""


def lost(how: str) -> str:
    """The error of a cell whose worker died too often."""
    return f"its worker was lost {RETRIES + 1} times ({how}); the same command tries again"
