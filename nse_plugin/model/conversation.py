"""Questions to a model in the form that it was trained to answer, and its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nse_plugin.errors import RequestError
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.generation import greedy_text

Turn = Mapping[str, str]
"""``{"role": "user" or "assistant", "content": ...}``."""


def rendered(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The text that a model continues to answer the last of these turns.

    With the tokenizer's chat template; if it has none, the last turn as it is.  A
    :class:`ChatTokenizer` begins the text as it begins a prompt.

    Raises:
        RequestError: the template does not take these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        return turns[-1]["content"]
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
    first = getattr(tokenizer, "bos_token", None)
    if first and tokenizer("a")["input_ids"][:1] == [tokenizer.convert_tokens_to_ids(first)]:
        return text.removeprefix(first)  # which the tokenizer puts before a text itself
    return text


def reply(model: nn.Module, tokenizer: Any, text: str, max_new_tokens: int) -> str:
    """What the model writes after a rendered text, by greedy decoding, without blanks around it."""
    return greedy_text(model, tokenizer, [text], max_new_tokens)[0].strip()
