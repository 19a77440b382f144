"""Marks: short hashes by which facts and texts are told apart in little memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nse_plugin.requests import EditRequest


def mark(*texts: str) -> bytes:
    """A hash of some texts in 16 bytes, to tell many apart in little memory."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()


def fact_mark(fact: str) -> bytes:
    """The mark of a fact, which differs from that of a key text with the same words."""
    return mark("fact", fact)


def marks_of(requests: Iterable[EditRequest]) -> tuple[bytes, ...]:
    """Marks of the facts and of the key texts of some requests, each once."""
    return tuple({m: None for r in requests for m in (fact_mark(r.fact), mark(r.key_text))})
