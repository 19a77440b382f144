"""``undone.json``: the rounds of a run directory that were undone; their files stay."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.errors import DataError
from nse_plugin.files import checksum, now, read_json, write_json
from nse_plugin.runs.schema import SCHEMA, UNDONE, UndoneRound, UndoneRounds, check
from nse_plugin.session.ledger_files import round_path
from nse_plugin.session.records import Undone

_WAY_OUT = "restore it, or remove it to make all rounds active again"


def load_undone(folder: Path) -> list[Undone]:
    """The rounds of a run directory that were undone, in the order in which that was done.

    An entry counts for the file that it was made for: where a later run in the same folder wrote
    another round of that number, it is passed over.

    Raises:
        DataError: ``undone.json`` is damaged or of another version.
    """
    return [Undone(entry["number"], entry["time"], entry["reason"]) for entry in _entries(folder)]


def add_undone(folder: Path, number: int, reason: str) -> None:
    """Note that a round was undone."""
    sha256 = checksum(round_path(folder, number))
    entry = UndoneRound(number=number, time=now(), reason=reason, sha256=sha256)
    content = UndoneRounds(schema=SCHEMA, undone=[*_entries(folder), entry])
    write_json(folder / UNDONE, content)


def _entries(folder: Path) -> list[UndoneRound]:
    path = folder / UNDONE
    if not path.exists():
        return []
    found = read_json(path, _WAY_OUT)
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')!r}, and this version reads {SCHEMA}; "
            "read it with the version of nse_plugin that wrote it"
        )
    check(found, UndoneRounds, str(path), _WAY_OUT)
    for number, entry in enumerate(found["undone"], start=1):
        check(entry, UndoneRound, f"{path}: entry {number}", _WAY_OUT)
    entries: list[UndoneRound] = found["undone"]
    return [entry for entry in entries if _counts(round_path(folder, entry["number"]), entry)]


def _counts(file: Path, entry: UndoneRound) -> bool:
    return not file.exists() or checksum(file) == entry["sha256"]
