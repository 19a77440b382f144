"""The directory of a run: written so that a kill at any moment loses one round at most.

``manifest.json`` says what run it is, ``frozen.jsonl`` what the untouched model answered,
``round-NNNN.safetensors`` what a round changed, ``rounds.jsonl`` what was measured, and
``final.json`` how it ended.  A round counts once its line in ``rounds.jsonl`` is whole, and the
line is written after the file.  ``lock`` is held while a process works here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines, checksum, explained, write_json
from nse_plugin.session.ledger_files import UNDONE, load_undone, round_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

SCHEMA = 2
MADE_BY = "nse run"
WAY_OUT = (
    "free space or mend the rights. The rounds on disk are whole: the same command goes on from "
    "the last one"
)
_MAY_PRECEDE = ("lock", "stats", "tensorboard", "frozen.jsonl")  # runs may share their answers
_OURS = ("manifest.json", "rounds.jsonl", "final.json", UNDONE, *_MAY_PRECEDE)


class RunDirectory:
    """A run's files; use as a context, inside which no other process can.

    Args:
        going_on: the run is to go on, so no round of it may have been undone.

    Raises:
        DataError: the directory cannot be written, is at work in another process, or holds
            something else.
    """

    def __init__(self, path: Path, going_on: bool = True) -> None:
        self.path = path
        self._going_on = going_on
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunDirectory:
        with explained(self.path, WAY_OUT):
            if self.path.exists() and not self.path.is_dir():
                raise DataError(f"{self.path} is a file; give a folder for the run")
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            handle = (self.path / "lock").open("a+")
        try:
            self._take(handle)
            if self._going_on:
                self._refuse_undone()
            for left in self.path.glob("*.tmp"):  # of a process that was killed
                with explained(left, WAY_OUT):
                    left.unlink(missing_ok=True)
        except BaseException:
            handle.close()
            raise
        self._lock = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()  # gives the lock up, as the end of the process does
            self._lock = None

    def manifest(self) -> dict[str, Any] | None:
        """What run this is, or None where there is none yet."""
        return self._read("manifest.json")

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest of a new run."""
        self._write("manifest.json", {"made_by": MADE_BY, "schema": SCHEMA, **manifest})

    def finish(self, final: Mapping[str, Any]) -> None:
        """Write how the run ended."""
        self._write("final.json", final)

    def final(self) -> dict[str, Any] | None:
        """How the run ended, or None where it has not."""
        return self._read("final.json")

    def lines(self, name: str) -> JsonLines:
        """The lines of a file, to read and to go on with."""
        return JsonLines(self.path / name, writable=self._lock is not None, way_out=WAY_OUT)

    def round_files(self, lines: JsonLines) -> list[Path]:
        """Files of the rounds that these lines keep, looked at for damage; others are removed.

        Where the files of the last rounds are gone, their lines are dropped, and the run goes on
        from the round before.

        Raises:
            DataError: a file differs from what was written, or is gone with later ones left.
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
                        f"the later ones to go on from round {line['round'] - 1}"
                    )
                log.warning("%s is gone; the run goes on from the round before", path)
                lines.keep(index)
                break
            with explained(path, WAY_OUT):
                same = checksum(path) == line["sha256"]
            if not same:
                raise DataError(
                    f"{path} is damaged: its checksum is not that of rounds.jsonl; restore it, or "
                    f"remove it and the later ones to go on from round {line['round'] - 1}"
                )
            files.append(path)
        for path in present - set(files):  # written, but the process ended before the line was
            with explained(path, WAY_OUT):
                path.unlink()
        return files

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        with explained(path, WAY_OUT):
            if not path.exists():
                return None
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(
                    f"{path} is damaged ({error}); restore it, or give another folder"
                ) from error
        if name == "manifest.json" and found.get("schema") != SCHEMA:
            raise DataError(
                f"{path} has schema {found.get('schema')}, and this version reads {SCHEMA}; go on "
                "with the version that began the run, or give another folder"
            )
        return found

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        with explained(self.path / name, WAY_OUT):
            write_json(self.path / name, value)

    def _take(self, handle: IO[str]) -> None:
        if fcntl is None:
            log.warning("no file locks here: see that no other process uses %s", self.path)
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise DataError(
                f"{self.path} is at work in another process (pid {handle.read().strip() or '?'}); "
                "wait for it, or give another folder"
            ) from error
        with explained(self.path / "lock", WAY_OUT):
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()

    def _refuse_undone(self) -> None:
        undone = [str(entry.number) for entry in load_undone(self.path)]
        if undone:
            raise DataError(
                f"{self.path}: undone rounds ({', '.join(undone)}); a run goes on only from all of "
                f"its rounds. Remove {self.path / UNDONE} to have them stand again, or give "
                "another folder"
            )

    def _refuse_strangers(self) -> None:
        known = [path for path in self.path.iterdir() if path.suffix != ".tmp"]
        manifest = self.path / "manifest.json"
        strangers = [p.name for p in known if p.name not in _OURS and not _is_round(p)]
        foreign = manifest.exists() and f'"{MADE_BY}"' not in manifest.read_text("utf-8", "replace")
        begun = manifest.exists() or not any(p.name not in _MAY_PRECEDE for p in known)
        if (strangers and not manifest.exists()) or foreign or not begun:
            named = ", ".join(sorted(strangers or [p.name for p in known])[:3])
            raise DataError(f"{self.path} holds something else ({named}); give another folder")


def differences(kept: Any, given: Any, where: str = "") -> list[str]:
    """What differs between two values of a manifest: ``hparams.v_lr was 0.1, is 0.2``."""
    if isinstance(kept, dict) and isinstance(given, dict):
        keys = dict.fromkeys([*kept, *given])
        return [
            text
            for key in keys
            for text in differences(
                kept.get(key), given.get(key), f"{where}.{key}" if where else str(key)
            )
        ]
    return [] if kept == given else [f"{where} was {_short(kept)}, is {_short(given)}"]


def comparable(value: Any) -> Any:
    """A line or manifest without what differs from run to run: times, and hashes of files."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in ("seconds", "sha256")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_round(path: Path) -> bool:
    return path.name.startswith("round-") and path.suffix == ".safetensors"
