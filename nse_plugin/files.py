"""Files: atomic writes, JSON and JSON lines, checksums; optional packages; the cache; git."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import logging
import os
import secrets
import stat
from array import array
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from safetensors import SafetensorError

from nse_plugin.errors import DataError, MissingPackageError

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHE_VARIABLE = "NSE_PLUGIN_CACHE"
"""Environment variable that names the cache folder."""


def cache_dir() -> Path:
    """The cache folder: NSE_PLUGIN_CACHE, else nse_plugin in XDG_CACHE_HOME."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "nse_plugin"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, flush it, then rename it.

    The file gets the permissions of a new file, whatever ``write`` sets.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # hosts share folders
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        temporary.chmod(mode)  # safetensors writes files that only their owner may read
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)  # not that of the temporary file
        raise
    except SafetensorError as error:  # e.g. for a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, purpose: str) -> list[Path]:
    """Make a folder if it does not exist; returns the new folders, the innermost first.

    Args:
        purpose: for messages: ``the run``.

    Raises:
        DataError: something else has its name, or it cannot be made.
    """
    made = []
    for folder in (path, *path.parents):
        if folder.is_symlink() and not folder.exists():
            raise DataError(
                f"{folder} is a link to {folder.readlink()}, which does not exist; make that "
                f"folder, or give another one for {purpose}"
            )
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; give a folder for {purpose}")
        if not folder.exists():
            made.append(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder {path} cannot be made ({error.strerror}); give one in a place where you "
            "may write"
        ) from error
    return made


def check_place(path: Path, purpose: str) -> None:
    """Check before any work that a file can be written.

    Args:
        purpose: for messages: ``the plot``.

    Raises:
        DataError: it is a folder, its parent is a file, or the parent is not writable.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file for {purpose}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise DataError(f"{above} is a file; give another folder for {purpose}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"{above} cannot be written; give {purpose} a place where you may write")


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, in full or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, in full or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, in full or not at all."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def now() -> str:
    """The current time for files: ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, way_out: str = "restore the file") -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataError: the file cannot be read or is no JSON object; the message ends with
            ``way_out``.
    """
    with explained(path, way_out):
        content = path.read_bytes()
    return _json_object(content, str(path), way_out)


class JsonLines(Generic[T]):
    """The objects of a JSON lines file; only the offsets of the lines are kept in memory.

    A line is read from disk each time it is needed, so a file takes 8 bytes of memory per line.  An
    incomplete last line, which a killed process leaves, is ignored.

    Args:
        writable: for appending; an incomplete last line is cut off.
        way_out: what to do if the file cannot be read or written, for messages.
        if_damaged: what to do if a line is damaged, for messages.
        check: called with each object read, its number from 1 and a name for it, to raise errors.

    Raises:
        DataError: a line is damaged, or the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        writable: bool = False,
        way_out: str = "free space or fix the permissions",
        if_damaged: str = "restore the file from a copy",
        check: Callable[[dict[str, Any], int, str], None] | None = None,
    ) -> None:
        self.path = path
        self._writable, self._check = writable, check
        self._way_out, self._if_damaged = way_out, if_damaged
        self._ends = array("q", [0])  # end of each line in bytes, after the start of the first
        if path.exists():
            self._find_lines()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> T:
        index = range(len(self))[index]
        start, end = self._ends[index], self._ends[index + 1]
        with explained(self.path, self._way_out), self.path.open("rb") as file:
            file.seek(start)
            return self._parsed(file.read(end - start), index + 1)

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def append(self, value: T) -> None:
        """Append a line and flush it to disk."""
        line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
        with explained(self.path, self._way_out), self.path.open("ab") as file:
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:  # also where the user interrupts
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._ends[-1])
                raise
        self._ends.append(self._ends[-1] + len(line))

    def keep(self, count: int) -> None:
        """Drop the lines after the first ``count``."""
        del self._ends[count + 1 :]
        with explained(self.path, self._way_out):
            os.truncate(self.path, self._ends[-1])

    def _find_lines(self) -> None:
        with explained(self.path, self._way_out), self.path.open("rb") as file:
            for piece in file:
                if not piece.endswith(b"\n"):
                    break
                self._parsed(piece, len(self) + 1)
                self._ends.append(self._ends[-1] + len(piece))
        if self._writable and self._ends[-1] < self.path.stat().st_size:
            log.warning("%s: an incomplete last line was dropped", self.path)
            self.keep(len(self))

    def _parsed(self, line: bytes, number: int) -> T:
        what = f"line {number} of {self.path}"
        found = _json_object(line, what, self._if_damaged)
        if self._check is not None:
            self._check(found, number, what)
        return cast(T, found)


def _json_object(content: bytes, what: str, way_out: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
        if isinstance(found, dict):
            return found
        problem = f"{str(found)[:40]!r} is not a JSON object"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise DataError(f"{what} is damaged ({problem}); {way_out}")


@contextlib.contextmanager
def explained(path: Path, way_out: str) -> Iterator[None]:
    """Raise system errors as :class:`DataError`, with a way out."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read or write {path}: {error}; {way_out}") from error


def require(module: str, purpose: str, *, package: str = "", otherwise: str = "") -> ModuleType:
    """Import a module of an optional package.

    Args:
        purpose: what needs it, as the beginning of a sentence: ``figures``.
        package: its name for pip, if that is not the module's.
        otherwise: another way out: ``or leave tensorboard out``.

    Raises:
        MissingPackageError: it cannot be imported; the message says how to install it.
    """
    package = package or module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        way_out = f"pip install {package}" + (f", {otherwise}" if otherwise else "")
        raise MissingPackageError(
            f"{purpose}: the package {package} is needed and cannot be imported ({error}); "
            f"{way_out}"
        ) from error


def git_commit(checkout: Path) -> str | None:
    """The commit of a git checkout, read from its files; None if it cannot be determined."""
    folder = checkout / ".git"
    try:
        if folder.is_file():  # a worktree or submodule: "gitdir: PATH"
            folder = checkout / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head or None
        name = head.removeprefix("ref:").strip()
        shared = folder / "commondir"
        folders = [folder, folder / shared.read_text().strip()] if shared.is_file() else [folder]
        for each in folders:
            if (each / name).is_file():
                return (each / name).read_text().strip()
            packed = each / "packed-refs"
            for line in packed.read_text().splitlines() if packed.is_file() else []:
                if line.endswith(f" {name}"):
                    return line.split()[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None
