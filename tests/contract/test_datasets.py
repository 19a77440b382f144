"""EasyEdit's dataset classes against our readers, record by record.

Two sources: a few records written here, and the slices of the real benchmarks in
``../shared/data``, which are skipped where they are absent.
"""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest

from nse_plugin import host as hosting
from nse_plugin.data import readers
from nse_plugin.easyedit import checkout
from nse_plugin.easyedit.datasets import read_records
from nse_plugin.errors import DataError, HostError
from tests.contract.records import (
    BENCHMARKS,
    BLANKS,
    FLAT,
    KNOWEDIT,
    NO_ALIAS,
    WIKI_RECENT,
    ZSRE,
    for_scorer,
    shared,
    taken,
    without,
    write,
)


def test_requests_are_the_same_through_the_hosts_class(easyedit, benchmark, path):
    read = read_records(path, benchmark.kind)
    assert read == readers.read_records(path, benchmark.kind)
    assert len(read) == len(json.loads(path.read_text(encoding="utf-8")))


def test_what_the_hosts_class_gives_is_in_our_requests(easyedit, benchmark, path, tmp_path):
    file, _ = taken(benchmark, path, tmp_path)
    items = list(checkout.part(benchmark.where)(str(file)))
    requests = readers.read_records(file, benchmark.kind)
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


@pytest.mark.parametrize("name", ["counterfact_200.json", "mquake_50.json"])
def test_layouts_without_a_class_are_read_by_ours(easyedit, name):
    path = shared(name)
    assert read_records(path) == readers.read_records(path)


def test_layouts_are_recognised_and_limited_as_by_ours(easyedit, benchmark, path):
    assert read_records(path, limit=1) == readers.read_records(path, limit=1)


def test_json_lines_and_a_byte_order_mark_are_read(easyedit, benchmark, tmp_path):
    whole = read_records(write(tmp_path, benchmark.records))
    lines = tmp_path / "records.jsonl"
    lines.write_text("\n".join(json.dumps(record) for record in benchmark.records))
    marked = tmp_path / "marked.json"
    marked.write_text(json.dumps(benchmark.records, ensure_ascii=False), encoding="utf-8-sig")
    assert read_records(lines) == read_records(marked) == whole


def test_reading_prints_nothing_and_draws_nothing(easyedit, benchmark, path, capsys):
    state = random.getstate()
    read_records(path, benchmark.kind)
    assert random.getstate() == state and capsys.readouterr().out == ""


# --- records that a class refuses or leaves out ---------------------------------------------------


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: v for name, v in {**record, **changes}.items() if v is not None}


USABLE = {
    "a question without nq": ("zsre", changed(ZSRE[0], loc="who is it"), "AssertionError"),
    "no answers": ("zsre", changed(ZSRE[0], answers=None), "KeyError: 'answers'"),
    "no locality": ("knowedit", changed(KNOWEDIT[0], locality=None), "KeyError: 'locality'"),
    "no kind of its own": (
        "wiki_recent",
        changed(WIKI_RECENT[0], locality={}),
        "KeyError: 'Relation_Specificity'",
    ),
    "a kind without probes": (
        "wiki_recent",
        changed(WIKI_RECENT[0], locality={"Relation_Specificity": []}),
        "IndexError",
    ),
}


@pytest.mark.parametrize("what", USABLE)
def test_a_file_refused_by_the_class_is_read_by_ours(easyedit, what, tmp_path, caplog):
    kind, odd, reason = USABLE[what]
    good = {b.kind: b.records for b in BENCHMARKS.values()}[kind]
    path = write(tmp_path, [*good, odd, *good])
    (benchmark,) = [b for b in BENCHMARKS.values() if b.kind == kind and b.records is good]
    with pytest.raises(Exception, match=reason.partition(": ")[2].strip("'")):
        checkout.part(benchmark.where)(str(path))
    with caplog.at_level(logging.INFO):
        assert read_records(path, kind) == readers.read_records(path, kind)
    (message,) = [text for text in caplog.messages if "refuses" in text]
    assert message.startswith("records.json is read without EasyEdit's ") and reason in message


def test_real_records_refused_by_the_class_are_read_by_ours(easyedit, caplog):
    """22 have no Relation_Specificity, one an answer without an alias, which is drawn or not."""
    benchmark = BENCHMARKS["WikiRecent"]
    path = shared(benchmark.shared)
    with pytest.raises((KeyError, IndexError)):
        checkout.part(benchmark.where)(str(path))
    with caplog.at_level(logging.INFO):
        read_records(path, benchmark.kind)
    assert any("without EasyEdit's WikiRecentDataset" in text for text in caplog.messages)


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


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        ("zsre", ZSRE, changed(ZSRE[0], alt="")),  # left out by the class without a word
        ("zsre", ZSRE, changed(ZSRE[0], src=None)),
        ("counterfact_flat", FLAT, changed(FLAT[0], subject="Nobody")),
        ("counterfact_flat", FLAT, "a text"),
        ("knowedit", KNOWEDIT, changed(KNOWEDIT[0], target_new=None)),
        ("wiki_recent", WIKI_RECENT, changed(WIKI_RECENT[0], target_new="")),
    ],
)
def test_bad_records_raise_or_are_skipped_as_by_ours(easyedit, kind, good, bad, tmp_path, caplog):
    path = write(tmp_path, [good[0], bad, good[1]])
    messages = []
    for read in (read_records, readers.read_records):
        with pytest.raises(DataError, match="record 1 of records.json") as error:
            read(path, kind)
        messages.append(str(error.value))
        caplog.clear()
        requests = read(path, kind, on_bad="skip")
        assert len(requests) == 2 and [r.case_id for r in requests][1] in (2, 9)
        assert any("skipped 1 of 3 records" in text for text in caplog.messages)
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "content, arguments",
    [([], {}), ([], {"kind": "zsre"}), ({}, {}), ([{"a": 1}], {}), (ZSRE, {"kind": "zrse"}),
     (ZSRE, {"limit": 0}), (ZSRE, {"on_bad": "ignore"})],
)  # fmt: skip
def test_files_and_arguments_are_judged_as_by_ours(easyedit, content, arguments, tmp_path):
    path = write(tmp_path, content)
    results = []
    for read in (read_records, readers.read_records):
        try:
            results.append(read(path, **arguments))
        except DataError as error:
            results.append(str(error))
    assert results[0] == results[1]


# --- which reader ---------------------------------------------------------------------------------


def test_without_a_host_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(checkout, "find", lambda: None)
    with pytest.raises(HostError, match=r"no EasyEdit.*EASYEDIT_ROOT"):
        read_records(write(tmp_path, ZSRE))


def test_the_toolkit_reads_with_the_host_that_is_there(host, monkeypatch):
    monkeypatch.setenv("NSE_PLUGIN_HOST", "embedded" if host == "embedded" else "easyedit")
    wanted = readers.read_records if host == "embedded" else read_records
    assert hosting.read_records is wanted


def test_a_class_that_is_gone_is_done_without(easyedit, benchmark, path, monkeypatch):
    module, _, name = benchmark.where.partition(":")
    monkeypatch.delattr(f"{module}.{name}")
    read = read_records(path, benchmark.kind)
    assert read == readers.read_records(path, benchmark.kind)


def test_a_class_that_gives_other_fields_is_done_without(easyedit, monkeypatch, tmp_path, caplog):
    path = write(tmp_path, ZSRE[:1])
    monkeypatch.setattr("easyeditor.dataset.zsre.ZsreDataset", lambda path: [{"case_id": 0}])
    with caplog.at_level(logging.INFO):
        assert read_records(path) == readers.read_records(path)
    assert "ZsreDataset, which refuses it: KeyError: 'prompt'" in caplog.text


def test_what_the_class_gives_is_what_is_read(easyedit, benchmark, tmp_path, monkeypatch):
    theirs = checkout.part(benchmark.where)
    monkeypatch.setattr(
        benchmark.where.replace(":", "."),
        lambda path: [{**item, "target_new": "from the class"} for item in theirs(path)],
    )
    requests = read_records(write(tmp_path, benchmark.records), benchmark.kind)
    assert {request.target_new for request in requests} == {"from the class"}
