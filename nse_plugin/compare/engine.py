"""What an engine of a comparison is, whichever it is, and how often it tries a cell."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from nse_plugin.compare.plan import Cell
from nse_plugin.compare.results import CellResult

RETRIES = 1
"""How often a cell whose worker was lost is begun again, after its last whole round."""

Found = tuple[Cell, CellResult]
Results = Generator[Found, None, None]


class Engine(Protocol):
    """Runs cells somewhere."""

    def run(self, cells: Sequence[Cell]) -> Results:
        """Each cell with its result, in the order they come.  Closing it ends the workers."""

    def close(self) -> None:
        """Give back what is held."""


def lost(how: str) -> str:
    """What is said of a cell whose worker was lost too often."""
    return f"its worker was lost {RETRIES + 1} times ({how}); the same command tries again"
