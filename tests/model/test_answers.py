"""Answers checked in one batch agree with one-by-one passes and with model.generate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from nse_plugin.errors import RequestError
from nse_plugin.model import generation
from nse_plugin.model.answers import _rows, score_answers, score_encoded
from nse_plugin.model.generation import continue_rows, greedy_text, sampled_text
from nse_plugin.model.prompts import PASS, EncodedPrompt, encode_prompt
from tests.devices import CPU, place_of
from tests.plain import plain_answer
from tests.tiny import FAMILY_NAMES, UNKNOWN_FAMILIES, WIDE, fresh_tokenizer, wide_model

PROMPTS = [
    "Alice lives in",
    "The capital of France, which is where Alice and Bob used to live, is",
    "Where does Bob live?",
    "Oslo",
    "Angola is located in",
    "Carol works for the bank in",
]
ANSWERS = ["Paris", "Rome and not Oslo", "Antarctica", "is", "a continent of Africa", "Oslo"]


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return place_of(request).put(wide_model(request.param))


@pytest.fixture(params=[*FAMILY_NAMES, *UNKNOWN_FAMILIES])
def any_model(request):
    return wide_model(request.param)


def generated(model, ids, n):
    model.generation_config.eos_token_id = None  # or it would fill the gap in ours
    config = GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None)
    return model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("token_budget", [1, 200])
def test_scores_equal_unbatched_passes_under_any_budget(model, bos, token_budget, device):
    check_scores(model, fresh_tokenizer(bos=bos), token_budget, device.dtype)


def test_scores_equal_unbatched_passes_in_all_families(any_model):
    check_scores(any_model, fresh_tokenizer(), 16384)


def check_scores(model, tokenizer, token_budget, dtype=CPU.dtype):
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    pairs = [encode_prompt(tokenizer, p, target=a) for p, a in zip(PROMPTS, ANSWERS)]
    scores = score_encoded(model, pairs, token_budget=token_budget)
    assert len(scores.exact) == len(PROMPTS)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        plain = plain_answer(model, tokenizer, prompt, answer)
        assert scores.predicted[number] == plain.choices
        assert scores.nll[number] == pytest.approx(plain.nll, abs=tolerance)
        assert scores.token_accuracy[number] == pytest.approx(plain.accuracy)
        assert (scores.exact[number], scores.n_tokens[number]) == (plain.exact, len(plain.ids))


def greedy_answers(model, tokenizer, n=4):
    """(prompt ids, answer ids, whether generate writes them), right ones and with one token off."""
    triples = []
    for start in ["Alice", "Bob", "Rome", "Paris", "Where", "France is", "Oslo", "Carol works"]:
        ids = tokenizer(start)["input_ids"]
        written = generated(model, ids, n)
        for count in range(1, n + 1):
            triples.append((ids, written[:count], True))
            for wrong in range(count):
                tokens = list(written[:count])
                tokens[wrong] = (tokens[wrong] + 7) % 290
                triples.append((ids, tokens, False))
    return triples


def test_exact_is_what_generate_writes(model):
    pairs = greedy_answers(model, fresh_tokenizer())
    encoded = [EncodedPrompt((*ids, *tokens), -1, len(tokens)) for ids, tokens, _ in pairs]
    scores = score_encoded(model, encoded)
    assert scores.exact == [greedy for _, _, greedy in pairs]
    assert 0 < sum(scores.exact) < len(pairs)
    assert any(0 < accuracy < 1 for accuracy in scores.token_accuracy)


@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(1, 2), max_size=4)), max_size=12))
def test_rows_hold_every_answer_once_and_no_row_begins_another(answers):
    pairs = [
        EncodedPrompt((*[7] * n_prompt, *answer), -1, len(answer)) for n_prompt, answer in answers
    ]
    rows = _rows(pairs)
    members = sorted(index for row in rows for index in row.members)
    assert members == [index for index, pair in enumerate(pairs) if pair.n_target]
    for row in rows:
        assert all(row.ids[: len(pairs[i].ids) - 1] == pairs[i].ids[:-1] for i in row.members)
    for row, other in itertools.permutations(rows, 2):
        assert other.ids[: len(row.ids)] != row.ids


def test_two_answers_of_one_prompt_run_it_once_in_batches_of_little_cost(model, monkeypatch):
    tokenizer = fresh_tokenizer()
    short = ["Rome is", "Bob works for", "a"]
    prompts = [*short, *(f"{letter}lice lives in the town of " * 4 for letter in "ABCDE")]
    lengths, sizes = [], []
    forward = model.forward

    def counted(*args, **kwargs):
        lengths.append(int(kwargs["attention_mask"].sum()))
        sizes.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    score_answers(model, tokenizer, prompts * 2, ["x"] * 8 + ["y"] * 8)
    rows = [len(encode_prompt(tokenizer, prompt, target="x").ids) - 1 for prompt in prompts]
    assert sum(lengths) == sum(rows)
    assert len(sizes) == 2 and sum(sizes) < PASS + sum(rows)  # padding costs less than a pass


def test_padding_side_and_pad_token_do_not_matter(model):
    left, right = fresh_tokenizer("left"), fresh_tokenizer("right")
    right.pad_token = None
    assert score_answers(model, left, PROMPTS, ANSWERS) == score_answers(
        model, right, PROMPTS, ANSWERS
    )
    assert greedy_text(model, left, PROMPTS, 6) == greedy_text(model, right, PROMPTS, 6)
    assert left.padding_side == "left" and right.padding_side == "right"
    assert right.pad_token is None


def test_model_mode_and_gradients_are_left_alone(model, device):
    model.train()
    score_answers(model, fresh_tokenizer(), PROMPTS, ANSWERS)
    greedy_text(model, fresh_tokenizer(), PROMPTS, 2)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_rows_are_continued_alike_in_one_batch_and_in_several(model):
    rows = [fresh_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    room = [6] * len(rows)
    together = continue_rows(model, rows, room)
    assert continue_rows(model, rows, room, token_budget=60) == together


def test_greedy_text_is_what_generate_writes_one_by_one(any_model):
    model, tokenizer = any_model, fresh_tokenizer()
    texts = greedy_text(model, tokenizer, PROMPTS[:3], 6)
    for prompt, text in zip(PROMPTS, texts):
        written = generated(model, tokenizer(prompt)["input_ids"], 6)
        if tokenizer.eos_token_id in written:
            written = written[: written.index(tokenizer.eos_token_id)]
        assert text == tokenizer.decode(written, skip_special_tokens=True)


def test_greedy_text_stops_at_end_of_sequence_and_marks(model):
    tokenizer = fresh_tokenizer()
    prompt = "Alice lives in"
    written = generated(model, tokenizer(prompt)["input_ids"], 8)
    whole = greedy_text(model, tokenizer, [prompt], 8)[0]
    mark = whole[len(whole) // 2]
    cut = greedy_text(model, tokenizer, [prompt, "Oslo"], 8, stop=(mark,))[0]
    assert cut == whole[: whole.index(mark)]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(written[3])
    ended = greedy_text(model, tokenizer, [prompt], 8)[0]
    assert ended == tokenizer.decode(written[: written.index(written[3])])


def test_generation_settings_of_the_model_play_no_part(model):
    tokenizer = fresh_tokenizer()
    before = greedy_text(model, tokenizer, PROMPTS, 6)
    model.generation_config.repetition_penalty = 5.0
    assert greedy_text(model, tokenizer, PROMPTS, 6) == before


def test_sampled_text_depends_neither_on_neighbours_nor_on_global_state(model, monkeypatch):
    tokenizer = fresh_tokenizer()
    together = sampled_text(model, tokenizer, PROMPTS, 40)
    state = torch.random.get_rng_state()
    alone = [sampled_text(model, tokenizer, [prompt], 40)[0] for prompt in PROMPTS]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert together == alone
    greedy = greedy_text(model, tokenizer, ["Oslo"], 8)[0]
    length = len(tokenizer("Oslo")["input_ids"]) + 8
    assert sampled_text(model, tokenizer, ["Oslo"], length)[0] != "Oslo" + greedy
    monkeypatch.setattr(generation, "TOP_K", 1)
    assert sampled_text(model, tokenizer, ["Oslo"], length)[0] == "Oslo" + greedy


def test_bad_input_is_named(model):
    tokenizer = fresh_tokenizer()
    with pytest.raises(RequestError, match="2 prompts and 1 answers"):
        score_answers(model, tokenizer, ["a", "b"], ["c"])
    with pytest.raises(RequestError, match=f"context is {WIDE}"):
        score_answers(model, tokenizer, ["a", "b " * 200], ["c", "d"])
    with pytest.raises(RequestError, match="text 1 has no tokens before its answer"):
        score_answers(model, tokenizer, ["a", ""], ["c", "d"])
    with pytest.raises(RequestError, match="case 7 has no tokens before"):
        score_encoded(model, [EncodedPrompt((5,), -1, 1)], names=["case 7"])
    long = f"text 'a' has 1 token; with {WIDE} new ones it has {WIDE + 1} .* is {WIDE};"
    with pytest.raises(RequestError, match=f"{long} .* fewer new tokens .--tokens"):
        greedy_text(model, tokenizer, ["a"], WIDE)
    with pytest.raises(RequestError, match=f"has .* tokens .* context is {WIDE}; shorten it$"):
        greedy_text(model, tokenizer, ["b " * 200], 1)


def test_no_prompts_and_no_answer_tokens(model):
    assert score_answers(model, fresh_tokenizer(), [], []).exact == []
    assert greedy_text(model, fresh_tokenizer(), [], 3) == []
    scores = score_encoded(model, [EncodedPrompt((5, 6), -1, 0)])
    assert scores.exact == [False] and math.isnan(scores.token_accuracy[0])


def test_rows_of_different_lengths_sampled_to_the_end_of_the_context(model):
    tokenizer = fresh_tokenizer()
    together = sampled_text(model, tokenizer, PROMPTS[:2], WIDE)
    alone = [sampled_text(model, tokenizer, [prompt], WIDE)[0] for prompt in PROMPTS[:2]]
    assert together == alone
