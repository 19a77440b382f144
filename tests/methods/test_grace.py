"""GRACE: the codebook's decisions against a literal one, and what the model then says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import HparamsError, ModelError
from nse_plugin.hparams import GRACEHparams
from nse_plugin.methods.grace import edit_round
from nse_plugin.model.generation import greedy_text
from nse_plugin.model.probe import layout_of
from nse_plugin.session.codebook import SAME, Codebook
from nse_plugin.session.session import EditSession
from tests.tiny import atlas_model, some_requests, tiny_model

LAYER = {
    "gpt2": "transformer.h[2].mlp.c_fc.weight",
    "llama": "model.layers[2].mlp.down_proj.weight",
}


def hparams(model, **changes: Any) -> GRACEHparams:
    layer = LAYER[model.config.model_type]
    settings = dict(alg_name="GRACE", model_name="tiny", inner_params=[layer], n_iter=40, eps=0.5)
    return GRACEHparams(**{**settings, **changes})


class Literal:
    """The rules of the paper's section 3, one number at a time."""

    def __init__(self, eps: float) -> None:
        self.eps, self.entries = eps, []  # [key, value, radius, label]

    def nearest(self, query):
        distances = [math.dist(entry[0], query) for entry in self.entries]
        return min(range(len(distances)), key=lambda i: (distances[i], i)), min(distances)

    def place(self, query, label, value) -> str:
        if not self.entries:
            self.entries.append([query, value, self.eps, label])
            return "add"
        index, distance = self.nearest(query)
        near = self.entries[index]
        if distance > self.eps + near[2]:
            self.entries.append([query, value, self.eps, label])
            return "add"
        if near[3] == label:
            near[2] = max(near[2], distance)
            return "expand"
        if distance < SAME * self.eps:
            near[1], near[3] = value, label
            return "replace"
        near[2] = distance / 2 - 1e-5
        self.entries.append([query, value, distance / 2, label])
        return "split"

    def answer(self, query, own):
        if not self.entries:
            return own
        index, distance = self.nearest(query)
        return self.entries[index][1] if distance <= self.entries[index][2] else own


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)


class Layout:
    """All that a codebook asks of a layout."""

    def __init__(self) -> None:
        self.model = OneLayer()


POINT = st.tuples(*[st.integers(-6, 6).map(lambda n: n / 4)] * 2)
EDIT = st.tuples(POINT, st.sampled_from([(1,), (2,), (1, 2)]))
EACH_DECISION = [((0.0, 0.0), (1,)), ((1.5, 0.0), (1,)), ((0.0, 0.0), (2,)), ((1.0, 0.0), (1,))]


def test_each_decision_is_made():
    """By the literal rules, so that the example below has each of them."""
    literal = Literal(1.0)
    made = [literal.place(point, label, (0.0, 0.0, 0.0)) for point, label in EACH_DECISION]
    assert made == ["add", "expand", "replace", "split"]


@example(EACH_DECISION, [], 1.0)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(EDIT, max_size=8), st.lists(POINT, max_size=6), st.sampled_from([0.3, 1.0]))
def test_decisions_and_answers(edits, queries, eps):
    layout, literal = Layout(), Literal(eps)
    codebook = Codebook(layout, {"module": "layer.weight", "eps": eps})
    for number, (point, label) in enumerate(edits):
        value = (number, number + 0.5, -number)
        literal.place(point, label, value)
        codebook.place(torch.tensor(point), label, torch.tensor(value))
    assert codebook.labels == [entry[3] for entry in literal.entries]
    assert codebook.keys.tolist() == [list(entry[0]) for entry in literal.entries]
    assert codebook.values.tolist() == [list(entry[1]) for entry in literal.entries]
    assert codebook.radii.tolist() == pytest.approx([e[2] for e in literal.entries], abs=1e-6)
    for query in [*queries, *(point for point, _ in edits)]:
        if literal.entries:
            index, distance = literal.nearest(query)
            if abs(distance - literal.entries[index][2]) < 1e-5:
                continue  # on the ball's edge rounding decides
        row = torch.tensor([query, (50.0, 50.0)])  # the far one is answered by the layer
        with torch.no_grad(), codebook.off():
            with codebook.off():
                pass
            own = layout.model.layer(row)
        with torch.no_grad():
            found = layout.model.layer(row)
        expected = literal.answer(query, own[0].tolist())
        assert found[0].tolist() == pytest.approx(list(expected), abs=1e-6)
        assert torch.equal(found[1], own[1])
    kept = Codebook(Layout(), {"module": "layer", "eps": eps})
    kept.load(codebook.state())
    assert kept.labels == codebook.labels and torch.equal(kept.radii, codebook.radii)


def test_keys_very_near_each_other_still_answer_for_themselves():
    layout = Layout()
    codebook = Codebook(layout, {"module": "layer", "eps": 0.01})
    points = [torch.zeros(2), torch.tensor([0.0, 1e-5])]
    for label, point in enumerate(points):
        codebook.place(point, (label,), torch.full((3,), float(label)))
    assert len(codebook) == 2 and bool((codebook.radii > 0).all())
    with torch.no_grad():
        assert layout.model.layer(torch.stack(points)).tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_edits_are_said_and_nothing_else_changes(name):
    h = GRACEHparams.from_hparams(f"GRACE/atlas-{name}")
    model, tokenizer = atlas_model(name)
    requests = parse_records(atlas.edit_set(4, seed=11))
    session = EditSession.of(model, tokenizer)
    other = {"input_ids": torch.tensor([tokenizer.encode(atlas.corpus()[0])])}
    with torch.no_grad():
        clean = model(**other).logits
    records = [edit_round(session, batch, h) for batch in (requests[:3], requests[3:])]
    assert [len(record.state.tensors["keys"]) for record in records] == [3, 4]
    assert {o.status for record in records for o in record.outcomes} == {"converged"}
    with torch.no_grad():
        assert torch.equal(model(**other).logits, clean)

    def said():
        texts = greedy_text(model, tokenizer, [r.text for r in requests], 8)
        return [text.strip().startswith(r.target_new) for r, text in zip(requests, texts)]

    assert all(said())
    with session.rewound():
        assert not any(said())


def test_a_value_is_trained_as_adam_does(tokenizer):
    model, request = tiny_model("gpt2"), some_requests(3)[2]
    h = hparams(model, n_iter=5, val_init="warm")
    record = edit_round(EditSession.of(model, tokenizer), [request], h)
    fresh = tiny_model("gpt2")
    layer = fresh.transformer.h[2].mlp.c_fc
    prompt, target = tokenizer.encode(request.text), tokenizer.encode(f" {request.target_new}")
    ids, labels = [prompt + target], [[-100] * len(prompt) + target]
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _m, args, out: seen.extend([args[0], out]))
    fresh(input_ids=torch.tensor([prompt]))
    handle.remove()
    assert torch.allclose(record.state.tensors["keys"][0], seen[0][0, -1], atol=1e-5)
    value = seen[1][0, -1].detach().clone().requires_grad_(True)

    def replace(_module, _args, output):
        place = torch.zeros(output.shape[1], dtype=torch.bool)
        place[len(prompt) - 1] = True
        return torch.where(place[None, :, None], value, output)

    layer.register_forward_hook(replace)
    adam = torch.optim.Adam([value], lr=h.edit_lr)
    for _ in range(h.n_iter):
        adam.zero_grad()
        fresh(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss.backward()
        adam.step()
    assert torch.allclose(record.state.tensors["values"][0], value.detach(), atol=1e-3)


def test_the_same_prompt_takes_over_the_new_target(tokenizer):
    model, request = tiny_model("gpt2"), some_requests(1)[0]
    session = EditSession.of(model, tokenizer)
    edit_round(session, [request], hparams(model))
    newer = type(request)(9, request.prompt, request.subject, "Garn")
    record = edit_round(session, [newer], hparams(model, n_iter=80))
    assert len(record.state.tensors["keys"]) == 1
    target = tokenizer.encode(" Garn")
    assert record.state.tensors["labels"][0, : len(target)].tolist() == target


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_prompt_is_known_again_whatever_it_was_edited_beside(
    tokenizer, family, dtype
):
    model, requests = tiny_model(family).to(dtype), some_requests(4)
    session = EditSession.of(model, tokenizer)
    edit_round(session, requests, hparams(model, n_iter=1))
    for old in requests:
        newer = type(old)(old.case_id, old.prompt, old.subject, "river")
        record = edit_round(session, [newer], hparams(model, n_iter=1))
        assert len(record.state.tensors["keys"]) == 4


def test_what_does_not_fit_is_refused(model, tokenizer):
    layout = layout_of(model)
    with pytest.raises(ModelError, match="which the model does not have"):
        Codebook(layout, {"module": "model.block[1].weight", "eps": 1.0})
    embedding = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}[layout.model_type]
    with pytest.raises(ModelError, match="a Embedding; give a linear layer"):
        Codebook(layout, {"module": embedding, "eps": 1.0})
    one = Codebook(layout, {"module": LAYER[layout.model_type], "eps": 1.0})
    with pytest.raises(ModelError, match="has a codebook already"):
        Codebook(layout, {"module": LAYER[layout.model_type], "eps": 1.0})
    one.remove()
    for name, value in (("dist_fn", "cos"), ("replacement", "replace_all"), ("dropout", 0.1),
                        ("inner_params", ["a", "b"]), ("val_train", "pert")):  # fmt: skip
        with pytest.raises(HparamsError, match=f"^{name} is "):
            hparams(model, **{name: value})
