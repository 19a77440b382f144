"""The protocol's numbers against an evaluation written independently, one probe at a time."""

from __future__ import annotations

import copy
import functools
import math
import sys
import types
from dataclasses import replace

import pytest
import torch

from nse_plugin.data import atlas, earth
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import DataError, HparamsError, MissingPackageError, RequestError
from nse_plugin.evaluation import model_state
from nse_plugin.evaluation.metrics import SCORES, ask, asked_texts, summarise
from nse_plugin.evaluation.model_state import (
    direction_drift,
    free_generation,
    perplexity,
    run_harness,
)
from nse_plugin.evaluation.protocol import (
    Edit,
    History,
    MeasuredModel,
    Protocol,
    _sample,
    measure_model,
)
from nse_plugin.hparams import FTHparams, NSEHparams
from nse_plugin.methods.ft import edit_round as fine_tune
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.requests import EditRequest, Probe
from nse_plugin.session.session import EditSession
from nse_plugin.session.tables import key_share
from tests.plain import plain_answer
from tests.runs.runs import HELD_OUT, hparams, protocol, requests, scheduler, session
from tests.tiny import atlas_model, fresh_tokenizer, tiny_model, tiny_tokenizer

STRONG = dict(v_num_grad_steps=20, v_lr=0.5, mom2_adjustment=False, clamp_norm_factor=10.0)


# --- one prompt at a time, no code of the package -----------------------------------------------


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def plain_scores(model, base, tokenizer, request, edited):
    @functools.cache
    def asked(prompt, answer):
        return plain_answer(model, tokenizer, prompt, answer)

    def accuracy(prompt, answer):
        return asked(prompt, answer).accuracy

    def nll(prompt, answer):
        return asked(prompt, answer).nll

    def exact(prompt, answer):
        return float(asked(prompt, answer).exact)

    new, true = request.target_new, request.ground_truth
    para = list(request.rephrase_prompts)
    port = [p for group in request.portability.values() for p in group]
    loc = [p for g in request.locality.values() for p in g if p.prompt not in edited]
    shares = []
    for p in loc:
        now = asked(p.prompt, p.answer).choices
        old = plain_answer(base, tokenizer, p.prompt, p.answer).choices
        shares.append(mean(float(a == b) for a, b in zip(now, old)))
    first = request.text if request.prompt.startswith("{}") else decapitalised(request.text)
    return {
        "efficacy": exact(request.text, new),
        "efficacy_tokens": accuracy(request.text, new),
        "efficacy_probability": float(nll(request.text, new) < nll(request.text, true)),
        "efficacy_nll": nll(request.text, new),
        "paraphrase": mean(exact(t, new) for t in para),
        "paraphrase_tokens": mean(accuracy(t, new) for t in para),
        "paraphrase_probability": mean(float(nll(t, new) < nll(t, true)) for t in para),
        "paraphrase_nll": mean(nll(t, new) for t in para),
        "portability": mean(exact(p.prompt, p.answer) for p in port),
        "portability_tokens": mean(accuracy(p.prompt, p.answer) for p in port),
        "portability_nll": mean(nll(p.prompt, p.answer) for p in port),
        "locality": mean(shares),
        "locality_exact": mean(float(s == 1) for s in shares),
        "locality_probability": mean(
            float(nll(p.prompt, p.answer) < nll(p.prompt, new)) for p in loc if p.answer != new
        ),
        "locality_of_effective": mean(shares) if exact(request.text, new) else None,
        "negation": exact(f"It is not true that {first}", new),
        "distractor": float(exact(f"{true or 'This'} is often talked about. {request.text}", new)),
        **{
            group: mean(exact(p.prompt, p.answer) for p in request.forms.get(group, ()))
            for group in ("reversal", "translation")
        },
    }


def decapitalised(text):
    return text[0].lower() + text[1:]


def plain_row(model, base, tokenizer, chosen, edited):
    rows = [plain_scores(model, base, tokenizer, r, edited) for r in chosen]
    return {s: mean(row[s] for row in rows if row[s] is not None) for s in SCORES}


def of_tiny(folder):
    stream = requests(6)
    return session("llama"), tiny_model("llama"), stream, hparams(folder, **STRONG)


def of_atlas(folder):
    """Edits that hold, of facts that the model knows."""
    model, tok = atlas_model("gpt2")
    subject = EditSession.of(model, tok)
    subject.kept = model
    settings = NSEHparams.from_hparams("NSE/atlas-gpt2")
    settings = replace(settings, mom2_adjustment=False, v_num_grad_steps=15, n_contexts=1)
    base = copy.deepcopy(model)
    return subject, base, parse_records(atlas.edit_set(6)), settings


@pytest.mark.parametrize("build", [of_tiny, of_atlas])
def test_retention_table_is_that_of_single_plain_passes(tmp_path, build):
    subject, base, stream, settings = build(tmp_path)
    old = stream[0]
    other = str(old.ground_truth) if build is of_atlas else "a painter"
    stream.append(  # supersedes the first edit
        EditRequest(9, old.prompt, old.subject, other, ground_truth=old.target_new)
    )
    expected, plain = {}, functools.partial(plain_row, subject.model, base, subject.tokenizer)

    def watch(event, line):
        if event != "round":
            return
        t = line["round"]
        so_far = stream[: 2 * t]
        edited = {x for r in so_far for x in (r.text, *r.rephrase_prompts)}
        newest = {(r.subject, r.prompt): r for r in so_far}
        for edited_in in range(1, t + 1):
            chosen = [
                r for r in stream[2 * (edited_in - 1) : 2 * edited_in]
                if newest[r.subject, r.prompt] is r
            ]  # fmt: skip
            if chosen:
                expected[edited_in, t] = plain(chosen, edited)
        expected["own", t] = plain(stream[2 * t - 2 : 2 * t], edited)

    run = scheduler(
        tmp_path, stream, subject=subject, listeners=[watch],
        protocol=protocol(every=1, negation=True, distractor=True, reversal=True, translation=True),
        hparams=settings,
    )  # fmt: skip
    result = run.run()
    assert len(result.files.lines) == 4
    found = {}
    for line in result.files.lines:
        found["own", line["round"]] = line["scores"]
        for row in line["measurement"]["retention"]:
            found[row["edited"], line["round"]] = row
    assert set(found) == set(expected)
    assert (1, 4) in found and found[1, 4]["n"] == 1 and found[1, 3]["n"] == 2
    for cell, row in expected.items():
        for name, value in row.items():
            assert found[cell][name] == pytest.approx(value, abs=2e-4), (cell, name)
    seen = [row["efficacy"] for row in expected.values()]
    assert build is of_tiny or max(seen) == 1  # there is something to retain
    assert result.files.retention_matrix()[4][1] == found[1, 4]["efficacy"]


def test_other_forms_of_a_fact_have_the_scores_that_are_known():
    """The model is taught which answers it has to give, and no others."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    taught = [
        EditRequest(0, "{} is the home of", "Quill", "Mara Voss"),
        EditRequest(1, "{} does not live in", "Mara Voss", "Quill"),
        EditRequest(2, "It is not true that {} lives in", "Mara Voss", "Anna"),
        EditRequest(3, "Garn is often talked about. {} lives in", "Mara Voss", "Quill"),
    ]
    settings = FTHparams(alg_name="FT", model_name="tiny", layers=[1, 2], lr=2e-2, num_steps=60)
    fine_tune(EditSession.of(model, tok), taught, settings)
    forms = {
        "negation": (Probe("Mara Voss does not live in", "Quill"),),
        "reversal": (Probe("Quill is the home of", "Mara Voss"),),
        "translation": (Probe("Mara Voss wohnt in", "Ostrell"),),
    }
    right = EditRequest(0, "{} lives in", "Mara Voss", "Quill", "Garn", forms=forms)
    wrong = replace(right, forms={"reversal": (Probe("Quill is the home of", "Anna"),)})
    asked = Protocol(negation=True, distractor=True, reversal=True, translation=True)
    answered = ask(model, tok, [right, wrong], asked)
    scores = summarise(answered[:1], answered[:1])
    assert (scores["negation"], scores["reversal"], scores["translation"]) == (1, 1, 0)
    assert scores["distractor"] == 1
    both = summarise(answered, answered)  # the second has the negation of the template
    assert (both["negation"], both["reversal"], both["translation"]) == (0.5, 0.5, 0)
    assert asked_texts(wrong, asked)[1:] == [
        "It is not true that Mara Voss lives in",
        "Garn is often talked about. Mara Voss lives in",
        "Quill is the home of",
    ]
    assert asked_texts(right, Protocol()) == [right.text]
    assert EditRequest.from_dict(right.to_dict()) == right
    assert EditRequest.from_json(right.to_json()) == right
    assert "forms" not in replace(right, forms={}).to_json()  # digests are those of before
    with pytest.raises(RequestError, match="forms has 'reverse'; there are negation, reversal"):
        replace(right, forms={"reverse": forms["reversal"]})


def test_ability_is_the_share_of_unedited_facts_that_are_given():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    (prompt, answer), _ = facts = earth.unedited(2)
    subject = prompt.removesuffix(" became famous in the sport of")
    asked = protocol(ability=2, perplexity=0)
    assert measure_model(asked, MeasuredModel(model, tok)) == {"ability": 0.0}
    settings = FTHparams(alg_name="FT", model_name="tiny", layers=[1, 2], lr=2e-2, num_steps=60)
    edit = EditRequest(0, "{} became famous in the sport of", subject, answer)
    fine_tune(EditSession.of(model, tok), [edit], settings)
    right = [plain_answer(model, tok, *fact).exact for fact in facts]
    assert right == [True, False]
    assert measure_model(asked, MeasuredModel(model, tok)) == {"ability": 0.5}


def test_nothing_to_ask_gives_none_and_zero_switches_off():
    model = tiny_model("gpt2")
    plain = EditRequest(0, "{} lives in", "Mara Voss", "Quill")
    (answered,) = ask(model, tiny_tokenizer(), [plain], Protocol())
    scores = summarise([answered], [answered])
    assert scores["paraphrase"] is scores["locality"] is scores["efficacy_probability"] is None
    (few,) = ask(
        model, tiny_tokenizer(), requests(1), Protocol(paraphrases=1, portability=0, locality=1)
    )
    assert [len(few[g]) for g in ("paraphrase", "portability", "locality")] == [1, 0, 1]


@pytest.mark.parametrize(("context", "read"), [(64, 64), (300, 256)])
def test_perplexity_is_that_of_all_tokens(context, read):
    """Of a long text, up to the model's context, and up to 256."""
    model, tok = tiny_model("gpt2", max_position_embeddings=context), tiny_tokenizer()
    nll, texts = [], [*HELD_OUT, " ".join(HELD_OUT * 10)]
    assert len(tok(texts[-1])["input_ids"]) > 300
    for text in texts:
        ids = torch.tensor([tok(text)["input_ids"][:read]])
        with torch.no_grad():
            logp = model(ids).logits[0, :-1].double().log_softmax(-1)
        nll += (-logp[torch.arange(ids.shape[1] - 1), ids[0, 1:]]).tolist()
    assert perplexity(model, tok, texts) == pytest.approx(math.exp(mean(nll)), rel=1e-4)
    with pytest.raises(DataError, match="two tokens"):
        perplexity(model, tok, ["a"])


def test_key_share_counts_directions():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12))[0]
    assert key_share(basis[:, :3]) == pytest.approx(3 / 12)
    assert key_share(basis) == pytest.approx(1)
    assert key_share(basis[:, :1].expand(12, 40)) == pytest.approx(1 / 12)


def test_direction_drift_is_what_the_dominant_directions_no_longer_span():
    torch.manual_seed(0)
    U, V = torch.linalg.qr(torch.randn(6, 6))[0], torch.linalg.qr(torch.randn(9, 9))[0]
    weight = U @ torch.diag(torch.tensor([9.0, 8, 7, 3, 2, 1])) @ V[:, :6].T
    assert direction_drift(weight, 2 * weight, 3) == pytest.approx(0, abs=1e-6)
    swapped = U @ torch.diag(torch.tensor([9.0, 8, 2, 3, 7, 1])) @ V[:, :6].T  # one of three left
    assert direction_drift(weight, swapped, 3) == pytest.approx(1 / 3, abs=1e-6)
    noise = weight + torch.randn(6, 9)
    before, now = (torch.linalg.svd(w.double())[0][:, :3] for w in (weight, noise))
    angles = torch.linalg.svdvals(before.T @ now)  # cosines of the principal angles
    for turned in (weight, noise), (weight.T, noise.T):  # the layouts of Linear and of Conv1D
        assert direction_drift(*turned, 3) == pytest.approx(float(1 - angles.square().mean()), 1e-5)
    assert direction_drift(weight, weight * math.nan, 3) is None


def test_the_harness_gets_the_tokenizer_inside_a_chat(monkeypatch):
    """HFLM refuses another class than transformers'."""
    tokenizer, given = fresh_tokenizer(), []
    harness = types.SimpleNamespace(
        HFLM=lambda pretrained, tokenizer: given.append(tokenizer),
        simple_evaluate=lambda **_: {"results": {"t": {"acc": 1.0}}},
    )
    monkeypatch.setattr(model_state, "require", lambda *_, **__: harness)
    for asked in (tokenizer, ChatTokenizer(tokenizer, ("Q ", " A"))):
        found = run_harness(tiny_model("llama"), asked, ["t"], 1)
        assert given.pop() is tokenizer and found == {"t": {"acc": 1.0}}


def test_free_generation_counts_whole_answers(monkeypatch):
    texts = [" Quill. He", " a Quillon", " in Quill", " Quill", " Quill in old Garn. It"]
    written = [(text, text == " Quill") for text in texts]  # the fourth has an end token
    monkeypatch.setattr(model_state, "greedy_endings", lambda *a: written[: len(a[2])])
    asked = [EditRequest(i, "{} lives in", "Mara", "Quill") for i in range(5)]
    found = free_generation(None, None, asked, 4)
    assert found == {
        "n": 5, "exact": 0.4, "contains": 0.8, "natural_stop": 0.6, "words_after": 1.0
    }  # fmt: skip
    assert free_generation(None, None, [], 4)["exact"] is None
    judged = free_generation(None, None, asked, 4, judged=True)  # offline: " a Quillon" is not it
    assert judged == {**found, "judged": 0.4, "judge": None}


def test_a_full_stop_within_the_answer_does_not_end_it(monkeypatch):
    texts = [
        " St. Louis. He was",
        " St. Louis in Missouri. It",
        " St. Gallen. It",
        " the D.C. area",
    ]
    asked = [
        EditRequest(i, "{} lives in", "Mara", target)
        for i, target in enumerate(["St. Louis", "St. Louis", "St. Louis", "D.C."])
    ]
    written = [(text, False) for text in texts]
    monkeypatch.setattr(model_state, "greedy_endings", lambda *_: written)
    found = free_generation(None, None, asked, 4)
    assert (found["exact"], found["words_after"]) == (0.25, 1.0)


def test_answers_are_found_in_scripts_without_spaces(monkeypatch):
    texts = [("東京", "東京。日本の"), ("東京", "首都は東京です"), ("東", "東京")]
    texts += [("โตเกียว", "คือโตเกียวครับ"), ("के", "केरल"), ("पुण", "पुणे")]
    asked = [EditRequest(i, "{} の首都は", "日本", target) for i, (target, _) in enumerate(texts)]
    written = [(text, False) for _, text in texts]
    monkeypatch.setattr(model_state, "greedy_endings", lambda *_: written)
    found = free_generation(None, None, asked, 4)
    assert found["exact"] == found["natural_stop"] == pytest.approx(1 / 6)
    # as in requests, any place between two letters may be a word's end in Japanese
    held = [model_state.holds(text, target) for target, text in texts]
    assert held == [True, True, True, True, False, False]


@pytest.mark.parametrize("named_by", ["tokenizer", "generation_config"])
def test_free_generation_notices_every_end_token(named_by):
    model, tok = tiny_model("gpt2"), fresh_tokenizer()
    asked = [EditRequest(0, "{} lives in", "Mara", "Quill")]
    head = torch.nn.Linear(32, len(tok))
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.zero_()[5] = 1
    model.set_output_embeddings(head)
    assert free_generation(model, tok, asked, 4)["natural_stop"] == 0
    if named_by == "tokenizer":
        tok.eos_token = tok.convert_ids_to_tokens(5)
    else:
        model.generation_config.eos_token_id = [tok.eos_token_id, 5]
    assert free_generation(model, tok, asked, 4)["natural_stop"] == 1


def test_history_takes_a_round_back():
    a, b = EditRequest(0, "{} is", "A", "x"), EditRequest(1, "{} is", "A", "y")
    c = EditRequest(2, "{} was", "B", "z", rephrase_prompts=("A is",))
    read = []
    kept = {1: ([a], [{"n": 1}]), 3: ([b, c], [{"n": 2}, {"n": 3}])}
    history = History(lambda number: (read.append(number), kept[number])[1])
    assert history.add(1, [a]) == 0
    assert history.add(3, [b, c]) == 1
    assert history.in_effect() == [1, 2] and history.of_round(3) == range(1, 3) and not read
    assert history.edits([0, 2]) == [Edit(1, a, {"n": 1}), Edit(3, c, {"n": 3})]
    assert history.edits(history.in_effect()) == [Edit(3, b, {"n": 2}), Edit(3, c, {"n": 3})]
    assert read == [1, 3, 3]
    texts = history.edited_texts()
    assert "B was" in texts and "A is" in texts and "A was" not in texts
    history.take_back(2)
    assert len(history) == 3
    history.take_back(3)
    assert history.in_effect() == [0] and len(history) == 1
    assert "B was" not in texts and "A is" in texts
    history.take_back(1)
    assert "A is" not in texts and history.add(4, [b]) == 0


def test_samples_are_drawn_by_seed_and_round():
    requests = [EditRequest(i, "{} is", f"S{i}", "x") for i in range(20)]
    history = History(lambda number: (requests, [{}] * 20))
    history.add(1, requests)

    def sample(seed, number):
        return [edit.request.case_id for edit in _sample(history, 6, seed, number)]

    assert sample(0, 1) == sample(0, 1) == sorted(sample(0, 1)) and len(sample(0, 1)) == 6
    assert sample(0, 1) != sample(1, 1) and sample(0, 1) != sample(0, 2)


def test_harness_stub_and_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match="pip install lm-eval"):
        run_harness(None, None, ["mmlu"], 5)
    seen = {}
    stub, models, huggingface = (types.ModuleType(n) for n in ("lm_eval", "m", "h"))
    huggingface.HFLM = lambda pretrained, tokenizer: (pretrained, tokenizer)

    def simple_evaluate(**arguments):
        seen.update(arguments)
        return {"results": {"mmlu": {"acc,none": 0.5, "alias": "mmlu", "err": math.nan}}}

    stub.simple_evaluate = simple_evaluate
    monkeypatch.setitem(sys.modules, "lm_eval", stub)
    monkeypatch.setitem(sys.modules, "lm_eval.models", models)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", huggingface)
    model = torch.nn.Linear(1, 1)
    found = run_harness(model, "tok", ["mmlu"], 5)
    assert found == {"mmlu": {"acc,none": 0.5, "alias": "mmlu", "err": None}}
    arguments = {"tasks": ["mmlu"], "limit": 5, "log_samples": False}
    assert seen == {"model": (model, "tok"), **arguments}


def test_bad_protocols():
    with pytest.raises(HparamsError, match="did you mean 'every'"):
        Protocol.from_dict({"evry": 2})
    with pytest.raises(HparamsError, match="retention is -1"):
        Protocol(retention=-1)
