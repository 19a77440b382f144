"""The interface between scheduler and method: our session, or the host's ``apply_algo``."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nse_plugin.easyedit.backend import HostBackend, takes_rounds
from nse_plugin.errors import HostError, HparamsError, SessionError
from nse_plugin.hparams import Hparams, LocateHparams, NSEHparams
from nse_plugin.hparams.base import LayersHparams
from nse_plugin.hparams.overtone import base_of
from nse_plugin.methods.bookkeeping import check_templates
from nse_plugin.methods.registry import METHODS, find_method
from nse_plugin.model.weights import all_finite
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger_files import RoundFile, Saved, load_rounds, save_round
from nse_plugin.session.records import RoundRecord, Written
from nse_plugin.session.session import EditSession

_ROUNDING = 1e-6
"""A change below this share of the original's norm is rounding error, not an edit."""


@typing.runtime_checkable
class Backend(typing.Protocol):
    """A method that edits one model; the defaults are those of an untouched model."""

    method: str
    changes_model: bool = True
    """False for the untouched model, which is a row of a comparison."""
    model: nn.Module
    tokenizer: Any
    hparams: Any

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """Make the context texts of the run, or use those kept; returns them for the manifest."""
        return []

    def compute_statistics(self) -> None:
        """Compute what the rounds need of the untouched model and can be kept on disk."""
        return

    def edit(self, requests: Sequence[EditRequest], number: int, last: bool = False) -> Written:
        """Write a round; ``last`` is whether the stream is known to end with it."""

    def problem(self) -> str | None:
        """A description of what is not finite after the last round, or None."""
        return None

    def save(self, folder: Path, number: int) -> Saved:
        """Write the last round's file, whole or not at all."""

    def load(self, paths: Sequence[Path]) -> None:
        """Apply the rounds in these files to the unedited model."""
        return

    def undo(self) -> None:
        """Undo the last round."""
        return

    def rewound(self) -> AbstractContextManager[Any]:
        """A context inside which the model is the untouched one."""
        return nullcontext()

    def originals(self) -> Mapping[str, torch.Tensor]:
        """The original values of the edited parameters."""
        return {}

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """By layer, at most ``limit`` of the previous keys, at regular distances: [d_ff, n]."""
        return {}


def backend_of(editor_or_session: Any, hparams: Any = None, seed: int = 0) -> Backend:
    """The backend for a session with hparams, or for an editor of either host; a backend as it is.

    Raises:
        HparamsError: a session comes without hparams.
        HostError: it is neither a session nor an editor.
        SessionError: the session has rounds, so its model is not the untouched one.
    """
    if isinstance(editor_or_session, EditSession):
        if hparams is None:
            raise HparamsError("hparams is None; a session needs the hyperparameters of a method")
        return SessionBackend(_untouched(editor_or_session), hparams)
    if isinstance(editor_or_session, Backend):
        return editor_or_session
    editor = editor_or_session
    missing = [n for n in ("model", "tok", "apply_algo") if not hasattr(editor, n)]
    if missing:
        raise HostError(
            f"a {type(editor).__name__} has no {', '.join(missing)}; give an EditSession or an "
            "editor of EasyEdit"
        )
    hparams = hparams if hparams is not None else editor.hparams
    if isinstance(hparams, Hparams) and hparams.method in METHODS:
        return SessionBackend(_untouched(EditSession.of(editor.model, editor.tok)), hparams)
    rounds = takes_rounds(str(getattr(hparams, "alg_name", "")))
    return HostBackend(editor.model, editor.tok, editor.apply_algo, hparams, seed, rounds)


def _untouched(session: EditSession) -> EditSession:
    if len(session.ledger):
        raise SessionError(
            f"the session has {len(session.ledger)} rounds already, and a run starts from the "
            "untouched model; call session.undo_all(), or load the model again"
        )
    return session


class SessionBackend(Backend):
    """A method of this package."""

    def __init__(self, session: EditSession, hparams: Any) -> None:
        method = find_method(hparams.alg_name)
        self.method, self._edit_round = method.name, method.edit_round
        self._base = base_of(hparams)
        self._norms: dict[str, float] = {}  # of the original of each edited matrix
        self.session, self.hparams = session, hparams
        self.model, self.tokenizer = session.model, session.tokenizer
        if isinstance(self._base, LayersHparams):  # before the model is asked or a file is written
            session.layout.check_layers(self._base.layers)
            check_templates(session, self._base)

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """Make the context texts, or use those kept."""
        if not isinstance(self._base, LocateHparams):
            return []
        if kept is not None:
            self.session.untouched.use_contexts(self.hparams, kept)
        return list(self.session.untouched.contexts(self.hparams))

    def compute_statistics(self) -> None:
        """Compute the covariances that the method needs."""
        self.session.untouched.compute_statistics(self.hparams)

    def edit(self, requests: Sequence[EditRequest], number: int, last: bool = False) -> Written:
        """Write a round into model and ledger."""
        hparams = self.hparams.of_last_round() if last else self.hparams
        record: RoundRecord = self._edit_round(self.session, requests, hparams)
        summary, weights = record.summary(), self.session.weights
        changed, changes = record.state is not None, list[float]()
        for layer in record.key_counts:
            name, of_layer = self.session.layout.down_name(layer), summary["layers"][str(layer)]
            if name not in self._norms:
                self._norms[name] = float(weights.original(name).float().norm())
            norm, total = self._norms[name], weights.change(name)
            of_layer["relative_change"] = 0.0 if total is None else float(total.norm()) / norm
            changes.append(of_layer["relative_change"])
            changed |= of_layer["norm"] > _ROUNDING * norm
        left_out = [each for each in record.outcomes if each.status == "out_of_bounds"]
        bound = self._base.bound_in_words() if isinstance(self._base, NSEHparams) else ""
        return Written(summary, changed, left_out, max(changes, default=None), bound)

    def problem(self) -> str | None:
        """A description of a loss or weight that is not finite after the last round, or None."""
        losses = [outcome.z_loss for outcome in self.session.ledger[-1].outcomes]
        if not all(math.isfinite(loss) for loss in losses if loss is not None):
            return "loss"
        edited = map(self.model.get_parameter, self.session.weights.names())
        changed = [*edited, *self.session.attached.tensors().values()]
        return None if all(map(all_finite, changed)) else "weights"

    def save(self, folder: Path, number: int) -> Saved:
        """Write the last round's file, from which the ledger reads the round from now on."""
        self.session.previous_keys.catch_up()  # while the round is in memory
        record = replace(self.session.ledger[-1], number=number)
        saved = save_round(folder, record)
        self.session.ledger.replace_last(replace(RoundFile.at(*saved), within=record.within))
        return saved

    def load(self, paths: Sequence[Path]) -> None:
        """Apply the rounds in these files, in order."""
        self.session.adopt(load_rounds(paths))

    def undo(self) -> None:
        """Undo the last round."""
        self.session.undo_last()

    def rewound(self) -> Any:
        """A context inside which the model is the untouched one."""
        return self.session.rewound()

    def originals(self) -> Mapping[str, torch.Tensor]:
        """The original values of the edited matrices."""
        return {name: self.session.weights.original(name) for name in self.session.weights.names()}

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """By edited layer, at most ``limit`` of the previous keys."""
        layers = self._base.layers if isinstance(self._base, LayersHparams) else []
        return self.session.ledger.some_keys(layers, limit)
