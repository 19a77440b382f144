"""Edit requests: one fact to write, checked before any tensor is touched.

An :class:`EditRequest` is what every method takes.  It is read from the dicts that EasyEdit passes
around (:meth:`EditRequest.from_dict`) and written back to them (:meth:`EditRequest.to_dict`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nse_plugin.errors import RequestError

log = logging.getLogger(__name__)

_PLACE = "{}"


@dataclass(frozen=True)
class Probe:
    """A question asked before and after an edit: a full prompt and the answer expected of it.

    Blanks at the end of the prompt and around the answer are dropped: an answer stands one space
    after its prompt.
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        object.__setattr__(self, "answer", self.answer.strip())


Probes = Mapping[str, tuple[Probe, ...]]


@dataclass(frozen=True)
class EditRequest:
    """One fact to write into a model.

    Blanks at the end of the prompt and around subject and target are dropped: the target stands
    one space after the prompt, and the subject's last token is where methods write.

    Raises:
        RequestError: a field is empty, or it is not clear where in ``prompt`` the subject stands.
    """

    case_id: int | str
    """Name of the request in metrics and ledger."""
    prompt: str
    """Relation with ``{}`` in the subject's place, e.g. ``"{} lives in"``."""
    subject: str
    """The text that takes the place of ``{}``."""
    target_new: str
    """The answer to write, without the space that separates it from the prompt."""
    ground_truth: str | None = None
    """The answer before the edit, where known."""
    rephrase_prompts: tuple[str, ...] = ()
    """Full prompts that ask for the same fact in other words."""
    locality: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    """By kind: questions whose answer must not change."""
    portability: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    """By kind: questions whose answer follows from the edit."""
    place: int | None = None
    """Index in ``prompt`` of the ``{}`` that stands for the subject; needed only where the prompt
    has other braces of its own."""

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target_new"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise RequestError(
                    f"request {self.case_id}: {name} is {value!r}; give a text that is not empty"
                )
        place = self.place
        if place is None:
            if self.prompt.count(_PLACE) != 1:
                raise RequestError(
                    f"request {self.case_id}: prompt {self.prompt!r} holds '{{}}' "
                    f"{self.prompt.count(_PLACE)} times; put it once, in the subject's place "
                    "(`place` says which it is where the prompt has braces of its own)"
                )
            place = self.prompt.index(_PLACE)
        elif self.prompt[place : place + 2] != _PLACE or place < 0:
            raise RequestError(
                f"request {self.case_id}: place is {place}, and prompt {self.prompt!r} has no "
                "'{}' there"
            )
        before, after = self.prompt[:place], self.prompt[place + 2 :]
        before, subject, after = _without_blanks(before, self.subject, after)
        if after != after.rstrip():
            _say_once("blanks at the end of prompts are dropped: an answer comes after one space")
        put = functools.partial(object.__setattr__, self)  # the class is frozen
        put("prompt", f"{before}{_PLACE}{after.rstrip()}")
        put("subject", subject)
        put("target_new", self.target_new.strip())
        put("rephrase_prompts", tuple(text.rstrip() for text in self.rephrase_prompts))
        put("place", None if self.prompt.count(_PLACE) == 1 else len(before))

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        start = self.subject_start
        return self.prompt[:start] + self.subject + self.prompt[start + 2 :]

    @property
    def subject_start(self) -> int:
        """Index of the subject's first character in :attr:`text`."""
        return self.prompt.index(_PLACE) if self.place is None else self.place

    @property
    def fact(self) -> tuple[str, str]:
        """What the request is about, whatever the answer: subject and prompt."""
        return self.subject.strip(), self.prompt.strip()

    @property
    def subject_end(self) -> int:
        """Index in :attr:`text` of the first character after the subject."""
        return self.subject_start + len(self.subject)

    @classmethod
    def from_dict(
        cls,
        record: Mapping[str, Any],
        case_id: int | str = 0,
        notes: list[str] | None = None,
    ) -> EditRequest:
        """Read an EasyEdit request: ``prompt``, ``target_new``, ``subject`` and what else there is.

        ``prompt`` holds the subject itself, or ``{}`` in its place.  Of several places where the
        subject stands, the one that ``subject_start`` names is taken, else the last one: it is the
        nearest to the answer, and what stands before it cannot see it.  A text that is None, NaN
        or empty counts as not given; a probe without a prompt or an answer is left out.

        Args:
            notes: gets a line for each probe that is left out; without it they are logged.

        Raises:
            RequestError: a field is missing or empty, or the subject is not in the prompt.
        """
        case_id = record.get("case_id", case_id)
        for name in ("prompt", "target_new", "subject"):
            if name not in record:
                raise RequestError(
                    f"request {case_id}: field {name!r} is missing; "
                    f"it has {', '.join(sorted(record)) or 'no fields'}"
                )
        prompt, subject, place = record["prompt"], record["subject"], None
        if isinstance(prompt, str) and isinstance(subject, str) and subject.strip():
            prompt, place = _as_template(
                prompt, subject.strip(), record.get("subject_start"), case_id
            )
        left_out: list[str] = []
        try:
            target = read_text(_first(record["target_new"]))
            ground_truth = read_text(_first(record.get("ground_truth")))
            rephrased = read_texts(record.get("rephrase_prompt", record.get("rephrase_prompts")))
            locality = read_probes(record.get("locality"), "locality", left_out)
            portability = read_probes(record.get("portability"), "portability", left_out)
        except RequestError as error:
            raise RequestError(f"request {case_id}: {error}") from None
        request = cls(
            case_id=case_id,
            prompt=prompt,
            subject=subject,
            target_new=target or "",
            ground_truth=ground_truth,
            rephrase_prompts=rephrased,
            locality=locality,
            portability=portability,
            place=place,
        )
        if notes is not None:
            notes += [f"case {case_id}: {probe}" for probe in left_out]
        elif left_out:
            log.warning("case %s: left out, without an answer: %s", case_id, "; ".join(left_out))
        return request

    def to_dict(self) -> dict[str, Any]:
        """Write the request as EasyEdit's editor passes it to methods and evaluators."""
        record: dict[str, Any] = {
            "case_id": self.case_id,
            "prompt": self.text,
            "target_new": self.target_new,
            "ground_truth": self.ground_truth,
            "portability": _write_probes(self.portability),
            "locality": _write_probes(self.locality),
            "subject": self.subject,
            "subject_start": self.subject_start,
        }
        if self.rephrase_prompts:
            texts = list(self.rephrase_prompts)
            record["rephrase_prompt"] = texts[0] if len(texts) == 1 else texts
        return record

    def to_json(self) -> dict[str, Any]:
        """All fields as values for JSON, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EditRequest:
        """The request that :meth:`to_json` wrote, field by field."""
        probes = {
            name: {
                kind: tuple(Probe(**probe) for probe in group)
                for kind, group in record[name].items()
            }
            for name in ("locality", "portability")
        }
        return cls(**{**record, "rephrase_prompts": tuple(record["rephrase_prompts"]), **probes})

    def digest(self) -> str:
        """A short hash of everything in the request, probes included."""
        whole = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


def with_probes_of(request: EditRequest, other: EditRequest) -> EditRequest:
    """The request, which also asks what another request for the same edit asks.

    The other's probes get kinds of their own, so that a bound on the probes of each kind leaves
    none of them out.
    """

    def both(own: Probes, others: Probes) -> Probes:
        known = {probe for group in own.values() for probe in group}
        new = {
            f"{kind} of case {other.case_id}": tuple(p for p in group if p not in known)
            for kind, group in others.items()
        }
        return {**own, **{kind: group for kind, group in new.items() if group}}

    return replace(
        request,
        rephrase_prompts=tuple(dict.fromkeys(request.rephrase_prompts + other.rephrase_prompts)),
        locality=both(request.locality, other.locality),
        portability=both(request.portability, other.portability),
    )


def mark(*texts: str) -> bytes:
    """16 bytes that stand for some texts, where many are to be told apart in little memory."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()


def as_requests(
    records: Iterable[EditRequest | Mapping[str, Any]], first: int = 0
) -> list[EditRequest]:
    """Turn dicts and requests into requests; those without case_id are numbered from ``first``."""
    return [
        record if isinstance(record, EditRequest) else EditRequest.from_dict(record, number)
        for number, record in enumerate(records, start=first)
    ]


def check_round(requests: Sequence[EditRequest]) -> None:
    """Check that the requests can be written together in one round.

    Raises:
        RequestError: there is none, or two give one (subject, prompt) different targets.
    """
    if not requests:
        raise RequestError("the list of requests is empty; give at least one edit request")
    seen: dict[tuple[str, str], EditRequest] = {}
    for request in requests:
        first = seen.setdefault((request.subject, request.prompt), request)
        if first.target_new != request.target_new:
            raise RequestError(
                f"requests {first.case_id} and {request.case_id} give {request.text!r} two "
                f"targets, {first.target_new!r} and {request.target_new!r}; "
                "put them in different rounds or drop one"
            )


def read_text(value: Any) -> str | None:
    """A text of a record without blanks around it; None for what is none: None, NaN, or empty.

    Raises:
        RequestError: the value is an object or a list.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (Mapping, list, tuple)):
        raise RequestError(f"{value!r:.80} stands where a text is wanted")
    return str(value).strip() or None


def read_texts(value: Any) -> tuple[str, ...]:
    """The texts of a list, or the one text; those that are none are left out."""
    texts = (read_text(_first(item)) for item in _as_list(value))
    return tuple(text for text in texts if text is not None)


def read_probes(groups: Any, where: str, notes: list[str]) -> dict[str, tuple[Probe, ...]]:
    """Probes by kind: ``{kind: {"prompt": text or texts, "ground_truth": the same}}``.

    A kind may also be a list of such objects, as in KnowEdit, and an answer a list of aliases, of
    which the first is taken.

    Args:
        notes: gets a line for each probe that is left out for want of a prompt or an answer.

    Raises:
        RequestError: it has another form, or other numbers of prompts and answers.
    """
    if groups is None or (isinstance(groups, float) and math.isnan(groups)):
        return {}
    if not isinstance(groups, Mapping):
        raise RequestError(
            f"{where} is {groups!r:.80}; give {{kind: {{'prompt': ..., 'ground_truth': ...}}}}"
        )
    probes = {
        str(kind): tuple(_probes_of(group, f"{where}[{kind!r}]", notes))
        for kind, group in groups.items()
    }
    return {kind: found for kind, found in probes.items() if found}


def _probes_of(group: Any, where: str, notes: list[str]) -> Iterator[Probe]:
    for entry in group if isinstance(group, list) else [group]:
        if entry is None:
            continue
        if not isinstance(entry, Mapping) or "prompt" not in entry:
            raise RequestError(
                f"{where} holds {entry!r:.80}; give objects with 'prompt' and 'ground_truth'"
            )
        prompts, answers = entry["prompt"], entry.get("ground_truth")
        if not isinstance(prompts, (list, tuple)):  # one prompt: a list of answers means aliases
            prompts, answers = [prompts], [answers]
        answers = _as_list(answers)
        if len(prompts) != len(answers):
            raise RequestError(
                f"{where} has {len(prompts)} prompts and {len(answers)} answers; give one answer "
                "per prompt"
            )
        for prompt, candidates in zip(prompts, answers):
            text, answer = read_text(prompt), read_text(_first(candidates))
            if text is None or answer is None:
                notes.append(f"{where} {prompt!r}")
            else:
                yield Probe(text, answer)


def _as_template(
    prompt: str, subject: str, start: Any, case_id: int | str
) -> tuple[str, int | None]:
    """The prompt with ``{}`` in the subject's place, and which of its braces that is."""
    if not (isinstance(start, int) and start >= 0 and prompt.startswith(subject, start)):
        words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
        start = words[-1].start() if words else prompt.rfind(subject)
    if start >= 0:
        return prompt[:start] + _PLACE + prompt[start + len(subject) :], start
    if _PLACE in prompt:
        return prompt, None
    raise RequestError(
        f"request {case_id}: subject {subject!r} is not in prompt {prompt!r}; "
        "write it exactly as the prompt does, or put '{}' in its place"
    )


def _without_blanks(before: str, subject: str, after: str) -> tuple[str, str, str]:
    """The subject without blanks around it, which go to the texts beside it if those have none."""
    bare = subject.strip()
    if subject[0].isspace() and before and not before[-1].isspace():
        before += " "
    if subject[-1].isspace() and after and not after[0].isspace():
        after = " " + after
    return before, bare, after


@functools.cache
def _say_once(what: str) -> None:
    log.warning("%s", what)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _first(value: Any) -> Any:
    """The first text where a benchmark lists several answers and aliases, however deep."""
    if isinstance(value, (list, tuple)):
        found = (_first(item) for item in value)
        return next((item for item in found if read_text(item) is not None), None)
    return value


def _write_probes(groups: Mapping[str, tuple[Probe, ...]]) -> dict[str, dict[str, list[str]]]:
    return {
        kind: {
            "prompt": [probe.prompt for probe in probes],
            "ground_truth": [probe.answer for probe in probes],
        }
        for kind, probes in groups.items()
    }
