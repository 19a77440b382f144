"""Modules that a method attaches to the model instead of writing to its weights.

:class:`Attached` holds at most one of them for a session, keeps its state as plain tensors, and
gives the untouched model back.  The kinds of attachment are listed in :data:`KINDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from nse_plugin.errors import SessionError
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.seeding import seeded
from nse_plugin.model.weights import fingerprint
from nse_plugin.session.records import AttachedState


class Attachment(Protocol):
    """Modules attached to one model.  The model's own parameters stay as and what they are."""

    def __init__(self, layout: DecoderLayout, config: Mapping[str, Any]) -> None:
        """Attach to a model, which answers as before until something is learned.

        Raises:
            ModelError: the config names modules that the model does not have, or something of
                the kind is attached already.  The model is as before.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """The learned tensors themselves, not copies; later training changes them."""

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state."""

    def off(self) -> AbstractContextManager[None]:
        """Inside, the model is the untouched one."""

    def remove(self) -> None:
        """Give the model its own modules and names back."""


KINDS = {
    "lora": "nse_plugin.session.adapters:Adapters",
    "grace": "nse_plugin.session.codebook:Codebook",
}
"""Class of each kind, as ``module:name``; loaded when it is needed."""


class Attached:
    """What is attached to a session's model: nothing, or one attachment."""

    def __init__(self, layout: DecoderLayout) -> None:
        self._layout = layout
        self._kind = ""
        self._config: dict[str, Any] = {}
        self._current: Attachment | None = None

    @property
    def kind(self) -> str | None:
        """What is attached, or None."""
        return None if self._current is None else self._kind

    @property
    def current(self) -> Attachment | None:
        """The attachment itself, or None."""
        return self._current

    def ensure(self, kind: str, config: Mapping[str, Any]) -> Attachment:
        """What is attached; it is attached now where nothing is.

        Raises:
            SessionError: something else is attached, or it has another config.
            ModelError: it does not fit the model.
        """
        if self._current is None:
            name, _, attribute = KINDS[kind].partition(":")
            self._current = getattr(importlib.import_module(name), attribute)(self._layout, config)
            self._kind, self._config = kind, dict(config)
        self.refuse_other(kind, config)
        return self._current

    def refuse_other(self, kind: str | None, config: Mapping[str, Any] | None = None) -> None:
        """Raise :class:`SessionError` if something else is attached than this kind."""
        if self._current is None:
            return
        if kind != self._kind:
            raise SessionError(
                f"this session's model has {self._kind!r} attached, and rounds of another method "
                "cannot come on top of it; undo_all() first, or use a freshly loaded model"
            )
        for name, value in (config or {}).items():
            if value != self._config[name]:
                raise SessionError(
                    f"{name} is {value!r}, and what is attached to the model was made with "
                    f"{self._config[name]!r}; keep it, or undo_all() first"
                )

    def state(self) -> AttachedState | None:
        """A copy of all that was learned, in main memory; None if nothing is attached."""
        if self._current is None:
            return None
        tensors = {
            name: tensor.detach().cpu().clone() for name, tensor in self._current.state().items()
        }
        return AttachedState(self._kind, self._config, tensors)

    def set(self, state: AttachedState | None) -> None:
        """Have exactly this attached; None is nothing."""
        if state is not None:
            with seeded(0, model=self._layout.model):  # a random start, which is replaced
                attachment = self.ensure(state.kind, state.config)
            attachment.load(state.tensors)
        elif self._current is not None:
            self._current.remove()
            self._current = None

    def off(self) -> AbstractContextManager[None]:
        """Inside, nothing that is attached has an effect."""
        return nullcontext() if self._current is None else self._current.off()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was learned, by name, as it is."""
        return {} if self._current is None else self._current.state()

    def fingerprint(self) -> dict[str, int]:
        """A number per tensor that changes when any bit of it does."""
        return {f"{self._kind}:{n}": fingerprint(t) for n, t in self.tensors().items()}
