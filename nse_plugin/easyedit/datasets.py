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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nse_plugin.data.readers import OnBad, load_records, parse_records
from nse_plugin.data.schemas import schema_of
from nse_plugin.easyedit.checkout import import_easyedit, part
from nse_plugin.requests import EditRequest

log = logging.getLogger(__name__)

_CLASSES = {
    "zsre": (
        "easyeditor.dataset.zsre:ZsreDataset",
        {"src": "prompt", "alt": "target_new", "rephrase": "rephrase_prompt",
         "loc": "locality_prompt", "loc_ans": "locality_ground_truth"},
    ),
    "counterfact_flat": (
        "easyeditor.dataset.counterfact:CounterFactDataset",
        {name: name for name in ("subject", "prompt", "target_new", "ground_truth",
                                 "rephrase_prompt", "locality_prompt", "locality_ground_truth")},
    ),
    "knowedit": (
        "easyeditor.dataset.knowedit:KnowEditDataset",
        {name: name for name in ("subject", "prompt", "target_new", "ground_truth")},
    ),
    "wiki_recent": (
        "easyeditor.dataset.wiki_recent:WikiRecentDataset",
        {name: name for name in ("subject", "prompt", "target_new")},
    ),
}  # fmt: skip
"""By schema: the class, and the names of its fields by those of a record's."""


def read_records(
    path: str | Path,
    kind: str | None = None,
    *,
    on_bad: OnBad = "stop",
    limit: int | None = None,
) -> list[EditRequest]:
    """Read a benchmark file through EasyEdit's dataset class for it.

    What a class drops (ZsRE's subjects, all but one of WikiRecent's probes) is taken from the
    record itself.  A file for which there is no class, or that its class refuses (one record
    without an expected field is enough), is read by our reader alone.

    Args:
        path, kind, on_bad, limit: as of :func:`nse_plugin.data.readers.read_records`.

    Raises:
        HostError: there is no EasyEdit, or it cannot be imported.
        DataError: as :func:`nse_plugin.data.readers.read_records`.
    """
    import_easyedit()
    path = Path(path)
    records = load_records(path)
    if isinstance(records, list):
        records = records[:limit]
        kinds = {kind} if kind else {schema_of(r) for r in records if isinstance(r, Mapping)}
        of_class = _CLASSES.get(kinds.pop() or "") if len(kinds) == 1 else None
        if of_class is not None:
            records = _through_class(*of_class, records, path.name)
    return parse_records(records, kind, on_bad=on_bad, limit=limit, source=path.name)


def _through_class(
    where: str, fields: Mapping[str, str], records: list[Any], source: str
) -> list[Any]:
    """The records with the fields that the class returns; unchanged if it refuses them.

    They go through a temporary file, so that JSON lines, a byte order mark and ``limit`` mean the
    same for every class.
    """
    state = random.getstate()  # WikiRecentDataset draws random numbers
    try:
        with tempfile.TemporaryDirectory(prefix="nse-plugin-") as folder:
            file = Path(folder) / "records.json"
            file.write_text(json.dumps(records), encoding="ascii")
            with contextlib.redirect_stdout(io.StringIO()):
                items = list(part(where)(str(file)))
        if len(items) != len(records):
            raise ValueError(f"it gives {len(items)} of {len(records)} records")
        given = [
            {ours: item[theirs] for ours, theirs in fields.items() if item[theirs] is not None}
            for item in items
        ]
    except Exception as error:  # the class does not check its input
        log.info(
            "%s is read without EasyEdit's %s, which refuses it: %s: %s",
            source, where.partition(":")[2], type(error).__name__, error,
        )  # fmt: skip
        return records
    finally:
        random.setstate(state)
    return [{**record, **found} for record, found in zip(records, given)]
