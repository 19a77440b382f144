"""The writer of run directories: a kill at any moment loses one round at most.

``manifest.json`` says what run it is, ``frozen.jsonl`` what the untouched model answered,
``round-NNNN.safetensors`` what a round changed, ``rounds.jsonl`` what was measured, and
``final.json`` how it ended (:mod:`nse_plugin.runs.schema`).  A round counts once its line in
``rounds.jsonl`` is whole, and the line is written after the file.  ``lock`` is held while a process
works here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines, Lock, checksum, explained, make_folder, write_json
from nse_plugin.requests import EditRequest
from nse_plugin.runs.reading import (
    checked_lines,
    consolidations,
    load_undone,
    read_manifest,
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
    Final,
    FrozenLine,
    Manifest,
    RoundLine,
)
from nse_plugin.session.ledger_files import damaged, round_path
from nse_plugin.session.records import Written

log = logging.getLogger(__name__)

WAY_OUT = (
    "free space or fix the permissions, then run the same command again; the rounds on disk are "
    "whole"
)
_DAMAGED = "restore the file from a copy, or remove this line and all after it to resume from there"
_MAY_PRECEDE = (LOCK, "stats", "tensorboard", FROZEN)  # answers are written before the manifest


class RunDirectory:
    """A run's files, for writing.  Use it as a context, which keeps other processes out.

    If no run was begun in it, the folder is left as it was found.

    Args:
        resumes: a stream is to be resumed, so no round of it may have been undone.

    Raises:
        DataError: the directory cannot be written, is in use by another process, or holds
            something else.
    """

    def __init__(self, path: Path, resumes: bool = True) -> None:
        self.path = path
        self._resumes = resumes
        self._lock: Lock | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first

    def __enter__(self) -> RunDirectory:
        self._made = make_folder(self.path, "the run")
        try:
            with explained(self.path, WAY_OUT):
                self._refuse_strangers()
                self._lock = Lock(self.path / LOCK)
                self._lock.acquire(
                    f"{self.path} is in use by another process ({{process}}); wait for it, or "
                    "give another folder"
                )
                if self._resumes:
                    self._refuse_edits_by_hand()
                    self._refuse_undone()
                for left in self.path.glob("*.tmp"):  # of a process that was killed
                    left.unlink(missing_ok=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        lock, self._lock = self._lock, None
        begun = (self.path / MANIFEST).exists()
        if lock is not None:
            lock.release(remove=not begun)
        if not begun:
            with contextlib.suppress(OSError):  # something was put there
                for folder in self._made:
                    folder.rmdir()

    def check(self) -> None:
        """Raise :class:`DataError` if the directory cannot be used."""
        with self:
            pass

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of a new run."""
        with explained(self.path / MANIFEST, WAY_OUT):
            write_json(self.path / MANIFEST, manifest)

    def discard(self) -> None:
        """Remove the manifest and the logs of a run without a round."""
        for name in (MANIFEST, ROUNDS, FROZEN, FINAL):
            with contextlib.suppress(OSError):
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
        files: list[Path] = []
        for index, line in enumerate(lines):
            if line["file"] is None:
                continue
            path = round_path(self.path, line["file"])
            if path not in present:
                later = [name for entry in islice(lines, index, None) if entry["file"] is not None
                         if (name := round_path(self.path, entry["file"])) in present]  # fmt: skip
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
        for one in consolidations(self.path):
            path = round_path(self.path, one["file"])
            with explained(path, WAY_OUT):
                if checksum(path) != one["sha256"]:
                    raise damaged(path, CONSOLIDATIONS)
            files.append(path)
        for path in without_line(present, files):  # the process ended before its line was written
            with explained(path, WAY_OUT):
                path.unlink()
        return sorted(files)

    def _lines(self, name: str, kind: type) -> JsonLines:
        path = self.path / name
        return checked_lines(path, kind, _DAMAGED, writable=True, way_out=WAY_OUT)

    def _refuse_edits_by_hand(self) -> None:
        kept = read_manifest(self.path)
        if kept is not None and kept["run"]["order"] == BY_HAND:
            raise DataError(
                f"{self.path} is a folder of edits made with nse edit, which no stream of edits "
                "continues; add to it with nse edit, or give another folder"
            )

    def _refuse_undone(self) -> None:
        undone = [str(entry.number) for entry in load_undone(self.path)]
        if undone:
            raise DataError(
                f"{self.path}: undone rounds ({', '.join(undone)}); a run is resumed only from all "
                f"of its rounds. Remove {self.path / UNDONE} to make them active again, or give "
                "another folder"
            )

    def _refuse_strangers(self) -> None:
        if read_manifest(self.path) is not None:  # which refuses a manifest of something else
            return
        known = [path.name for path in self.path.iterdir() if path.suffix != ".tmp"]
        strangers = sorted(name for name in known if name not in _MAY_PRECEDE)
        if strangers:
            named = ", ".join(strangers[:3])
            raise DataError(f"{self.path} holds something else ({named}); give another folder")


def new_manifest(**content: object) -> Manifest:
    """The manifest of a run of this version."""
    return {"made_by": MADE_BY, "schema": SCHEMA, **content}  # type: ignore[typeddict-item]


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
