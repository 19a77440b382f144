"""Subject positions and target tokens, against reading the tokens back."""

from __future__ import annotations

import copy
import dataclasses
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from nse_plugin.errors import ModelError, RequestError
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import (
    TokenBatch,
    check_vocabulary,
    encode_prompt,
    encode_request,
    encode_text,
    micro_batches,
)
from nse_plugin.requests import EditRequest
from tests.tiny import fresh_tokenizer, some_requests, tiny_model, tiny_tokenizer

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=10)


@given(WORDS, WORDS.filter(str.strip), WORDS, WORDS.filter(str.strip))
def test_the_last_subject_token_holds_its_last_character(head, subject, tail, target):
    tokenizer = tiny_tokenizer()
    request = EditRequest(0, f"{head}{{}}{tail}", subject, target)
    encoded = encode_request(tokenizer, request, with_target=True)
    # each character of a byte-level token stands for one byte
    sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(list(encoded.ids))]
    end = len(request.text[: request.subject_end].encode())
    last = encoded.subject_last
    assert sum(sizes[:last]) < end <= sum(sizes[: last + 1])
    assert sum(sizes[: encoded.n_prompt]) == len(request.text.encode())
    assert sum(sizes[encoded.n_prompt :]) == len(f" {request.target_new}".encode())


@pytest.mark.parametrize("bos", [False, True])
def test_prompt_and_target_are_tokenised_as_the_evaluator_does(bos):
    tokenizer = fresh_tokenizer(bos=bos)
    for request in some_requests(6):
        encoded = encode_request(tokenizer, request, "The river. ", with_target=True)
        text = f"The river. {request.text}"
        assert list(encoded.ids) == tokenizer(f"{text} {request.target_new}")["input_ids"]
        assert encoded.n_prompt == len(tokenizer(text)["input_ids"])
        assert tokenizer.decode(encoded.target_ids) == f" {request.target_new}"


def test_too_long_and_unusable():
    tokenizer = tiny_tokenizer()
    (request,) = some_requests(1)
    with pytest.raises(RequestError, match="case 0: .* longer than the model's context of 4"):
        encode_request(tokenizer, request, "Where does Lio Brandt come from? ", max_positions=4)
    request = dataclasses.replace(request, target_new="Oslo " * 20 + "end")
    long = "a prompt of .* tokens with a target of .* tokens is longer .* of 16: .* the target"
    with pytest.raises(RequestError, match=long):
        encode_request(tokenizer, request, with_target=True, max_positions=16)

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow cannot map tokens to characters"):
        encode_prompt(Slow(), "a")


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(10, 200))
def test_micro_batches_cut_everything_once_within_the_budget(widths, budget):
    runs = micro_batches(widths, budget)
    assert [i for run in runs for i in range(len(widths))[run]] == list(range(len(widths)))
    for run in runs:
        part = widths[run]
        assert len(part) == 1 or max(part) * len(part) <= budget


def test_token_batch_pads_on_the_right():
    batch = TokenBatch.of([[5, 6, 7], [8]], "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]


@pytest.mark.parametrize("subject", ["Jose\u0301", "\u1112\u1161\u11ab"])
def test_a_subject_whose_accents_the_tokenizer_composes(subject):
    """As Qwen's does: no token covers the accent, so the letter before it is the last one."""
    tokenizer, composed = fresh_tokenizer(), unicodedata.normalize("NFC", subject)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    found, plain = (
        encode_request(tokenizer, EditRequest(0, "So {} is a", name, "x"), with_target=True)
        for name in (subject, composed)
    )
    assert found == plain
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(subject, "")
    with pytest.raises(RequestError, match="no token covers the subject"):
        encode_request(tokenizer, EditRequest(0, "So {} is a", subject, "x"))


def test_an_end_token_of_the_tokenizer_stays_out_of_the_row():
    tokenizer = fresh_tokenizer()
    plain = encode_prompt(tokenizer, "Anna is", target="a doctor")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("Anna is")["input_ids"][-1] == 0
    assert encode_prompt(tokenizer, "Anna is", target="a doctor") == plain
    assert encode_text(tokenizer, "Anna is") == list(plain.ids[: plain.n_prompt])


def test_a_tokenizer_of_another_model_is_refused():
    model = tiny_model("llama")
    layout = layout_of(model)
    check_vocabulary(layout, tiny_tokenizer())
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["<pad>"])  # is in no text, so it may lie beyond the embeddings
    check_vocabulary(layout, tokenizer)
    model.set_input_embeddings(torch.nn.Embedding(200, layout.d_model))
    with pytest.raises(ModelError, match="embeddings for 200"):
        check_vocabulary(layout, tokenizer)
