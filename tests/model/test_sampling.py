"""Sampling repeats from a seed, leaves the global random state alone, and matches its formula."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.errors import ModelError, RequestError
from nse_plugin.model.sampling import _draw, context_texts, sample_ids, texts_about
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = torch.tensor([[5, 6, 7], [20, 21, 22]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_repeats_and_leaves_the_global_state(model):
    model.train()  # dropout would draw from the global state
    state = torch.get_rng_state()
    first = sample_ids(model, PROMPT, 8, top_k=5, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = sample_ids(model, PROMPT, 8, top_k=5, generator=seeded(3))
    other = sample_ids(model, PROMPT, 8, top_k=5, generator=seeded(4))
    assert first.shape == (2, 8)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_the_head_runs_at_the_last_position_only(model):
    shapes = []
    model.lm_head.register_forward_hook(lambda _head, _args, out: shapes.append(out.shape[:2]))
    sample_ids(model, PROMPT, 3, top_k=5, generator=seeded())
    assert shapes == [(1, 2)] * 3


def test_top_1_is_greedy_without_a_cache(model):
    sampled = sample_ids(model, PROMPT, 6, top_k=1, generator=seeded())
    ids = PROMPT
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(sampled, ids[:, 3:])


@pytest.mark.parametrize("top_k", [None, 3])
def test_draws_follow_the_distribution(top_k):
    logits = torch.tensor([0.0, -torch.inf, 2.0, 1.0, -1.0])
    kept = logits if top_k is None else torch.tensor([0.0, -torch.inf, 2.0, 1.0, -torch.inf])
    draws = _draw(logits.expand(20_000, -1), top_k, seeded())
    shares = draws.flatten().bincount(minlength=5) / 20_000
    assert torch.allclose(shares, kept.softmax(0), atol=0.015)
    assert shares[1] == 0


def test_a_large_vocabulary_is_drawn_from_as_a_small_one():
    """Blocks change nothing: the same tokens as from one cumulative sum in float64."""
    n_vocab = 1000
    logits = 3 * torch.randn(500, n_vocab, generator=seeded(1))
    logits[:, 700:] = -torch.inf  # whole blocks without mass, and half a block
    draws = _draw(logits, None, seeded(2))
    upto = logits.double().softmax(dim=-1).cumsum(dim=-1)
    random = torch.rand(500, 1, generator=seeded(2), dtype=torch.float64)
    expected = torch.searchsorted(upto, random, right=True)
    assert (draws == expected).float().mean() > 0.995  # the rest is rounding at an edge
    assert (draws - expected).abs().max() <= 1 and draws.max() < 700


def test_nothing_to_sample():
    empty = sample_ids(tiny_model("gpt2"), PROMPT, 0, top_k=5, generator=seeded())
    assert empty.shape == (2, 0)


def test_logits_that_are_not_finite():
    model = tiny_model("llama")
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        sample_ids(model, PROMPT, 1, top_k=5, generator=seeded())


def test_context_texts(model):
    tokenizer = tiny_tokenizer()
    lengths = [10] * 6
    texts = context_texts(model, tokenizer, seed=0, n_tokens=lengths)
    assert texts == context_texts(model, tokenizer, seed=0, n_tokens=lengths)
    assert texts != context_texts(model, tokenizer, seed=1, n_tokens=lengths)
    openings = ("The", "Therefore", "Because", "I", "You", "The")
    for opening, text in zip(openings, texts, strict=True):
        assert text.startswith(opening)
        assert text == " ".join(text.split())
        assert not set("{}\ufffd") & set(text)


def test_a_text_that_is_too_long_names_its_setting(model):
    tokenizer = tiny_tokenizer()
    with pytest.raises(RequestError, match="context is 64; lower context_length"):
        context_texts(model, tokenizer, seed=0, n_tokens=[100])
    for n, way_out in ((30, "shorten it"), (13, "shorten the subject or set kl_texts to 0")):
        with pytest.raises(RequestError, match=f"the text '.*Mara.*of kl_texts has .*{way_out}"):
            texts_about(model, tokenizer, [("Mara " * n).strip()], 1)


def test_context_texts_drop_braces_and_line_breaks():
    class Braces:
        """A tokenizer whose every text comes out with what a prompt must not hold."""

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [5, 6]}

        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens and len(ids) == 10
            return " The {}\n{x}  end\ufffd"

    assert context_texts(tiny_model("gpt2"), Braces(), seed=0, n_tokens=[10]) == ("The x end",)
