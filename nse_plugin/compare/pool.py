"""The untouched model of a process, which is loaded once for all its cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nse_plugin.data.models import load_model
from nse_plugin.errors import SessionError
from nse_plugin.model.weights import fingerprint
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)


class ModelPool:
    """Lends the model to one cell at a time, and loads it again if a cell left it changed."""

    def __init__(self) -> None:
        self._what: tuple[str, ...] | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._state: dict[str, Any] = {}

    @contextmanager
    def lend(self, hparams: Any) -> Iterator[tuple[Any, Any]]:
        """Model and tokenizer that these hyperparameters name, untouched."""
        what = tuple(
            str(getattr(hparams, name, None)) for name in ("model_name", "device", "dtype", "fp16")
        )
        if what != self._what:
            self._drop()  # before the next one is loaded: there may be room for one only
            self._model, self._tokenizer, _ = load_model(hparams)
            self._state, self._what = _state(self._model), what
        try:
            yield self._model, self._tokenizer
        finally:
            if not self._restored():
                log.info("the model could not be restored; it will be loaded again")
                self._drop()

    def _restored(self) -> bool:
        """Undo all edits; false if the model is not the untouched one afterwards."""
        model = self._model
        try:
            session = EditSession.of(model)
            session.undo_all()
        except SessionError as error:  # other code wrote to the weights
            log.debug("%s", error)
        EditSession.forget(model)
        return _state(model) == self._state

    def _drop(self) -> None:
        self._what = self._model = self._tokenizer = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _state(model: Any) -> dict[str, Any]:
    """The state by which a change is noticed: modules, hooks and fingerprints of weights."""
    modules = {
        name: (type(m).__name__, m.training, len(m._forward_hooks) + len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    tensors = [*model.named_parameters(), *model.named_buffers()]
    weights = {name: _mark(tensor) for name, tensor in tensors if not tensor.is_meta}
    return {"modules": modules, "weights": weights}


def _mark(tensor: torch.Tensor) -> Any:
    if tensor.dim() and tensor.is_floating_point() and tensor.element_size() > 1:
        return fingerprint(tensor)
    return (tuple(tensor.shape), str(tensor.dtype))
