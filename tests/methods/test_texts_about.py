"""Texts about subjects: written by the untouched model, and part of the search of every value."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nse_plugin.errors import HparamsError
from nse_plugin.hparams import ROMEHparams
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import compute_values
from nse_plugin.methods.bases import BASES
from nse_plugin.model.sampling import ABOUT, TOKENS_ABOUT, texts_about
from nse_plugin.objectives import nll
from nse_plugin.session.session import EditSession
from tests.locate.values import values_of
from tests.methods.brute import hparams_of
from tests.tiny import some_requests, tiny_hparams, tiny_model


def test_the_texts_are_what_the_model_writes_about_the_subject(tokenizer):
    model = tiny_model("llama")
    (texts,) = texts_about(model, tokenizer, ["Mara {Quill}"], len(ABOUT))
    assert len(texts) == len(ABOUT)
    for opening, text in zip(ABOUT, texts):
        before, after = opening.split("{}")
        expected = tokenizer(f"{before}Mara {{Quill}}{after}")["input_ids"]
        assert list(text.ids[: text.n_prompt]) == expected
        assert tokenizer.decode(text.up_to_subject).endswith("}")
        assert text.n_target == TOKENS_ABOUT
        for place in range(text.n_prompt, len(text.ids)):
            logits = model(input_ids=torch.tensor([text.ids[:place]])).logits[0, -1]
            assert int(logits.argmax()) == text.ids[place]


@pytest.mark.parametrize("method", ["NSE", "ROME"])
def test_a_round_reads_texts_of_the_untouched_model(tokenizer, tmp_path, method):
    """The second round's values are those of a model that nothing was written into."""
    model = tiny_model("gpt2")
    untouched = copy.deepcopy(model)
    first, second = some_requests(4)[:2], some_requests(4)[2:]
    settings = dict(kl_texts=2, kl_factor=1.0, stats_dir=str(tmp_path))
    base = BASES[method]
    hparams = (
        tiny_hparams(**settings)
        if method == "NSE"
        else hparams_of(ROMEHparams, layers=[1], **settings)
    )
    session = EditSession.of(model, tokenizer)
    base.edit_round(session, first, hparams)
    record = base.edit_round(session, second, hparams)
    found = session.untouched.texts_about([r.subject for r in second], hparams)
    assert found == texts_about(untouched, tokenizer, [r.subject for r in second], 2)
    another_model = copy.deepcopy(untouched)
    without = EditSession.of(another_model, tokenizer)
    for some in (first, second):
        other = base.edit_round(without, some, replace(hparams, kl_texts=0))
    for one, another in zip(record.outcomes, other.outcomes):
        assert one.z_loss != another.z_loss  # the same to the bit without the texts
    if method == "NSE":
        contexts = session.untouched.contexts(hparams)
        layout = EditSession.of(untouched, tokenizer).layout
        expected = values_of(layout, tokenizer, second, contexts, hparams)
        torch.testing.assert_close(record.z, expected.z, rtol=1e-4, atol=1e-4)
        rows = encode_round(layout, tokenizer, second, contexts)
        assert not torch.allclose(record.z, compute_values(layout, rows, hparams, nll).z, atol=1e-2)


def test_no_more_texts_than_openings():
    with pytest.raises(HparamsError, match="kl_texts is 6; it must be a whole number from 0 to 5"):
        tiny_hparams(kl_texts=len(ABOUT) + 1)
