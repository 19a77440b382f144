"""From a fact to a CounterFact record with its new answer and probes.

The new answer is one that the same relation has for another subject. It is never a true answer or
another name of one, and starts with another word. `neighborhood_prompts` ask the same of other
subjects, those with the same answer first; `neighborhood_answers` holds their true answers.
`portability` asks for what follows from the new answer (the capital of the new country), `forms`
for the fact negated, reversed and, in some relations, in German.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from functools import lru_cache
from typing import Any

from nse_plugin.data.earth.tables import (
    Relation,
    Row,
    Step,
    facts_by_relation,
    follow,
    relations,
)

_N_NEIGHBOURS = 10
_SHARE_KEPT_BACK = 8
_LEAST_KEPT_BACK = 6


def make_record(case_id: int, fact: Row, seed: int) -> dict[str, Any]:
    """The record of one fact; it depends on the fact and the seed alone."""
    relation = relations()[fact.relation]
    rng = random.Random(f"{seed} {fact.relation} {fact.subject}")
    new = _choose_new(fact, relation, rng)
    others = _neighbours(fact, rng)
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": relation.prompt,
            "relation_id": relation.name,
            "subject": fact.subject,
            "target_true": {"str": fact.answer},
            "target_new": {"str": new},
        },
        "paraphrase_prompts": [text.replace("{}", fact.subject) for text in relation.paraphrases],
        "neighborhood_prompts": [relation.prompt.replace("{}", f.subject) for f in others],
        "neighborhood_answers": [f.answer for f in others],
        "portability": _second_step(fact, relation, new, rng),
        "forms": _forms(fact, relation, new),
    }


@lru_cache(maxsize=1)
def kept_back() -> frozenset[str]:
    """Subjects that are never edited, whatever the seed; at least six of each relation."""
    kept: set[str] = set()
    for facts in facts_by_relation().values():
        wanted = max(_LEAST_KEPT_BACK, len(facts) // _SHARE_KEPT_BACK)
        kept.update(fact.subject for fact in sorted(facts, key=_place)[:wanted])
    return frozenset(kept)


def _place(fact: Row) -> bytes:
    """A sort key that depends on the subject's name alone, so it is the same in all relations."""
    return hashlib.blake2b(fact.subject.encode(), digest_size=8).digest()


@lru_cache(maxsize=1)
def _other_names() -> dict[str, dict[str, frozenset[str]]]:
    """By relation and answer: this answer and all others that are true of the same subjects."""
    found: dict[str, dict[str, frozenset[str]]] = {}
    for name, facts in facts_by_relation().items():
        names: dict[str, set[str]] = defaultdict(set)
        for fact in facts:
            names[fact.answer] |= fact.true_answers
        found[name] = {answer: frozenset(same) for answer, same in names.items()}
    return found


def possible_answers(fact: Row) -> list[str]:
    """Answers of the same relation that are wrong for this fact and cannot pass for a true one."""
    names = _other_names()[fact.relation]
    true = names[fact.answer] | fact.true_answers
    first_words = {name.split()[0].lower() for name in true}
    words = set(re.findall(r"\w+", fact.subject.lower()))
    return [
        answer
        for answer in sorted(names)
        if not names[answer] & true
        and answer.split()[0].lower() not in first_words
        and not words & set(re.findall(r"\w{4,}", answer.lower()))
    ]


def _choose_new(fact: Row, relation: Relation, rng: random.Random) -> str:
    """A possible answer; one that changes a second step, unless too few do."""
    possible = possible_answers(fact)
    leads_on = [new for new in possible if _open_steps(fact, relation, new)]
    return rng.choice(leads_on if len(leads_on) >= min(10, len(possible) / 2) else possible)


def _open_steps(fact: Row, relation: Relation, new: str) -> list[Step]:
    """Second steps whose answers under the new and under the true answer are known and differ."""
    ways = {step: follow()[step.relation] for step in relation.steps}
    return [
        step
        for step, way in ways.items()
        if new in way and fact.answer in way and way[new] != way[fact.answer]
    ]


def _second_step(
    fact: Row, relation: Relation, new: str, rng: random.Random
) -> list[dict[str, Any]]:
    """At most one question whose answer follows from the new answer."""
    steps = _open_steps(fact, relation, new)
    if not steps:
        return []
    step = rng.choice(steps)
    way = follow()[step.relation]
    return [
        {
            "prompt": step.prompt.replace("{}", fact.subject),
            "answer_new": way[new],
            "answer_true": way[fact.answer],
        }
    ]


def _forms(fact: Row, relation: Relation, new: str) -> dict[str, Any]:
    """The edited fact negated, reversed and in another language."""
    forms = {
        "negation": (relation.negation.replace("{}", fact.subject), new),
        "reversal": (relation.reversal.replace("{}", new), fact.subject),
    }
    if (other := relation.translation) is not None:
        prompt = other.prompt.replace("{}", fact.subject)
        forms["translation"] = (prompt, other.answers.get(new, new))
    return {kind: {"prompt": prompt, "ground_truth": to} for kind, (prompt, to) in forms.items()}


def _neighbours(fact: Row, rng: random.Random) -> list[Row]:
    """Facts of the same relation about subjects that are never edited, same answer first."""
    kept = kept_back()
    others = [f for f in facts_by_relation()[fact.relation] if f.subject in kept]
    rng.shuffle(others)
    others.sort(key=lambda other: other.answer != fact.answer)
    return others[:_N_NEIGHBOURS]
