"""The one exception family of nse_plugin.

Every message says what was wrong, which value it was, and what to do about it.  All of these are
raised before anything is written, or after what was written has been put back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NSEPluginError(Exception):
    """Base of everything this package raises on purpose."""


class RequestError(NSEPluginError, ValueError):
    """An edit request, or a round of them, cannot be used."""


class HparamsError(NSEPluginError, ValueError):
    """A hyperparameter is unknown, of the wrong type or out of range."""


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
