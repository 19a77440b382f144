"""The untouched model as a row of a comparison: a backend whose rounds change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger_files import Saved, round_path, save_matrices
from nse_plugin.session.records import Written


class NoEdits:
    """A :class:`nse_plugin.runs.backends.Backend` whose rounds change nothing."""

    method = UNTOUCHED
    changes_model = False

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.hparams = SimpleNamespace(alg_name=UNTOUCHED)

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """There are no context texts."""
        return []

    def edit(self, requests: Sequence[EditRequest], number: int) -> Written:
        """Nothing is written."""
        return Written({"method": self.method, "edits": len(requests)}, changed=False)

    def problem(self) -> str | None:
        """Nothing can be wrong."""
        return None

    def save(self, folder: Path, number: int) -> Saved:
        """Write a file without tensors, since the scheduler counts files."""
        about = {"method": self.method, "number": number}
        return save_matrices(round_path(folder, number), {}, about)

    def load(self, paths: Sequence[Path]) -> None:
        """Nothing to load."""

    def undo(self) -> None:
        """Nothing to undo."""

    def rewound(self) -> Any:
        """The model is the untouched one anyway."""
        return nullcontext()

    def originals(self) -> Mapping[str, torch.Tensor]:
        """Nothing is edited."""
        return {}

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """There are none."""
        return {}
