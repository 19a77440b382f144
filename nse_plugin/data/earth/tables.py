"""The tables of facts and the sentences of each relation, read from the package's data files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

_HERE = Path(__file__).parent
TABLES = _HERE / "tables"
SENTENCES = _HERE / "relations.json"


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    relation: str
    subject: str
    """As written within a sentence: ``the Netherlands``."""
    answer: str
    also: tuple[str, ...] = ()
    """Other answers that are true, or other names of the answer: no edit may write them."""

    @property
    def true_answers(self) -> frozenset[str]:
        """All answers that are true."""
        return frozenset((self.answer, *self.also))


@dataclass(frozen=True)
class Step:
    """A question that needs two facts: that of the record, and one about its answer."""

    prompt: str
    """With ``{}`` for the record's subject; ends right before the second answer."""
    relation: str
    """The relation that leads from the record's answer to the second answer."""


@dataclass(frozen=True)
class Translation:
    """A prompt in another language; names of subjects stay as they are in English."""

    language: str
    prompt: str
    answers: Mapping[str, str] = field(default_factory=dict)
    """Answers that are written differently in that language."""


@dataclass(frozen=True)
class Relation:
    """The sentences of one relation; each ends right before its answer."""

    name: str
    """Also the name of its table."""
    answer_type: str
    """What its answers are: city, country, person ..."""
    prompt: str
    """With ``{}`` for the subject."""
    paraphrases: tuple[str, ...]
    """Three other sentences with ``{}`` for the subject."""
    negation: str
    """With ``{}`` for the subject; ends before an answer that is not true."""
    reversal: str
    """With ``{}`` for the answer; ends before the subject."""
    steps: tuple[Step, ...] = ()
    translation: Translation | None = None


@lru_cache(maxsize=1)
def relations() -> dict[str, Relation]:
    """All relations by name."""
    found = {}
    for name, entry in json.loads(SENTENCES.read_text(encoding="utf-8")).items():
        steps = tuple(Step(**step) for step in entry.pop("steps", []))
        translation = entry.pop("translation", None)
        found[name] = Relation(
            name=name,
            paraphrases=tuple(entry.pop("paraphrases")),
            steps=steps,
            translation=None if translation is None else Translation(**translation),
            **entry,
        )
    return found


@lru_cache(maxsize=1)
def facts_by_relation() -> dict[str, tuple[Row, ...]]:
    """The rows of each relation's table."""
    return {name: read_table(name) for name in relations()}


@lru_cache(maxsize=1)
def all_facts() -> tuple[Row, ...]:
    """The rows of all relations, one relation after the other."""
    return tuple(fact for facts in facts_by_relation().values() for fact in facts)


def read_table(name: str) -> tuple[Row, ...]:
    """The rows of ``tables/<name>.tsv``; ``also`` holds its answers with ``|`` between them."""
    with (TABLES / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
        return tuple(
            Row(name, row["subject"], row["answer"], tuple(filter(None, row["also"].split("|"))))
            for row in rows
        )


@lru_cache(maxsize=1)
def follow() -> dict[str, dict[str, str]]:
    """For each relation that a second step uses: from a first answer to what follows from it.

    Two are larger than their tables: countries include those of capitals and of US cities, and
    mother tongues those of people in ``other_native_speakers``.
    """
    used = {step.relation for relation in relations().values() for step in relation.steps}
    ways = {name: {f.subject: f.answer for f in read_table(name)} for name in used}
    capitals = {f.answer: f.subject for f in read_table("country_capital")}
    american = [f.subject for f in read_table("us_city_state")] + ["New York", "Washington"]
    in_the_states = dict.fromkeys(american, "the United States")
    ways["city_country"] = {**in_the_states, **capitals, **ways["city_country"]}
    ways["mother_tongue"] |= {f.subject: f.answer for f in read_table("other_native_speakers")}
    return ways
