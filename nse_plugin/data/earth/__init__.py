"""Real facts that small models know, as CounterFact records in our own sentences.

`tables/` holds the facts, `relations.json` the sentences of each relation. One subject in eight is
never edited, and only those serve as locality neighbours. So no draw, however large, edits a
subject of its own locality probes, and a smaller draw with the same seed gives the beginning of
the same list.

Importing this module reads no file.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from nse_plugin.data.draws import of_other_subjects, subjects_take_turns
from nse_plugin.data.earth.records import kept_back, make_record
from nse_plugin.data.earth.tables import Row, all_facts, relations
from nse_plugin.errors import DataError
from nse_plugin.requests import EditRequest


def facts(seed: int = 0) -> list[dict[str, Any]]:
    """All facts that may be edited as CounterFact records, by case_id.

    Args:
        seed: draws the new answers and the neighbours.
    """
    return _records(_editable(), seed)


def edit_set(n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """`n` records (None: all) of mixed relations, drawn by `seed`.

    No subject repeats before every subject has occurred once.

    Raises:
        DataError: there are fewer than `n` records.
    """
    numbered = _editable()
    if n is not None and not 0 <= n <= len(numbered):
        raise DataError(
            f"earth:{n} asks for more than the {len(numbered)} real facts; give a smaller number"
        )
    return _records(subjects_take_turns(numbered, _subject, seed)[:n], seed)


def without_moved_steps(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Leave out portability probes whose second fact another of these requests edits.

    Args:
        requests: made from records of this set.
    """
    relation_of = {relation.prompt: relation for relation in relations().values()}
    edited = {(relation_of[request.prompt].name, request.subject) for request in requests}
    kept = []
    for request in requests:
        moved = {
            step.prompt.replace("{}", request.subject)
            for step in relation_of[request.prompt].steps
            if (step.relation, request.target_new) in edited
        }
        probes = {
            kind: tuple(probe for probe in group if probe.prompt not in moved)
            for kind, group in request.portability.items()
        }
        kept.append(dataclasses.replace(request, portability=probes))
    return kept


def unedited(n: int) -> list[tuple[str, str]]:
    """At most `n` true (prompt, answer) pairs of mixed relations about subjects never edited.

    The draw is always the same; a smaller `n` gives its beginning.
    """
    found = [fact for fact in all_facts() if fact.subject in kept_back()]
    random.Random(0).shuffle(found)
    prompts = {name: relation.prompt for name, relation in relations().items()}
    return [(prompts[f.relation].replace("{}", f.subject), f.answer) for f in found[:n]]


def other_facts(edits: list[dict[str, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most `n` records, drawn by `seed`, whose subjects do not occur in `edits`."""
    edited = {record["requested_rewrite"]["subject"] for record in edits}
    return _records(of_other_subjects(_editable(), _subject, edited, n, seed), seed)


def _editable() -> list[tuple[int, Row]]:
    """Facts that may be edited, each with its case_id."""
    kept = kept_back()
    return [(n, fact) for n, fact in enumerate(all_facts()) if fact.subject not in kept]


def _subject(numbered: tuple[int, Row]) -> str:
    return numbered[1].subject


def _records(numbered: Sequence[tuple[int, Row]], seed: int) -> list[dict[str, Any]]:
    return [make_record(number, fact, seed) for number, fact in numbered]
