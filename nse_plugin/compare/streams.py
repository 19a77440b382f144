"""The stream of edits of a model and a seed, which all methods share."""

from __future__ import annotations

import json
import logging
from typing import Any

from torch import nn

from nse_plugin.compare.plan import Cell
from nse_plugin.data.streams import settled
from nse_plugin.evaluation.known import keep_known
from nse_plugin.files import JsonLines, write_text
from nse_plugin.requests import EditRequest
from nse_plugin.runs.start import read_requests

log = logging.getLogger(__name__)


def round_size(edits: int, rounds: int) -> int:
    """Edits per round, rounded up; the last round may be smaller, and there may be fewer rounds."""
    return -(-edits // rounds)


def stream(cell: Cell, model: nn.Module, tokenizer: Any) -> list[EditRequest]:
    """The requests of a cell, in the order of the data.

    With ``known``, the first cell of a model and seed asks the model which facts it knows, and
    stores them in the folder of the comparison.

    Args:
        model: the untouched model.

    Raises:
        DataError: the data or the stored stream cannot be read, or the model knows no fact.
    """
    settings = cell.settings
    if not settings.known:
        return read_requests(settings, cell.seed)
    if not cell.stream.exists():
        asked = read_requests(settings, cell.seed)
        known = keep_known(model, tokenizer, asked, limit=settings.limit)
        log.warning("%s seed %d: %s", cell.model.key, cell.seed, known)
        chosen = settled(settings.data, known.requests)
        lines = [json.dumps(request.to_json(), ensure_ascii=False) for request in chosen]
        cell.stream.parent.mkdir(parents=True, exist_ok=True)
        write_text(cell.stream, "\n".join(lines) + "\n")
    kept: JsonLines[dict[str, Any]] = JsonLines(cell.stream)
    return [EditRequest.from_json(record) for record in kept]
