"""The schema of a run directory: what its files are called and what each of them holds.

``docs/run-directory.md`` describes the fields for people.  A field is never given another meaning;
where the schema changes, :data:`SCHEMA` goes up, and directories of another schema are refused.
"""

from __future__ import annotations

import functools
import types
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from nse_plugin.errors import DataError
from nse_plugin.evaluation.settings import Measurement

SCHEMA = 5
MADE_BY = "nse run"
BY_HAND = "by hand"
"""The order of a folder of edits, which is no stream and which ``nse run`` does not resume."""
MANIFEST = "manifest.json"
ROUNDS = "rounds.jsonl"
FROZEN = "frozen.jsonl"
FINAL = "final.json"
UNDONE = "undone.json"
CONSOLIDATIONS = "consolidations.jsonl"
LOCK = "lock"
IF_DAMAGED = "restore the file from a copy, or give another folder"
"""The way out in messages about a damaged file."""

RunStatus = Literal["complete", "collapsed", "stopped", "nothing_written"]
"""How a run ended: ``collapsed``: a stop rule undid the last round; ``stopped``: it was kept;
``nothing_written``: the model is the untouched one after all rounds."""


class ModelIdentity(TypedDict):
    """The model of a run."""

    fingerprint: Any
    """Fingerprint of the parts of the decoder."""
    weights: str
    """SHA-256 over fingerprints of all matrices."""
    dtype: str
    device: str
    """cpu, or the name of the GPU; their results differ in the last bits."""


class Texts(TypedDict):
    """The texts or requests that a run was given."""

    count: int
    sha256: str


class Versions(TypedDict):
    """Versions that may change the last bits of a result."""

    version: str
    """Version of this package."""
    python: str
    torch: str
    transformers: str


class Format(TypedDict, total=False):
    """How prompts are put to the model."""

    chat: list[str]
    """The texts before and after a prompt, for prompts in chat format, and the blank before an
    answer if there is one."""


class Identity(Versions, Format):
    """What has to be equal for a run to be resumed."""

    model: ModelIdentity
    method: str
    hparams: dict[str, Any]
    round_size: int
    order: str
    seed: int
    protocol: dict[str, Any]
    stop_rules: dict[str, Any]
    held_out: Texts
    stream: Texts | None
    """None if the requests come from an iterator."""


class Manifest(TypedDict):
    """``manifest.json``: the identity of the run; written once, at the start."""

    made_by: str
    schema: int
    run: Identity
    contexts: list[str]
    """The texts before which keys and values are computed."""
    base: Measurement
    """The measurement of the untouched model."""
    budget: dict[str, int]
    """Bounds in bytes."""


class Stop(TypedDict):
    """A stop rule that a round broke."""

    rule: str
    value: Any
    bound: Any
    action: str
    """``undo``, ``stop`` or ``continue``."""


class RoundLine(TypedDict):
    """A line of ``rounds.jsonl``: one round."""

    round: int
    file: int | None
    """Number of its ``round-NNNN.safetensors``; None if the round was undone."""
    requests: list[str]
    """A digest of each request, probes included."""
    case_ids: list[Any]
    edits: int
    repeats: int
    """Requests left out before the round, because their target was in effect already."""
    superseded: int
    """Earlier edits that the round's edits replace."""
    scores: dict[str, Any] | None
    """Scores of the round's own edits, right after it; None if it failed or left NaN."""
    measurement: Measurement | None
    """None if no measurement was due."""
    edit: dict[str, Any] | None
    """Summary of the ledger record."""
    changed: bool
    """Whether the round changed the model; false if it was undone."""
    left_out: list[Any]
    """Case ids of the requests that were out of bounds in the last pass and not written by it."""
    stop: Stop | None
    sha256: str | None
    """SHA-256 of the round's file."""
    seconds: dict[str, float]


class AskedProbe(TypedDict):
    """The untouched model's answer to one probe."""

    prompt: str
    exact: bool
    accuracy: float | None
    nll: float | None
    nll_other: float | None


class AskedLocality(AskedProbe):
    """The untouched model's answer to a locality probe."""

    predicted: list[Any]
    """Token ids."""


class FrozenLine(TypedDict):
    """A line of ``frozen.jsonl``: the untouched model's answers to the probes of one round."""

    round: int
    requests: list[str]
    edits: list[dict[str, Any]]
    """The requests themselves."""
    answers: list[Any]


class Final(TypedDict):
    """``final.json``: how the run ended."""

    status: RunStatus
    rounds: int
    edits: int
    in_effect: int
    """Edits that no later one superseded."""
    repeats: int
    stop: Stop | None
    measurement: Measurement | None


class Consolidation(TypedDict):
    """A line of ``consolidations.jsonl``: a round that solves all edits before it jointly."""

    file: int
    """Number of its ``round-NNNN.safetensors``."""
    after: int
    """Rounds of ``rounds.jsonl`` that were finished."""
    edits: int
    """Edits in effect, which it solved."""
    answered_before: int
    """How many of them were in effect before it."""
    answered: int
    """How many were in effect afterwards."""
    edit: dict[str, Any]
    """Summary of the ledger record."""
    time: str
    sha256: str
    """SHA-256 of the round's file."""


class UndoneRound(TypedDict):
    """A round that was undone."""

    number: int
    time: str
    reason: str
    sha256: str
    """SHA-256 of the round's file."""
    after: int
    """Rounds of ``rounds.jsonl`` that were finished when it was undone."""


class UndoneRounds(TypedDict):
    """``undone.json``."""

    schema: int
    undone: list[UndoneRound]


_hints = functools.cache(get_type_hints)


def check(found: Any, kind: Any, what: str, way_out: str) -> None:
    """Raise :class:`DataError` if an object read from a file lacks a field of a type of this module
    or has one of another type; the message begins with ``what``."""
    if not isinstance(found, dict):
        raise DataError(f"{what} is damaged: it is {repr(found)[:60]}, not an object; {way_out}")
    for name, hint in _hints(kind).items():
        if name not in found:
            if name in kind.__required_keys__:
                raise DataError(f"{what} is damaged: {name} is missing; {way_out}")
            continue
        if not _fits(found[name], hint):
            shown = repr(found[name])[:60]
            raise DataError(f"{what} is damaged: {name} is {shown}, not {_name(hint)}; {way_out}")
        nested = next((part for part in get_args(hint) or (hint,) if _is_object(part)), None)
        if nested is not None and isinstance(found[name], dict):
            check(found[name], nested, f"{what}: {name}", way_out)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if origin is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is type(None):
        return value is None
    if _is_object(hint) or origin is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):  # which Python counts as an int
        return origin is bool
    return isinstance(value, (int, float) if origin is float else origin)


def _is_object(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(_name, get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
