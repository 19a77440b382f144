"""What the training mask lets through, checked by changing tokens and looking at what moves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nse_plugin.data.atlas import FACTS_FILE, build
from nse_plugin.data.atlas.text import PAD_ID, Encoded, encode, pack, train_tokenizer
from nse_plugin.data.atlas.training import TrainingPlan, make_batch, masked_attention, train
from nse_plugin.data.atlas.world import make_world, training_sentences

SENTENCE = Encoded(ids=[5, 6, 7, 8, 9, 10, 11], first=1, last=3, answer=5)


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
    sentences = training_sentences(make_world())[:300]
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
    sentences = training_sentences(make_world())[:64]
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


def test_build_makes_the_shipped_facts_again(tmp_path: Path) -> None:
    build.build_facts(tmp_path / "facts.json")
    assert (tmp_path / "facts.json").read_bytes() == FACTS_FILE.read_bytes()
