"""The untouched model as a row of a comparison: a backend whose rounds change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import Backend
from nse_plugin.session.ledger_files import Saved, round_path, save_matrices
from nse_plugin.session.records import Written


class NoEdits(Backend):
    """A backend that edits nothing; all else is as in its base."""

    method = UNTOUCHED
    changes_model = False

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.hparams = SimpleNamespace(alg_name=UNTOUCHED)

    def edit(self, requests: Sequence[EditRequest], number: int, last: bool = False) -> Written:
        """Nothing is written."""
        return Written({"method": self.method, "edits": len(requests)}, changed=False)

    def save(self, folder: Path, number: int) -> Saved:
        """Write a file without tensors, since the scheduler counts files."""
        about = {"method": self.method, "number": number}
        return save_matrices(round_path(folder, number), {}, about)
