"""Text for people: safe for a terminal, counted, shortened."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all control characters but tab and line feed
    "\u2028\u2029"  # line and paragraph separators
    "\u202a-\u202e\u2066-\u2069"  # marks that reverse the direction of what follows
    "\ud800-\udfff]"  # halves of characters, which cannot be encoded
)
_LAYOUT = re.compile("[\t\n]")
_GAP = " ... "


def printable(text: str, *, one_line: bool = False) -> str:
    r"""The text with control characters spelled out, as ``\x1b`` for an escape.

    A fact or a case id may contain control sequences: colours, a cleared screen, lines that
    overwrite other lines.  Everything printed goes through here, so that they are shown instead of
    executed.

    Args:
        one_line: spell out tabs and line feeds too, for a cell of a table.
    """
    text = _CONTROL.sub(_spelled, text)
    return _LAYOUT.sub(_spelled, text) if one_line else text


def counted(number: int, what: str) -> str:
    """A number of things: ``1 round``, ``2 rounds``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shortened(text: str, most: int = 120) -> str:
    """The text, without its middle if it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    left = most - len(_GAP)
    return f"{text[: left - left // 2]}{_GAP}{text[-(left // 2) :]}"


def _spelled(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
