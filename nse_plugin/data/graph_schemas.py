"""Benchmarks drawn from the graph of Wikidata: RippleEdits and UniEdit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nse_plugin.data.schema_fields import MULTI_HOP, BadField, Parse, Schema, mapping_of, text_of
from nse_plugin.requests import EditRequest

_RIPPLE_LOCALITY = ("Relation_Specificity", "Forgetfulness")
_RIPPLE_PORTABILITY = (
    "Logical_Generalization", "Compositionality_I", "Compositionality_II", "Subject_Aliasing",
)  # fmt: skip
_RIPPLE_KINDS = _RIPPLE_LOCALITY + _RIPPLE_PORTABILITY
_VERB = re.compile(
    r"(?: is (?:associated with|a member of|part of|the capital of)| plays in| has| won)?"
    r" (?:is followed by|is|are|follows)(?= |$)"
)
"""The words between subject and answer in the sentences of RippleEdits."""
_BEFORE_SUBJECT = [
    *([*start, event, "of"] for event in ("birth", "death") for start in ([], ["of"])),
    *([word] for word in ("of", "which", "in", "by", "children", "award")),
]
"""Words before the subject that questions of two relations may share."""
_YES_NO = " The answer is (Yes/No):"
"""What UniEdit's own loader appends to a question whose answer is Yes or No."""


def _ripple(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """RippleEdits.  If any one question of a test is enough, the first is asked; of several
    answers, the first counts.  ``condition_queries``, questions to be answered before the edit, are
    not asked.
    """
    edit = mapping_of(record, "edit")
    sentence = text_of(edit, "prompt").strip().removesuffix(".")
    prompt, subject = _ripple_prompt(sentence, edit, record)
    old = edit.get("previous_fact") or edit.get("original_fact")
    old = text_of(old, "prompt").strip().removesuffix(".") if isinstance(old, Mapping) else ""
    fields = {
        "case_id": record.get("case_id"),
        "prompt": prompt,
        "subject": subject,
        "target_new": sentence.removeprefix(prompt),
        "ground_truth": old.removeprefix(prompt) if old.startswith(prompt) else None,
        "locality": {kind: _ripple_tests(record, kind) for kind in _RIPPLE_LOCALITY},
        "portability": {kind: _ripple_tests(record, kind) for kind in _RIPPLE_PORTABILITY},
    }
    return [EditRequest.from_dict(fields, index, notes)]


def _ripple_tests(record: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    found = []
    for test in record.get(kind) or ():
        queries = test["test_queries"]
        for query in queries if test.get("test_condition") == "AND" else queries[:1]:
            answers = [answer["value"] for answer in query["answers"]]
            found.append({"prompt": query["prompt"], "ground_truth": answers or None})
    return found


def _ripple_prompt(
    sentence: str, edit: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[str, str]:
    """Prompt and subject of an edit, which has only a sentence.

    The words that its part before the verb shares with the ends of questions of other relations
    about the same subject are the subject.
    """
    others = [stem.split() for stem in _stems_of_subject(edit, record)]
    for verb in _VERB.finditer(sentence):
        words = sentence[: verb.start()].split()
        shared = min((_common_end(words, other) for other in others), default=0)
        subject = words[len(words) - shared :]
        for event in _BEFORE_SUBJECT:  # "of birth of Ann Lee"
            if subject[: len(event)] == event:
                subject = subject[len(event) :]
        if subject and verb.end() < len(sentence):
            return sentence[: verb.end()], " ".join(subject)
    raise BadField(
        "edit", sentence, "a sentence whose subject other questions of the record are about"
    )


def _stems_of_subject(edit: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Questions of other relations about an edit's subject, up to the subject's last word."""
    for kind in _RIPPLE_KINDS[:-1]:  # the last are about its aliases
        for test in record.get(kind) or ():
            for query in test["test_queries"]:
                same = query.get("subject_id") == edit.get("subject_id")
                if same and query.get("query_type") == "regular":
                    asked = query["prompt"]
                    last = [verb for verb in _VERB.finditer(asked) if verb.end() == len(asked)]
                    if last and query.get("relation") != edit.get("relation"):
                        yield asked[: last[0].start()]


def _common_end(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _uniedit(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """UniEdit.  A question along the edited fact alone is a paraphrase, one in the opposite
    direction the reversal; all others are portability."""
    edit = mapping_of(record, "edit")
    rephrased: list[str] = []
    reversal: list[dict[str, str]] = []
    portability: dict[str, list[dict[str, str]]] = {}
    for question in mapping_of(record, "generality").values():
        kind, asked = _uniedit_question(question)
        path = question["paths"][0][:4] if kind == "single" and len(question["paths"]) == 1 else []
        if path == ["h_e", "r_e", "t_e", "f"]:
            rephrased.append(asked["prompt"])
        elif path == ["t_e", "r_e", "h_e", "b"]:
            reversal.append(asked)
        else:
            name = MULTI_HOP if kind == "single" else "same_entity"
            portability.setdefault(name, []).append(asked)
    locality: dict[str, list[dict[str, str]]] = {}
    for question in mapping_of(record, "locality").values():
        locality.setdefault(str(question.get("loc_type", "none")), []).append(
            _uniedit_question(question)[1]
        )
    fields = {
        "case_id": record.get("case_id"),
        "prompt": text_of(edit, "prompt"),
        "subject": text_of(edit, "subject"),
        "target_new": text_of(edit, "target"),
        "rephrase_prompt": rephrased,
        "locality": locality,
        "portability": portability,
        "forms": {"reversal": reversal} if reversal else None,
    }
    return [EditRequest.from_dict(fields, index, notes)]


def _uniedit_question(question: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    kind = text_of(question, "path_type")
    prompt = text_of(question, "prompt") + (_YES_NO if kind == "double" else "")
    return kind, {"prompt": prompt, "ground_truth": question.get("target", "")}


def _read(parse: Parse) -> Parse:
    """The parser, raising :class:`BadField` if a nested field is missing or of another type."""

    def checked(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
        try:
            return parse(record, index, notes)
        except (LookupError, TypeError, AttributeError) as error:
            wanted = f"the fields of its benchmark ({type(error).__name__}: {error})"
            raise BadField("edit", record.get("edit"), wanted) from error

    return checked


GRAPH_SCHEMAS: dict[str, Schema] = {
    "rippleedits": Schema(
        ("edit", "Relation_Specificity", "Compositionality_I"),
        _read(_ripple),
        lambda record: "edit" in record and "Compositionality_I" in record,
        ("case_id", "edit", *_RIPPLE_KINDS),
        ("example_type", *(f"{kind}.condition_queries" for kind in _RIPPLE_KINDS)),
    ),
    "uniedit": Schema(
        ("edit", "generality", "locality"),
        _read(_uniedit),
        lambda record: {"edit", "generality", "locality"} <= set(record),
        ("case_id", "edit", "generality", "locality"),
        ("edit.head_entity", "edit.property", "edit.tail_entity", "generality.one_hops"),
    ),
}
"""Schemas by name, in the order in which they are tried."""
