"""The same thirty ZsRE records through EasyEdit and through the embedded host, end to end."""

from __future__ import annotations

import json
import random

import pytest
import torch

from nse_plugin.data import atlas
from nse_plugin.data.readers import read_records
from nse_plugin.easyedit import checkout
from nse_plugin.session.session import EditSession
from tests.contract.conftest import atlas_hparams, editor_class_of
from tests.contract.records import plain

RECORDS = 30


@pytest.fixture(scope="module")
def zsre_file(tmp_path_factory):
    """Facts of the embedded world in ZsRE's layout."""
    chosen, others = atlas.edit_set(RECORDS, seed=3), random.Random(3)
    untouched = atlas.other_facts(chosen, RECORDS, seed=3)
    records = []
    for fact in chosen:
        rewrite, other = fact["requested_rewrite"], others.choice(untouched)["requested_rewrite"]
        text = rewrite["prompt"].format(rewrite["subject"])
        true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        record = {
            "subject": rewrite["subject"], "src": text, "pred": true,
            "rephrase": fact["paraphrase_prompts"][0], "alt": new, "answers": [true],
            "loc": "nq question: " + other["prompt"].format(other["subject"]),
            "loc_ans": other["target_true"]["str"], "cond": f"{true} >> {new} || {text}",
        }  # fmt: skip
        for probe in fact["portability"][:1]:
            record["portability"] = {
                "New Question": probe["prompt"],
                "New Answer": probe["answer_new"],
            }
        records.append(record)
    path = tmp_path_factory.mktemp("zsre") / "zsre.json"
    path.write_text(json.dumps(records))
    return path


def by_easyedit(path):
    """The file read by EasyEdit's class; what it drops (subject, portability) from the file."""
    raw = json.loads(path.read_text())
    items = list(checkout.part("easyeditor:ZsreDataset")(str(path)))
    hops = [record.get("portability", {}) for record in raw]
    return {
        "prompts": [item["prompt"] for item in items],
        "rephrase_prompts": [item["rephrase_prompt"] for item in items],
        "target_new": [item["target_new"] for item in items],
        "ground_truth": [item["ground_truth"] for item in items],
        "subject": [record["subject"] for record in raw],
        "locality_inputs": {
            "neighborhood": {
                "prompt": [item["locality_prompt"] for item in items],
                "ground_truth": [item["locality_ground_truth"] for item in items],
            }
        },
        "portability_inputs": {
            "one_hop": {
                "prompt": [hop.get("New Question") for hop in hops],
                "ground_truth": [hop.get("New Answer") for hop in hops],
            }
        },
    }


def by_ours(path):
    """The same file through our reader, as EasyEdit's parallel lists."""
    requests = read_records(path, "zsre")

    def probes(section, kind):
        groups = [getattr(request, section).get(kind) for request in requests]
        return {
            "prompt": [group[0].prompt if group else None for group in groups],
            "ground_truth": [group[0].answer if group else None for group in groups],
        }

    return {
        "prompts": [request.text for request in requests],
        "rephrase_prompts": [request.rephrase_prompts[0] for request in requests],
        "target_new": [request.target_new for request in requests],
        "ground_truth": [request.ground_truth for request in requests],
        "subject": [request.subject for request in requests],
        "locality_inputs": {"neighborhood": probes("locality", "neighborhood")},
        "portability_inputs": {"one_hop": probes("portability", "one_hop")},
    }


def test_both_read_the_same_requests(easyedit, zsre_file):
    assert by_easyedit(zsre_file) == by_ours(zsre_file)


@pytest.mark.parametrize("family", atlas.MODELS)
@pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "each alone"])
def test_both_hosts_give_the_same_weights_and_metrics(
    easyedit, zsre_file, tmp_path, family, sequential
):
    results = {}
    for host, read in (("embedded", by_ours), ("easyedit", by_easyedit)):
        # statistics and context texts too are made by each host's own model
        hparams = atlas_hparams(family, v_num_grad_steps=8, stats_dir=str(tmp_path / host))
        editor = editor_class_of(host).from_hparams(hparams)
        arguments = read(zsre_file)
        if not sequential:  # the first few say enough
            arguments = first(arguments, 5)
        metrics, model, _ = editor.edit(**arguments, sequential_edit=sequential, verbose=False)
        results[host] = (plain(metrics), EditSession.of(model), model)
    (ours, session, model), (theirs, their_session, their_model) = results.values()
    if sequential:
        assert len(session.ledger) == len(their_session.ledger) == RECORDS
    weights, their_weights = model.state_dict(), their_model.state_dict()
    assert weights.keys() == their_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, their_weights[name], rtol=0, atol=1e-6)
    assert any(metric["post"]["rewrite_acc"] != metric["pre"]["rewrite_acc"] for metric in ours)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["requested_rewrite"] == other["requested_rewrite"] | {
            "case_id": mine["case_id"]
        }
        assert {**mine, "requested_rewrite": None} == {**other, "requested_rewrite": None}


def first(arguments, n):
    """The same columns, cut to n facts."""
    if isinstance(arguments, list):
        return arguments[:n]
    return {name: first(column, n) for name, column in arguments.items()}
