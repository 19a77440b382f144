"""Read the public knowledge-editing benchmarks as edit requests.

Nothing is dropped silently: a record that cannot be used is an error or, if the caller asks for
that, skipped with a warning that counts and names such records.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from nse_plugin.data.schema_fields import BadField, Schema
from nse_plugin.data.schemas import SCHEMAS, schema_of
from nse_plugin.data.written_facts import NAMES, completed, is_written
from nse_plugin.errors import DataError, RequestError, did_you_mean
from nse_plugin.hparams.yaml_files import parse_yaml
from nse_plugin.printable import counted
from nse_plugin.requests import EditRequest

log = logging.getLogger(__name__)

OnBad = Literal["stop", "skip"]
_COMPARED = 20  # records that are compared with one that fits no schema
_NAMED = 3  # skipped records that a warning names


def read_records(
    path: str | Path,
    kind: str | None = None,
    *,
    on_bad: OnBad = "stop",
    limit: int | None = None,
) -> list[EditRequest]:
    """Read a benchmark file: a list in JSON or YAML, JSON lines, or CSV with named columns.

    Args:
        kind: a name in :data:`SCHEMAS`; None recognises each record by its fields.
        on_bad: what to do with a record that cannot be used: ``"stop"`` with an error, or
            ``"skip"`` it with a warning.
        limit: read at most this many records.

    Raises:
        DataError: the file is missing, cut off or not a list, its schema is unknown, or a record
            cannot be used (``on_bad="stop"``).
    """
    path = Path(path)
    return parse_records(load_records(path), kind, on_bad=on_bad, limit=limit, source=path.name)


def parse_records(
    records: Any,
    kind: str | None = None,
    *,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    source: str = "the list",
    way_out: str = "correct the record, or leave such records out with --on-bad-record skip",
    warn: bool = True,
) -> list[EditRequest]:
    """Turn benchmark records in memory into requests; see :func:`read_records`.

    Args:
        source: name of the records in messages.
        way_out: what messages suggest for a record that cannot be used.
        warn: log what is skipped, left out or not read.
    """
    if on_bad not in get_args(OnBad):
        raise DataError(f"on_bad_record is {on_bad!r}; give 'stop' or 'skip'")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give a number of records above 0, or None for all")
    if kind is not None and kind not in SCHEMAS:
        raise DataError(
            f"unknown schema {kind!r}{did_you_mean(kind, SCHEMAS)}; there are: {', '.join(SCHEMAS)}"
        )
    records = _as_list(records, source)[:limit]
    requests: list[EditRequest] = []
    skipped: list[str] = []
    notes: list[str] = []
    parsed: list[tuple[Schema, Mapping[str, Any]]] = []
    taken: dict[str, EditRequest] = {}  # by case_id, as text
    for index, record in enumerate(records):
        name = kind
        try:
            if not isinstance(record, Mapping):
                raise RequestError(f"it is {record!r:.80}, wanted an object with fields")
            if kind is None and is_written(record):
                record = completed(record)
            name = kind or _schema_among(record, records)
            found = SCHEMAS[name].parse(record, index, notes)
            _refuse_taken(found, taken)
        except (BadField, RequestError) as error:
            as_what = f" (read as {name})" if name else ""
            has_case = isinstance(error, BadField) and record.get("case_id") is not None
            case = f"request {record['case_id']}: " if has_case else ""
            what = f"record {index} of {source}{as_what}: {case}{error}"
            if on_bad == "stop":
                raise DataError(f"{what}; {way_out}") from error
            skipped.append(what)
        else:
            requests += found
            parsed.append((SCHEMAS[name], record))
    if warn:
        _warn_of(f"{source}: skipped {len(skipped)} of {len(records)} records", skipped)
        _warn_of(f"{source}: left out {len(notes)} probes without an answer", notes)
        _warn_of_fields(source, parsed)
    return requests


def _refuse_taken(requests: Sequence[EditRequest], taken: dict[str, EditRequest]) -> None:
    """Enter requests by case_id; raise :class:`RequestError` if another one has it."""
    for request in requests:
        if taken.setdefault(str(request.case_id), request) != request:
            raise RequestError(
                f"case_id {request.case_id!r} is that of an earlier record too; give each its own"
            )


def _warn_of_fields(source: str, parsed: Sequence[tuple[Schema, Mapping[str, Any]]]) -> None:
    """Log which fields of the records have no place in a request, and which are not read."""
    readable, left, unread = dict.fromkeys(NAMES), dict[str, None](), Counter[str]()
    for schema, record in parsed:
        readable |= dict.fromkeys(schema.reads)
        left |= dict.fromkeys(schema.left_out(record))
        unread.update(str(key) for key in set(record) - {*schema.reads, *schema.leaves})
    if left:
        log.warning("%s: left out, as requests have no place for it: %s", source, ", ".join(left))
    if unread:
        names = (
            f"{name} ({counted(count, 'record')}{_instead_of(name, readable)})"
            for name, count in sorted(unread.items())
        )
        log.warning("%s: fields that are not read: %s", source, "; ".join(names))


def _as_list(records: Any, source: str) -> Sequence[Any]:
    """Records as a list; raises :class:`DataError` if there is none."""
    if isinstance(records, Mapping) and schema_of(records):
        return [records]  # JSON lines of one line
    if not isinstance(records, Sequence) or isinstance(records, (str, bytes)):
        found = (
            f"an object ({', '.join(map(str, records))})"
            if isinstance(records, Mapping)
            else f"{records!r:.40}"
        )
        raise DataError(
            f"{source} holds {found} where a list of records is expected; "
            "give the benchmark's own file, or the list inside it"
        )
    if not records:
        raise DataError(f"{source} is an empty list; give a file with at least one record")
    return records


def load_records(path: Path) -> Any:
    """The content of a file of JSON, JSON lines, YAML or CSV, which may be gzipped.

    Raises:
        DataError: the file is missing, empty, cut off or of another format.
    """
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        found = f": {', '.join(inside[:_NAMED])}" if inside else ""
        raise DataError(f"{str(path)!r} is a folder; give the path of a file in it{found}")
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.glob("*") if entry.is_file()]
        raise DataError(
            f"there is no file {str(path)!r}"
            f"{did_you_mean(path.name, siblings) or '; give the path of a file of records'}"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
            suffixes = [suffix for suffix in suffixes if suffix != ".gz"]
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); download or write it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it") from error
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with at least one record")
    if suffixes[-1:] in ([".csv"], [".tsv"]):
        return _csv_records(text, path, "\t" if suffixes[-1] == ".tsv" else _delimiter(text))
    if suffixes[-1:] in ([".yaml"], [".yml"]):
        try:
            return parse_yaml(text)
        except yaml.YAMLError as error:
            raise DataError(f"{path} is not YAML: {error}; correct it") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if suffixes[-1:] in ([".jsonl"], [".ndjson"]) or _are_json_lines(lines):
        return [_decode(line, path, number) for number, line in lines]
    found = _decode(text, path)
    is_uniedit = SCHEMAS["uniedit"].fits  # whose files are objects of records by name
    if (
        isinstance(found, dict)
        and found
        and all(isinstance(entry, dict) and is_uniedit(entry) for entry in found.values())
    ):
        return [{"case_id": name, **entry} for name, entry in found.items()]
    return found


def _are_json_lines(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether there are several lines and the first is an object, whatever the file's name."""
    if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        return False


def _delimiter(text: str) -> str:
    """The delimiter of a CSV file: spreadsheets in many countries write semicolons."""
    first = text.lstrip().split("\n", 1)[0]
    return max(",;\t", key=first.count)  # a comma, if there is none


def _csv_records(text: str, path: Path, delimiter: str) -> list[dict[str, str]]:
    """One record per row, its fields named by the first row."""
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        records = list(rows)
        twice = [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if twice:
            raise DataError(f"{path} has two columns {twice[0]!r}; rename one of them")
        if not records:
            raise DataError(f"{path} has no rows after its first, which names the columns")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; correct the line") from error
    for number, record in enumerate(records, start=2):
        if None in record or None in record.values():
            raise DataError(
                f"{path}, line {number}: it has other columns than the first line names "
                f"({', '.join(map(str, rows.fieldnames or []))}); correct the line"
            )
    return records


def _decode(text: str, path: Path, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise DataError(
            f"{path} {'is cut off' if cut_off else 'is not JSON'} at line "
            f"{error.lineno + line - 1}, column {error.colno} ({error.msg}); give a JSON list, "
            "JSON lines (one object per line), or a .csv or .yaml file"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}, line {line}: {error}; correct the number") from error
    except RecursionError as error:
        raise DataError(
            f"{path} is nested too deeply to be records; give a list of them"
        ) from error


def _schema_among(record: Mapping[str, Any], records: Sequence[Any]) -> str:
    """Schema of a record of a file.

    Raises:
        RequestError: it fits none; the message names the field that other records have, if any.
    """
    if name := schema_of(record):
        return name
    for other in records[:_COMPARED]:
        if isinstance(other, Mapping):
            _refuse_incomplete(record, other)
    known = "; ".join(f"{name} ({', '.join(s.fields)})" for name, s in SCHEMAS.items())
    own = sorted(str(name) for name in record if name != "case_id")
    raise RequestError(
        f"it is of no known schema. Its fields: {', '.join(own) or 'none'}. A fact of yours needs "
        f"prompt, subject and target. Benchmarks: {known}. Rename the fields, or name the "
        "benchmark (--schema of nse run)"
    )


def _refuse_incomplete(record: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise :class:`RequestError` if another record has the fields that this one lacks."""
    try:
        name = schema_of(completed(other) if is_written(other) else other)
    except RequestError:  # a mistake in the other record
        return
    if name is None:
        return
    needed = [field.split()[0] for field in SCHEMAS[name].fields]
    if "target_new" not in other:  # a hand-written fact
        needed = ["target" if field == "target_new" else field for field in needed]
    missing = [field for field in needed if field in other and field not in record]
    if missing and len(missing) < len(needed):
        what = " and ".join(map(repr, missing))
        raise RequestError(f"field {what} is missing (other records are {name})")


def _instead_of(name: str, readable: Iterable[str]) -> str:
    """What a field that is not read may have been meant for."""
    if name.casefold().rstrip("s") in ("neighbour", "neighbor"):
        return "; give such texts with --neighbour, or as locality with their answers"
    return did_you_mean(name, readable)


def _warn_of(what: str, details: list[str]) -> None:
    """Log a warning with the first few details; nothing if there are none."""
    if details:
        more = f"; and {len(details) - _NAMED} more" if len(details) > _NAMED else ""
        log.warning("%s: %s%s", what, "; ".join(details[:_NAMED]), more)
