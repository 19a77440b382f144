"""What a scheduler needs of a method: ours over a session, or the host's ``apply_algo``.

Both write rounds, keep them on disk, put them back and take the last one back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nse_plugin.errors import (
    DataError,
    HostError,
    HparamsError,
    NotResumableError,
    SessionError,
)
from nse_plugin.files import write_whole
from nse_plugin.ledger.files import RoundFile, load_rounds, round_path, save_round
from nse_plugin.ledger.records import RoundRecord
from nse_plugin.methods.registry import METHODS, find_method
from nse_plugin.model.seeding import seeded
from nse_plugin.model.watch import Watch
from nse_plugin.requests import EditRequest
from nse_plugin.session import EditSession


@runtime_checkable
class Engine(Protocol):
    """A method at work on one model."""

    method: str
    model: nn.Module
    tokenizer: Any
    hparams: Any

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """Make, or put back, what the run's rounds share; returns it for the manifest."""

    def edit(self, requests: Sequence[EditRequest], number: int) -> dict[str, Any]:
        """Write a round; returns what is said of it in the log, times under ``seconds``."""

    def problem(self) -> str | None:
        """What is not finite after the last round, or None."""

    def save(self, folder: Path, number: int) -> Path:
        """Write the last round's file, all of it or nothing."""

    def load(self, paths: Sequence[Path]) -> None:
        """Put the rounds of these files into the untouched model."""

    def undo(self) -> None:
        """Take the last round back."""

    def rewound(self) -> Any:
        """A context in which the model is the untouched one."""

    def originals(self) -> Mapping[str, torch.Tensor]:
        """Edited parameters as they were."""

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """By layer, at most so many of the previous keys, at even distances: [d_ff, n]."""

    def changed(self) -> list[nn.Parameter]:
        """Edited parameters as they are."""


def engine_of(editor_or_session: Any, hparams: Any = None, seed: int = 0) -> Engine:
    """The engine for a session with hparams, or for an editor of either host; an engine is its own.

    Raises:
        HparamsError: there are no hparams.
        HostError: it is neither a session nor an editor.
    """
    if isinstance(editor_or_session, EditSession):
        if hparams is None:
            raise HparamsError("hparams is None; a session needs the hyperparameters of a method")
        return SessionEngine(editor_or_session, hparams)
    if isinstance(editor_or_session, Engine):
        return editor_or_session
    editor = editor_or_session
    missing = [n for n in ("model", "tok", "apply_algo") if not hasattr(editor, n)]
    if missing:
        raise HostError(
            f"a {type(editor).__name__} has no {', '.join(missing)}; give an EditSession or an "
            "editor of EasyEdit"
        )
    hparams = hparams if hparams is not None else editor.hparams
    name = str(getattr(hparams, "alg_name", "")).removesuffix("-plugin")
    if name in METHODS and isinstance(hparams, METHODS[name].hparams):
        return SessionEngine(EditSession.of(editor.model, editor.tok), hparams)
    rounds = _takes_rounds(str(getattr(hparams, "alg_name", "")))
    return HostEngine(editor.model, editor.tok, editor.apply_algo, hparams, seed, rounds)


class SessionEngine:
    """A method of ours.

    Raises:
        SessionError: the session has rounds, so its model is not the untouched one.
    """

    def __init__(self, session: EditSession, hparams: Any) -> None:
        if len(session.ledger):
            raise SessionError(
                f"the session has {len(session.ledger)} rounds already, and a run starts from the "
                "untouched model; call session.undo_all(), or load the model anew"
            )
        self._edit_round = find_method(hparams.alg_name).edit_round
        self.method = find_method(hparams.alg_name).name
        self.session, self.hparams = session, hparams
        self.model, self.tokenizer = session.model, session.tokenizer

    def prepare(self, kept: Sequence[str] | None) -> list[str]:
        """The context texts."""
        if not hasattr(self.hparams, "n_contexts"):
            return []
        if kept is not None:
            self.session.untouched.use_contexts(self.hparams, kept)
        return list(self.session.untouched.contexts(self.hparams))

    def edit(self, requests: Sequence[EditRequest], number: int) -> dict[str, Any]:
        """Write a round into model and ledger."""
        record: RoundRecord = self._edit_round(self.session, requests, self.hparams)
        return record.summary()

    def problem(self) -> str | None:
        """A loss or a weight of the last round that is not finite."""
        losses = [outcome.z_loss for outcome in self.session.ledger[-1].outcomes]
        if not all(_is_finite(loss) for loss in losses if loss is not None):
            return "loss"
        return _not_finite([*self.changed(), *self.session.attached.tensors().values()])

    def save(self, folder: Path, number: int) -> Path:
        """Factors and keys of the last round; the ledger reads them from the file from now on."""
        self.session.previous_keys.catch_up()  # while the round is in memory
        record = replace(self.session.ledger[-1], number=number)
        path = save_round(folder, record)
        self.session.ledger.replace_last(RoundFile.of(path, record))
        return path

    def load(self, paths: Sequence[Path]) -> None:
        """Rounds from their files, in order."""
        self.session.adopt(load_rounds(paths))

    def undo(self) -> None:
        """Take the last round back."""
        self.session.undo_last()

    def rewound(self) -> Any:
        """The untouched model, inside."""
        return self.session.rewound()

    def originals(self) -> Mapping[str, torch.Tensor]:
        """Edited matrices as they were."""
        return {name: self.session.weights.original(name) for name in self.session.weights.names()}

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """Previous keys of the edited layers."""
        return self.session.ledger.some_keys(getattr(self.hparams, "layers", []), limit)

    def changed(self) -> list[nn.Parameter]:
        """Edited matrices as they are."""
        return [self.model.get_parameter(name) for name in self.session.weights.names()]


class HostEngine:
    """A method of the host that changes weights in place and returns what they held before.

    Its rounds are kept as whole matrices.  A method that attaches modules instead (EasyEdit's GRACE
    and LoRA) returns another object, in which the model lies.  What it attached is kept in memory
    only: such a run is measured like any other, and can neither be undone nor gone on with.

    Args:
        whole_rounds: the function takes all requests of a round at once; otherwise it is called
            for one after the other.

    Random numbers are seeded round by round, so that a
    resumed run draws what an uninterrupted one would.
    """

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
        """Nothing is shared."""
        return []

    def edit(self, requests: Sequence[EditRequest], number: int) -> dict[str, Any]:
        """Call the host's function for the round.

        Raises:
            HostError: it returned another model, or changed weights that it does not name.
        """
        records = [request.to_dict() for request in requests]
        self._before = {}
        with seeded(self._seed, number):
            for part in [records] if self._whole_rounds else [[record] for record in records]:
                for name, tensor in self._called(part).items():
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
        return {"method": self.method, "edits": len(requests), "weights": norms}

    def _called(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One call of the host's function; what the weights that it names held before."""
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
        held = before if isinstance(before, Mapping) else {}
        return {name: tensor.detach().clone() for name, tensor in held.items()}

    def problem(self) -> str | None:
        """A weight that is not finite, of those changed or attached."""
        return _not_finite(list(self.model.parameters()) if self._attached else self.changed())

    def save(self, folder: Path, number: int) -> Path:
        """The matrices that the last round changed, whole."""
        tensors = {
            name: self._parameter(name).detach().cpu().contiguous().clone() for name in self._before
        }
        path = round_path(folder, number)
        about = {"method": self.method, "number": number, "in_memory": self._attached}
        header = {"host": json.dumps(about)}
        write_whole(path, lambda temporary: save_file(tensors, temporary, header))
        return path

    def load(self, paths: Sequence[Path]) -> None:
        """Matrices from their files, in order."""
        for path in paths:
            tensors, about = _read_host_file(path)
            if about.get("in_memory"):
                raise NotResumableError(
                    f"{path}: what {self.method} attaches to a model is kept in memory only, so a "
                    "run that was cut off cannot be gone on with; remove its folder and begin anew"
                )
            for name, tensor in tensors.items():
                parameter = self._parameter(name)
                self._originals.setdefault(name, parameter.detach().clone())
                parameter.data.copy_(tensor)
        self._watch.leave_out(self._originals)

    def undo(self) -> None:
        """Put back what the last round replaced.

        Raises:
            HostError: it attached modules.
        """
        self._refuse_attached("undone")
        for name, tensor in self._before.items():
            self._parameter(name).data.copy_(tensor)
        self._before = {}

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """The untouched model, inside.

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
        """Changed matrices as they were."""
        return self._originals

    def keys(self, limit: int) -> Mapping[int, torch.Tensor]:
        """The host keeps none."""
        return {}

    def changed(self) -> list[nn.Parameter]:
        """Changed matrices as they are."""
        return [self._parameter(name) for name in self._originals]

    def _refuse_attached(self, what: str) -> None:
        if self._attached:
            raise HostError(
                f"{self.method} attached modules to the model, which cannot be {what} here; "
                f"use {self.method}-plugin, where it can"
            )

    def _parameter(self, name: str) -> nn.Parameter:
        try:
            return self.model.get_parameter(name)
        except AttributeError as error:
            raise HostError(
                f"{self.method} names a weight {name!r} that the model does not have"
            ) from error


def _read_host_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Matrices of a round and what is said of it."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("host", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole round file ({error})") from error


def _takes_rounds(name: str) -> bool:
    """Whether EasyEdit, where it is loaded, calls a method for many requests at once."""
    gate = sys.modules.get("easyeditor.editors.batch_editor")
    return gate is None or bool(gate.BatchEditor.is_batchable_method(name))


def _not_finite(parameters: Sequence[torch.Tensor]) -> str | None:
    return next(("weights" for p in parameters if not bool(torch.isfinite(p).all())), None)


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
