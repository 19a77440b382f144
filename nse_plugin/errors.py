"""The one exception family of nse_plugin.

Every message says what was wrong, which value it was, and what to do about it.  All of these are
raised before anything is written, or after what was written has been put back.
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
        *mistakes: what is wrong; the mistakes of one file are one error, a line each.
        file: the file that the settings stand in, where they stand in one.
    """

    def __init__(self, *mistakes: str, file: str | Path | None = None) -> None:
        super().__init__(*mistakes)
        self.file = file

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Each of them, without the name of the file."""
        return self.args

    def __str__(self) -> str:
        if len(self.mistakes) == 1:
            return f"{self.file}: {self.mistakes[0]}" if self.file else self.mistakes[0]
        lines = (f"\n  - {mistake}" for mistake in self.mistakes)
        return f"{self.file or 'settings'}: {len(self.mistakes)} mistakes" + "".join(lines)


class ModelError(NSEPluginError, ValueError):
    """The model's structure or its weights do not allow the operation."""


class NotFiniteError(ModelError):
    """A value, a key or a change became NaN or infinite; what was written has been put back."""


class StatisticsError(NSEPluginError, ValueError):
    """Second-moment statistics are missing, damaged or of another model."""


class SessionError(NSEPluginError, RuntimeError):
    """The session's memory and the model's weights do not agree."""


class DataError(NSEPluginError, ValueError):
    """A data file cannot be read or does not hold what it should."""


class HostError(NSEPluginError, RuntimeError):
    """The host toolkit lacks a part that is needed here."""


class MissingPackageError(NSEPluginError, ImportError):
    """An optional package that is needed here cannot be imported."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known names, or an empty string."""
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=most, cutoff=0.6)
    near = [by_folded[each] for each in found]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
