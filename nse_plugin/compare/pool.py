"""The untouched model of a process: loaded once and used by its cells in turn."""

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
    """Lends the loaded model to one cell at a time; reloads it if it comes back changed."""

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
            if not self._took_back():
                log.info("the model was not brought back as it was; it will be loaded anew")
                self._drop()

    def _took_back(self) -> bool:
        model = self._model
        try:
            session = EditSession.of(model)
            session.undo_all()
        except SessionError as error:  # there is none, or other code wrote to the weights
            log.debug("%s", error)
        EditSession.forget(model)
        return _state(model) == self._state

    def _drop(self) -> None:
        self._what = self._model = self._tokenizer = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _state(model: Any) -> dict[str, Any]:
    """What tells an untouched model from another: its modules, hooks, settings and weights."""
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
