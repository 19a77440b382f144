"""Undo a round of a run directory; the model is not needed."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.errors import DataError
from nse_plugin.runs.directory import RunDirectory
from nse_plugin.session.ledger_files import load_undone, mark_undone


def undo_round(run: Path, number: int, reason: str = "") -> list[int]:
    """Mark a round of a run undone; returns the numbers that stand.

    Its file is kept.  ``load_ledger`` passes it over from then on, and with it everything that is
    built from the ledger: weights, previous keys, tables.

    Raises:
        DataError: ``run`` is no run directory or is at work, or the round does not stand.
    """
    if not run.is_dir():
        raise DataError(f"{run} is not a folder; give a run directory")
    if not (run / "manifest.json").exists():  # rounds that somebody saved, and no run's folder
        return mark_undone(run, number, reason)
    with RunDirectory(run, going_on=False):  # no round is written meanwhile
        return mark_undone(run, number, reason)


def undone_text(run: Path, standing: list[int]) -> str:
    """What is said after an undo."""
    last = load_undone(run)[-1]
    left = f"rounds that stand: {', '.join(map(str, standing))}" if standing else "no round stands"
    return f"round {last.number} of {run} is undone; {left}"
