"""Texts that are a source of statistics by a name of their own; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nse_plugin.errors import StatisticsError


@dataclass(frozen=True)
class NamedText:
    """A text that has a name as a source."""

    documents: Callable[[], Sequence[str]]
    """All documents; called when they are needed."""
    digest: str | None = None
    """A short hash of the documents, where they may be others another time."""


NAMED_TEXTS: dict[str, NamedText] = {}
"""By name; filled by :func:`register_text`."""


def register_text(
    name: str, documents: Callable[[], Sequence[str]], *, digest: str | None = None
) -> None:
    """Let a name be a source of text, as ``mom2_dataset`` or ``nse stats --source``.

    Raises:
        StatisticsError: the name is taken.
    """
    if name == "self" or name in NAMED_TEXTS:
        raise StatisticsError(f"{name!r} is a source of text already; register another name")
    NAMED_TEXTS[name] = NamedText(documents, digest)
