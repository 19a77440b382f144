"""Seeded draws of facts; loads neither torch nor transformers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

T = TypeVar("T")


def subjects_take_turns(facts: Sequence[T], subject: Callable[[T], str], seed: int) -> list[T]:
    """The facts in random order, but no subject repeats before every subject has occurred once."""
    shuffled = list(facts)
    random.Random(seed).shuffle(shuffled)
    turns, times = [], Counter[str]()
    for fact in shuffled:
        times[subject(fact)] += 1
        turns.append((times[subject(fact)], fact))
    return [fact for _, fact in sorted(turns, key=lambda pair: pair[0])]


def of_other_subjects(
    facts: Sequence[T], subject: Callable[[T], str], edited: Collection[str], n: int, seed: int
) -> list[T]:
    """At most n facts about subjects that are not edited."""
    rest = [fact for fact in facts if subject(fact) not in edited]
    return random.Random(seed).sample(rest, min(n, len(rest)))
