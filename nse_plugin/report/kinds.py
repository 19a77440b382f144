"""The kinds of score: their heads in tables, and a run's table of them."""

from __future__ import annotations

from collections.abc import Iterable

from nse_plugin.report.run import Run
from nse_plugin.table import Table, percent

KINDS = {
    "efficacy_probability": "likelier than the old",
    "efficacy_tokens": "tokens, teacher-forced",
    "efficacy": "whole answer, greedy",
    "free_contains": "free text contains it",
    "free_judged": "free text, judged",
    "free_exact": "free text is it",
    "distractor": "after a distractor",
    "reversal": "reversed",
    "translation": "translated",
    "negation": "also when negated",
    "locality_of_effective": "locality of effective edits",
}
"""The kinds of score, from the easiest to the hardest, with their heads in tables."""
_EXPLAINED = {
    "likelier": "the new answer has a higher probability than the old one",
    "tokens": "answer tokens that are the first choice after the right ones before them",
    "free text": "what the model writes up to its first full stop",
    "distractor": "a sentence that names the old answer comes first",
    "reversed": "from the new answer, the model gives the subject",
    "translated": "asked in another language",
    "negated": "the model gives the new answer to the negated prompt too, so less is better",
    "words after": "how many follow the answer in free text",
}
_OTHERS = {
    "paraphrase": "paraphrase, whole answer",
    "portability": "portability, whole answer",
    "locality": "locality, tokens",
}

AGES = ("right after", "at the end", "oldest third", "newest third")
"""Heads of the columns by age of the edit."""


def kinds_note(heads: Iterable[str]) -> str:
    """The meaning of the kinds of score under these heads."""
    shown = " ".join(heads)
    words = "; ".join(f"{word}: {text}" for word, text in _EXPLAINED.items() if word in shown)
    return f"Scores of different kinds must not be compared with each other. {words}."


def kinds_table(run: Run) -> Table | None:
    """A row per kind of score: right after the rounds, and at the end by the age of the edit."""
    measured = [point for point in run.measurements if point.get("all")]
    if not measured:
        return None
    last = measured[-1]
    written = {f"free_{name}": value for name, value in last.get("generation", {}).items()}
    ages = sorted(last["retention"], key=lambda row: row["edited"])
    third = -(-len(ages) // 3)
    kept = [line for line in run.lines if line["file"] is not None]
    rows = []
    for name, head in {**KINDS, **_OTHERS}.items():
        after = _mean((line["edits"], (line["scores"] or {}).get(name)) for line in kept)
        old, new = (
            _mean((row["n"], row.get(name)) for row in some)
            for some in (ages[:third], ages[-third:])
        )
        values = (after, {**last["all"], **written}.get(name), old, new)
        if any(value is not None for value in values):
            rows.append((head, *map(percent, values)))
    about = kinds_note(row[0] for row in rows)
    note = (
        f"In percent; right after: mean over rounds, by their edits; thirds of the rounds. {about}"
    )
    heads = ("kind of score", *AGES)
    return Table.of_numbers("The same edits by kind of score", heads, rows, note)


def _mean(weighed: Iterable[tuple[int, float | None]]) -> float | None:
    there = [(weight, value) for weight, value in weighed if value is not None]
    total = sum(weight for weight, _ in there)
    return sum(weight * value for weight, value in there) / total if total else None
