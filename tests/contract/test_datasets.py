"""EasyEdit's dataset classes against our readers, record by record.

Two sources: a few records written here, and the slices of the real benchmarks in
``../shared/data``, which are skipped where they are absent.
"""

from __future__ import annotations

import json

import pytest

from nse_plugin.data.readers import read_records
from nse_plugin.easyedit import checkout
from tests.contract.records import (
    BENCHMARKS,
    BLANKS,
    NO_ALIAS,
    WIKI_RECENT,
    for_scorer,
    shared,
    taken,
    without,
    write,
)


def test_what_the_hosts_class_gives_is_in_our_requests(easyedit, benchmark, path, tmp_path):
    file, _ = taken(benchmark, path, tmp_path)
    items = list(checkout.part(benchmark.where)(str(file)))
    requests = read_records(file, benchmark.kind)
    assert len(items) == len(requests)
    left_out = (*benchmark.left_out, "subject_start")  # ours says where the subject stands
    if "case_id" not in items[0]:  # ours then counts
        left_out += ("case_id",)
    for item, request in zip(items, requests):
        theirs, ours = for_scorer(benchmark, item), request.to_dict()
        assert without(ours, left_out) == without(theirs, left_out)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_new_answers_lose_the_blanks_around_them(easyedit, name, tmp_path):
    benchmark = BENCHMARKS[name]
    file, _ = taken(benchmark, shared(benchmark.shared), tmp_path)
    items = list(checkout.part(benchmark.where)(str(file)))
    requests = read_records(file, benchmark.kind)
    targets = [(item["target_new"], request.target_new) for item, request in zip(items, requests)]
    differ = {place: theirs for place, (theirs, ours) in enumerate(targets) if theirs != ours}
    assert differ == BLANKS.get(name, {})
    assert all(ours == theirs.strip() for theirs, ours in targets)


def test_the_subject_that_zsre_drops_is_in_its_question(easyedit, tmp_path):
    """So a request can be made of each item, once it is put back."""
    file, raw = taken(BENCHMARKS["ZsRE"], shared("zsre_200.json"), tmp_path)
    items = list(checkout.part(BENCHMARKS["ZsRE"].where)(str(file)))
    assert not any("subject" in item or "portability" in item for item in items)
    requests = read_records(file)
    assert [request.text for request in requests] == [item["prompt"] for item in items]
    assert [request.subject for request in requests] == [record["subject"] for record in raw]


@pytest.mark.parametrize("source", ["written here", "shared"])
def test_wiki_recents_random_probe_is_one_of_ours(easyedit, source, tmp_path):
    """It draws one probe and one alias of one answer; ours are all, with the first alias each."""
    benchmark = BENCHMARKS["WikiRecent"]
    path = shared(benchmark.shared) if source == "shared" else write(tmp_path, WIKI_RECENT)
    file, raw = taken(benchmark, path, tmp_path)
    items = list(checkout.part(benchmark.where)(str(file)))
    for item, request, record in zip(items, read_records(file, "wiki_recent"), raw):
        probes = request.locality["Relation_Specificity"]
        assert item["locality_prompt"] in {probe.prompt for probe in probes}
        answers = record["locality"]["Relation_Specificity"]
        assert item["locality_ground_truth"] in {
            alias for probe in answers for group in probe["ground_truth"] for alias in group
        }
        assert item["rephrase_prompt"] == item["prompt"]  # there is none: the prompt once more
        assert request.rephrase_prompts == ()


def test_an_answer_without_an_alias_is_no_answer(easyedit):
    """WikiRecentDataset breaks on it when it draws it; KnowEditDataset passes it on."""
    path = shared(BENCHMARKS["WikiRecent"].shared)
    raw = json.loads(path.read_text(encoding="utf-8"))[NO_ALIAS]
    (odd,) = [
        (place, probe["ground_truth"])
        for place, probe in enumerate(raw["locality"]["Relation_Specificity"])
        if not all(probe["ground_truth"])
    ]
    for kind in ("knowedit", "wiki_recent"):
        probes = read_records(path, kind)[NO_ALIAS].locality["Relation_Specificity"]
        assert [[], [probes[odd[0]].answer]] == odd[1]
