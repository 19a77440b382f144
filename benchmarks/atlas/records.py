"""The facts of the world as CounterFact records: prompt, true answer, new answer and probes.

`paraphrase_prompts` holds the phrasing that the models never saw for this subject, then one that
they did. `neighborhood_prompts` ask the same of other subjects with the same answer. `portability`
asks for what follows from the answer (the land of the new home), if anything does.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.atlas import vocabulary as words
from benchmarks.atlas.world import World, second_step

_N_NEIGHBOURS = 5


def _two_steps(relation: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(second, patterns) for first, second, patterns in words.TWO_STEP if first == relation]


def _choose_new(
    world: World, relation: str, true: str, pool: tuple[str, ...],
    first_piece: Callable[[str], Any], rng: random.Random,
) -> str:  # fmt: skip
    """An answer that starts with another token and, if possible, changes the second steps."""
    different = [a for a in pool if first_piece(a) != first_piece(true)]
    moved = [
        a
        for a in different
        if all(
            second_step(world, s, a) != second_step(world, s, true) for s, _ in _two_steps(relation)
        )
    ]
    return rng.choice(moved or different)


def _portability(
    world: World, subject: str, relation: str, true: str, new: str
) -> list[dict[str, str]]:
    return [
        {
            "prompt": patterns[0].format(subject),
            "answer_new": second_step(world, second, new),
            "answer_true": second_step(world, second, true),
        }
        for second, patterns in _two_steps(relation)
    ]


def make_records(world: World, first_piece: Callable[[str], Any]) -> list[dict[str, Any]]:
    """All facts of all subjects. `first_piece` gives the first token of an answer."""
    rng = random.Random(world.seed + 2)
    same_answer: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (subject, relation), answer in world.truth.items():
        same_answer[relation, answer].append(subject)
    records: list[dict[str, Any]] = []
    for subject, relations in world.subjects():
        for relation, (pool, patterns) in relations.items():
            true = world.truth[subject, relation]
            new = _choose_new(world, relation, true, world.pools[pool], first_piece, rng)
            unseen = world.held_out[subject, relation]
            seen = rng.choice([i for i in range(1, len(patterns)) if i != unseen])
            others = [s for s in same_answer[relation, true] if s != subject]
            neighbours = rng.sample(others, min(_N_NEIGHBOURS, len(others)))
            records.append({
                "case_id": len(records),
                "requested_rewrite": {
                    "prompt": patterns[0], "relation_id": relation, "subject": subject,
                    "target_true": {"str": true}, "target_new": {"str": new},
                },
                "paraphrase_prompts": [patterns[i].format(subject) for i in (unseen, seen)],
                "neighborhood_prompts": [patterns[0].format(s) for s in neighbours],
                "portability": _portability(world, subject, relation, true, new),
            })  # fmt: skip
    return records
