"""The inputs of a run: requests from a file or embedded facts, and held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nse_plugin.data import atlas, earth, texts
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
    choose: bool = False,
) -> list[EditRequest]:
    """Requests from a file, the embedded world (``atlas:N``) or real facts (``earth:N``).

    Args:
        on_bad, schema: as ``on_bad`` and ``kind`` of :func:`nse_plugin.data.readers.read_records`.
        choose: the caller edits only some of them and calls :func:`settled` with those.
    """
    requests = _read(data, limit, seed, on_bad, schema)
    return requests if choose else settled(data, requests)


def settled(data: str, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Requests without the probes whose answers another of them changes."""
    if data.partition(":")[0] == "earth":
        return earth.without_moved_steps(requests)
    return list(requests)


def _read(
    data: str, limit: int | None, seed: int, on_bad: OnBad, schema: str | None
) -> list[EditRequest]:
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give a number above 0, or leave it out")
    name, _, count = data.partition(":")
    if name not in ("atlas", "earth"):
        return read_records(data, schema, on_bad=on_bad, limit=limit)
    if schema is not None:
        raise DataError(
            f"schema is {schema!r} and data {data!r}, which is not a file; leave schema out"
        )
    if ":" in data and (not count.isdigit() or not int(count)):
        raise DataError(f"data is {data!r}; give {name!r} or '{name}:200'")
    if name == "atlas":
        return parse_records(atlas.edit_set(int(count or limit or 200), seed=seed), limit=limit)
    return parse_records(earth.edit_set(int(count) if count else limit, seed=seed), limit=limit)


def held_out_source(source: str | None, model_name: str) -> str:
    """The source given, or the default for a model: ``atlas`` or ``none``."""
    return source or ("atlas" if model_name.startswith("atlas:") else "none")


def held_out_texts(
    source: str | None, model_name: str, requests: Sequence[EditRequest]
) -> list[str]:
    """Texts that no edit is about.

    Args:
        source: a file with one text per line, ``none``, ``atlas`` for sentences of the embedded
            world that name none of the edited subjects, or ``factbook`` for the last paragraphs
            of the World Factbook (statistics use a sample of all, which may have some of them).

    Raises:
        DataError: the file cannot be read.
        StatisticsError: the World Factbook cannot be fetched.
    """
    source = held_out_source(source, model_name)
    if source == "none":
        return []
    if source == "atlas":
        subjects = {request.subject for request in requests}
        unrelated = [t for t in atlas.corpus() if not any(s in t for s in subjects)]
        return unrelated[:: max(1, len(unrelated) // _HELD_OUT)][:_HELD_OUT]
    if source == "factbook":
        return texts.factbook()[-_HELD_OUT:]
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"cannot read held-out text {source!r} ({why}); give a text file in UTF-8, 'factbook', "
            "'atlas' or 'none'"
        ) from error
    return [line for line in text.splitlines() if line.strip()]
