"""The reader of run directories; it checks the files, and also reads runs in progress."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines, checksum, read_json
from nse_plugin.requests import EditRequest
from nse_plugin.runs.frozen import FrozenAnswers
from nse_plugin.runs.schema import (
    CONSOLIDATIONS,
    FINAL,
    FROZEN,
    IF_DAMAGED,
    MADE_BY,
    MANIFEST,
    ROUNDS,
    SCHEMA,
    UNDONE,
    Consolidation,
    Final,
    FrozenLine,
    Manifest,
    Measurement,
    RoundLine,
    RunStatus,
    UndoneRound,
    UndoneRounds,
    check,
)
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.ledger_files import (
    by_number,
    host_method,
    load_rounds,
    lost_round,
    round_path,
)
from nse_plugin.session.records import Undone


class RunFiles:
    """The files of a run directory, for reading.

    Raises:
        DataError: it is not a run directory, is of another schema, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        found = read_manifest(self.folder)
        if found is None:
            what = "holds no manifest.json" if self.folder.is_dir() else "is not a folder"
            raise DataError(
                f"{self.folder} {what}; give the folder of a run or of edits, as nse run and nse "
                "edit make them"
            )
        self.manifest = found

    @property
    def hparams(self) -> dict[str, Any]:
        """The hyperparameters of the run's method."""
        return self.manifest["run"]["hparams"]

    @property
    def model_name(self) -> str | None:
        """The name by which the model can be loaded, if it is known."""
        name = self.hparams.get("model_name")
        return name if isinstance(name, str) else None

    @property
    def method(self) -> str:
        """The method's name, as EasyEdit and this package call it."""
        return str(self.hparams.get("alg_name", "")).removesuffix("-plugin")

    @cached_property
    def lines(self) -> tuple[RoundLine, ...]:
        """The finished rounds, in order.

        Raises:
            DataError: a line is damaged, or lines are lost.
        """
        present = set(self.folder.glob("round-*.safetensors"))  # read first: a run may be at work
        lines = tuple(checked_lines(self.folder / ROUNDS, RoundLine, IF_DAMAGED))
        logs: tuple[Iterable[Any], ...] = (lines, consolidations(self.folder))
        numbers = [line["file"] for log in logs for line in log if line["file"] is not None]
        without_line(present, {round_path(self.folder, number) for number in numbers})
        return lines

    @cached_property
    def final(self) -> Final | None:
        """How the run ended, or None if it has not."""
        return read_final(self.folder)

    @cached_property
    def undone(self) -> list[UndoneRound]:
        """The undone rounds, in the order in which they were undone."""
        return undone_rounds(self.folder)

    @cached_property
    def measurements(self) -> list[Measurement]:
        """All measurements, in order."""
        points = [line["measurement"] for line in self.lines]
        points.append(self.final["measurement"] if self.final else None)
        return [point for point in points if point]

    def measured(self) -> int:
        """The number of rounds before the last measurement of all edits; 0 if there was none."""
        return self.measurements[-1]["tested"] if self.measurements else 0

    def retention_matrix(self, score: str = "efficacy") -> dict[int, dict[int, float | None]]:
        """The score by round edited, by round tested, of all measurements."""
        return {
            point["tested"]: {row["edited"]: row[score] for row in point["retention"]}
            for point in self.measurements
            if point.get("retention")
        }

    def undone_since(self, tested: int) -> list[int]:
        """The rounds that were in effect in a measurement and undone after it.

        Args:
            tested: the number of rounds before the measurement.
        """
        # undoing a round that was written after the measurement restores the measured model
        later = {line["file"] for line in self.lines if line["round"] > tested}
        later |= {line["file"] for line in consolidations(self.folder) if line["after"] >= tested}
        return [
            entry["number"]
            for entry in self.undone
            if entry["after"] >= tested and entry["number"] not in later
        ]

    def consolidated(self) -> Consolidation | None:
        """The last consolidation that is in effect; it includes the earlier ones."""
        undone = {entry["number"] for entry in self.undone}
        active = [line for line in consolidations(self.folder) if line["file"] not in undone]
        return active[-1] if active else None

    @cached_property
    def frozen(self) -> FrozenAnswers:
        """The untouched model's answers to the probes of each round."""
        return FrozenAnswers(checked_lines(self.folder / FROZEN, FrozenLine, IF_DAMAGED))

    def requests(self) -> dict[int, list[EditRequest]]:
        """The requests of the finished rounds, by the number in :attr:`RoundLine.round`.

        Raises:
            DataError: a line of ``frozen.jsonl`` is missing or damaged.
        """
        if (there := len(self.frozen)) < (rounds := len(self.lines)):
            path = self.folder / FROZEN
            raise DataError(f"{path} has {there} of {rounds} rounds; {IF_DAMAGED}")
        return {line["round"]: self.frozen.requests(line["round"]) for line in self.lines}

    def requests_of(self, files: Collection[int]) -> dict[int, list[EditRequest]]:
        """The requests of the rounds with these files, by the number of the file."""
        requests = self.requests()
        return {
            line["file"]: requests[line["round"]]
            for line in self.lines
            if line["file"] is not None and line["file"] in files
        }

    @cached_property
    def ledger(self) -> Ledger:
        """The active rounds, and which were undone; empty for a method of the host.

        Whenever a round is read, its file is compared with its checksum.

        Raises:
            DataError: the file of an active round is missing, or its header is damaged.
        """
        return self.ledger_without(())

    def checksums(self) -> dict[int, str]:
        """The checksum of each round's file, by its number; those of undone rounds too."""
        found = {e["file"]: e["sha256"] or "" for e in self.lines if e["file"] is not None}
        found |= {entry["file"]: entry["sha256"] for entry in consolidations(self.folder)}
        return dict(sorted(found.items()))

    def host_method(self, lost: Collection[int] = ()) -> str | None:
        """The method of the host that wrote the rounds, read from the first that is not lost; None
        for a method of this package."""
        paths = (round_path(self.folder, n) for n in self.checksums() if n not in lost)
        path = next((path for path in paths if path.exists()), None)
        return None if path is None else host_method(path)

    def refuse_host(self, what: str, lost: Collection[int] = ()) -> None:
        """Raise :class:`DataError` if a method of the host wrote the rounds, which then cannot do
        ``what``, e.g. ``be opened``."""
        method = self.host_method(lost)
        if method is not None:
            raise DataError(
                f"{self.folder} has rounds of the host's method {method!r}, which are whole "
                "matrices and not what each round added; only rounds of this package's methods "
                f"can {what}"
            )

    def ledger_without(self, lost: Collection[int]) -> Ledger:
        """The ledger, also without some rounds whose files are lost."""
        gone = {*lost, *(entry["number"] for entry in self.undone)}
        sums = {
            round_path(self.folder, number): sha256
            for number, sha256 in self.checksums().items()
            if number not in gone
        }
        for path in sums:
            if not path.exists():
                raise DataError(f"{path} is gone; {lost_round(path)}")
        if self.host_method(gone) is not None:
            return Ledger()
        ledger = load_rounds(sums, sums, lost)
        ledger.undone = [Undone(e["number"], e["time"], e["reason"]) for e in self.undone]
        return ledger


@dataclass(frozen=True)
class RunResult:
    """How a call of the scheduler ended."""

    status: RunStatus
    final: Final
    """The content of ``final.json``."""
    files: RunFiles


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run directory, or None if there is none.

    Raises:
        DataError: it is damaged, of another schema, or was made by something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    found = read_json(path, IF_DAMAGED)
    if found.get("made_by") != MADE_BY:
        raise DataError(
            f"{folder} was made by {found.get('made_by')!r} and holds something else than a run; "
            "give another folder"
        )
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')!r}, and this version reads {SCHEMA}; use the "
            "version of nse_plugin that made the run, or give another folder"
        )
    check(found, Manifest, str(path), IF_DAMAGED)
    return cast(Manifest, found)


def read_final(folder: Path) -> Final | None:
    """How a run ended, or None if it has not."""
    path = folder / FINAL
    if not path.exists():
        return None
    way_out = "restore the file from a copy, or remove it: the command of the run writes it again"
    found = read_json(path, way_out)
    check(found, Final, str(path), way_out)
    return cast(Final, found)


def left_out_rounds(folder: Path) -> list[int]:
    """Numbers of the rounds that a consolidation leaves out, unless it was undone."""
    undone = {entry["number"] for entry in undone_rounds(folder)}
    joint = [line for line in consolidations(folder) if line["file"] not in undone]
    return sorted({number for line in joint for number in line["edit"].get("left_out", ())})


def undone_rounds(folder: Path) -> list[UndoneRound]:
    """The entries of ``undone.json`` that count, in the order in which the rounds were undone.

    An entry belongs to one file.  It is skipped if a later run in the same folder wrote another
    round of that number.

    Raises:
        DataError: ``undone.json`` is damaged or of another version.
    """
    path, way_out = folder / UNDONE, "restore it, or remove it to make all rounds active again"
    if not path.exists():
        return []
    found = read_json(path, way_out)
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')!r}, and this version reads {SCHEMA}; "
            "read it with the version of nse_plugin that wrote it"
        )
    check(found, UndoneRounds, str(path), way_out)
    for number, entry in enumerate(found["undone"], start=1):
        check(entry, UndoneRound, f"{path}: entry {number}", way_out)
    return [
        entry
        for entry in found["undone"]
        if not (file := round_path(folder, entry["number"])).exists()
        or checksum(file) == entry["sha256"]
    ]


def without_line(present: set[Path], named: Iterable[Path]) -> list[Path]:
    """The round files of a folder that no line names.  A killed process leaves at most the last.

    Raises:
        DataError: there are others, so a log has lost lines.
    """
    named = set(named)
    found = sorted(present - named, key=by_number)
    newest = max(present | named, key=by_number, default=None)
    if len(found) > 1 or (found and found[0] != newest):
        raise DataError(
            f"{found[0].parent / ROUNDS} has no line for {', '.join(path.name for path in found)}; "
            "restore it from a copy, or remove these files to write their rounds again"
        )
    return found


def consolidations(folder: Path, writable: bool = False) -> JsonLines[Consolidation]:
    """The consolidations of a run, in order; none if there is no file.

    Their files are numbered together with those of the other rounds.  A consolidation counts once
    its line is whole.
    """
    way_out = "restore the file from a copy, or remove the file to leave its rounds out"
    return checked_lines(folder / CONSOLIDATIONS, Consolidation, way_out, writable=writable)


def checked_lines(path: Path, kind: type, if_damaged: str, **options: Any) -> JsonLines:
    """The lines of a log, each checked against its type in the schema when it is read."""

    def checked(found: dict[str, Any], number: int, what: str) -> None:
        check(found, kind, what, if_damaged)
        if found.get("round", number) != number:
            raise DataError(
                f"{what} is of round {found['round']}, so a line before it is missing; {if_damaged}"
            )

    return JsonLines(path, if_damaged=if_damaged, check=checked, **options)
