"""The writer of run directories: a kill at any moment loses one round at most.

``manifest.json`` says what run it is, ``frozen.jsonl`` what the untouched model answered,
``round-NNNN.safetensors`` what a round changed, ``rounds.jsonl`` what was measured, and
``final.json`` how it ended (:mod:`nse_plugin.runs.schema`).  A round counts once its line in
``rounds.jsonl`` is whole, and the line is written after the file.  ``lock`` is held while a process
works here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines, checksum, explained, make_folder, write_json
from nse_plugin.requests import EditRequest
from nse_plugin.runs.budget import Budget
from nse_plugin.runs.reading import (
    checked_lines,
    consolidations,
    left_out_rounds,
    read_manifest,
    undone_rounds,
    without_line,
)
from nse_plugin.runs.schema import (
    BY_HAND,
    CONSOLIDATIONS,
    FINAL,
    FROZEN,
    LOCK,
    MADE_BY,
    MANIFEST,
    ROUNDS,
    SCHEMA,
    UNDONE,
    Consolidation,
    Final,
    FrozenLine,
    Identity,
    Manifest,
    Measurement,
    RoundLine,
)
from nse_plugin.session.ledger_files import by_number, damaged, round_path
from nse_plugin.session.records import Written, rounds_named

log = logging.getLogger(__name__)

WAY_OUT = (
    "free space or fix the permissions, then run the same command again; the rounds on disk are "
    "whole"
)
_DAMAGED = "restore the file from a copy, or remove this line and all after it to resume from there"


@contextmanager
def claimed(
    folder: Path, manifest: str, purpose: str, may_precede: Sequence[str] = ()
) -> Iterator[None]:
    """Make a folder if it is new, and keep other processes out of it.

    If it has no manifest at the end, it is left as it was found.

    Args:
        manifest: name of the file that says what the folder is.
        purpose: for messages: ``the run``.
        may_precede: names that may be in the folder before the manifest.

    Raises:
        DataError: it cannot be written, is in use by another process, or holds something else.
    """
    made = make_folder(folder, purpose)
    begun = (folder / manifest).is_file
    place = folder / LOCK
    lock = FileLock(place, timeout=0)
    try:
        with explained(folder, WAY_OUT):
            names = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
            strangers = sorted(names.difference([LOCK, *may_precede]))
            if strangers and not begun():
                raise DataError(
                    f"{folder} holds something else ({', '.join(strangers[:3])}); give another "
                    "folder"
                )
            _acquire(lock, place)
        yield
    finally:
        if lock.is_locked and not begun():
            with suppress(OSError):  # on Windows a held file cannot be removed
                place.unlink()
        lock.release()
        if not begun():
            with suppress(OSError):  # something was put there
                for each in made:
                    each.rmdir()


def _acquire(lock: FileLock, place: Path) -> None:
    """Take the lock, and write this process's number into its file."""
    try:
        lock.acquire()
    except Timeout as error:
        holder = "?"
        with suppress(OSError, ValueError):  # on Windows others cannot read it
            holder = place.read_text(encoding="utf-8").strip() or holder
        raise DataError(
            f"{place.parent} is in use by another process ({holder}); wait for it, or give another "
            "folder"
        ) from error
    place.write_text(f"{os.getpid()}\n")


@contextmanager
def run_directory(path: Path, resumes: bool = True) -> Iterator[RunDirectory]:
    """A run directory for writing, which is kept from other processes as by :func:`claimed`.

    Args:
        resumes: a stream is to be resumed, so it must be no folder of edits, and no round of it
            may have been undone.

    Raises:
        DataError: as :func:`claimed`; or the stream cannot be resumed.
    """
    with explained(path, WAY_OUT):
        kept = read_manifest(path)  # which refuses a manifest of something else
    earlier = ("stats", "tensorboard", FROZEN)  # answers are written before the manifest
    with claimed(path, MANIFEST, "the run", earlier):
        if resumes and kept is not None and kept["run"]["order"] == BY_HAND:
            raise DataError(
                f"{path} is a folder of edits made with nse edit, which no stream of edits "
                "continues; add to it with nse edit, or give another folder"
            )
        undone = [str(entry["number"]) for entry in undone_rounds(path)] if resumes else []
        if undone:
            raise DataError(
                f"{path}: undone rounds ({', '.join(undone)}); a run is resumed only from all "
                f"of its rounds. Remove {path / UNDONE} to make them active again, or give "
                "another folder"
            )
        if resumes and (left_out := left_out_rounds(path)):
            raise DataError(
                f"{path}: a consolidation leaves out {rounds_named(left_out)}; a run is resumed "
                "only from all of its rounds. Give another folder"
            )
        with explained(path, WAY_OUT):
            for left in path.glob("*.tmp"):  # of a process that was killed
                if left.is_file():  # and not the folder of an export
                    left.unlink(missing_ok=True)
        yield RunDirectory(path)


class RunDirectory:
    """A run's files, for writing; opened by :func:`run_directory`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of a new run."""
        with explained(self.path / MANIFEST, WAY_OUT):
            write_json(self.path / MANIFEST, manifest)

    def discard(self) -> None:
        """Remove the manifest and the logs of a run without a round."""
        for name in (MANIFEST, ROUNDS, FROZEN, FINAL):
            with suppress(OSError):
                (self.path / name).unlink()

    def finish(self, final: Final) -> None:
        """Write how the run ended."""
        with explained(self.path / FINAL, WAY_OUT):
            write_json(self.path / FINAL, final)

    def rounds(self) -> JsonLines[RoundLine]:
        """The finished rounds, to read and to append to."""
        return self._lines(ROUNDS, RoundLine)

    def frozen(self) -> JsonLines[FrozenLine]:
        """The untouched model's answers, to read and to append to."""
        return self._lines(FROZEN, FrozenLine)

    def round_files(self, lines: JsonLines[RoundLine]) -> list[Path]:
        """The files of these rounds and of the consolidations, after a check of their checksums.

        A last file without a line is removed.  If the files of the last rounds are gone, their
        lines are dropped, and the run resumes from the round before.

        Raises:
            DataError: a file differs from what was written or is gone with later ones left, or
                lines are missing.
        """
        present = set(self.path.glob("round-*.safetensors"))
        undone = {entry["number"] for entry in undone_rounds(self.path)}
        joint = list(consolidations(self.path))
        files = self._checked_rounds(lines, present, undone, joint)
        files += self._checked_consolidations(joint, present, undone)
        for path in without_line(present, files):  # the process ended before its line was written
            log.warning("%s has no line in %s, so its round was not finished; it is removed",
                        path, ROUNDS)  # fmt: skip
            with explained(path, WAY_OUT):
                path.unlink()
        return sorted(files, key=by_number)

    def _checked_rounds(
        self,
        lines: JsonLines[RoundLine],
        present: Collection[Path],
        undone: Collection[int],
        joint: Sequence[Consolidation],
    ) -> list[Path]:
        """The files of the lines; lines at the end whose files are gone are dropped."""
        files: list[Path] = []
        for index, line in enumerate(lines):
            if line["file"] is None:
                continue
            path = round_path(self.path, line["file"])
            if path not in present:
                if line["file"] in undone:  # whose file is not needed
                    continue
                written = [entry["file"] for entry in islice(lines, index, None)]
                written += [one["file"] for one in joint if one["after"] >= line["round"]]
                later = [name for number in written if number is not None
                         if (name := round_path(self.path, number)) in present]  # fmt: skip
                if later:
                    raise DataError(
                        f"{path} is gone, and {later[0].name} is there; restore it, or remove "
                        f"the later ones to resume from round {line['round'] - 1}"
                    )
                log.warning("%s is gone; the run resumes from the round before", path)
                lines.keep(index)
                break
            with explained(path, WAY_OUT):
                same = checksum(path) == line["sha256"]
            if not same:
                raise DataError(
                    f"{path} is damaged: its checksum is not that in {ROUNDS}; restore it, or "
                    f"remove it and the later ones to resume from round {line['round'] - 1}"
                )
            files.append(path)
        return files

    def _checked_consolidations(
        self, joint: Sequence[Consolidation], present: Collection[Path], undone: Collection[int]
    ) -> list[Path]:
        files: list[Path] = []
        for one in joint:
            path = round_path(self.path, one["file"])
            if path not in present and one["file"] in undone:
                continue
            with explained(path, WAY_OUT):
                if checksum(path) != one["sha256"]:
                    raise damaged(path, CONSOLIDATIONS)
            files.append(path)
        return files

    def _lines(self, name: str, kind: type) -> JsonLines:
        path = self.path / name
        return checked_lines(path, kind, _DAMAGED, writable=True, way_out=WAY_OUT)


def new_manifest(run: Identity, contexts: list[str], base: Measurement, budget: Budget) -> Manifest:
    """The manifest of a run of this version."""
    return {
        "made_by": MADE_BY, "schema": SCHEMA, "run": run, "contexts": contexts, "base": base,
        "budget": asdict(budget),
    }  # fmt: skip


def new_line(
    number: int, requests: Sequence[EditRequest], written: Written | None, file: int | None
) -> RoundLine:
    """The line of a round before its measurement.

    Args:
        written: None if the method failed.
        file: number of its file; None if the round was undone.
    """
    return {
        "round": number,
        "file": file,
        "requests": [request.digest() for request in requests],
        "case_ids": [request.case_id for request in requests],
        "edits": len(requests),
        "repeats": 0,
        "superseded": 0,
        "changed": written is not None and file is not None and written.changed,
        "left_out": [each.case_id for each in written.left_out] if written else [],
        "scores": None,
        "measurement": None,
        "edit": written.summary if written else None,
        "stop": None,
        "sha256": None,
        "seconds": {},
    }
