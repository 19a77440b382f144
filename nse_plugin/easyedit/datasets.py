"""Read the benchmarks with EasyEdit's own dataset classes, as edit requests.

The requests are those of :func:`nse_plugin.data.readers.read_records`, so that a run does not
depend on which host is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nse_plugin.data.readers import OnBad, load_records, parse_records, schema_of, warn_of
from nse_plugin.easyedit.checkout import part, probe, require
from nse_plugin.errors import HostError, RequestError
from nse_plugin.requests import EditRequest

log = logging.getLogger(__name__)

Fields = dict[str, Any]


def read_records(
    path: str | Path,
    kind: str | None = None,
    *,
    on_bad: OnBad = "stop",
    limit: int | None = None,
) -> list[EditRequest]:
    """Read a benchmark file through EasyEdit's dataset class for it.

    What a class gives is taken from it; what it drops is completed from the same record of the
    file:

    ================== ====================== ==================================================
    kind               class                  completed from the file
    ================== ====================== ==================================================
    zsre               ZsreDataset            subject, portability, answers after the first
    counterfact_flat   CounterFactDataset     nothing: the class gives the records as they are
    knowedit           KnowEditDataset        rephrasings, kinds of probes that it does not know
    wiki_recent        WikiRecentDataset      all probes: the class draws one at random
    ================== ====================== ==================================================

    A wiki_recent file is recognised as knowedit, whose class gives all its probes.  Nested
    CounterFact and MQuAKE, for which EasyEdit has no class with these fields, are read by
    :mod:`nse_plugin.data.readers`.  So is each record that a class refuses although it can be
    used (a ZsRE question without "nq question: ", a wiki_recent record without
    Relation_Specificity: one of them makes the class refuse the whole file); a warning counts and
    names them.  Records that a class leaves out in silence (no new answer) count as bad.  Blanks
    around answers are taken off, as our reader does.

    Args:
        path: a file as :func:`nse_plugin.data.readers.read_records` takes it.
        kind: a name in :data:`nse_plugin.data.schemas.SCHEMAS`; None recognises each record by
            its fields, and only a file of one kind goes through a class.
        on_bad: what to do with a record that cannot be used: ``"stop"``, or ``"skip"`` it with
            a warning that counts and names them.
        limit: read only this many records from the beginning of the file.

    Raises:
        HostError: there is no EasyEdit, or it cannot be imported.
        DataError: as :func:`nse_plugin.data.readers.read_records`.
    """
    present = {point.name for point in probe(require()) if point.present}
    path = Path(path)
    records = load_records(path)
    if isinstance(records, list):
        reader = _READERS.get(kind or _common_schema(records))
        if reader is not None and reader.hook_point in present:
            records = _through_host(reader, records[:limit], path.name)
    return parse_records(records, kind, on_bad=on_bad, limit=limit, source=path.name)


def _common_schema(records: Sequence[Any]) -> str:
    """The schema that all records are of, or none."""
    try:
        found = {schema_of(record) for record in records if isinstance(record, Mapping)}
    except RequestError:
        return ""
    return found.pop() if len(found) == 1 else ""


# --- what a class gives, in the fields of our schemas -------------------------------------------


def _zsre(item: Mapping[str, Any], record: Mapping[str, Any]) -> Fields:
    fields = {
        "src": item["prompt"],
        "alt": item["target_new"],
        "rephrase": item["rephrase_prompt"],
        "loc": item["locality_prompt"],
        "loc_ans": item["locality_ground_truth"],
    }
    if isinstance(record["answers"], list):  # of a text the class gives the first letter
        fields["answers"] = [item["ground_truth"], *record["answers"][1:]]
    return fields


def _counterfact_flat(item: Mapping[str, Any], record: Mapping[str, Any]) -> Fields:
    return dict(item)


def _knowedit(item: Mapping[str, Any], record: Mapping[str, Any]) -> Fields:
    fields: Fields = {name: item[name] for name in ("prompt", "subject", "target_new")}
    if item["ground_truth"] is not None:
        fields["ground_truth"] = item["ground_truth"]
    for section, names in _KNOWEDIT_KINDS.items():
        given = {kind: item[name] for kind, name in names.items() if item[name] is not None}
        if given:
            fields[section] = {**record[section], **given}
    return fields


def _wiki_recent(item: Mapping[str, Any], record: Mapping[str, Any]) -> Fields:
    fields = {name: item[name] for name in ("prompt", "subject", "target_new")}
    if "rephrase" in record:  # else the class gives the prompt once more
        fields["rephrase"] = item["rephrase_prompt"]
    return fields


_KNOWEDIT_KINDS = {
    "portability": {
        "Reasoning": "portability_r",
        "Subject_Aliasing": "portability_s",
        "Logical_Generalization": "portability_l",
    },
    "locality": {"Relation_Specificity": "locality_rs", "Forgetfulness": "locality_f"},
}
"""KnowEditDataset's names of the kinds of probes, by section and kind."""


@dataclass(frozen=True)
class _Reader:
    """One dataset class of EasyEdit."""

    hook_point: str
    """Its name in :func:`nse_plugin.easyedit.checkout.probe`."""
    where: str
    fields: Callable[[Mapping[str, Any], Mapping[str, Any]], Fields]
    """From what it gives, and the record of the file, to fields of our schema."""
    numbered: bool = False
    """Whether it leaves records out; ``case_id`` is then the place in the file."""


_READERS = {
    "zsre": _Reader("ZsRE", "easyeditor.dataset.zsre:ZsreDataset", _zsre, numbered=True),
    "counterfact_flat": _Reader(
        "CounterFact", "easyeditor.dataset.counterfact:CounterFactDataset", _counterfact_flat
    ),
    "knowedit": _Reader("KnowEdit", "easyeditor.dataset.knowedit:KnowEditDataset", _knowedit),
    "wiki_recent": _Reader(
        "WikiRecent",
        "easyeditor.dataset.wiki_recent:WikiRecentDataset",
        _wiki_recent,
        numbered=True,
    ),
}
"""By kind."""


# --- reading ------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """What a class made of a list of records."""

    items: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """What it gave, by index of the record."""
    refused: list[str] = field(default_factory=list)
    """Records that it refused, with its reason."""


def _through_host(reader: _Reader, records: Sequence[Any], source: str) -> list[Any]:
    """The records with the fields that the host's class gives; others as they are."""
    reading, name = _Reading(), reader.where.partition(":")[2]
    state = random.getstate()
    random.seed(0)  # WikiRecentDataset draws, and which records it refuses depends on the draw
    try:
        with tempfile.TemporaryDirectory(prefix="nse-plugin-") as folder:
            _read(reader, records, 0, Path(folder) / "records.json", reading)
    finally:
        random.setstate(state)
    warn_of(
        f"{source}: EasyEdit's {name} refuses {len(reading.refused)} of {len(records)} records; "
        "they were read without it",
        reading.refused,
    )
    merged = list(records)
    for index, item in reading.items.items():
        record = records[index]
        if isinstance(record, Mapping):
            try:
                merged[index] = {**record, **reader.fields(item, record)}
            except KeyError as error:
                raise HostError(
                    f"EasyEdit's {name} gives no {error} for record {index} of {source}; it has "
                    "changed. Read the file with nse_plugin.data.readers.read_records"
                ) from error
    return merged


def _read(
    reader: _Reader, records: Sequence[Any], first: int, file: Path, reading: _Reading
) -> None:
    """Give records to the host's class; of a list that it refuses, one half after the other.

    They go through a file of our own, so that JSON lines, a byte order mark and ``limit`` mean
    the same for every class.
    """
    if not records:
        return
    file.write_text(json.dumps(records), encoding="ascii")
    dataset, output = part(reader.where), io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            items = list(dataset(str(file)))
    except Exception as error:  # the class looks at nothing before it uses it
        if len(records) == 1:
            reading.refused.append(f"record {first}: {type(error).__name__}: {error}")
            return
        half = len(records) // 2
        _read(reader, records[:half], first, file, reading)
        _read(reader, records[half:], first + half, file, reading)
        return
    log.debug("EasyEdit says: %s", output.getvalue().strip())
    for number, item in enumerate(items):
        reading.items[first + (item["case_id"] if reader.numbered else number)] = item
