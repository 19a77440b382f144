"""Prompts in chat format: the tokens are those of the rendered chat, and the subject is found."""

from __future__ import annotations

import pytest

from nse_plugin.errors import ModelError
from nse_plugin.evaluation.model_state import perplexity
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.conversation import rendered
from nse_plugin.model.prompts import encode_prompt, encode_request, encode_text
from nse_plugin.requests import EditRequest
from nse_plugin.runs.identity import prompt_format
from tests.tiny import fresh_tokenizer, tiny_model, tiny_tokenizer

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


LLAMA_2 = (
    "{% for turn in messages %}{% if turn.role == 'user' %}"
    "[INST] {{ turn.content.strip() }} [/INST]{% else %}"
    "{{ ' ' + turn.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% for turn in messages %}{% if turn.role == 'user' %}[INST] {{ turn.content }}[/INST]"
    "{% else %}{{ ' ' + turn.content + eos_token }}{% endif %}{% endfor %}"
)
TURN = "{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}"
SMOLLM2 = (
    "{% for turn in messages %}{% if loop.first and turn.role != 'system' %}<|im_start|>system\n"
    "Be helpful<|im_end|>\n{% endif %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{% for turn in messages %}{% set role = 'model' if turn.role == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + turn.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
THINKS = SMOLLM2.replace("turn.role + '\n'", "turn.role + '\n' + '<think></think>'")
ONLY_USERS = "{% for turn in messages if turn.role == 'user' %}Q {{ turn.content }} A{% endfor %}"
NO_REPLIES = (
    "{% for turn in messages %}{% if turn.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    "Q {{ turn.content }} A{% endfor %}"
)
ENDS_WITH_A_SPACE = (
    "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("template", [LLAMA_2, MISTRAL, SMOLLM2, GEMMA])
def test_tokens_of_an_answer_are_those_of_a_rendered_reply(tokenizer, template):
    tokenizer.chat_template = template
    turns = [
        {"role": "user", "content": "Mara lives in"},
        {"role": "assistant", "content": "Quill"},
    ]
    reply = tokenizer.apply_chat_template(turns, tokenize=False)
    found = encode_request(ChatTokenizer(tokenizer), REQUEST, with_target=True)
    assert list(found.ids) == tokenizer(reply[: reply.rindex("Quill") + 5])["input_ids"]
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert found.ids[: found.n_prompt] == tuple(tokenizer(asked)["input_ids"])
    assert encode_request(ChatTokenizer(tokenizer), REQUEST).ids == found.ids[: found.n_prompt]


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (LLAMA_2, ["[INST] ", " [/INST]", " "]),
        (MISTRAL, ["[INST] ", "[/INST]", " "]),
        (
            SMOLLM2,
            [
                "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\n",
                "<|im_end|>\n<|im_start|>assistant\n",
            ],
        ),
        (GEMMA, ["<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"]),
        (ONLY_USERS, ["Q ", " A"]),
        (NO_REPLIES, ["Q ", " A"]),
        (ENDS_WITH_A_SPACE, ["user: ", "\nassistant: "]),
    ],
)
def test_a_blank_before_the_reply_is_kept_apart(tokenizer, template, texts):
    tokenizer.chat_template = template
    assert prompt_format(ChatTokenizer(tokenizer)) == {"chat": texts}


def test_what_else_stands_before_a_reply_is_left_out(tokenizer):
    tokenizer.chat_template = THINKS
    assert ChatTokenizer(tokenizer).blank == ""


@pytest.mark.parametrize("start", ["", "<|endoftext|>"])
def test_a_rendered_chat_is_asked_with_the_tokens_of_an_edited_prompt(start):
    """Also where the tokenizer adds a start token to plain text and the template writes none."""
    tokenizer = fresh_tokenizer(bos=True)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = start + GEMMA
    edited = encode_request(ChatTokenizer(tokenizer), REQUEST).ids
    assert edited.count(tokenizer.bos_token_id) == bool(start)
    for asked in (tokenizer, ChatTokenizer(tokenizer)):
        text, taking = rendered(asked, [{"role": "user", "content": REQUEST.text}])
        assert encode_prompt(taking, text).ids == edited


REFUSES = "{{ raise_exception('no user turns') }}"


@pytest.mark.parametrize("template", [None, "fixed", "{{ messages[0].content * 2 }}", REFUSES])
def test_templates_that_cannot_be_used_are_refused(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template"):
        ChatTokenizer(tokenizer)
