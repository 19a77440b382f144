"""The exceptions of nse_plugin.

Every message says what is wrong, with which value, and what to do about it.  They are raised before
anything is written, or after it has been undone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class NSEPluginError(Exception):
    """Base of everything this package raises on purpose."""


class RequestError(NSEPluginError, ValueError):
    """An edit request, or a round of them, cannot be used."""


class HparamsError(NSEPluginError, ValueError):
    """A setting is unknown, of the wrong type or out of range.

    Args:
        *mistakes: one or more messages; all mistakes of a file are one error, a line each.
        file: the file of the settings, if there is one.
    """

    def __init__(self, *mistakes: str, file: str | Path | None = None) -> None:
        super().__init__(*mistakes)
        self.file = file

    @property
    def mistakes(self) -> tuple[str, ...]:
        """The messages, without the name of the file."""
        return self.args

    def __str__(self) -> str:
        if len(self.mistakes) == 1:
            return f"{self.file}: {self.mistakes[0]}" if self.file else self.mistakes[0]
        lines = (f"\n  - {mistake}" for mistake in self.mistakes)
        return f"{self.file or 'settings'}: {len(self.mistakes)} mistakes" + "".join(lines)


class ModelError(NSEPluginError, ValueError):
    """The model's structure or its weights do not allow the operation."""


class NotFiniteError(ModelError):
    """A value, a key or a change is NaN or infinite; the round has been undone."""


class StatisticsError(NSEPluginError, ValueError):
    """Second-moment statistics are missing, damaged or of another model."""


class SessionError(NSEPluginError, RuntimeError):
    """The session does not match the model's weights, or does not allow the operation."""


class DataError(NSEPluginError, ValueError):
    """A data file cannot be read or has wrong content."""


class HostError(NSEPluginError, RuntimeError):
    """The host toolkit is missing or lacks a part that is needed."""


class MissingPackageError(NSEPluginError, ImportError):
    """An optional package that is needed cannot be imported."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known names, or an empty string."""
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=most, cutoff=0.6)
    near = [by_folded[each] for each in found]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
