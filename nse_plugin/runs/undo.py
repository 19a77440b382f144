"""Undo a round of a run directory; the model is not needed."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.errors import DataError, SessionError
from nse_plugin.files import checksum, now, write_json
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.reading import RunFiles, read_lines, undone_rounds
from nse_plugin.runs.schema import SCHEMA, UNDONE, UndoneRound, UndoneRounds
from nse_plugin.session.ledger_files import host_method, round_path
from nse_plugin.session.records import active_rounds, later_trained


def undo_round(run: Path, number: int, reason: str = "") -> list[int]:
    """Mark a round of a run as undone; returns the numbers of the active rounds.

    Its file is kept, but the ledger leaves it out, and so does all that is made from the ledger:
    weights, previous keys, tables.

    Raises:
        DataError: ``run`` is not a run directory or is in use, a file is damaged, or the round is
            not active or cannot be undone alone.
    """
    RunFiles(run)  # an error if it is not a run
    with run_directory(run, resumes=False):
        path = round_path(run, number)
        method = host_method(path) if path.exists() else None
        if method is not None:
            raise DataError(
                f"{path} holds whole matrices of the host's {method}, not what the round added, so "
                "it cannot be undone alone; only rounds of this package's methods can"
            )
        ledger = RunFiles(run).ledger
        try:
            record = ledger[ledger.index(number)]
        except SessionError as error:
            raise DataError(f"{run}: {error}") from error
        last = ledger.numbers()[-1]
        if record.state is not None and number < last:
            raise DataError(f"{run}: round {number} cannot be undone alone: {later_trained(last)}")
        entry = UndoneRound(
            number=number, time=now(), reason=reason, sha256=checksum(path),
            after=len(read_lines(run)),
        )  # fmt: skip
        write_json(run / UNDONE, UndoneRounds(schema=SCHEMA, undone=[*undone_rounds(run), entry]))
    return RunFiles(run).ledger.numbers()


def undone_text(run: Path, active: list[int]) -> str:
    """The message shown after an undo."""
    number, files = undone_rounds(run)[-1]["number"], RunFiles(run)
    text = f"round {number} of {run} is undone; {active_rounds(active)}"
    requests = files.requests_of({number, *files.ledger.numbers_in_effect()})
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
