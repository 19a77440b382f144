"""Edit requests: one fact to write, checked before any tensor is touched.

An :class:`EditRequest` is what every method takes.  It is read from the dicts that EasyEdit passes
around (:meth:`EditRequest.from_dict`) and written back to them (:meth:`EditRequest.to_dict`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nse_plugin.errors import RequestError


@dataclass(frozen=True)
class Probe:
    """A question asked before and after an edit: a full prompt and the answer expected of it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class EditRequest:
    """One fact to write into a model.

    Raises:
        RequestError: a field is empty, or ``prompt`` does not hold ``{}`` exactly once.
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

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target_new"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise RequestError(
                    f"request {self.case_id}: {name} is {value!r}; give a text that is not empty"
                )
        if self.prompt.count("{}") != 1:
            raise RequestError(
                f"request {self.case_id}: prompt {self.prompt!r} holds '{{}}' "
                f"{self.prompt.count('{}')} times; put it once, in the subject's place"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @property
    def fact(self) -> tuple[str, str]:
        """What the request is about, whatever the answer: subject and prompt."""
        return self.subject.strip(), self.prompt.strip()

    @property
    def subject_end(self) -> int:
        """Index in :attr:`text` of the first character after the subject."""
        return self.prompt.index("{}") + len(self.subject)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], case_id: int | str = 0) -> EditRequest:
        """Read an EasyEdit request: ``prompt``, ``target_new``, ``subject`` and what else there is.

        ``prompt`` may hold ``{}`` or the subject itself.  Of several places where the subject
        stands, the last one is taken: it is the nearest to the answer, and what stands before
        it cannot see it.

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
        prompt, subject = record["prompt"], record["subject"]
        if isinstance(prompt, str) and isinstance(subject, str) and subject.strip():
            prompt = _as_template(prompt, subject, case_id)
        return cls(
            case_id=case_id,
            prompt=prompt,
            subject=subject,
            target_new=_clean(record["target_new"]),
            ground_truth=_clean(_first(record.get("ground_truth"))),
            rephrase_prompts=tuple(
                str(text)
                for text in _as_list(record.get("rephrase_prompt", record.get("rephrase_prompts")))
            ),
            locality=_read_probes(record.get("locality"), case_id, "locality"),
            portability=_read_probes(record.get("portability"), case_id, "portability"),
        )

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
        """A short hash of what is written (prompt, subject, target), for manifests."""
        written = json.dumps([self.prompt, self.subject, self.target_new])
        return hashlib.sha256(written.encode()).hexdigest()[:16]


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


def _as_template(prompt: str, subject: str, case_id: int | str) -> str:
    if "{}" in prompt:
        return prompt
    whole_words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    start = whole_words[-1].start() if whole_words else prompt.rfind(subject)
    if start < 0:
        raise RequestError(
            f"request {case_id}: subject {subject!r} is not in prompt {prompt!r}; "
            "write it exactly as the prompt does, or put '{}' in its place"
        )
    return prompt[:start] + "{}" + prompt[start + len(subject) :]


def _clean(text: Any) -> Any:
    return text.strip() if isinstance(text, str) else text


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _first(value: Any) -> Any:
    """The first answer where a benchmark lists several, however deep."""
    while isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value


def _read_probes(
    groups: Mapping[str, Any] | None, case_id: int | str, where: str
) -> dict[str, tuple[Probe, ...]]:
    probes: dict[str, tuple[Probe, ...]] = {}
    for kind, group in (groups or {}).items():
        prompts, answers = _as_list(group["prompt"]), _as_list(group["ground_truth"])
        if isinstance(group["prompt"], str):  # one prompt: a list of answers means aliases
            answers = [group["ground_truth"]]
        if len(prompts) != len(answers):
            raise RequestError(
                f"request {case_id}: {where}[{kind!r}] has {len(prompts)} prompts and "
                f"{len(answers)} answers; give one answer per prompt"
            )
        probes[kind] = tuple(
            Probe(prompt, str(_clean(_first(answer)))) for prompt, answer in zip(prompts, answers)
        )
    return probes


def _write_probes(groups: Mapping[str, tuple[Probe, ...]]) -> dict[str, dict[str, list[str]]]:
    return {
        kind: {
            "prompt": [probe.prompt for probe in probes],
            "ground_truth": [probe.answer for probe in probes],
        }
        for kind, probes in groups.items()
    }
