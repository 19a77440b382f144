"""EasyEdit's own methods as a backend of our scheduler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import DataError, HostError
from nse_plugin.model.seeding import seeded
from nse_plugin.model.watch import Watch
from nse_plugin.model.weights import all_finite
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger_files import Saved, read_matrices, round_path, save_matrices
from nse_plugin.session.records import Written


class HostBackend:
    """A method of EasyEdit that changes weights in place and returns the original ones.

    Its rounds are stored as whole matrices.  A method that attaches modules instead (EasyEdit's
    GRACE and LoRA) returns another object that contains the model.  Attached modules are kept in
    memory only: such a run is measured like any other, but can be neither undone nor resumed.
    Random numbers are seeded per round, so that a resumed run draws what an uninterrupted one does.

    Args:
        whole_rounds: call the function once per round; otherwise once per request.
    """

    changes_model = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        apply: Callable[..., Any],
        hparams: Any,
        seed: int,
        whole_rounds: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.hparams = model, tokenizer, hparams
        self.method = str(getattr(hparams, "alg_name", getattr(apply, "__name__", "host")))
        self._apply, self._seed = apply, seed
        self._originals: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}  # of the last round
        self._watch = Watch(model)
        self._whole_rounds = whole_rounds
        self._attached = False

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """Its rounds share nothing."""
        return []

    def compute_statistics(self) -> None:
        """EasyEdit computes its own in the first round."""

    def edit(self, requests: Sequence[EditRequest], number: int, last: bool = False) -> Written:
        """Call EasyEdit's function for the round.

        Raises:
            HostError: it returned another model, or changed weights that it did not return.
        """
        records = [request.to_dict() for request in requests]
        self._before = {}
        with seeded(self._seed, number, self.model):
            for part in [records] if self._whole_rounds else [[record] for record in records]:
                for name, tensor in self._call(part).items():
                    self._before.setdefault(name, tensor)
        for name, tensor in self._before.items():
            self._originals.setdefault(name, tensor)
        self._watch.leave_out(self._originals)
        foreign = self._watch.changed(self.model)
        if foreign or not (self._before or self._attached):
            what = f"changed {', '.join(foreign[:3])}" if foreign else "named no weights"
            raise HostError(
                f"{self.method} {what} beyond the originals it returned, so its rounds cannot be "
                "kept on disk; use a method that returns the weights it replaced"
            )
        norms = {
            name: float((self._parameter(name).detach().float() - old.float()).norm())
            for name, old in self._before.items()
        }
        summary = {"method": self.method, "edits": len(requests), "weights": norms}
        return Written(summary, self._attached or any(norm > 0 for norm in norms.values()))

    def _call(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Call EasyEdit's function; returns the original values of the weights it changed."""
        model, before = self._apply(
            self.model,
            self.tokenizer,
            records,
            self.hparams,
            copy=False,
            return_orig_weights=True,
            keep_original_weight=False,
        )
        if model is not self.model:
            if not any(part is self.model for part in getattr(model, "modules", list)()):
                raise HostError(
                    f"{self.method} returned another model object, without the given one in it; "
                    "only methods that change weights in place or attach modules can be scheduled"
                )
            self._attached = True
        originals = before if isinstance(before, Mapping) else {}
        return {name: tensor.detach().clone() for name, tensor in originals.items()}

    def problem(self) -> str | None:
        """A changed or attached weight that is not finite, or None."""
        written = map(self._parameter, self._originals)
        changed = self.model.parameters() if self._attached else written
        return None if all(map(all_finite, changed)) else "weights"

    def save(self, folder: Path, number: int) -> Saved:
        """Store the whole matrices that the last round changed."""
        tensors = {
            name: self._parameter(name).detach().cpu().contiguous().clone() for name in self._before
        }
        about = {"method": self.method, "number": number, "in_memory": self._attached}
        return save_matrices(round_path(folder, number), tensors, about)

    def load(self, paths: Sequence[Path]) -> None:
        """Load the matrices of rounds, in order."""
        for path in paths:
            tensors, about = read_matrices(path)
            if about.get("in_memory"):
                raise DataError(
                    f"{path}: modules that {self.method} attaches are kept in memory only, so an "
                    "interrupted run cannot be resumed; remove its folder and start again"
                )
            for name, tensor in tensors.items():
                parameter = self._parameter(name)
                self._originals.setdefault(name, parameter.detach().clone())
                parameter.data.copy_(tensor)
        self._watch.leave_out(self._originals)

    def undo(self) -> None:
        """Restore the weights that the last round changed.

        Raises:
            HostError: it attached modules.
        """
        self._refuse_attached("undone")
        for name, tensor in self._before.items():
            self._parameter(name).data.copy_(tensor)
        self._before = {}

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """A context in which the model is the untouched one.

        Raises:
            HostError: modules are attached to it.
        """
        self._refuse_attached("put aside")
        held = {name: self._parameter(name).data for name in self._originals}
        try:
            for name, tensor in self._originals.items():
                self._parameter(name).data = tensor
            yield
        finally:
            for name, data in held.items():
                self._parameter(name).data = data

    def originals(self) -> Mapping[str, torch.Tensor]:
        """Original values of the changed matrices."""
        return self._originals

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """EasyEdit keeps none."""
        return {}

    def _refuse_attached(self, what: str) -> None:
        if self._attached:
            raise HostError(
                f"{self.method} attached modules to the model, which cannot be {what} here; "
                f"use {self.method}-plugin, which supports that"
            )

    def _parameter(self, name: str) -> nn.Parameter:
        try:
            return self.model.get_parameter(name)
        except AttributeError as error:
            raise HostError(
                f"{self.method} names a weight {name!r} that the model does not have"
            ) from error


def takes_rounds(name: str) -> bool:
    """Whether a method takes many requests at once, by EasyEdit's batch gate if it is loaded."""
    gate = sys.modules.get("easyeditor.editors.batch_editor")
    return gate is None or bool(gate.BatchEditor.is_batchable_method(name))
