"""EasyEdit's scorer against ours, on the records of ``test_datasets.py``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from nse_plugin.data import readers
from nse_plugin.easyedit import checkout
from nse_plugin.easyedit.datasets import read_records
from nse_plugin.evaluation.edit_quality import compute_edit_quality
from tests.contract.records import FLAT, HPARAMS, for_scorer, plain, shared, taken, without
from tests.tiny import tiny_model, tiny_tokenizer


def their_scores(model, tokenizer, record):
    evaluate = checkout.part("easyeditor.evaluate.evaluate:compute_edit_quality")
    return plain(evaluate(model, "tiny-model", HPARAMS, tokenizer, record, "cpu"))


def our_scores(model, tokenizer, record):
    return plain(compute_edit_quality(model, "tiny-model", HPARAMS, tokenizer, record, "cpu"))


def taught(family, requests):
    """A tiny model trained on the records briefly, so that some answers are partly right."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, max_position_embeddings=512)
    texts = [f"{request.text} {request.target_new}" for request in requests]
    for groups in (r.portability for r in requests):
        texts += [f"{probe.prompt} {probe.answer}" for kind in groups.values() for probe in kind]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(7):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def a_few(requests, n=8):
    """Some of them, evenly spaced, and those with the most kinds of probes."""
    places = range(0, len(requests), max(1, len(requests) // (n // 2)))
    richest = sorted(
        range(len(requests)),
        key=lambda i: -len(requests[i].locality) - len(requests[i].portability),
    )
    return list(dict.fromkeys([*list(places)[: n // 2], *richest]))[:n]


def single(record):
    """A record with only such kinds of probes as have one: see evaluation/edit_quality.py.

    Several are padded on the left by the host, which passes no positions; so GPT-2's numbers
    depend there on the longest of them.
    """
    return {
        name: {kind: group for kind, group in value.items() if len(group["prompt"]) == 1}
        if name in ("locality", "portability")
        else value
        for name, value in record.items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_the_same(easyedit, benchmark, path, family, tmp_path):
    file, _ = taken(benchmark, path, tmp_path)
    items = list(checkout.part(benchmark.where)(str(file)))
    requests = readers.read_records(file, benchmark.kind)
    chosen = a_few(requests)
    model, tokenizer = taught(family, [requests[index] for index in chosen])
    accuracies = []
    for index in chosen:
        record = requests[index].to_dict()
        given = for_scorer(benchmark, items[index])
        # what the class gives, completed by what it leaves out
        theirs = {**record, **without(given, (*benchmark.left_out, "locality", "portability"))}
        for section in {"locality", "portability"} - set(benchmark.left_out):
            theirs[section] = {**record[section], **given[section]}
        if family == "gpt2":
            record, theirs = single(record), single(theirs)
        ours = our_scores(model, tokenizer, record)
        assert ours == their_scores(model, tokenizer, theirs)
        assert set(ours["locality"]) == {f"{kind}_output" for kind in record["locality"]}
        assert set(ours["portability"]) == {f"{kind}_acc" for kind in record["portability"]}
        for values in (ours["rewrite_acc"], *ours["portability"].values()):
            accuracies += values
    assert len(set(accuracies)) > 1  # some answers are partly right: the comparison says something


PROBE = {"prompt": ["Anna is a", "Ann is a"], "ground_truth": ["painter", "doctor"]}
REFUSED_BY_THE_SCORER = {  # and the probes that our scorer reads there, as our readers do
    "a kind without probes": (
        {"locality": {"k": {"prompt": [], "ground_truth": []}}},
        ValueError,
        None,
    ),
    "answers with their aliases, as KnowEdit has them": (
        {"locality": {"k": {**PROBE, "ground_truth": [["painter"], ["doctor", "dr."]]}}},
        TypeError,
        PROBE,
    ),
    "aliases nested twice, as wiki_recent has them": (
        {"locality": {"k": {**PROBE, "ground_truth": [[["painter"]], [["doctor"]]]}}},
        TypeError,
        PROBE,
    ),
    "one prompt with several aliases": (
        {"locality": {"k": {"prompt": "Anna is a", "ground_truth": ["painter", "artist"]}}},
        TypeError,
        {"prompt": "Anna is a", "ground_truth": "painter"},
    ),
    "a kind that is None": ({"locality": {"k": None}}, TypeError, None),
}


@pytest.mark.parametrize("what", REFUSED_BY_THE_SCORER)
def test_records_on_which_the_hosts_scorer_breaks(easyedit, what):
    """None of these comes out of a reader of ours."""
    change, their_error, read = REFUSED_BY_THE_SCORER[what]
    record = readers.parse_records(FLAT)[0].to_dict()
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(their_error):
        their_scores(model, tokenizer, record | change)
    wanted = their_scores(model, tokenizer, record | {"locality": {"k": read} if read else {}})
    assert our_scores(model, tokenizer, record | change)["locality"] == wanted["locality"]


def test_real_records_break_the_hosts_scorer_unless_they_are_read(easyedit):
    """With their groups as they stand in the file: nested answers, and kinds without probes."""
    path = shared("knowedit_wiki_recent_100.json")
    raw = json.loads(path.read_text(encoding="utf-8"))
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    reasons = {"nested": 0, "empty": 0}
    for record in raw:
        for section in ("portability", "locality"):
            for kind, probes in record[section].items():
                group = {
                    "prompt": [probe["prompt"] for probe in probes],
                    "ground_truth": [probe["ground_truth"] for probe in probes],
                }
                asked = {**record, "ground_truth": None, "locality": {}, "portability": {}}
                asked[section] = {kind: group}
                with pytest.raises(TypeError if probes else ValueError):
                    their_scores(model, tokenizer, asked)
                reasons["nested" if probes else "empty"] += 1
    assert reasons["empty"] == 5 and reasons["nested"] > 100
    for request in read_records(path)[:20]:
        their_scores(model, tokenizer, request.to_dict())


@pytest.mark.parametrize(
    ("kind", "family"), [("generate-text", "gpt2"), ("LLM-judge", "gpt2"), ("LLM-judge", "llama")]
)
def test_generated_texts_and_their_scores_are_the_same(easyedit, kind, family):
    """Some answers are what the model says, in other letters, so that not all scores are 0."""
    record = readers.parse_records(FLAT)[0].to_dict()
    near = {"prompt": "Anna is a", "ground_truth": "painter"}
    record |= {"locality": {"k": near}, "portability": {"k": near}, "rephrase_prompt": "Where?"}
    model, tokenizer = tiny_model(family, max_position_embeddings=600), tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}:"
    hparams = SimpleNamespace(**{**vars(HPARAMS), "evaluation_type": kind})
    evaluate = checkout.part("easyeditor.evaluate.evaluate:compute_edit_quality")
    (said,) = compute_edit_quality(model, "", hparams, tokenizer, record)["rewrite_gen_content"]
    for record["target_new"] in ("something else", f" The {said.upper()}, "):
        ours, theirs = (
            plain(score(model, "tiny-model", hparams, tokenizer, record, "cpu"))
            for score in (compute_edit_quality, evaluate)
        )
        assert ours == theirs
    assert kind == "generate-text" or ours["rewrite_acc"] == [1.0]
