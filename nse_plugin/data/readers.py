"""Read the public knowledge-editing benchmarks as edit requests.

Nothing is dropped in silence: a record that cannot be used stops the reading, or is skipped,
counted and named in a warning, as the caller says.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nse_plugin.data.schemas import SCHEMAS, BadField, Schema
from nse_plugin.errors import DataError, RequestError, did_you_mean
from nse_plugin.requests import EditRequest

log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]
_NAMED = 3  # how many skipped records a warning names


def read_records(
    path: str | Path,
    kind: str | None = None,
    *,
    on_bad: OnBad = "raise",
    limit: int | None = None,
) -> list[EditRequest]:
    """Read a benchmark file (a JSON list, or one JSON object per line in ``*.jsonl``).

    Args:
        kind: a name in :data:`SCHEMAS`; None recognises it by the first record's fields.
        on_bad: what to do with a record that cannot be used: ``"raise"``, or ``"skip"`` it with
            a warning that counts and names them.
        limit: read only this many records from the beginning of the file.

    Raises:
        DataError: the file is missing, cut off or not a list, its schema is unknown, or a record
            cannot be used (``on_bad="raise"``).
    """
    path = Path(path)
    return parse_records(load_records(path), kind, on_bad=on_bad, limit=limit, source=path.name)


def parse_records(
    records: Any,
    kind: str | None = None,
    *,
    on_bad: OnBad = "raise",
    limit: int | None = None,
    source: str = "the list",
) -> list[EditRequest]:
    """Turn benchmark records that are already in memory into requests; see :func:`read_records`.

    Args:
        source: how messages call the records.
    """
    if on_bad not in ("raise", "skip"):
        raise DataError(f"on_bad is {on_bad!r}; give 'raise' or 'skip'")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give a number of records above 0, or None for all")
    if not isinstance(records, Sequence) or isinstance(records, (str, bytes)):
        raise DataError(
            f"{source} holds a {type(records).__name__} where a list of records is expected; "
            "give the benchmark's own JSON file"
        )
    schema, name = schema_of(records, kind, source)
    requests: list[EditRequest] = []
    skipped: list[str] = []
    notes: list[str] = []
    for index, record in enumerate(records[:limit]):
        try:
            if not isinstance(record, Mapping):
                raise BadField("record", record, "an object with fields")
            requests.extend(schema.parse(record, index, notes))
        except (BadField, RequestError) as error:
            what = f"record {index} of {source} (read as {name}): {error}"
            if on_bad == "raise":
                raise DataError(
                    f"{what}; mend the record, or leave such records out with on_bad='skip'"
                ) from error
            skipped.append(what)
    warn_of(f"{source}: skipped {len(skipped)} of {len(records[:limit])} records", skipped)
    warn_of(f"{source}: left out {len(notes)} probes without an answer", notes)
    return requests


def read_counterfact(path: str | Path, **options: Any) -> list[EditRequest]:
    """CounterFact, nested or EasyEdit's flat schema; options as in :func:`read_records`."""
    records = load_records(Path(path))
    first = records[0] if isinstance(records, list) and records else {}
    flat = isinstance(first, Mapping) and "prompt" in first
    kind = "counterfact_flat" if flat else "counterfact"
    return parse_records(records, kind, source=Path(path).name, **options)


def read_zsre(path: str | Path, **options: Any) -> list[EditRequest]:
    """ZsRE with MEND's field names; options as in :func:`read_records`."""
    return read_records(path, "zsre", **options)


def read_knowedit(path: str | Path, **options: Any) -> list[EditRequest]:
    """Any part of KnowEdit, wiki_recent included; options as in :func:`read_records`."""
    return read_records(path, "knowedit", **options)


def read_mquake(path: str | Path, **options: Any) -> list[EditRequest]:
    """MQuAKE: one request per rewrite of a record; options as in :func:`read_records`."""
    return read_records(path, "mquake", **options)


def load_records(path: Path) -> Any:
    """What a JSON or JSON-lines file holds.

    Raises:
        DataError: the file is missing, cut off or no JSON.
    """
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.glob("*") if entry.is_file()]
        raise DataError(
            f"there is no file {str(path)!r}{did_you_mean(path.name, siblings)}; "
            "give the path of a benchmark's JSON file"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error}); give the JSON file itself, unpacked"
        ) from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines()) if line.strip()]
        return [_decode(line, path, number) for number, line in lines]
    return _decode(text, path)


def _decode(text: str, path: Path, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise DataError(
            f"{path} {'is cut off' if cut_off else 'is not JSON'} at line {error.lineno + line}, "
            f"column {error.colno} ({error.msg}); download or write the file again"
        ) from error


def schema_of(records: Sequence[Any], kind: str | None, source: str) -> tuple[Schema, str]:
    """The schema called ``kind``, or that of the first record; with its name.

    Raises:
        DataError: there is no such schema, or the first record is of none.
    """
    if kind is not None:
        if kind not in SCHEMAS:
            raise DataError(
                f"unknown kind {kind!r}{did_you_mean(kind, SCHEMAS)}; "
                f"there are: {', '.join(SCHEMAS)}"
            )
        return SCHEMAS[kind], kind
    if not records:
        raise DataError(f"{source} is an empty list; give a file with at least one record")
    first = records[0]
    if isinstance(first, Mapping):
        for name, schema in SCHEMAS.items():
            if schema.fits(first):
                return schema, name
    is_object = isinstance(first, Mapping)
    found = ", ".join(sorted(map(str, first))) if is_object else type(first).__name__
    known = "; ".join(f"{name} ({', '.join(s.fields)})" for name, s in SCHEMAS.items())
    raise DataError(
        f"{source}: the first record is of no known schema. Its fields: {found or 'none'}. "
        f"Known schemas: {known}. Rename the fields, or name the schema with kind=..."
    )


def warn_of(what: str, details: list[str]) -> None:
    """Log a warning with the first few details; nothing where there are none."""
    if details:
        more = f"; and {len(details) - _NAMED} more" if len(details) > _NAMED else ""
        log.warning("%s: %s%s", what, "; ".join(details[:_NAMED]), more)
