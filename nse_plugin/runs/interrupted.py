"""What an interrupted run leaves, looked at without importing what runs it."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.runs.reading import read_lines
from nse_plugin.runs.schema import MANIFEST


def where_it_stands(folder: Path) -> str:
    """What is on disk of a run, and what to do."""
    if not (folder / MANIFEST).is_file():
        return "no run was begun yet: the same command begins it"
    done = len(read_lines(folder))
    if not done:
        return f"no round was finished; the same command begins the run in {folder} again"
    rounds = "1 finished round is" if done == 1 else f"{done} finished rounds are"
    return f"{rounds} in {folder}; the same command resumes after round {done}"
