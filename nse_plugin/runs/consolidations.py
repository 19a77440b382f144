"""``consolidations.jsonl``: the rounds of a run that solve all edits before them together.

Their files are numbered with those of the other rounds, and a file counts once its line is whole.
"""

from __future__ import annotations

from pathlib import Path

from nse_plugin.files import JsonLines
from nse_plugin.runs.schema import CONSOLIDATIONS, Consolidation, check

_WAY_OUT = "restore the file from a copy, or remove the file to leave its rounds out"


def consolidations(folder: Path, writable: bool = False) -> JsonLines[Consolidation]:
    """The consolidations of a run directory, in order; none if there is no file.

    Raises:
        DataError: a line is damaged.
    """
    return JsonLines(
        folder / CONSOLIDATIONS,
        writable=writable,
        if_damaged=_WAY_OUT,
        check=lambda found, what: check(found, Consolidation, what, _WAY_OUT),
    )
