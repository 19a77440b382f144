"""Hand-written facts, and default probes for them.

A fact is a prompt, its subject and a target.  The subject is in braces in the prompt
(``{The Eiffel Tower} is located in the city of``), or a field of its own.  A file of facts is YAML,
CSV, JSON or JSON lines, or any benchmark's file.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nse_plugin.data import atlas, earth
from nse_plugin.data.readers import load_records, parse_records
from nse_plugin.data.written_facts import completed
from nse_plugin.errors import RequestError
from nse_plugin.request_fields import FieldError, as_template, checked_text, is_missing
from nse_plugin.requests import EditRequest

BEFORE = ("This is well known. ", "I read about it yesterday. ")
"""Prefixes that turn a prompt into paraphrases if none is given."""
_MOST = 12
"""Neighbours of a subject, at most."""


def read_facts(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, checked with :func:`parse_facts`.

    Raises:
        DataError: the file cannot be read, or a record matches no schema.
    """
    path = Path(path)
    found = load_records(path)
    records = [found] if isinstance(found, Mapping) else found
    parse_facts(records, source=path.name, warn=False)
    return list(records)


def parse_facts(
    records: Any, first: int = 1, source: str = "the list", warn: bool = True
) -> list[EditRequest]:
    """Requests from records with ``prompt``, ``subject`` and ``target``, or of any benchmark.

    Args:
        first: records without ``case_id`` are numbered from here, skipping numbers in use.
        source: name of the records in messages.
        warn: log what is left out or not read.

    Raises:
        DataError: a record matches no schema, or two have the same ``case_id``.
        RequestError: a record has no subject or no target.
    """
    if isinstance(records, Sequence) and not isinstance(records, (str, bytes)):
        taken = {str(r["case_id"]) for r in records if isinstance(r, Mapping) and _has_id(r)}
        numbers = (n for n in itertools.count(first) if str(n) not in taken)
        records = [
            completed(r, None if _has_id(r) else next(numbers)) if isinstance(r, Mapping) else r
            for r in records
        ]
    return parse_records(records, source=source, way_out="correct it", warn=warn)


def fact(prompt: str, target: str, subject: str | None = None, **more: Any) -> dict[str, Any]:
    """The record of one fact, for :func:`parse_facts`.

    Args:
        subject: needed unless it is in braces in the prompt.
        **more: other fields, such as ``rephrase_prompts``.

    Raises:
        RequestError: a text is empty, or the subject is not clear.
    """
    refuse_empty("paraphrases", more.get("rephrase_prompts") or ())
    record = {"prompt": prompt, "target": target, "subject": subject, **more}
    try:
        checked_text(prompt, "prompt")
        checked_text(target, "target")
        found = completed({name: value for name, value in record.items() if value is not None})
        as_template(found["prompt"], found["subject"], None)
    except FieldError as error:
        raise RequestError(str(error)) from None
    return found


def refuse_empty(name: str, texts: Iterable[str]) -> None:
    """Raise :class:`RequestError` unless this is a list of texts that are not empty."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise RequestError(f"{name} is {texts!r}; give a list of texts")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"one of the {name} is {text!r}; give a text, or leave it out")


def _has_id(record: Mapping[str, Any]) -> bool:
    return not is_missing(record.get("case_id"))


def with_paraphrases(request: EditRequest) -> EditRequest:
    """The request; without paraphrases, it gets its prompt after each prefix of :data:`BEFORE`."""
    if request.rephrase_prompts:
        return request
    texts = tuple(before + request.text for before in BEFORE)
    return dataclasses.replace(request, rephrase_prompts=texts)


def others_like(subject: str, edited: Iterable[str] = ()) -> list[str]:
    """Neighbours of an edited subject, the same ones on each call.

    They share a relation of ``atlas`` or ``earth`` with it.  A subject unknown to both has no
    neighbours, since its question makes no sense for arbitrary others (the colour of penicillin).

    Args:
        edited: subjects to leave out.
    """
    known: dict[str, list[str]] = {}  # by relation: its subjects
    for record in atlas.facts():
        rewrite = record["requested_rewrite"]
        known.setdefault(f"atlas {rewrite['relation_id']}", []).append(rewrite["subject"])
    for each in earth.all_facts():
        known.setdefault(each.relation, []).append(each.subject)
    name = subject.casefold()
    same = [subjects for subjects in known.values() if name in map(str.casefold, subjects)]
    draw = random.Random(name)
    found = [s for subjects in same for s in draw.sample(subjects, min(_MOST, len(subjects)))]
    left_out = {name, *map(str.casefold, edited)}
    return [s for s in dict.fromkeys(found) if s.casefold() not in left_out][:_MOST]
