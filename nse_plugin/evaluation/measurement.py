"""What is measured of all edits so far and of the model as a whole; loads no torch."""

from __future__ import annotations

from typing import Any, TypedDict


class Measurement(TypedDict, total=False):
    """What is measured of all edits so far and of the model as a whole."""

    tested: int
    """The round after which it was measured."""
    in_effect: int
    """Edits that no later one superseded."""
    retention: list[dict[str, Any]]
    """One row per round edited: ``edited``, ``n`` and scores."""
    all: dict[str, Any]
    """The same scores over all edits tested."""
    each: list[dict[str, Any]]
    """Those of every edit tested."""
    answers: list[dict[str, Any]]
    """``round``, ``case_id``, ``exact`` and ``answer`` (text) of some edits."""
    generation: dict[str, Any]
    fluency: float | None
    perplexity: float | None
    """None if it is too large for a number."""
    ability: float | None
    """Share of facts that are never edited whose true answer is given."""
    relative_change: dict[str, float | None]
    """By parameter: ||change|| / ||original||."""
    direction_drift: dict[str, float | None]
    """By parameter: share of the span of the original's dominant singular directions that is not in
    the span of the matrix's."""
    key_share: dict[str, float | None]
    """By layer: share of the key space that previous keys use."""
    harness: dict[str, Any]
