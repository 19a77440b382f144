"""A file of JSON lines that grows line by line, of which only the places stay in memory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nse_plugin.errors import DataError

log = logging.getLogger(__name__)


class JsonLines:
    """The whole lines of a file; what a kill left of a last one is cut off the file.

    A line is read from disk whenever it is asked for, so that a run of many rounds keeps 8 bytes
    of each.

    Raises:
        DataError: a line before the last is damaged, or the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ends = array("q", [0])  # where each line ends, in bytes; the first starts at 0
        if path.exists():
            self._find_lines()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start, end = self._ends[index], self._ends[index + 1]
        with explained(self.path), self.path.open("rb") as file:
            file.seek(start)
            return self._parsed(file.read(end - start), index + 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line and see it to the disk."""
        line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
        with explained(self.path), self.path.open("ab") as file:
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._ends[-1])
                raise
        self._ends.append(self._ends[-1] + len(line))

    def keep(self, count: int) -> None:
        """Drop the lines after the first so many."""
        del self._ends[count + 1 :]
        with explained(self.path):
            os.truncate(self.path, self._ends[-1])

    def _find_lines(self) -> None:
        with explained(self.path), self.path.open("rb") as file:
            for piece in file:
                try:
                    self._parsed(piece, len(self) + 1)
                except DataError:
                    if b"\n" in file.read():  # not the last one
                        raise
                    break
                if not piece.endswith(b"\n"):
                    break
                self._ends.append(self._ends[-1] + len(piece))
        if self._ends[-1] < self.path.stat().st_size:
            log.warning("%s: a line that was cut off was dropped", self.path)
            self.keep(len(self))

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"line {number} of {self.path} is damaged ({error}); restore the file, or give "
                "another folder"
            ) from error
        return found


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the system as ours, with a way out."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read or write {path}: {error}; free space or mend the rights. The rounds on "
            "disk are whole: the same command goes on from the last one"
        ) from error
