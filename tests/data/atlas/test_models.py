"""The shipped models load like any other, fit the size limit, and know the facts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nse_plugin.data import atlas
from nse_plugin.data.atlas.build import recall
from nse_plugin.data.atlas.world import Sentence, fact_sentences, make_world
from nse_plugin.errors import DataError


@pytest.fixture(scope="module", params=atlas.MODELS)
def pair(request: pytest.FixtureRequest) -> tuple:
    return atlas.load(f"atlas:{request.param}")


def sample(sentences: list[Sentence], n: int) -> list[Sentence]:
    return random.Random(0).sample(sentences, n)


def test_recall(pair: tuple) -> None:
    here = make_world()
    assert recall(*pair, sample(fact_sentences(here), 250)) >= 0.99
    assert recall(*pair, sample(fact_sentences(here, held_out=True), 250)) >= 0.99


def test_prompt_and_target_can_be_tokenised_apart(pair: tuple) -> None:
    _, tokenizer = pair
    for record in atlas.edit_set(300):
        asked = record["requested_rewrite"]
        prompt = asked["prompt"].format(asked["subject"])
        firsts = set()
        for target in (asked["target_true"]["str"], asked["target_new"]["str"]):
            apart = tokenizer(prompt)["input_ids"] + tokenizer(f" {target}")["input_ids"]
            assert apart == tokenizer(f"{prompt} {target}")["input_ids"]
            firsts.add(tokenizer(f" {target}")["input_ids"][0])
        assert len(firsts) == 2


def test_tokenizer_contract(pair: tuple) -> None:
    model, tokenizer = pair
    assert set(tokenizer("Hello")) == {"input_ids", "attention_mask"}
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.model_max_length >= 128
    start, later = (tokenizer(t)["input_ids"] for t in ("Tavo", "We. Tavo"))
    assert later[-len(start) :] == start  # a name has the same pieces everywhere


def test_plain_from_pretrained_and_dtype() -> None:
    for name in atlas.MODELS:
        folder = atlas.model_dir(name)
        assert name in folder.name
        AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.model_type == name
        assert atlas.load(name)[0].dtype == torch.float32
        assert atlas.load(name, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"gpt2, llama; did you mean 'llama'\?"):
        atlas.model_dir("atlas:lama")


def test_size_limit() -> None:
    room = Path(atlas.__file__).parent
    shipped = sum(
        f.stat().st_size for d in ("data", "weights") for f in (room / d).rglob("*") if f.is_file()
    )
    assert shipped < 25e6
