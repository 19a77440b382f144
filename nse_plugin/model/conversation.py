"""Questions to a model in its chat format, and its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nse_plugin.errors import RequestError
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.generation import greedy_text

Turn = Mapping[str, str]
"""``{"role": "user" or "assistant", "content": ...}``."""


def rendered(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, Any]:
    """The text whose continuation answers the last of these turns, and a tokenizer for it.

    The text is made by the tokenizer's chat template, and that tokenizer adds no special tokens to
    it; without a template, it is the last turn itself.  A :class:`ChatTokenizer` begins the text as
    it begins a prompt.

    Raises:
        RequestError: the template refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        return turns[-1]["content"], tokenizer
    try:
        text = tokenizer.apply_chat_template(
            list(turns), add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template raises whatever its author chose
        raise RequestError(
            f"the chat template refuses the question ({error}); ask without it (--plain)"
        ) from error
    if isinstance(tokenizer, ChatTokenizer):
        text = tokenizer.as_begun(text)
    return text, ChatTokenizer(tokenizer, ("", ""))  # nothing is put around the text


def reply(model: nn.Module, tokenizer: Any, text: str, max_new_tokens: int) -> str:
    """The greedy continuation of a rendered text, without blanks around it."""
    return greedy_text(model, tokenizer, [text], max_new_tokens)[0].strip()
