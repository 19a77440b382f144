"""The metrics of an edit against a brute-force reading of EasyEdit's definitions."""

from __future__ import annotations

import json
import math
import random
import re
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing

from nse_plugin.errors import HparamsError, RequestError
from nse_plugin.evaluation import edit_quality, questions
from nse_plugin.evaluation.before_after import finalize_locality, mean_metrics
from nse_plugin.evaluation.edit_quality import compute_edit_quality, compute_many
from nse_plugin.evaluation.generated import ngram_entropy
from tests.plain import plain_answer
from tests.tiny import fresh_tokenizer, wide_model

LETTERS = "".join(map(chr, range(33, 127))) + "\u00e0\u0119\u4e2d\u0438"
HPARAMS = SimpleNamespace(alg_name="NSE", max_length=40)
LONG = "The capital of France, which is where Alice lived, is"


def record(prompt="Alice lives in", target="Paris and Rome"):
    return {
        "prompt": prompt,
        "target_new": target,
        "ground_truth": "Oslo",
        "rephrase_prompt": "Where is it that Alice lives?",
        "locality": {
            "one": {"prompt": "Bob lives in", "ground_truth": "Rome is"},
            "several": {"prompt": ["Oslo", LONG], "ground_truth": ["is", "a continent of it"]},
        },
        "portability": {"hop": {"prompt": ["Oslo", LONG], "ground_truth": ["is", "the sea"]}},
    }


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return wide_model(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_metrics_are_those_of_unbatched_passes(model, side):
    tokenizer = fresh_tokenizer(side)
    asked = record()
    got = compute_edit_quality(model, "any", HPARAMS, tokenizer, asked, "cpu")
    assert list(got) == ["locality", "portability", "rewrite_acc", "metric_meta", "rephrase_acc"]
    target = asked["target_new"]
    assert got["rewrite_acc"] == [plain_answer(model, tokenizer, asked["prompt"], target).accuracy]
    assert got["rephrase_acc"] == [
        plain_answer(model, tokenizer, asked["rephrase_prompt"], target).accuracy
    ]
    assert got["locality"] == {
        "one_output": [plain_answer(model, tokenizer, "Bob lives in", "Rome is").choices],
        "several_output": [
            plain_answer(model, tokenizer, "Oslo", "is").choices,
            plain_answer(model, tokenizer, LONG, "a continent of it").choices,
        ],
    }
    assert got["portability"] == {
        "hop_acc": [
            plain_answer(model, tokenizer, "Oslo", "is").accuracy,
            plain_answer(model, tokenizer, LONG, "the sea").accuracy,
        ]
    }
    assert got["metric_meta"]["rewrite"] == {
        "result_key": "rewrite_acc",
        "protocol": "decoder_only_teacher_forcing",
        "scorer": "token_accuracy",
        "comparable_group": "lm.decoder_only_teacher_forcing.token_accuracy",
    }
    json.dumps(got)


def test_accuracy_is_the_share_of_first_choices(model):
    tokenizer = fresh_tokenizer()
    draw = random.Random(0)  # long random answers: the model gets a token right now and then
    asked = [(prompt, "".join(draw.choices(LETTERS, k=50))) for prompt in ["Oslo", "Bob"] * 30]
    wanted = [plain_answer(model, tokenizer, *pair).accuracy for pair in asked]
    records = [{"prompt": prompt, "target_new": answer} for prompt, answer in asked]
    got = [entry["rewrite_acc"][0] for entry in compute_many(model, HPARAMS, tokenizer, records)]
    assert got == wanted
    assert len(set(wanted)) > 1  # some are partly right


def test_many_records_equal_one_at_a_time(model):
    tokenizer = fresh_tokenizer()
    records = [record(), record("Oslo", "is"), {"prompt": LONG, "target_new": "Garn"}]
    together = compute_many(model, HPARAMS, tokenizer, records)
    alone = [compute_edit_quality(model, "", HPARAMS, tokenizer, r, "cpu") for r in records]
    assert together == alone
    assert "rephrase_acc" not in together[2] and together[2]["locality"] == {}


def test_template_is_filled_and_lists_are_scored_each(model):
    tokenizer = fresh_tokenizer()
    plain = compute_many(model, HPARAMS, tokenizer, [record()])[0]
    template = {**record("{} lives in"), "subject": "Alice"}
    template["rephrase_prompt"] = ["Where is it that Alice lives?", "Alice, she lives in"]
    got = compute_many(model, HPARAMS, tokenizer, [template])[0]
    assert got["rewrite_acc"] == plain["rewrite_acc"]
    assert got["rephrase_acc"] == [
        plain_answer(model, tokenizer, prompt, "Paris and Rome").accuracy
        for prompt in template["rephrase_prompt"]
    ]


def test_perplexity_is_that_of_the_target(model):
    tokenizer = fresh_tokenizer()
    got = compute_many(model, HPARAMS, tokenizer, [record()], eval_metric="ppl")[0]
    plain = plain_answer(model, tokenizer, "Alice lives in", "Paris and Rome")
    assert got["rewrite_ppl"] == pytest.approx(math.exp(plain.nll), rel=1e-4)
    assert "rewrite_acc" not in got and got["metric_meta"]["rewrite"]["scorer"] == "perplexity"
    collapsed = questions.ScoredAnswer(False, 0.0, nll=1e4, n_tokens=2, predicted=[])
    assert edit_quality._perplexity([collapsed]) == math.inf


def spaces_in_one_token(text):
    """A tokenizer that merges a blank at the prompt's end with the one before the answer."""
    pieces = re.findall(r" +|[^ ]", text)
    return {"input_ids": [len(p) if p[0] == " " else 100 + ord(p) % 100 for p in pieces]}


def test_a_token_across_prompt_and_answer_is_counted_as_the_host_does(model):
    """Of "in" + two blanks + "sea" the prompt's own 3 tokens are its; the rest is the answer."""
    assert len(spaces_in_one_token("in  sea")["input_ids"]) == 3 + 3
    choices, ids, _ = plain_answer(model, spaces_in_one_token, "in ", "sea")
    probe = {"k": {"prompt": "in ", "ground_truth": "sea"}}
    got = compute_many(model, HPARAMS, spaces_in_one_token, [{**record("in "), "locality": probe}])
    assert got[0]["locality"]["k_output"] == [choices] and len(choices) == len(ids) == 3


def test_special_tokens_are_not_counted_as_the_answers(model):
    tokenizer = fresh_tokenizer(bos=True)
    choices, ids, _ = plain_answer(model, tokenizer, "Bob lives in", "Rome is")
    got = compute_many(model, HPARAMS, tokenizer, [record()])[0]
    assert got["locality"]["one_output"] == [choices] and tokenizer.bos_token_id not in ids


def test_finalize_locality_compares_before_and_after():
    pre = {"locality": {"k_output": [[1, 2, 3, 4], [5]]}}
    post = {"locality": {"k_output": [[1, 2, 0, 0], [5]]}, "metric_meta": {}}
    metric = finalize_locality({"pre": pre, "post": post})
    assert metric["post"]["locality"]["k_acc"] == [0.5, 1.0]
    assert metric["post"]["metric_meta"]["locality.k"]["scorer"] == "token_match"
    assert "k_acc" not in metric["pre"]["locality"]
    with pytest.raises(RequestError, match="1 outputs after the edit and 2 before"):
        finalize_locality({"pre": pre, "post": {"locality": {"k_output": [[1]]}}})


def test_means_count_each_case_once():
    cases = [
        {"pre": {"rewrite_acc": [0.0]}, "post": {"rewrite_acc": [1.0], "portability": {"h_acc": p}}}
        for p in ([0.0, 1.0], [1.0])
    ]
    assert mean_metrics(cases) == {
        "pre": {"rewrite_acc": 0.0},
        "post": {"rewrite_acc": 1.0, "portability": {"h_acc": 0.75}},
    }


def test_fluency_is_low_for_repetition_and_stays_the_same(model):
    assert ngram_entropy("a a a a a a") == 0 == ngram_entropy("") == ngram_entropy("one")
    # 4 pairs, 3 triples, all different: (2/3 * log2 4 + 4/3 * log2 3) / 2
    assert ngram_entropy("a b c d e") == pytest.approx((4 / 3 + 4 / 3 * math.log2(3)) / 2)
    tokenizer = fresh_tokenizer()
    once, again = (
        compute_many(model, HPARAMS, tokenizer, [record()], test_generation=True)[0]["fluency"]
        for _ in range(2)
    )
    assert once == again and once["ngram_entropy"] > 0


def test_options_that_are_not_offered_are_named(model):
    tokenizer = fresh_tokenizer()
    with pytest.raises(HparamsError, match="unknown eval_metric 'pppl'; did you mean 'ppl'"):
        compute_many(model, HPARAMS, tokenizer, [record()], eval_metric="pppl")
    judged = SimpleNamespace(alg_name="NSE", evaluation_type="LLM-judge")
    with pytest.raises(HparamsError, match="LLM-judge.* no chat template"):
        compute_many(model, judged, tokenizer, [record()])
    with pytest.raises(RequestError, match="'target_new' is missing"):
        compute_many(model, HPARAMS, tokenizer, [{"prompt": "a"}])
    odd = {**record(), "locality": {"k": {"prompt": ["a", "b"], "ground_truth": ["c"]}}}
    with pytest.raises(RequestError, match=r"locality\['k'\] has 2 prompts and 1 answers"):
        compute_many(model, HPARAMS, tokenizer, [odd])


def test_other_forms_of_probes_are_read_and_missing_ones_left_out(model):
    """Lists of probes and aliases as KnowEdit has them, and the gaps of a table."""
    tokenizer, nan = fresh_tokenizer(), float("nan")
    knowedit = [{"prompt": "Bob lives in", "ground_truth": [["Rome is", "Roma"]]}, {"prompt": nan}]
    gaps = {"none": None, "empty": {}, "no answer": {"prompt": "a", "ground_truth": nan}}
    odd = {**record(), "locality": {"one": knowedit[:1], **gaps}, "portability": nan}
    odd["rephrase_prompt"] = nan
    got = compute_many(model, HPARAMS, tokenizer, [odd])[0]
    plain = compute_many(model, HPARAMS, tokenizer, [record()])[0]
    assert got["locality"] == {"one_output": plain["locality"]["one_output"]}
    assert got["portability"] == {} and "rephrase_acc" not in got
    for change, message in [
        ({"target_new": 1984}, "target_new holds 1984"),
        ({"target_new": ["a", "b"]}, "prompt has 1 texts and target_new 2"),
        ({"locality": {"k": knowedit}}, r"record 0: locality\['k'\] holds .*'ground_truth'"),
    ]:
        with pytest.raises(RequestError, match=message):
            compute_many(model, HPARAMS, tokenizer, [{**record(), **change}])


def test_chat_template_wraps_all_but_locality(model):
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Q {{ m['content'] }} A{% endfor %}"
    chatting = SimpleNamespace(alg_name="NSE", use_chat_template=True)
    got = compute_many(model, chatting, tokenizer, [record()])[0]
    plain = compute_many(model, HPARAMS, tokenizer, [record()])[0]
    wrapped = record("Q Alice lives in A")
    assert (
        got["rewrite_acc"] == compute_many(model, HPARAMS, tokenizer, [wrapped])[0]["rewrite_acc"]
    )
    assert got["locality"] == plain["locality"]


def test_a_rendered_chat_has_one_start_token_and_no_end_before_the_answer(model, monkeypatch):
    tokenizer = fresh_tokenizer()
    start, end = tokenizer.convert_ids_to_tokens([0, 1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)]
    )
    tokenizer.chat_template = start + "{% for m in messages %}Q {{ m['content'] }} A{% endfor %}"
    seen = []
    scored = questions.score_encoded
    monkeypatch.setattr(
        questions,
        "score_encoded",
        lambda model, pairs, **options: seen.extend(pairs) or scored(model, pairs, **options),
    )
    for chatting in (True, False):
        hparams = SimpleNamespace(alg_name="NSE", use_chat_template=chatting)
        compute_many(model, hparams, tokenizer, [record()])
    assert all(pair.ids.count(0) == 1 and pair.ids[0] == 0 for pair in seen)
    assert not any(1 in pair.ids for pair in seen)


def test_a_prompt_beyond_the_context_is_named_by_its_case(model):
    long = {**record("Alice lives in " * 200), "case_id": "c-7"}
    with pytest.raises(RequestError, match="c-7"):
        compute_many(model, HPARAMS, fresh_tokenizer(), [record(), long])
