"""Prompts in chat format: the tokens are those of the rendered chat, and the subject is found."""

from __future__ import annotations

import pytest

from nse_plugin.errors import ModelError
from nse_plugin.evaluation.model_state import perplexity
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.prompts import encode_request, encode_text
from nse_plugin.requests import EditRequest
from nse_plugin.runs.identity import prompt_format
from tests.tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for turn in messages %}<|endoftext|>{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>model:\n{% endif %}"
)
REQUEST = EditRequest(0, "{} lives in", "Mara", "Quill", "Garn")


@pytest.fixture
def tokenizer():
    found = tiny_tokenizer()
    found.chat_template = TEMPLATE
    return found


def test_tokens_are_those_of_the_rendered_chat(tokenizer):
    turns = [{"role": "user", "content": "So it is. Mara lives in"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    chat = ChatTokenizer(tokenizer)
    found = encode_request(chat, REQUEST, "So it is. ", with_target=True)
    assert list(found.ids) == tokenizer(prompt + "Quill")["input_ids"]
    assert tokenizer.decode(found.target_ids) == "Quill", "no space begins the model's turn"
    assert tokenizer.decode(found.ids[: found.subject_last + 1]).endswith("So it is. Mara")
    assert encode_text(chat, "plain") == encode_text(tokenizer, "plain")


def test_held_out_text_stays_plain(tokenizer):
    model, text = tiny_model("llama"), ["The river of Garn is wide."]
    assert perplexity(model, ChatTokenizer(tokenizer), text) == perplexity(model, tokenizer, text)


def test_runs_in_chat_and_in_plain_text_differ(tokenizer):
    assert prompt_format(tokenizer) == {}
    assert prompt_format(ChatTokenizer(tokenizer)) == {
        "chat": ["<|endoftext|>user: ", "\n<|endoftext|>model:\n"]
    }


REFUSES = "{{ raise_exception('no user turns') }}"


@pytest.mark.parametrize("template", [None, "fixed", "{{ messages[0].content * 2 }}", REFUSES])
def test_templates_that_cannot_be_used_are_refused(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template"):
        ChatTokenizer(tokenizer)
