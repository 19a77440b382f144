"""Draws from lists of CounterFact records, by seed; loads neither torch nor transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def subject_of(record: Record) -> str:
    """Whom or what a record is about."""
    return record["requested_rewrite"]["subject"]


def subjects_take_turns(records: Sequence[Record], seed: int) -> list[Record]:
    """The records in random order, but no subject twice before every subject came once."""
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    times: dict[str, int] = {}
    turn: dict[int, int] = {}
    for record in shuffled:
        subject = subject_of(record)
        turn[record["case_id"]] = times[subject] = times.get(subject, 0) + 1
    return sorted(shuffled, key=lambda record: turn[record["case_id"]])


def of_other_subjects(
    records: Sequence[Record], edits: Sequence[Record], n: int, seed: int
) -> list[Record]:
    """At most n records, drawn by a seed, of subjects that none of the edits is about."""
    edited = {subject_of(record) for record in edits}
    rest = [record for record in records if subject_of(record) not in edited]
    return random.Random(seed).sample(rest, min(n, len(rest)))
