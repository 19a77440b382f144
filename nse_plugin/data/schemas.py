"""The record layouts of the public knowledge-editing benchmarks.

One function per layout turns one record into :class:`EditRequest`s; :data:`SCHEMAS` lists them
with the fields that identify them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nse_plugin.data.graph_schemas import GRAPH_SCHEMAS
from nse_plugin.data.schema_fields import (
    MISSING,
    MULTI_HOP,
    NEIGHBORHOOD,
    ONE_HOP,
    BadField,
    Schema,
    mapping_of,
    neighbour_of,
    target_of,
    text_of,
    texts_of,
)
from nse_plugin.request_fields import is_missing
from nse_plugin.requests import EditRequest


def _counterfact(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """CounterFact (kmeng01).  Neighbourhood prompts are locality probes with the true answer.

    Three fields of our own data are read if present: ``neighborhood_answers``, if the neighbours'
    answers are not all the true one, ``portability`` of {prompt, answer_new}, and ``forms``, as in
    :class:`EditRequest`.
    """
    rewrite = mapping_of(record, "requested_rewrite")
    prompts = texts_of(record, "neighborhood_prompts")
    answers: tuple[str, ...] = (target_of(rewrite, "target_true"),) * len(prompts)
    if "neighborhood_answers" in record:
        answers = texts_of(record, "neighborhood_answers")
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
            rephrase_prompt=texts_of(record, "paraphrase_prompts"),
            locality={NEIGHBORHOOD: {"prompt": prompts, "ground_truth": answers}},
            portability={ONE_HOP: asked},
            forms=record.get("forms"),
        )
    ]


def _akew(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """AKEW: the fact itself, not the text that states it or triplets extracted from that text."""
    question = mapping_of(record, "requested_rewrite").get("question")
    rephrased = record.get("paraphrase_prompts") or ([] if is_missing(question) else [question])
    whole = {"neighborhood_prompts": [], **record, "paraphrase_prompts": rephrased}
    return _counterfact(whole, index, notes)


def _qaedit(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """QAEdit: questions of three question-answering benchmarks."""
    probes = record.get("locality", MISSING)
    if not isinstance(probes, list) or not all(isinstance(one, Mapping) for one in probes):
        raise BadField("locality", probes, "a list of {'loc': ..., 'loc_ans': ...}")
    near = [neighbour_of(one, "loc", "loc_ans").get(NEIGHBORHOOD) for one in probes]
    fields = {
        "case_id": record.get("case_id", record.get("id")),
        "prompt": text_of(record, "prompt"),
        "subject": text_of(record, "subject"),
        "target_new": text_of(record, "target_new" if "target_new" in record else "target"),
        "rephrase_prompt": record.get("rephrase"),
        "locality": {NEIGHBORHOOD: [one for one in near if one]},
    }
    return [EditRequest.from_dict(fields, index, notes)]


def _zsre(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """ZsRE; the locality question keeps its "nq question: " as the evaluators expect.

    WikiBigEdit's pipeline writes these fields too, with ``genv2_mixed`` for ``personas``.
    """
    fields = _question_fields(record, "src", "alt", "genv2_mixed")
    fields["ground_truth"] = record.get("answers")
    hop = record.get("portability")
    if isinstance(hop, Mapping):
        fields["portability"] |= {
            ONE_HOP: {"prompt": hop.get("New Question"), "ground_truth": hop.get("New Answer")}
        }
    elif not is_missing(hop):
        raise BadField("portability", hop, "an object")
    return [EditRequest.from_dict(fields, index, notes)]


def _flat(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """EasyEdit's flat records, and KnowEdit: the prompt contains the subject.

    Kinds of locality and portability are read as given; the single question of flat CounterFact
    is one more kind.
    """
    old_names = "text" in record and "prompt" not in record
    concept = old_names and "subject" not in record
    rephrased = [record.get(name) for name in ("rephrase_prompt", "rephrase_prompts", "rephrase")]
    fields: dict[str, Any] = {
        "case_id": record.get("case_id"),
        "prompt": text_of(record, "text" if old_names else "prompt"),
        "subject": text_of(record, "concept" if concept else "subject"),
        "subject_start": record.get("subject_start"),
        "target_new": text_of(record, "labels" if old_names else "target_new"),
        "ground_truth": record.get("ground_truth"),
        "rephrase_prompt": next((texts for texts in rephrased if not is_missing(texts)), None),
        "forms": record.get("forms"),
    }
    for where, kind in (("locality", NEIGHBORHOOD), ("portability", ONE_HOP)):
        one = neighbour_of(record, f"{where}_prompt", f"{where}_ground_truth", kind)
        kinds = record.get(where)
        if one and is_missing(kinds):
            kinds = {}
        fields[where] = {**kinds, **one} if one and isinstance(kinds, Mapping) else kinds
    return [EditRequest.from_dict(fields, index, notes)]


def _wikibigedit(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """WikiBigEdit as published; ``personas`` asks the same in the words of a persona."""
    fields = _question_fields(record, "update", "ans", "personas")
    return [EditRequest.from_dict(fields, index, notes)]


def _mquake(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """MQuAKE.  The multi-hop questions need all rewrites, so only the last request has them: in a
    sequential run they are asked when all are written, and each is counted once."""
    rewrites = record.get("requested_rewrite", MISSING)
    if not isinstance(rewrites, list) or not rewrites:
        raise BadField("requested_rewrite", rewrites, "a list of rewrites")
    answer = text_of(record, "new_answer")
    questions = texts_of(record, "questions")
    asked = {MULTI_HOP: {"prompt": questions, "ground_truth": (answer,) * len(questions)}}
    case_id = record.get("case_id")
    case_id = index if is_missing(case_id) else case_id
    requests = []
    for number, rewrite in enumerate(rewrites):
        question = rewrite.get("question") if isinstance(rewrite, Mapping) else None
        last = number == len(rewrites) - 1
        fields = {"rephrase_prompt": question, "portability": asked if last else None}
        name = f"{case_id}/{number}"
        requests.append(_template_request(name, index, rewrite, notes, **fields))
    return requests


def _is_knowedit(record: Mapping[str, Any]) -> bool:
    edit = {"prompt", "target_new"} <= set(record) or {"text", "labels"} <= set(record)
    return edit and ("locality" in record or "portability" in record)


_OF_AKEW = tuple(
    f"requested_rewrite.{name}"
    for name in ("fact_new_uns", "unsfact_triplets_GPT", "time_new", "time_true")
)
_COUNTERFACT = (
    "case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts",
    "neighborhood_answers", "portability", "forms",
)  # fmt: skip
_NOT_OF_COUNTERFACT = ("pararel_idx", "attribute_prompts", "generation_prompts")
_FLAT = (
    "case_id", "prompt", "text", "subject", "concept", "subject_start", "target_new", "labels",
    "ground_truth", "rephrase_prompt", "rephrase_prompts", "rephrase",
    "locality", "locality_prompt", "locality_ground_truth",
    "portability", "portability_prompt", "portability_ground_truth", "forms",
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "akew": Schema(
        ("requested_rewrite with fact_new_uns",),
        _akew,
        lambda record: (
            isinstance(record.get("requested_rewrite"), Mapping)
            and "fact_new_uns" in record["requested_rewrite"]
        ),
        _COUNTERFACT,
        (*_NOT_OF_COUNTERFACT, *_OF_AKEW),
    ),
    "counterfact": Schema(
        ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
        _counterfact,
        lambda record: isinstance(record.get("requested_rewrite"), Mapping),
        _COUNTERFACT,
        _NOT_OF_COUNTERFACT,
    ),
    "mquake": Schema(
        ("requested_rewrite", "questions", "new_answer"),
        _mquake,
        lambda record: isinstance(record.get("requested_rewrite"), list),
        ("case_id", "requested_rewrite", "questions", "new_answer"),
        (
            "answer", "answer_alias", "new_answer_alias", "single_hops", "new_single_hops", "orig",
            "split", "6334_split", "edit_triples", "orig_triples", "orig_triples_labeled",
            "new_triples", "new_triples_labeled", *_OF_AKEW,
        ),
    ),
    "zsre": Schema(
        ("src", "subject", "alt"),
        _zsre,
        lambda record: {"src", "alt"} <= set(record),
        (
            "case_id", "src", "subject", "alt", "answers", "rephrase", "loc", "loc_ans",
            "portability", "genv2_mixed", "mhop", "mhop_ans",
        ),
        ("pred", "cond", "tag"),
    ),
    "wikibigedit": Schema(
        ("update", "subject", "ans"),
        _wikibigedit,
        lambda record: {"update", "ans"} <= set(record),
        (
            "case_id", "update", "subject", "ans", "rephrase", "personas", "loc", "loc_ans", "mhop",
            "mhop_ans",
        ),
        ("tag",),
    ),
    **GRAPH_SCHEMAS,
    "qaedit": Schema(
        ("prompt", "subject", "target", "locality as a list"),
        _qaedit,
        lambda record: "prompt" in record and isinstance(record.get("locality"), list),
        (
            "case_id", "id", "prompt", "subject", "target", "target_new", "rephrase", "locality",
        ),
        ("source",),
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
}  # fmt: skip
"""Schemas by name, in the order in which they are tried."""


def schema_of(record: Mapping[str, Any]) -> str | None:
    """Name of the first schema that fits a record, if any does."""
    return next((name for name, schema in SCHEMAS.items() if schema.fits(record)), None)


def _question_fields(
    record: Mapping[str, Any], question: str, answer: str, by_persona: str
) -> dict[str, Any]:
    """A request's fields from a ZsRE or WikiBigEdit record, which differ in three names."""
    return {
        "case_id": record.get("case_id"),
        "prompt": text_of(record, question),
        "subject": text_of(record, "subject"),
        "target_new": text_of(record, answer),
        "rephrase_prompt": [record.get("rephrase"), record.get(by_persona)],
        "locality": neighbour_of(record, "loc", "loc_ans"),
        "portability": neighbour_of(record, "mhop", "mhop_ans", MULTI_HOP),
    }


def _template_request(
    case_id: Any, index: int, rewrite: Any, notes: list[str], **fields: Any
) -> EditRequest:
    """A request from a rewrite whose prompt has ``{}`` and whose targets are {"str": ...}."""
    if not isinstance(rewrite, Mapping):
        raise BadField("requested_rewrite", rewrite, "an object with prompt and subject")
    edit = EditRequest(
        case_id=index if is_missing(case_id) else case_id,
        prompt=text_of(rewrite, "prompt"),
        subject=text_of(rewrite, "subject"),
        target_new=target_of(rewrite, "target_new"),
        ground_truth=target_of(rewrite, "target_true"),
    )
    return EditRequest.from_dict({**edit.to_dict(), **fields}, index, notes)
