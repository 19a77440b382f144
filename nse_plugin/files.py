"""Files that are either there in full or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, flush it, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a JSONL file; a last line that is not whole yet is left out.

    Raises:
        DataError: a whole line is damaged.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"line {number} of {path} is damaged ({error}); restore the file"
            ) from error
    return found


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, in full or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, in full or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, in full or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_whole(path, write)
