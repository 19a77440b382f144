"""The link from a model to its session, which lives as long as the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nse_plugin.errors import ModelError, SessionError
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.prompts import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nse_plugin.session.records import RoundRecord
    from nse_plugin.session.session import EditSession

_ATTRIBUTE = "_nse_plugin_session"
_PROBE = "In 1987 Zoë's twins weren't from Łódź;\n\tthey live at 12,500 Élysée Street (東京)."
"""A text on which different tokenizers differ."""


def linked(model: PreTrainedModel) -> EditSession | None:
    """The session of a model, or None."""
    link = getattr(model, _ATTRIBUTE, None)
    return link.session if isinstance(link, _Link) else None


def link(model: PreTrainedModel, session: EditSession) -> None:
    """Give a model its session."""
    setattr(model, _ATTRIBUTE, _Link(session))


def unlink(model: PreTrainedModel) -> None:
    """Remove a model's session."""
    if hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


def refuse_other_tokenizer(session: EditSession, tokenizer: Any) -> None:
    """Raise :class:`SessionError` if a tokenizer encodes prompts differently from the session's.

    Hosts pass their tokenizer with each call, sometimes loaded again; an equal one is accepted.
    """
    own = session.tokenizer
    if tokenizer is own:
        return
    if _chat_texts(own) != _chat_texts(tokenizer):
        differing = "it puts other texts around a prompt (ChatTokenizer)"
    elif encode_text(own, _PROBE) != encode_text(tokenizer, _PROBE):
        differing = "it gives other tokens for the same text"
    else:
        return
    raise SessionError(
        f"this model has an edit session with another tokenizer than the one given: {differing}. "
        "Leave the tokenizer out to continue with that session, or end it with undo_all() and "
        "EditSession.forget(model) before you give another one"
    )


def refuse_other_sizes(session: EditSession, record: RoundRecord) -> None:
    """Raise :class:`ModelError` if a round wrote matrices of other sizes than the model has."""
    own = session.layout.d_ff, session.layout.d_model
    for write in record.writes:
        given = record.d_ff, len(write.right if write.left is None else write.left)
        if given != own:
            raise ModelError(
                f"round {record.number} wrote matrices of {given[0]} neurons and width {given[1]}, "
                f"and those of the model have {own[0]} and {own[1]}; load the model that was edited"
            )


def _chat_texts(tokenizer: Any) -> tuple[str, str] | None:
    """The texts that a chat tokenizer puts around a prompt."""
    return (tokenizer.before, tokenizer.after) if isinstance(tokenizer, ChatTokenizer) else None


class _Link:
    """The attribute of the model; in a copy of the model it is empty."""

    def __init__(self, session: EditSession | None) -> None:
        self.session = session

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Link:
        return _Link(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Link, (None,))
