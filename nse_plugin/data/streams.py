"""What a run reads: requests of a file or of the embedded world, and held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nse_plugin.data import atlas
from nse_plugin.data.readers import OnBad, parse_records, read_records
from nse_plugin.errors import DataError
from nse_plugin.requests import EditRequest

_HELD_OUT = 100


def read_data(
    data: str,
    limit: int | None,
    seed: int,
    *,
    on_bad: OnBad = "stop",
    schema: str | None = None,
) -> list[EditRequest]:
    """Requests of a file, or of the embedded world.

    Args:
        on_bad, schema: as ``on_bad`` and ``kind`` of :func:`nse_plugin.data.readers.read_records`.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give a number above 0, or leave it out")
    if data.partition(":")[0] != "atlas":
        return read_records(data, schema, on_bad=on_bad, limit=limit)
    count = data.partition(":")[2] or str(limit or 200)
    if not count.isdigit() or not int(count):
        raise DataError(f"data is {data!r}; give 'atlas' or 'atlas:200'")
    return parse_records(atlas.edit_set(int(count), seed=seed), limit=limit)


def held_out_texts(
    source: str | None, model_name: str, requests: Sequence[EditRequest]
) -> list[str]:
    """Texts that no edit is about.

    Of the embedded world: sentences that name none of the edited subjects.
    """
    if source is None:
        source = "atlas" if model_name.startswith("atlas:") else "none"
    if source == "none":
        return []
    if source == "atlas":
        subjects = {request.subject for request in requests}
        texts = [t for t in atlas.corpus() if not any(s in t for s in subjects)]
        return texts[:: max(1, len(texts) // _HELD_OUT)][:_HELD_OUT]
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read held-out text {source!r}: {error}") from error
    return [line for line in text.splitlines() if line.strip()]
