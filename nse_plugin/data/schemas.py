"""The record layouts of the public knowledge-editing benchmarks.

One function per layout turns one record into :class:`EditRequest`s; :data:`SCHEMAS` lists them
with the fields that they are recognised by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nse_plugin.requests import EditRequest, Probe, read_text

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


def _counterfact(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """kmeng01's CounterFact.  Neighbourhood prompts share the true answer: locality.

    attribute_prompts and generation_prompts have no place in a request and are not read.  Two lists
    of our own data are read where there: ``neighborhood_answers``, one answer per neighbourhood
    prompt where they do not all share the true one, and ``portability`` of {prompt, answer_new}.
    """
    rewrite = _mapping(record, "requested_rewrite")
    prompts = _texts(record, "neighborhood_prompts")
    answers: tuple[str, ...] = (_target(rewrite, "target_true"),) * len(prompts)
    if "neighborhood_answers" in record:
        answers = _texts(record, "neighborhood_answers")
        if len(answers) != len(prompts):
            wanted = f"{len(prompts)} answers, one per neighborhood prompt"
            raise BadField("neighborhood_answers", answers, wanted)
    neighbours = [Probe(prompt, answer) for prompt, answer in zip(prompts, answers)]
    hops = [
        Probe(_text(hop, "prompt"), _text(hop, "answer_new"))
        for hop in record.get("portability") or []
    ]
    return [
        _template_request(
            record.get("case_id", index),
            rewrite,
            rephrase_prompts=_texts(record, "paraphrase_prompts"),
            locality=_kinds({NEIGHBORHOOD: neighbours}),
            portability=_kinds({ONE_HOP: hops}),
        )
    ]


def _flat(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """EasyEdit's flat CounterFact: the prompt holds the subject itself."""
    fields = _common_fields(record, index)
    fields["locality"] = _neighbour(record, "locality_prompt", "locality_ground_truth")
    return [EditRequest.from_dict(fields, notes=notes)]


def _zsre(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """ZsRE; the locality question keeps its "nq question: " as the evaluators expect."""
    fields: dict[str, Any] = {
        "case_id": record.get("case_id", index),
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
    elif read_text(hop) is not None:
        raise BadField("portability", hop, "an object")
    return [EditRequest.from_dict(fields, notes=notes)]


def _knowedit(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """KnowEdit: kinds of portability and locality are taken as they are found."""
    fields = _common_fields(record, index)
    for where in ("locality", "portability"):
        fields[where] = record.get(where) or {}
    return [EditRequest.from_dict(fields, notes=notes)]


def _mquake(record: Mapping[str, Any], index: int, notes: list[str]) -> list[EditRequest]:
    """MQuAKE.  The multi-hop questions need all rewrites, so they stand with the last one only:
    in a sequential run they are asked when all are written, and each is counted once."""
    rewrites = record.get("requested_rewrite", _MISSING)
    if not isinstance(rewrites, list) or not rewrites:
        raise BadField("requested_rewrite", rewrites, "a list of rewrites")
    answer = _text(record, "new_answer")
    questions = [Probe(question, answer) for question in _texts(record, "questions")]
    case_id = record.get("case_id", index)
    requests = []
    for number, rewrite in enumerate(rewrites):
        last = number == len(rewrites) - 1
        requests.append(
            _template_request(
                f"{case_id}/{number}",
                rewrite,
                rephrase_prompts=(rewrite["question"],) if rewrite.get("question") else (),
                portability=_kinds({MULTI_HOP: questions}) if last else {},
            )
        )
    return requests


def _is_knowedit(record: Mapping[str, Any]) -> bool:
    edit = {"prompt", "target_new"} <= set(record) or {"text", "labels"} <= set(record)
    return edit and ("locality" in record or "portability" in record)


SCHEMAS: dict[str, Schema] = {
    "counterfact": Schema(
        ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
        _counterfact,
        lambda record: isinstance(record.get("requested_rewrite"), Mapping),
    ),
    "mquake": Schema(
        ("requested_rewrite", "questions", "new_answer"),
        _mquake,
        lambda record: isinstance(record.get("requested_rewrite"), list),
    ),
    "zsre": Schema(("src", "subject", "alt"), _zsre, lambda record: {"src", "alt"} <= set(record)),
    "knowedit": Schema(
        ("prompt", "subject", "target_new", "locality and/or portability"), _knowedit, _is_knowedit
    ),
    "counterfact_flat": Schema(
        ("prompt", "subject", "target_new"),
        _flat,
        lambda record: {"prompt", "target_new"} <= set(record),
    ),
    "wiki_recent": Schema(  # KnowEdit's layout, and recognised as that; EasyEdit has a class for it
        ("prompt", "subject", "target_new", "locality"), _knowedit, lambda record: False
    ),
}
"""Schemas by name, in the order in which a record is tried."""


# --- fields -------------------------------------------------------------------------------------


def _common_fields(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The edit itself under EasyEdit's names or those of KnowEdit's text parts."""
    old_names = "text" in record and "prompt" not in record
    subject = "subject" if "subject" in record else "concept" if old_names else "subject"
    rephrase: Any = next(
        (record[k] for k in ("rephrase_prompt", "rephrase_prompts", "rephrase") if record.get(k)),
        None,
    )
    return {
        "case_id": record.get("case_id", index),
        "prompt": _text(record, "text" if old_names else "prompt"),
        "subject": _text(record, subject),
        "target_new": _text(record, "labels" if old_names else "target_new"),
        "ground_truth": record.get("ground_truth"),
        "rephrase_prompt": rephrase,
    }


def _template_request(case_id: int | str, rewrite: Any, **fields: Any) -> EditRequest:
    """A request from a rewrite whose prompt has ``{}`` and whose targets are {"str": ...}."""
    if not isinstance(rewrite, Mapping):
        raise BadField("requested_rewrite", rewrite, "an object with prompt and subject")
    return EditRequest(
        case_id=case_id,
        prompt=_text(rewrite, "prompt"),
        subject=_text(rewrite, "subject"),
        target_new=_target(rewrite, "target_new"),
        ground_truth=_target(rewrite, "target_true"),
        **fields,
    )


def _neighbour(record: Mapping[str, Any], prompt: str, answer: str) -> dict[str, Any]:
    """The one locality question of a record; none where its field is missing or empty."""
    if read_text(record.get(prompt)) is None:
        return {}
    return {NEIGHBORHOOD: {"prompt": record[prompt], "ground_truth": record.get(answer)}}


def _kinds(groups: Mapping[str, list[Probe]]) -> dict[str, tuple[Probe, ...]]:
    return {kind: tuple(probes) for kind, probes in groups.items() if probes}


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field, _MISSING)
    if not isinstance(value, str) or not value.strip():
        raise BadField(field, value, "a text that is not empty")
    return value


def _texts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field, _MISSING)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadField(field, value, "a list of texts")
    return tuple(value)


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
