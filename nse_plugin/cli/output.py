"""The output and the exit codes of the commands.

Results go to standard output, with ``--json`` as JSON only.  Notes go to standard error; progress
too, except for the commands whose long work is shown before the result.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from nse_plugin.errors import NSEPluginError
from nse_plugin.printable import printable
from nse_plugin.table import Table

if TYPE_CHECKING:
    from nse_plugin.runs.listeners import Listener

INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit code after a broken output pipe: 128 + SIGPIPE, as shells report it."""
_PROGRESS = logging.getLogger("nse_plugin.progress")


def show(what: str | Table = "") -> None:
    """Print for people, unless ``--quiet``."""
    if not _is_quiet():
        _put(what, sys.stdout)


def show_result(result: Any) -> None:
    """Print a result, also with ``--quiet``: a text, a table, or values as JSON."""
    shown = isinstance(result, str | Table)
    _put(result if shown else json.dumps(result, indent=2, default=str), sys.stdout)


def show_tables(*tables: Table) -> None:
    """Print result tables, also with ``--quiet``; on a terminal they are drawn."""
    for number, table in enumerate(tables):
        if number:
            show_result("")
        show_result(table)


def teller(as_json: bool) -> Callable[[str | Table], None]:
    """A function that prints progress: to standard output, or to standard error beside JSON."""
    return note if as_json else show


def note(what: str | Table) -> None:
    """Print a remark on standard error, unless ``--quiet``."""
    if not _is_quiet():
        _put(what, sys.stderr)


def _put(what: str | Table, stream: TextIO | None) -> None:
    if stream is None:  # closed by the shell: >&-
        return
    if isinstance(what, str):
        print(printable(what), file=stream, flush=True)
    elif stream.isatty():
        from nse_plugin.cli.tables import draw

        draw(what, stream)
    else:
        print(what.text(), file=stream, flush=True)


@contextmanager
def working() -> Iterator[Listener]:
    """A listener whose phases are shown on standard error while it works."""
    from nse_plugin.runs.listeners import progress

    with progress(note) as listener:
        yield listener


def be_quiet() -> None:
    """Print only results and errors from now on."""
    logging.getLogger().setLevel(logging.ERROR)
    _PROGRESS.setLevel(logging.ERROR)


def _is_quiet() -> bool:
    return _PROGRESS.level > logging.INFO


def complain(text: str) -> None:
    """Print an error on standard error."""
    with suppress(BrokenPipeError):
        _put(f"nse: {text}", sys.stderr)


@contextmanager
def interrupt_says(text: Callable[[], str]) -> Iterator[None]:
    """Add this text, e.g. what is on disk, to the message of an interrupt inside the block."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.args = (text(),)
        raise


def exit_code(call: Callable[[], int]) -> int:
    """Call a command; errors of the user, the machine and the network become one line.

    0 is success, 1 a reported error, 3 a run that ended early, 130 an interrupt, 141 a broken
    output pipe.
    """
    try:
        return call()
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except (NSEPluginError, OSError) as error:
        complain(reason(error))
    except MemoryError:
        complain(_OUT_OF_MEMORY)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        complain(_OUT_OF_MEMORY)
    except KeyboardInterrupt as interrupt:
        what = "; ".join(map(str, interrupt.args))
        complain(f"interrupted; {what}" if what else "interrupted")
        return INTERRUPTED
    return 1


_OUT_OF_MEMORY = (
    "out of memory; edit fewer requests per round or fewer layers, or use a larger machine"
)


def set_up_logging(verbose: bool) -> None:
    """Logs to standard error, control characters spelled out."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s" if verbose else None))
    logging.basicConfig(handlers=[handler])
    logging.getLogger().setLevel(logging.INFO if verbose else logging.WARNING)
    _PROGRESS.setLevel(logging.INFO)  # a line every 30 seconds
    if not verbose:
        # huggingface_hub reads this when it is imported; without a network it would report every
        # retry before the error
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")


class _Formatter(logging.Formatter):
    """With the default format: the message, and the level of warnings that are no progress."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        warns = record.levelno >= logging.WARNING and record.name != _PROGRESS.name
        plain = self._fmt == "%(message)s" and warns
        return printable(f"{record.levelname.lower()}: {text}" if plain else text)


def reason(error: NSEPluginError | OSError) -> str:
    """What an error of this package or of the system says to people."""
    if isinstance(error, NSEPluginError):
        return str(error)
    if error.filename is None:
        return f"{type(error).__name__}: {error}"
    return (
        f"cannot read or write {error.filename}: {error.strerror}; free space or fix the "
        "permissions, or give another place"
    )


def _discard_output() -> None:
    """Discard output still buffered for a closed pipe, so that flushing at exit does not fail."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
