"""The state of an interrupted run on disk, read without importing torch."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.runs.schema import MANIFEST, ROUNDS


def where_it_stands(folder: Path) -> str:
    """Say which rounds of a run are on disk and how to resume it."""
    if not (folder / MANIFEST).is_file():
        return "no run was started yet; the same command starts it"
    log = folder / ROUNDS
    done = log.read_bytes().count(b"\n") if log.is_file() else 0  # whole lines
    if not done:
        return f"no round was finished; the same command begins the run in {folder} again"
    rounds = "1 finished round is" if done == 1 else f"{done} finished rounds are"
    return f"{rounds} in {folder}; the same command resumes after round {done}"
