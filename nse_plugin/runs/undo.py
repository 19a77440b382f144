"""Undo a round of a run directory; the model is not needed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from nse_plugin.errors import DataError, SessionError
from nse_plugin.files import checksum, now, write_json
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.reading import RunFiles, undone_rounds
from nse_plugin.runs.schema import SCHEMA, UNDONE, UndoneRound, UndoneRounds
from nse_plugin.session.ledger import ActiveRound, Ledger
from nse_plugin.session.ledger_files import RoundFile, round_path
from nse_plugin.session.records import active_rounds, later_trained

log = logging.getLogger(__name__)


def undo_round(run: Path, number: int, reason: str = "") -> list[int]:
    """Mark a round of a run as undone; returns the numbers of the active rounds.

    Its file is kept, but the ledger leaves it out, and so does all that is made from the ledger:
    weights, previous keys, tables.  A round whose file is lost can be undone, too: a damaged file
    gets another name.

    Raises:
        DataError: ``run`` is not a run directory or is in use, the file of another round is
            damaged, or the round is not active or cannot be undone alone.
    """
    RunFiles(run)  # an error if it is not a run
    with run_directory(run, resumes=False):
        files, path = RunFiles(run), round_path(run, number)
        is_lost = _is_lost(files, number)
        lost = [number] if is_lost else []
        files.refuse_host("be undone alone", lost)
        ledger = _ledger_of_whole_files(files, lost)
        last = max(ledger.numbers(), default=0)
        try:
            if number < last and ledger[-1].state is not None:
                raise SessionError(f"round {number} cannot be undone alone: {later_trained(last)}")
            if is_lost:
                ledger.refuse_rewritten(number)
                _refuse_inside(ledger, number)
            else:
                ledger.index(number)
        except SessionError as error:
            raise DataError(f"{run}: {error}") from error
        if is_lost and path.exists():
            damaged = path.with_suffix(".damaged")
            path.replace(damaged)
            log.warning("%s was damaged; it is now called %s", path, damaged.name)
        entry = UndoneRound(
            number=number, time=now(), reason=reason, sha256=files.checksums()[number],
            after=len(files.lines),
        )  # fmt: skip
        write_json(run / UNDONE, UndoneRounds(schema=SCHEMA, undone=[*undone_rounds(run), entry]))
    return _ledger_of_whole_files(RunFiles(run)).numbers()


def _is_lost(files: RunFiles, number: int) -> bool:
    """Whether the file of an active round is gone or damaged."""
    path, sha256 = round_path(files.folder, number), files.checksums().get(number)
    if sha256 is None or number in {entry["number"] for entry in undone_rounds(files.folder)}:
        return False
    return not path.exists() or checksum(path) != sha256


def _refuse_inside(ledger: Ledger, number: int) -> None:
    """Raise :class:`SessionError` if a lost round is inside a consolidation."""
    for entry in ledger.active():
        if _is_inside(entry, number):
            raise SessionError(
                f"round {number} is inside the consolidation that is round {entry.number}; "
                f"undo round {entry.number} first, then round {number}"
            )


def _is_inside(entry: ActiveRound, number: int) -> bool:
    """Whether a round takes the place of another, at any depth."""
    here = isinstance(entry, RoundFile) and number in entry.consolidates
    return here or any(_is_inside(inner, number) for inner in entry.within)


def _ledger_of_whole_files(files: RunFiles, lost: Collection[int] = ()) -> Ledger:
    """The ledger without rounds whose files are lost, which are to be undone, too."""
    gone = {n for n in files.checksums() if not round_path(files.folder, n).exists()}
    try:
        return files.ledger_without({*gone, *lost})
    except DataError:  # others are damaged; checksums take a while, so they are not the first test
        damaged = {n for n in files.checksums() if _is_lost(files, n)}
        return files.ledger_without({*gone, *damaged, *lost})


def undone_text(run: Path, active: list[int]) -> str:
    """The message shown after an undo."""
    number, files = undone_rounds(run)[-1]["number"], RunFiles(run)
    text = f"round {number} of {run} is undone; {active_rounds(active)}"
    try:
        requests = files.requests_of({number, *files.ledger.numbers_in_effect()})
    except DataError as error:
        return f"{text}\nwhether later rounds edit the same facts is not known: {error}"
    facts = {request.fact for request in requests.get(number, [])}
    later = [
        str(each)
        for each, some in requests.items()
        if each > number and facts & {request.fact for request in some}
    ]
    if later:
        text += (
            f". Later rounds that edit some of its facts too ({', '.join(later)}) were solved on "
            "top of it, so their answers may have changed: ask for these facts, and edit them "
            "again if needed"
        )
    return text
