"""Modules that a method attaches to the model instead of writing to its weights.

:class:`Attached` holds at most one attachment of a session, saves its state as plain tensors, and
can restore the untouched model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from nse_plugin.errors import SessionError
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.seeding import seeded
from nse_plugin.model.weights import fingerprint
from nse_plugin.session.adapters import Adapters
from nse_plugin.session.codebook import Codebook
from nse_plugin.session.records import AttachedState

Attachment = Adapters | Codebook
KINDS: dict[str, type[Adapters] | type[Codebook]] = {"lora": Adapters, "grace": Codebook}
"""Class of each kind.  Its constructor attaches it to the model and changes nothing until something
is learned.  ``state`` returns the learned tensors themselves, ``load`` copies others in, ``off`` is
a context with the untouched model, and ``remove`` restores the model's own modules.  The model's
own parameters never change."""


class Attached:
    """What is attached to a session's model: nothing, or one attachment."""

    def __init__(self, layout: DecoderLayout) -> None:
        self._layout = layout
        self._kind = ""
        self._config: dict[str, Any] = {}
        self.current: Attachment | None = None
        """The attachment itself, or None."""

    @property
    def kind(self) -> str | None:
        """What is attached, or None."""
        return None if self.current is None else self._kind

    def ensure(self, kind: str, config: Mapping[str, Any]) -> Attachment:
        """The attachment of this kind; it is made if nothing is attached yet.

        Raises:
            SessionError: something else is attached, or it has another config.
            ModelError: it does not fit the model.
        """
        if self.current is None:
            self.current = KINDS[kind](self._layout, config)
            self._kind, self._config = kind, dict(config)
        self.refuse_other(kind, config)
        return self.current

    def refuse_other(self, kind: str | None, config: Mapping[str, Any] | None = None) -> None:
        """Raise :class:`SessionError` if an attachment of another kind or config exists."""
        if self.current is None:
            return
        if kind != self._kind:
            raise SessionError(
                f"this session's model has {self._kind!r} attached, and rounds of another method "
                "cannot follow; undo_all() first, or use a freshly loaded model"
            )
        for name, value in (config or {}).items():
            if value != self._config[name]:
                raise SessionError(
                    f"{name} is {value!r}, and what is attached to the model was made with "
                    f"{self._config[name]!r}; use that value, or undo_all() first"
                )

    def refuse_mixture(self, kind: str | None, rounds: int) -> None:
        """The same before a round that attaches this kind, or with None writes weights.

        Args:
            rounds: how many rounds the session has.
        """
        self.refuse_other(kind)
        if kind is not None and self.current is None and rounds:
            raise SessionError(
                f"this session has {rounds} rounds that wrote weights, and {kind!r} cannot be "
                "attached on top of them; undo_all() first, or use a freshly loaded model"
            )

    def state(self) -> AttachedState | None:
        """A copy of everything learned, in main memory; None if nothing is attached."""
        if self.current is None:
            return None
        tensors = {
            name: tensor.detach().cpu().clone() for name, tensor in self.current.state().items()
        }
        return AttachedState(self._kind, self._config, tensors)

    def set(self, state: AttachedState | None) -> None:
        """Attach exactly this; None detaches everything."""
        if state is not None:
            with seeded(0, model=self._layout.model):  # its random start is replaced at once
                attachment = self.ensure(state.kind, state.config)
            attachment.load(state.tensors)
        elif self.current is not None:
            self.current.remove()
            self.current = None

    def off(self) -> AbstractContextManager[None]:
        """Inside, the attachment has no effect."""
        return nullcontext() if self.current is None else self.current.off()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The learned tensors themselves, by name."""
        return {} if self.current is None else self.current.state()

    def fingerprint(self) -> dict[str, int]:
        """A number per tensor that changes if any bit of the tensor changes."""
        return {f"{self._kind}:{n}": fingerprint(t) for n, t in self.tensors().items()}
