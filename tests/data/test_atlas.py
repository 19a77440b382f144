"""The embedded world: its facts and the files of its models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nse_plugin.data import atlas
from nse_plugin.errors import DataError, StatisticsError
from nse_plugin.statistics.named_texts import check_text
from tests.tiny import atlas_model, tiny_tokenizer


@pytest.fixture(scope="module", params=atlas.MODELS)
def pair(request: pytest.FixtureRequest) -> tuple:
    return atlas_model(request.param)


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


def test_the_corpus_is_no_text_for_models_of_another_vocabulary() -> None:
    _, larger = atlas_model("gpt2")
    larger.add_tokens(["<new>"])
    check_text("atlas", larger)
    with pytest.raises(StatisticsError, match="tokenizer was not made for"):
        check_text("atlas", tiny_tokenizer())


def test_plain_from_pretrained_and_float32() -> None:
    for name in atlas.MODELS:
        folder = atlas.model_dir(name)
        assert name in folder.name
        AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.model_type == name
        assert atlas_model(name)[0].dtype == torch.float32


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"gpt2, llama; did you mean 'llama'\?"):
        atlas.model_dir("atlas:lama")


def test_edit_set_mixes_relations_and_repeats_no_subject_before_all_came() -> None:
    edits = atlas.edit_set(200, seed=1)
    subjects = {atlas.subject_of(r) for r in edits}
    assert len(subjects) == 200
    assert len({r["requested_rewrite"]["relation_id"] for r in edits}) > 8
    assert edits[:20] == atlas.edit_set(20, seed=1) != atlas.edit_set(20, seed=2)
    rest = atlas.other_facts(edits, 100)
    assert len(rest) == 100 and not subjects & {atlas.subject_of(r) for r in rest}
    many = atlas.edit_set(600, seed=1)
    assert len({r["case_id"] for r in many}) == 600


def test_edit_set_refuses_more_than_there_are() -> None:
    with pytest.raises(DataError, match="atlas:1000000 asks for more than the 2016 facts"):
        atlas.edit_set(10**6)


def test_import_is_light() -> None:
    code = (
        "import sys, nse_plugin.data.atlas as a; a.facts(); a.corpus();"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
