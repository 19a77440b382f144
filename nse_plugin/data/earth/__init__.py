"""Real facts that small models know, as CounterFact records in our own sentences.

`tables/` holds the facts, `relations.json` the sentences of each relation. One subject in eight is
never edited: the questions about what must not change are asked of those. So no draw, however
large, edits a subject that one of its questions about others names, and a smaller draw with the
same seed gives the beginning of the same list.

`python -m nse_plugin.data.earth` counts what is in it. Importing this module reads no file.
"""

from __future__ import annotations

import random
from typing import Any

from nse_plugin.data.earth.records import kept_back, make_record
from nse_plugin.data.earth.tables import Fact, all_facts, relations
from nse_plugin.errors import DataError

__all__ = ["Fact", "all_facts", "edit_set", "facts", "other_facts", "relations"]


def facts(seed: int = 0) -> list[dict[str, Any]]:
    """All facts that may be edited as CounterFact records, by case_id.

    Args:
        seed: of the new answers and of the questions about other subjects.
    """
    kept = kept_back()
    return [
        make_record(number, fact, seed)
        for number, fact in enumerate(all_facts())
        if fact.subject not in kept
    ]


def edit_set(n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """`n` records drawn by `seed` (None: all), relations mixed, in random order.

    No subject comes twice before every subject came once.

    Raises:
        DataError: there are fewer than `n` records.
    """
    records = facts(seed)
    if n is not None and not 0 <= n <= len(records):
        raise DataError(f"n must be between 0 and {len(records)}, the number of facts; got {n}")
    random.Random(seed).shuffle(records)
    times: dict[str, int] = {}
    turn: dict[int, int] = {}
    for record in records:
        subject = record["requested_rewrite"]["subject"]
        turn[record["case_id"]] = times[subject] = times.get(subject, 0) + 1
    records.sort(key=lambda record: turn[record["case_id"]])
    return _without_moved_steps(records[:n])


def _without_moved_steps(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out questions whose second fact is edited by another of these records."""
    rewrites = [record["requested_rewrite"] for record in records]
    edited = {(rewrite["relation_id"], rewrite["subject"]) for rewrite in rewrites}
    for record in records:
        record["portability"] = [
            question
            for question in record["portability"]
            if tuple(question["through"].values()) not in edited
        ]
    return records


def other_facts(edits: list[dict[str, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most `n` records, drawn by `seed`, of subjects that none of `edits` is about."""
    edited = {record["requested_rewrite"]["subject"] for record in edits}
    rest = [r for r in facts(seed) if r["requested_rewrite"]["subject"] not in edited]
    return random.Random(seed).sample(rest, min(n, len(rest)))
