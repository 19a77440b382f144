"""Registered texts as sources of statistics; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nse_plugin.errors import StatisticsError


@dataclass(frozen=True)
class NamedText:
    """A registered text."""

    documents: Callable[[], Sequence[str]]
    """All documents; called when they are needed."""
    digest: str | None = None
    """A short hash of the documents, if they may change."""
    fits: Callable[[Any], bool] = lambda tokenizer: True
    """Whether the text is in the language of a tokenizer's model."""


NAMED_TEXTS: dict[str, NamedText] = {}
"""By name; filled by :func:`register_text`."""


def register_text(
    name: str,
    documents: Callable[[], Sequence[str]],
    *,
    digest: str | None = None,
    fits: Callable[[Any], bool] = lambda tokenizer: True,
) -> None:
    """Register a name as a source of text, as ``mom2_dataset`` or ``nse stats --source``.

    Args:
        documents, digest, fits: see :class:`NamedText`.

    Raises:
        StatisticsError: the name is taken.
    """
    if name == "self" or name in NAMED_TEXTS:
        raise StatisticsError(f"{name!r} is a source of text already; register another name")
    NAMED_TEXTS[name] = NamedText(documents, digest, fits)


def check_text(name: str, tokenizer: Any) -> None:
    """Raise :class:`StatisticsError` if a named text is in another language than the model's."""
    text = NAMED_TEXTS.get(name)
    if text is not None and not text.fits(tokenizer):
        raise StatisticsError(
            f"mom2_dataset is {name!r}, a text that this model's tokenizer was not made for: its "
            "statistics would be of a language that the model does not know. Are the settings "
            "those of another model? Give mom2_dataset: wikipedia, factbook, self or file:PATH"
        )
