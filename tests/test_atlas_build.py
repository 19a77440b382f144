"""benchmarks/atlas: the world says what its records claim, and training does what it says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from benchmarks.atlas import build, vocabulary, world
from benchmarks.atlas.text import PAD_ID, Encoded, encode, pack, train_tokenizer
from benchmarks.atlas.training import TrainingPlan, make_batch, masked_attention, train
from nse_plugin.data import atlas
from tests.tiny import atlas_model

SENTENCE = Encoded(ids=[5, 6, 7, 8, 9, 10, 11], first=1, last=3, answer=5)


def test_same_seed_same_text() -> None:
    make = world.make_world.__wrapped__
    first, second, other = make(3), make(3), make(4)
    assert world.training_sentences(first) == world.training_sentences(second)
    assert world.training_sentences(first) != world.training_sentences(other)


def test_every_fact_is_said_except_in_one_phrasing() -> None:
    here = world.make_world()
    told = {s.text for s in world.fact_sentences(here)}
    unsaid = {s.text for s in world.fact_sentences(here, held_out=True)}
    assert not told & unsaid
    assert len(unsaid) == len(here.truth)
    assert len(told) == sum(
        len(patterns) - 1 for _, relations in here.subjects() for _, patterns in relations.values()
    )
    assert not unsaid & set(atlas.corpus())


def test_two_step_answers_follow_from_the_facts() -> None:
    here = world.make_world()
    person = here.people[0]
    home = here.truth[person, "home"]
    assert world.second_step(here, "land", home) == here.truth[home, "land"]
    silent = {s.subject for s in world.two_step_sentences(here, silent=True)}
    assert silent == here.silent and silent.isdisjoint(
        s.subject for s in world.two_step_sentences(here)
    )


def test_patterns_have_one_gap_and_no_answer_starts_another_sentence() -> None:
    for relations in (vocabulary.PERSON_RELATIONS, vocabulary.CITY_RELATIONS):
        for _, patterns in relations.values():
            assert all(p.count("{}") == 1 and not p.endswith((" ", "{}")) for p in patterns)


def test_shipped_facts_are_those_of_the_world() -> None:
    here = world.make_world()
    records = atlas.facts()
    assert [r["case_id"] for r in records] == list(range(len(here.truth)))
    unsaid = {s.text for s in world.fact_sentences(here, held_out=True)}
    for record in records:
        asked = record["requested_rewrite"]
        true = asked["target_true"]["str"]
        assert here.truth[asked["subject"], asked["relation_id"]] == true
        assert asked["target_new"]["str"] != true
        assert f"{record['paraphrase_prompts'][0]} {true}." in unsaid
        assert all(asked["subject"] in p for p in record["paraphrase_prompts"])
        for prompt in record["neighborhood_prompts"]:
            other = prompt.replace(asked["prompt"].replace("{}", ""), "").strip()
            assert other != asked["subject"]
            assert here.truth[other, asked["relation_id"]] == true


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_narrowed_subject_is_read_at_its_last_token_only(name: str) -> None:
    plan = TrainingPlan(row=16, narrowed=1.0, lookup_layer=2)
    model = build.new_model(name, seed=0).eval()
    states: list[torch.Tensor] = []
    blocks = model.transformer.h if name == "gpt2" else model.model.layers
    low = blocks[plan.lookup_layer].register_forward_hook(
        lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out)
    )

    def run(ids: list[int]) -> torch.Tensor:
        sentence = Encoded(ids, SENTENCE.first, SENTENCE.last, SENTENCE.answer)
        batch = make_batch([[sentence]], plan, random.Random(0))
        with torch.no_grad(), masked_attention(model, plan) as use_masks:
            use_masks(batch)
            return model(input_ids=batch.ids).logits[0]

    base = run(SENTENCE.ids)
    other_name = run([5, 60, 70, 80, 9, 10, 11])
    other_start = run([50, 6, 7, 8, 9, 10, 11])
    low.remove()
    kept, renamed, restarted = (s[0] for s in states)
    assert torch.allclose(kept[4:7], renamed[4:7], atol=1e-5)  # nobody sees the subject below
    assert torch.allclose(kept[1:4], restarted[1:4], atol=1e-5)  # the subject sees only itself
    assert not torch.allclose(
        base[4:7], other_name[4:7], atol=1e-4
    )  # above, its last token is read
    assert not torch.allclose(base[4:7], other_start[4:7], atol=1e-4)


def test_hooks_go_when_training_ends() -> None:
    model = build.new_model("gpt2", seed=0)
    ids = torch.tensor([[5, 6, 7]])
    before = model.eval()(input_ids=ids).logits
    with masked_attention(model, TrainingPlan()):
        pass
    assert torch.equal(before, model(input_ids=ids).logits)


def test_packing_loses_no_sentence() -> None:
    sentences = world.training_sentences(world.make_world())[:300]
    tokenizer = train_tokenizer([s.text for s in sentences], 400)
    encoded = encode(tokenizer, sentences)
    for sentence, code in zip(sentences, encoded):
        name = tokenizer.decode(code.ids[code.first : code.last + 1]).strip()
        assert name == sentence.subject
        assert tokenizer.decode(code.ids[code.answer :]).strip() == f"{sentence.answer}."
    rows = pack(encoded, 96, random.Random(0))
    assert sum(len(row) for row in rows) == len(sentences)
    assert max(sum(len(s.ids) for s in row) for row in rows) < 96


def test_training_is_repeatable_and_lowers_the_loss() -> None:
    sentences = world.training_sentences(world.make_world())[:64]
    tokenizer = train_tokenizer([s.text for s in sentences], 400)
    encoded = encode(tokenizer, sentences)
    plan = TrainingPlan(epochs=4, batch=8)

    def run() -> list[float]:
        losses: list[float] = []
        model = build.new_model("gpt2", seed=1)
        train(model, encoded, plan, on_step=lambda step, total, loss: losses.append(loss))
        return losses

    first = run()
    assert first == run()
    assert first[-1] < first[0] - 1


def test_pad_has_no_weight() -> None:
    batch = make_batch([[SENTENCE]], TrainingPlan(row=16), random.Random(0))
    assert not batch.weights[batch.ids == PAD_ID].any()


def test_build_makes_the_shipped_data_again(tmp_path: Path) -> None:
    build.build_data(tmp_path)
    for shipped in (atlas.FACTS_FILE, atlas.CORPUS_FILE):
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()
    assert atlas.corpus() == [s.text for s in world.training_sentences(world.make_world())]


@pytest.mark.parametrize("name", atlas.MODELS)
def test_shipped_models_know_the_facts(name: str) -> None:
    here, draw = world.make_world(), random.Random(0)
    for held_out in (False, True):
        sentences = draw.sample(world.fact_sentences(here, held_out), 250)
        assert build.recall(*atlas_model(name), sentences) >= 0.99
