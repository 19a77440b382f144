"""Describe how two runs differ in settings, model, texts or requests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nse_plugin.data.models import from_anywhere
from nse_plugin.errors import DataError
from nse_plugin.printable import shortened
from nse_plugin.requests import EditRequest
from nse_plugin.runs.schema import FrozenLine, Identity

_HASHED = {
    "model.fingerprint": "the model differs",
    "model.weights": "the weights of the model differ",
    "held_out": "the held-out texts differ",
    "stream": "the requests differ",
}
"""Values that a manifest keeps as hashes, and the message if they differ."""


def refuse_another(
    run_dir: Path,
    kept: Identity,
    given: Identity,
    frozen: Iterable[FrozenLine],
    requests: Sequence[EditRequest] | None,
    settings: Mapping[str, Any],
) -> None:
    """Raise :class:`DataError` if a directory holds another run than the one to be resumed; the
    message says what differs.

    Args:
        frozen: the requests in the directory, in their order.
        requests: the given requests, if they are known.
        settings: the objects whose values the identity holds under these keys.
    """
    now_is = json.loads(json.dumps(given))  # with the types that a manifest keeps
    was: dict[str, Any] = json.loads(json.dumps(kept))
    for identity in (was, now_is):  # one folder has many relative paths
        name = identity["hparams"].get("model_name")
        if isinstance(name, str):
            identity["hparams"]["model_name"] = from_anywhere(name)
    was |= {key: completed(was[key], now_is[key], made) for key, made in settings.items()}
    found = differences(was, now_is)
    if not found:
        return
    found.sort(key=lambda text: text.startswith("hparams."))  # those may be many
    begun, now, other = kept["stream"], given["stream"], _HASHED["stream"]
    if begun is not None and now is not None and begun != now:
        which = _differing_request(frozen, begun["count"], requests or [])
        found = [f"{other}: {which}" if text == other else text for text in found]
    shown = "; ".join(found[:5]) + ("; ..." if len(found) > 5 else "")
    raise DataError(
        f"{run_dir} holds another run: {shown}. Give another folder, or the same settings and "
        "requests to resume it"
    )


def _differing_request(
    frozen: Iterable[FrozenLine], n_kept: int, given: Sequence[EditRequest]
) -> str:
    """In words: the first request that differs from the one that the run was started with.

    Args:
        frozen: the requests that the run has on disk, in their order.
        n_kept: the number of requests that it was started with.
        given: the given requests.
    """
    kept = [EditRequest.from_json(record) for line in frozen for record in line["edits"]]
    for number, (old, new) in enumerate(zip(kept, given), start=1):
        if old != new:
            changes = differences(old.to_json(), new.to_json())
            return f"request {number} (case {new.case_id}): {'; '.join(changes[:3])}"
    if len(given) != n_kept:
        return f"there were {n_kept}, and now there are {len(given)}"
    return f"one after number {len(kept)}"


def differences(kept: Any, given: Any, where: str = "") -> list[str]:
    """The differences between two JSON values: ``hparams.v_lr was 0.1, is 0.2``."""
    if kept == given:
        return []
    if where in _HASHED:
        return [_HASHED[where]]
    if isinstance(kept, dict) and isinstance(given, dict):
        keys = dict.fromkeys([*kept, *given])
        return [
            text
            for key in keys
            for text in differences(
                kept.get(key), given.get(key), f"{where}.{key}" if where else str(key)
            )
        ]
    was, now = shortened(repr(kept), 80), shortened(repr(given), 80)
    return [f"{where} was {was}, is {now}"]


def completed(kept: dict[str, Any], given: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Kept settings, with the defaults of fields that were added to their class since then.

    Args:
        given: the current settings, as JSON types.
        settings: the current settings as an object.
    """
    if not dataclasses.is_dataclass(settings):
        return kept
    usual = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(settings)
        if field.name in given and field.default is not dataclasses.MISSING
    }
    groups = {
        key: completed(value, given[key], getattr(settings, key))
        for key, value in kept.items()
        if isinstance(value, dict) and isinstance(given.get(key), dict) and hasattr(settings, key)
    }
    return {**usual, **kept, **groups}
