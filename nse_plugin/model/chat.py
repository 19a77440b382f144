"""Chat format: every prompt becomes the user's turn of a chat, every answer the model's turn.

A :class:`ChatTokenizer` replaces the model's tokenizer.  :mod:`nse_plugin.model.prompts` puts
prompts into the chat, so editing, contexts, scores and generation use the same format and the
subject's last token is found.  Plain text (statistics, perplexity) stays plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nse_plugin.errors import ModelError

_MARK = "\ufff9"  # a character that no template and no prompt holds


class ChatTokenizer:
    """A tokenizer with the texts that its chat template puts around a user's turn.

    :attr:`before` and :attr:`after` stand around the turn.  :attr:`blank` is what the template puts
    between them and the model's reply: a space for Llama 2 and Mistral, mostly nothing.  It is kept
    apart because it belongs to the first token of the reply (``▁Paris``), as in plain text; at the
    end of the prompt it would be a token of its own.

    Everything else is delegated to the tokenizer :attr:`inside`.

    Args:
        tokenizer: with a chat template; a system prompt of the template is kept.
        texts: the three texts, or the first two, if they are known.  A template may give others on
            another day (that of Llama 3.2 writes the date), and earlier edits belong to the old
            ones.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses or changes the
            user's text.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str] | None = None) -> None:
        self.before, self.after, self.blank = (*(texts or _texts(tokenizer)), "")[:3]
        self.inside = tokenizer

    def as_begun(self, rendered: str) -> str:
        """A chat that the template rendered today, with :attr:`before` at its beginning."""
        now = _texts(self.inside)[0]
        return self.before + rendered.removeprefix(now) if rendered.startswith(now) else rendered

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens of plain text, as the tokenizer inside gives them."""
        return self.inside(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.inside)

    def __getattr__(self, name: str) -> Any:
        if name == "inside":  # while a copy is made of this object
            raise AttributeError(name)
        return getattr(self.inside, name)


def words_around(tokenizer: Any) -> int:
    """Extra tokens for an answer: in chat it often repeats the question first."""
    return 20 if isinstance(tokenizer, ChatTokenizer) else 4


def _texts(tokenizer: Any) -> tuple[str, str, str]:
    """The three texts of the tokenizer's template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "chat is requested, and the tokenizer has no chat template; leave it out, or use a "
            "model that was trained for chat"
        )
    try:
        text = _rendered(tokenizer, ["user"], add_generation_prompt=True)
    except Exception as error:  # a template raises whatever its author chose
        raise ModelError(
            f"the tokenizer's chat template refuses a user's turn ({error}); edit this model "
            "without chat"
        ) from error
    before, found, after = text.partition(_MARK)
    if not found or _MARK in after:
        raise ModelError(
            "the tokenizer's chat template does not hold the user's text once; edit this "
            "model without chat"
        )
    return before, after, _blank(tokenizer, after)


def _rendered(tokenizer: Any, roles: list[str], **options: Any) -> str:
    """A chat in which each turn is the mark."""
    turns = [{"role": role, "content": _MARK} for role in roles]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _blank(tokenizer: Any, after: str) -> str:
    """The blank between the generation prompt and a reply, taken from a rendered reply.

    It is empty if there is more than blanks (such as the thoughts of a reply), if another text is
    there, or if a reply cannot be rendered.
    """
    try:
        _, *between = _rendered(tokenizer, ["user", "assistant"]).split(_MARK)
    except Exception:  # a template raises whatever its author chose
        return ""
    if len(between) != 2 or not between[0].startswith(after):
        return ""
    blank = between[0].removeprefix(after)
    return blank if blank.isspace() else ""
