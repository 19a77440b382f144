"""The record layouts of the public knowledge-editing benchmarks.

One function per layout turns one record into :class:`EditRequest`s; :data:`SCHEMAS` lists them
with the fields that they are recognised by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nse_plugin.request_fields import all_texts, is_missing
from nse_plugin.requests import EditRequest

NEIGHBORHOOD = "neighborhood"
"""Locality kind of benchmarks that have only one."""
ONE_HOP = "one_hop"
"""Portability kind of ZsRE and of the embedded world."""
MULTI_HOP = "multi_hop"
"""Portability kind of MQuAKE."""

_MISSING = object()


class BadField(Exception):
    """A field of a record is missing or cannot be used."""

    def __init__(self, field: str, value: Any, wanted: str) -> None:
        found = "missing" if value is _MISSING else repr(value)[:80]
        super().__init__(f"field {field!r} is {found}, wanted {wanted}")


@dataclass(frozen=True)
class Schema:
    """One benchmark's record layout."""

    fields: tuple[str, ...]
    """Fields that every record of it has."""
    parse: Callable[[Mapping[str, Any], int, list[str]], list[EditRequest]]
    """From (record, its index, list for notes on left-out probes) to requests."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a record is of this schema."""
    reads: tuple[str, ...]
    """All fields that :attr:`parse` looks at."""
    leaves: tuple[str, ...] = ()
    """Fields of the benchmark that have no place in a request."""


def _counterfact(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """kmeng01's CounterFact.  Neighbourhood prompts share the true answer: locality.

    attribute_prompts and generation_prompts have no place in a request and are not read.  Three
    fields of our own data are read where there: ``neighborhood_answers``, one answer per
    neighbourhood prompt where they do not all share the true one, ``portability`` of {prompt,
    answer_new}, and ``forms``, as in :class:`EditRequest`.
    """
    rewrite = _mapping(record, "requested_rewrite")
    prompts = _texts(record, "neighborhood_prompts")
    answers: tuple[str, ...] = (_target(rewrite, "target_true"),) * len(prompts)
    if "neighborhood_answers" in record:
        answers = _texts(record, "neighborhood_answers")
        if len(answers) != len(prompts):
            wanted = f"{len(prompts)} answers, one per neighborhood prompt"
            raise BadField("neighborhood_answers", answers, wanted)
    hops = record.get("portability")
    hops = [] if is_missing(hops) else hops
    if not isinstance(hops, list) or not all(isinstance(hop, Mapping) for hop in hops):
        raise BadField("portability", hops, "a list of objects with prompt and answer_new")
    asked = [{"prompt": hop.get("prompt"), "ground_truth": hop.get("answer_new")} for hop in hops]
    return [
        _template_request(
            record.get("case_id"),
            index,
            rewrite,
            notes,
            rephrase_prompt=_texts(record, "paraphrase_prompts"),
            locality={NEIGHBORHOOD: {"prompt": prompts, "ground_truth": answers}},
            portability={ONE_HOP: asked},
            forms=record.get("forms"),
        )
    ]


def _zsre(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """ZsRE; the locality question keeps its "nq question: " as the evaluators expect."""
    fields: dict[str, Any] = {
        "case_id": record.get("case_id"),
        "prompt": _text(record, "src"),
        "subject": _text(record, "subject"),
        "target_new": _text(record, "alt"),
        "ground_truth": record.get("answers"),
        "rephrase_prompt": record.get("rephrase"),
        "locality": _neighbour(record, "loc", "loc_ans"),
    }
    hop = record.get("portability")
    if isinstance(hop, Mapping):
        fields["portability"] = {
            ONE_HOP: {"prompt": hop.get("New Question"), "ground_truth": hop.get("New Answer")}
        }
    elif not is_missing(hop):
        raise BadField("portability", hop, "an object")
    return [EditRequest.from_dict(fields, index, notes)]


def _flat(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """EasyEdit's flat records, and KnowEdit: the prompt holds the subject itself.

    Kinds of locality and portability are taken as they are found; the one question of flat
    CounterFact joins them.
    """
    old_names = "text" in record and "prompt" not in record
    concept = old_names and "subject" not in record
    rephrased = [record.get(name) for name in ("rephrase_prompt", "rephrase_prompts", "rephrase")]
    fields: dict[str, Any] = {
        "case_id": record.get("case_id"),
        "prompt": _text(record, "text" if old_names else "prompt"),
        "subject": _text(record, "concept" if concept else "subject"),
        "subject_start": record.get("subject_start"),
        "target_new": _text(record, "labels" if old_names else "target_new"),
        "ground_truth": record.get("ground_truth"),
        "rephrase_prompt": next((texts for texts in rephrased if not is_missing(texts)), None),
        "forms": record.get("forms"),
    }
    for where, kind in (("locality", NEIGHBORHOOD), ("portability", ONE_HOP)):
        one = _neighbour(record, f"{where}_prompt", f"{where}_ground_truth", kind)
        kinds = record.get(where)
        if one and is_missing(kinds):
            kinds = {}
        fields[where] = {**kinds, **one} if one and isinstance(kinds, Mapping) else kinds
    return [EditRequest.from_dict(fields, index, notes)]


def _wikibigedit(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """WikiBigEdit as it is published; ``personas`` asks the same in the words of a persona."""
    fields = {
        "case_id": record.get("case_id"),
        "prompt": _text(record, "update"),
        "subject": _text(record, "subject"),
        "target_new": _text(record, "ans"),
        "rephrase_prompt": [record.get("rephrase"), record.get("personas")],
        "locality": _neighbour(record, "loc", "loc_ans"),
        "portability": _neighbour(record, "mhop", "mhop_ans", MULTI_HOP),
    }
    return [EditRequest.from_dict(fields, index, notes)]


def _mquake(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """MQuAKE.  The multi-hop questions need all rewrites, so they stand with the last one only:
    in a sequential run they are asked when all are written, and each is counted once."""
    rewrites = record.get("requested_rewrite", _MISSING)
    if not isinstance(rewrites, list) or not rewrites:
        raise BadField("requested_rewrite", rewrites, "a list of rewrites")
    answer = _text(record, "new_answer")
    questions = _texts(record, "questions")
    asked = {MULTI_HOP: {"prompt": questions, "ground_truth": (answer,) * len(questions)}}
    case_id = record.get("case_id")
    case_id = index if is_missing(case_id) else case_id
    requests = []
    for number, rewrite in enumerate(rewrites):
        question = rewrite.get("question") if isinstance(rewrite, Mapping) else None
        requests += [
            _template_request(
                f"{case_id}/{number}",
                index,
                rewrite,
                notes,
                rephrase_prompt=question,
                portability=asked if number == len(rewrites) - 1 else None,
            )
        ]
    return requests


def _is_knowedit(record: Mapping[str, Any]) -> bool:
    edit = {"prompt", "target_new"} <= set(record) or {"text", "labels"} <= set(record)
    return edit and ("locality" in record or "portability" in record)


_FLAT = (
    "case_id", "prompt", "text", "subject", "concept", "subject_start", "target_new", "labels",
    "ground_truth", "rephrase_prompt", "rephrase_prompts", "rephrase",
    "locality", "locality_prompt", "locality_ground_truth",
    "portability", "portability_prompt", "portability_ground_truth", "forms",
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "counterfact": Schema(
        ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
        _counterfact,
        lambda record: isinstance(record.get("requested_rewrite"), Mapping),
        (
            "case_id",
            "requested_rewrite",
            "paraphrase_prompts",
            "neighborhood_prompts",
            "neighborhood_answers",
            "portability",
            "forms",
        ),
        ("pararel_idx", "attribute_prompts", "generation_prompts"),
    ),
    "mquake": Schema(
        ("requested_rewrite", "questions", "new_answer"),
        _mquake,
        lambda record: isinstance(record.get("requested_rewrite"), list),
        ("case_id", "requested_rewrite", "questions", "new_answer"),
        ("answer", "answer_alias", "new_answer_alias", "single_hops", "new_single_hops", "orig"),
    ),
    "zsre": Schema(
        ("src", "subject", "alt"),
        _zsre,
        lambda record: {"src", "alt"} <= set(record),
        (
            "case_id",
            "src",
            "subject",
            "alt",
            "answers",
            "rephrase",
            "loc",
            "loc_ans",
            "portability",
        ),
        ("pred", "cond"),
    ),
    "wikibigedit": Schema(
        ("update", "subject", "ans"),
        _wikibigedit,
        lambda record: {"update", "ans"} <= set(record),
        (
            "case_id",
            "update",
            "subject",
            "ans",
            "rephrase",
            "personas",
            "loc",
            "loc_ans",
            "mhop",
            "mhop_ans",
        ),
        ("tag",),
    ),
    "knowedit": Schema(
        ("prompt", "subject", "target_new", "locality and/or portability"),
        _flat,
        _is_knowedit,
        _FLAT,
        ("cond",),
    ),
    "counterfact_flat": Schema(
        ("prompt", "subject", "target_new"),
        _flat,
        lambda record: {"prompt", "target_new"} <= set(record),
        _FLAT,
    ),
    "wiki_recent": Schema(  # KnowEdit's layout, and recognised as that; EasyEdit has a class for it
        ("prompt", "subject", "target_new", "locality"), _flat, lambda record: False, _FLAT
    ),
}
"""Schemas by name, in the order in which a record is tried."""


# --- fields -------------------------------------------------------------------------------------


def _template_request(
    case_id: Any, index: int, rewrite: Any, notes: list[str], **fields: Any
) -> EditRequest:
    """A request from a rewrite whose prompt has ``{}`` and whose targets are {"str": ...}."""
    if not isinstance(rewrite, Mapping):
        raise BadField("requested_rewrite", rewrite, "an object with prompt and subject")
    edit = EditRequest(
        case_id=index if is_missing(case_id) else case_id,
        prompt=_text(rewrite, "prompt"),
        subject=_text(rewrite, "subject"),
        target_new=_target(rewrite, "target_new"),
        ground_truth=_target(rewrite, "target_true"),
    )
    return EditRequest.from_dict({**edit.to_dict(), **fields}, index, notes)


def _neighbour(
    record: Mapping[str, Any], prompt: str, answer: str, kind: str = NEIGHBORHOOD
) -> dict[str, Any]:
    """The one question of a record; none if its field is missing or empty."""
    if is_missing(record.get(prompt)):
        return {}
    return {kind: {"prompt": record[prompt], "ground_truth": record.get(answer)}}


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field, _MISSING)
    if not isinstance(value, str) or not value.strip():
        raise BadField(field, value, "a text that is not empty")
    return value


def _texts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field, _MISSING)
    if not isinstance(value, list) or not all(
        isinstance(text, str) or is_missing(text) for text in value
    ):
        raise BadField(field, value, "a list of texts")
    return all_texts(value, field)


def _mapping(record: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = record.get(field, _MISSING)
    if not isinstance(value, Mapping):
        raise BadField(field, value, "an object")
    return value


def _target(rewrite: Mapping[str, Any], field: str) -> str:
    value = rewrite.get(field, _MISSING)
    if isinstance(value, Mapping):
        value = value.get("str", _MISSING)
    return _text({field: value} if value is not _MISSING else {}, field).strip()
