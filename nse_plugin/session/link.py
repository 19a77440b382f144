"""The link from a model to its session, which lives as long as the model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nse_plugin.session.session import EditSession

_ATTRIBUTE = "_nse_plugin_session"


def linked(model: PreTrainedModel) -> EditSession | None:
    """The session of this model, if it has one."""
    link = getattr(model, _ATTRIBUTE, None)
    return link.session if isinstance(link, _Link) else None


def link(model: PreTrainedModel, session: EditSession) -> None:
    """Let the model have this session."""
    setattr(model, _ATTRIBUTE, _Link(session))


def unlink(model: PreTrainedModel) -> None:
    """Let the model have no session."""
    if hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


class _Link:
    """What the model holds; a copy of the model starts without a session."""

    def __init__(self, session: EditSession | None) -> None:
        self.session = session

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Link:
        return _Link(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Link, (None,))
