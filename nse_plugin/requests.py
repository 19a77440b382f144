"""Edit requests: one fact to write, checked before any computation.

Every method takes :class:`EditRequest` objects.  They are read from EasyEdit's dicts
(:meth:`EditRequest.from_dict`) and written back to them (:meth:`EditRequest.to_dict`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nse_plugin.errors import RequestError
from nse_plugin.request_fields import (
    PLACE,
    FieldError,
    all_texts,
    as_template,
    checked_case_id,
    checked_text,
    first_text,
    is_missing,
    place_of,
    questions,
    without_blanks_around,
    without_blanks_at_end,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A question asked before and after an edit: a full prompt and the expected answer.

    Blanks at the end of the prompt and around the answer are dropped: an answer comes one space
    after its prompt.

    Raises:
        RequestError: one of them is empty.
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prompt", _prompt(self.prompt, "prompt"))
            object.__setattr__(self, "answer", checked_text(self.answer, "answer").strip())
        except FieldError as error:
            raise RequestError(f"a probe's {error}") from None


Probes = Mapping[str, tuple[Probe, ...]]
_PROBES = ("locality", "portability", "forms")
"""Fields of a request that hold probes."""
FORMS = ("negation", "reversal", "translation")


@dataclass(frozen=True)
class EditRequest:
    """One fact to write into a model.

    Blanks at the end of the prompt and around subject and target are dropped: the target comes
    one space after the prompt, and the subject's last token is where methods write.

    Raises:
        RequestError: a field is empty, or it is not clear where in ``prompt`` the subject is.
    """

    case_id: int | str
    """Name of the request in metrics and ledger."""
    prompt: str
    """Prompt with ``{}`` in the subject's place, e.g. ``"{} lives in"``."""
    subject: str
    """The text in place of ``{}``."""
    target_new: str
    """The new answer, without the space between prompt and answer."""
    ground_truth: str | None = None
    """The answer before the edit, if known."""
    rephrase_prompts: tuple[str, ...] = ()
    """Full prompts that paraphrase the fact."""
    locality: Probes = field(default_factory=dict)
    """By kind: questions whose answer must not change."""
    portability: Probes = field(default_factory=dict)
    """By kind: questions whose answer follows from the edit."""
    forms: Probes = field(default_factory=dict)
    """The fact in other forms, asked if the protocol says so: ``negation`` (the answer must not
    come), ``reversal`` (from the new answer to the subject), ``translation``."""
    place: int | None = None
    """Index in ``prompt`` of the ``{}`` for the subject; needed only if the prompt has other
    braces."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except FieldError as error:
            raise RequestError(f"request {self.case_id}: {error}") from None

    def _check(self) -> None:
        """Check the fields, and drop blanks that do not count."""
        put = functools.partial(object.__setattr__, self)  # the class is frozen
        put("prompt", _prompt(self.prompt, "prompt"))
        checked_text(self.subject, "subject")
        put("target_new", checked_text(self.target_new, "target_new").strip())
        put("ground_truth", first_text(self.ground_truth, "ground_truth"))
        if isinstance(self.rephrase_prompts, str):
            raise FieldError("rephrase_prompts is a text; give a list of texts")
        texts = tuple(_prompt(text, "rephrase_prompts") for text in self.rephrase_prompts)
        put("rephrase_prompts", texts)
        for name in _PROBES:
            kinds = getattr(self, name).items()
            put(name, {kind: tuple(probes) for kind, probes in kinds if probes})
        if strange := sorted(set(self.forms) - set(FORMS)):
            raise FieldError(f"forms has {strange[0]!r}; there are {', '.join(FORMS)}")
        place, times = self.place, self.prompt.count(PLACE)
        if place is None:
            if times != 1:
                raise FieldError(
                    f"prompt {self.prompt!r} holds '{{}}' {times} times; put it once, in the "
                    "subject's place (`place` says which it is where the prompt has braces of its "
                    "own)"
                )
            place = self.prompt.index(PLACE)
        elif self.prompt[place : place + 2] != PLACE or place < 0:
            raise FieldError(f"place is {place}, and prompt {self.prompt!r} has no '{{}}' there")
        before, after = self.prompt[:place], self.prompt[place + 2 :]
        before, subject, after = without_blanks_around(before, self.subject, after)
        put("prompt", f"{before}{PLACE}{after}")
        put("subject", subject)
        put("place", None if self.prompt.count(PLACE) == 1 else len(before))

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        start = self.subject_start
        return self.prompt[:start] + self.subject + self.prompt[start + 2 :]

    @property
    def subject_start(self) -> int:
        """Index of the subject's first character in :attr:`text`."""
        return self.prompt.index(PLACE) if self.place is None else self.place

    @property
    def fact(self) -> str:
        """What the request is about, whatever the answer: its text, however the subject is cut."""
        return self.text.strip()

    @property
    def subject_end(self) -> int:
        """Index in :attr:`text` of the first character after the subject."""
        return self.subject_start + len(self.subject)

    @property
    def key_text(self) -> str:
        """:attr:`text` up to the subject's end; prompts that agree in it have the same key."""
        return self.text[: self.subject_end]

    @classmethod
    def from_dict(
        cls,
        record: Mapping[str, Any],
        case_id: int | str = 0,
        notes: list[str] | None = None,
    ) -> EditRequest:
        """Read an EasyEdit request: ``prompt``, ``target_new``, ``subject``, and optional fields.

        ``prompt`` contains the subject itself, or ``{}`` in its place.  If the subject occurs
        several times, ``subject_start`` chooses; by default it is the last one
        (:func:`~nse_plugin.request_fields.subject_at`).  None, NaN and empty texts count as not
        given; a probe without a prompt or an answer is left out.

        Args:
            notes: receives a line for each probe that is left out; by default they are logged.

        Raises:
            RequestError: a field is missing or empty, or the subject is not in the prompt.
        """
        left_out: list[str] = []
        rephrased = record.get("rephrase_prompt")
        if is_missing(rephrased):
            rephrased = record.get("rephrase_prompts")
        try:
            if not is_missing(record.get("case_id")):
                case_id = checked_case_id(record["case_id"])
            for name in ("prompt", "target_new", "subject"):
                if name not in record:
                    there = ", ".join(sorted(map(str, record))) or "no fields"
                    raise FieldError(f"field {name!r} is missing; it has {there}")
            prompt, place = as_template(
                record["prompt"], record["subject"], record.get("subject_start")
            )
            request = cls(
                case_id=case_id,
                prompt=prompt,
                subject=record["subject"],
                target_new=first_text(record["target_new"], "target_new") or "",
                ground_truth=record.get("ground_truth"),
                rephrase_prompts=all_texts(rephrased, "rephrase_prompts"),
                place=place,
                **{name: _read_probes(record, name, left_out) for name in _PROBES},
            )
        except FieldError as error:
            raise RequestError(f"request {case_id}: {error}") from None
        if notes is not None:
            notes += [f"case {case_id}: {probe}" for probe in left_out]
        elif left_out:
            log.warning("case %s: left out, without an answer: %s", case_id, "; ".join(left_out))
        return request

    def to_dict(self) -> dict[str, Any]:
        """The request as EasyEdit's editor passes it to methods and evaluators.

        :meth:`from_dict` reads it; ``subject_start`` is written only if it is needed for this.
        """
        record: dict[str, Any] = {
            "case_id": self.case_id,
            "prompt": self.text,
            "target_new": self.target_new,
            "ground_truth": self.ground_truth,
            "portability": _write_probes(self.portability),
            "locality": _write_probes(self.locality),
            "subject": self.subject,
        }
        if self.rephrase_prompts:
            texts = list(self.rephrase_prompts)
            record["rephrase_prompt"] = texts[0] if len(texts) == 1 else texts
        if self.forms:
            record["forms"] = _write_probes(self.forms)
        if place_of(self.text, self.subject) != self.subject_start:
            record["subject_start"] = self.subject_start
        return record

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, for :meth:`from_json`; ``forms`` only if there are any."""
        return {name: value for name, value in asdict(self).items() if name != "forms" or value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EditRequest:
        """Read what :meth:`to_json` wrote."""
        probes = {
            name: {
                kind: tuple(Probe(**probe) for probe in group)
                for kind, group in record.get(name, {}).items()
            }
            for name in _PROBES
        }
        return cls(**{**record, "rephrase_prompts": tuple(record["rephrase_prompts"]), **probes})

    def without_probes(self) -> EditRequest:
        """The same edit without its probes."""
        return replace(self, rephrase_prompts=(), locality={}, portability={}, forms={})

    def digest(self) -> str:
        """A short hash of the whole request, probes included."""
        whole = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


def as_requests(
    records: Iterable[EditRequest | Mapping[str, Any]], first: int = 0
) -> list[EditRequest]:
    """Requests from dicts or requests; those without case_id are numbered from ``first``."""
    return list(each_as_request(records, first))


def each_as_request(
    records: Iterable[EditRequest | Mapping[str, Any]], first: int = 0
) -> Iterator[EditRequest]:
    """:func:`as_requests` for a stream, which is read lazily."""
    for number, record in enumerate(records, start=first):
        yield record if isinstance(record, EditRequest) else EditRequest.from_dict(record, number)


def check_round(requests: Sequence[EditRequest]) -> None:
    """Check that the requests can be written together in one round.

    Raises:
        RequestError: there is none, one is no request, or two have the same text but other targets,
            or the same case_id but other texts.
    """
    if not isinstance(requests, Sequence) or any(not isinstance(r, EditRequest) for r in requests):
        raise RequestError(f"requests is {requests!r:.80}; give a list of EditRequest")
    if not requests:
        raise RequestError("the list of requests is empty; give at least one edit request")
    seen: dict[str, EditRequest] = {}
    numbered: dict[int | str, EditRequest] = {}
    for request in requests:
        same = numbered.setdefault(request.case_id, request)
        if same.fact != request.fact:  # outcomes and scores are told apart by it
            raise RequestError(
                f"case_id {request.case_id!r} is that of {same.text!r} and of {request.text!r}; "
                "give each request of a round its own"
            )
        first = seen.setdefault(request.fact, request)
        if first.target_new != request.target_new:
            raise RequestError(
                f"requests {first.case_id} and {request.case_id} give {request.text!r} two "
                f"targets, {first.target_new!r} and {request.target_new!r}; "
                "put them in different rounds or drop one"
            )


def _read_probes(record: Mapping[str, Any], name: str, left_out: list[str]) -> Probes:
    probes: dict[str, tuple[Probe, ...]] = {}
    for kind, prompt, answer in questions(record.get(name), name):
        if answer is None:
            left_out.append(f"{name}[{kind!r}] {prompt!r}")
        else:
            probes[kind] = (*probes.get(kind, ()), Probe(prompt, answer))
    return probes


def _prompt(value: Any, name: str) -> str:
    """A prompt without blanks at its end; the first time they are dropped, this is logged."""
    text = without_blanks_at_end(checked_text(value, name))
    if text != value:
        _log_once("blanks at the end of prompts are dropped: an answer comes after one space")
    return text


@functools.cache
def _log_once(message: str) -> None:
    log.warning("%s", message)


def _write_probes(groups: Probes) -> dict[str, dict[str, list[str]]]:
    return {
        kind: {
            "prompt": [probe.prompt for probe in probes],
            "ground_truth": [probe.answer for probe in probes],
        }
        for kind, probes in groups.items()
    }
