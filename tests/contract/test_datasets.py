"""EasyEdit's dataset classes and its scorer against our readers and ours, record by record.

Two sources: a few records written here, and the slices of the real benchmarks in
``../shared/data``, which are skipped where they are absent.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nse_plugin import toolkit
from nse_plugin.errors import DataError, HostError, RequestError
from nse_plugin.evaluation.edit_quality import compute_edit_quality
from nse_plugin.toolkit import datasets, host_datasets, seams
from nse_plugin.toolkit.host_datasets import read_with_host
from tests.tiny import tiny_model, tiny_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
HPARAMS = SimpleNamespace(alg_name="NSE", max_length=40)

ZSRE = [
    {
        "subject": "Mara Voss",
        "src": "Where does Mara Voss live?",
        "rephrase": "In what town is the house of Mara Voss?",
        "alt": "Quill",
        "answers": ["Tellin", "Tellin by the sea"],
        "loc": "nq question: who is the sister of ann",
        "loc_ans": "Anna",
        "portability": {"New Question": "By what river does she live?", "New Answer": "the Garn"},
    },
    {
        "subject": "Oren Falk",
        "src": "What is the trade of Oren Falk?",
        "rephrase": "By trade, what is Oren Falk?",
        "alt": "painter",
        "answers": ["b\u00e4cker"],
        "loc": "nq question: where is the old bridge",
        "loc_ans": "Garn",
    },
]
FLAT = [
    {
        "case_id": 7,
        "subject": "Ostrell",
        "prompt": "The capital of Ostrell is",
        "target_new": "Quill",
        "ground_truth": "Garn",
        "rephrase_prompt": "Ostrell is governed from",
        "locality_prompt": "The capital of Tellin is",
        "locality_ground_truth": "Tellin by the sea",
    },
    {
        "case_id": 9,
        "subject": "Anna",
        "prompt": "Anna works as a",
        "target_new": "doctor",
        "ground_truth": "painter",
        "rephrase_prompt": "The trade of Anna is that of a",
        "locality_prompt": "Ann works as a",
        "locality_ground_truth": "doctor",
    },
]
KNOWEDIT = [
    {
        "subject": "Lio Brandt",
        "prompt": "Lio Brandt was born in",
        "target_new": "Ostrell",
        "ground_truth": ["Quill"],
        "rephrase_prompt": "The town where Lio Brandt was born is",
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The trade of Lio Brandt is", "ground_truth": ["baker", "cook"]},
                {"prompt": "His sister is", "ground_truth": ["Ann"]},
            ],
            "Forgetfulness": [{"prompt": "Lio Brandt knows", "ground_truth": [["Mara", "M."]]}],
            "Neighbours": [{"prompt": "Anna was born in", "ground_truth": "Tellin"}],
        },
        "portability": {
            "Reasoning": [{"prompt": "The river of his town is", "ground_truth": "the Garn"}],
            "Subject_Aliasing": [{"prompt": "L. Brandt is from", "ground_truth": [["Ostrell"]]}],
            "Logical_Generalization": [],
        },
    },
    {
        "concept": "Mara Voss",
        "text": "Mara Voss lives in",
        "labels": "Garn",
        "locality": {
            "Relation_Specificity": [{"prompt": "Mara Voss is a", "ground_truth": ["painter"]}]
        },
    },
]
WIKI_RECENT = [
    {
        "subject": record["subject"],
        "prompt": record["prompt"],
        "target_new": record["target_new"],
        "portability": {"Reasoning": [{"prompt": "He is a", "ground_truth": [["baker"]]}]},
        "locality": {
            "Relation_Specificity": [
                {"prompt": "Her sister is a", "ground_truth": [["doctor", "dr."], ["painter"]]},
                {"prompt": "The old bridge is", "ground_truth": [["closed"]]},
            ]
        },
    }
    for record in FLAT
]


@dataclass(frozen=True)
class Benchmark:
    kind: str
    where: str
    """The host's class for it."""
    records: list[dict[str, Any]]
    """Written here; the class takes all of them."""
    shared: str
    """Name of the real records in ``../shared/data``."""
    left_out: tuple[str, ...] = ()
    """Parts of a request that the class gives nothing, or not enough, for; compared without."""


BENCHMARKS = {
    "ZsRE": Benchmark(
        "zsre",
        "easyeditor.dataset.zsre:ZsreDataset",
        ZSRE,
        "zsre_200.json",
        left_out=("subject", "portability"),
    ),
    "CounterFact": Benchmark(
        "counterfact_flat",
        "easyeditor.dataset.counterfact:CounterFactDataset",
        FLAT,
        "counterfact_easyedit_200.json",
    ),
    "KnowEdit": Benchmark(
        "knowedit",
        "easyeditor.dataset.knowedit:KnowEditDataset",
        KNOWEDIT,
        "knowedit_zsre_100.json",
        left_out=("rephrase_prompt", "Neighbours"),
    ),
    "KnowEdit, wiki_recent": Benchmark(
        "knowedit",
        "easyeditor.dataset.knowedit:KnowEditDataset",
        WIKI_RECENT,
        "knowedit_wiki_recent_100.json",
    ),
    "WikiRecent": Benchmark(
        "wiki_recent",
        "easyeditor.dataset.wiki_recent:WikiRecentDataset",
        WIKI_RECENT,
        "knowedit_wiki_recent_100.json",
        left_out=("ground_truth", "rephrase_prompt", "locality", "portability"),
    ),
}
BLANKS = {
    "ZsRE": {26: " MAT-49", 27: " species", 28: " species"},
    "KnowEdit": {16: " Charity River", 18: " myna"},
}
"""New answers of the real records with blanks around them, by index."""
NO_ALIAS = 3
"""Index of the real wiki_recent record that has an answer without an alias, ``[[], ["..."]]``."""
REFUSED = (22, 23)
"""How many real wiki_recent records WikiRecentDataset refuses, and with them the file: 22 have no
Relation_Specificity, one has an answer without an alias, which is drawn or not."""


@pytest.fixture(params=BENCHMARKS)
def benchmark(request) -> Benchmark:
    return BENCHMARKS[request.param]


@pytest.fixture(params=["written here", "shared"])
def path(request, benchmark, tmp_path) -> Path:
    if request.param == "shared":
        return shared(benchmark.shared)
    return write(tmp_path, benchmark.records)


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"no {name} in ../shared/data beside this checkout")
    return SHARED / name


def write(folder: Path, records: Any, name: str = "records.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def taken(benchmark: Benchmark, path: Path, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The records that the class takes, and a file of them: one refusal refuses the file."""
    records = json.loads(path.read_text(encoding="utf-8"))
    if benchmark.kind == "wiki_recent":
        records = [record for record in records if drawable(record)]
    return write(folder, records, "taken.json"), records


def drawable(record: dict[str, Any]) -> bool:
    """Whether WikiRecentDataset can draw from it, whatever it draws."""
    probes = record["locality"].get("Relation_Specificity")
    return bool(probes) and all(all(probe["ground_truth"]) for probe in probes)


# --- the records as EasyEdit's scorer gets them, from what its classes give -----------------------


def for_scorer(benchmark: Benchmark, item: dict[str, Any]) -> dict[str, Any]:
    """The fields of an editor's request, as the host's example scripts fill them.

    Two things are ours.  Blanks around answers are taken off (BLANKS lists the real ones), since
    both scorers put one before each answer themselves.  Of [[], ["x"]] the first answer is "x";
    on it the example scripts break (one probe of real wiki_recent records, NO_ALIAS).
    """
    record = {
        "prompt": item["prompt"],
        "target_new": item["target_new"].strip(),
        "ground_truth": first(item.get("ground_truth")),
        "locality": {},
        "portability": {},
    }
    for field in ("case_id", "subject", "rephrase_prompt"):
        if field in item:
            record[field] = item[field]
    if "locality_prompt" in item:
        record["locality"]["neighborhood"] = {
            "prompt": [item["locality_prompt"]],
            "ground_truth": [item["locality_ground_truth"].strip()],
        }
    for section, kind, name in (
        ("portability", "Reasoning", "portability_r"),
        ("portability", "Subject_Aliasing", "portability_s"),
        ("portability", "Logical_Generalization", "portability_l"),
        ("locality", "Relation_Specificity", "locality_rs"),
        ("locality", "Forgetfulness", "locality_f"),
    ):
        if item.get(name):  # neither None nor empty, which the scorer could not take
            record[section][kind] = {
                "prompt": [probe["prompt"] for probe in item[name]],
                "ground_truth": [first(probe["ground_truth"]) for probe in item[name]],
            }
    return record


def first(answers: Any) -> Any:
    while isinstance(answers, list):
        answers = next(answer for answer in answers if answer)
    return answers.strip() if isinstance(answers, str) else answers


def without(record: dict[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    """A record without some of its fields and kinds of probes."""
    return {
        name: without(value, left_out) if isinstance(value, dict) else value
        for name, value in record.items()
        if name not in left_out
    }


# --- requests -------------------------------------------------------------------------------------


def test_requests_are_the_same_through_the_hosts_class(easyedit, benchmark, path):
    read = read_with_host(path, benchmark.kind)
    assert read == datasets.read_records(path, benchmark.kind)
    assert len(read) == len(json.loads(path.read_text(encoding="utf-8")))


def test_what_the_hosts_class_gives_is_in_our_requests(easyedit, benchmark, path, tmp_path):
    file, _ = taken(benchmark, path, tmp_path)
    items = list(seams.part(benchmark.where)(str(file)))
    requests = datasets.read_records(file, benchmark.kind)
    assert len(items) == len(requests)
    left_out = benchmark.left_out
    if "case_id" not in items[0]:  # ours then counts
        left_out += ("case_id",)
    for item, request in zip(items, requests):
        theirs, ours = for_scorer(benchmark, item), request.to_dict()
        assert without(ours, left_out) == without(theirs, left_out)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_new_answers_lose_the_blanks_around_them(easyedit, name, tmp_path):
    benchmark = BENCHMARKS[name]
    file, _ = taken(benchmark, shared(benchmark.shared), tmp_path)
    items = list(seams.part(benchmark.where)(str(file)))
    requests = read_with_host(file, benchmark.kind)
    targets = [(item["target_new"], request.target_new) for item, request in zip(items, requests)]
    differ = {place: theirs for place, (theirs, ours) in enumerate(targets) if theirs != ours}
    assert differ == BLANKS.get(name, {})
    assert all(ours == theirs.strip() for theirs, ours in targets)


def test_the_subject_that_zsre_drops_is_in_its_question(easyedit, tmp_path):
    """So a request can be made of each item, once it is put back."""
    file, raw = taken(BENCHMARKS["ZsRE"], shared("zsre_200.json"), tmp_path)
    items = list(seams.part(BENCHMARKS["ZsRE"].where)(str(file)))
    assert not any("subject" in item or "portability" in item for item in items)
    requests = read_with_host(file)
    assert [request.text for request in requests] == [item["prompt"] for item in items]
    assert [request.subject for request in requests] == [record["subject"] for record in raw]


@pytest.mark.parametrize("source", ["written here", "shared"])
def test_wiki_recents_random_probe_is_one_of_ours(easyedit, source, tmp_path):
    """It draws one probe and one alias of one answer; ours are all, with the first alias each."""
    benchmark = BENCHMARKS["WikiRecent"]
    path = shared(benchmark.shared) if source == "shared" else write(tmp_path, WIKI_RECENT)
    file, raw = taken(benchmark, path, tmp_path)
    items = list(seams.part(benchmark.where)(str(file)))
    for item, request, record in zip(items, read_with_host(file, "wiki_recent"), raw):
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
    assert read_with_host(path) == datasets.read_records(path)


def test_layouts_are_recognised_and_limited_as_by_ours(easyedit, benchmark, path):
    assert read_with_host(path, limit=1) == datasets.read_records(path, limit=1)


def test_json_lines_and_a_byte_order_mark_are_read(easyedit, benchmark, tmp_path):
    whole = read_with_host(write(tmp_path, benchmark.records))
    lines = tmp_path / "records.jsonl"
    lines.write_text("\n".join(json.dumps(record) for record in benchmark.records))
    marked = tmp_path / "marked.json"
    marked.write_text(json.dumps(benchmark.records, ensure_ascii=False), encoding="utf-8-sig")
    assert read_with_host(lines) == read_with_host(marked) == whole


def test_reading_prints_nothing_and_draws_nothing(easyedit, benchmark, path, capsys):
    state = random.getstate()
    read_with_host(path, benchmark.kind)
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
def test_a_record_refused_by_the_class_is_read_by_ours(easyedit, what, tmp_path, caplog):
    kind, odd, reason = USABLE[what]
    good = {b.kind: b.records for b in BENCHMARKS.values()}[kind]
    path = write(tmp_path, [*good, odd, *good])
    (benchmark,) = [b for b in BENCHMARKS.values() if b.kind == kind and b.records is good]
    with pytest.raises(Exception, match=reason.partition(": ")[2].strip("'")):
        seams.part(benchmark.where)(str(path))
    with caplog.at_level(logging.WARNING):
        assert read_with_host(path, kind) == datasets.read_records(path, kind)
    (message,) = [text for text in caplog.messages if "refuses" in text]
    assert f"refuses 1 of 5 records; they were read without it: record 2: {reason}" in message


def test_real_records_refused_by_the_class_are_counted(easyedit, caplog):
    benchmark = BENCHMARKS["WikiRecent"]
    path = shared(benchmark.shared)
    with pytest.raises((KeyError, IndexError)):
        seams.part(benchmark.where)(str(path))
    read_with_host(path, benchmark.kind)
    assert any(f"refuses {n} of 100 records" in text for text in caplog.messages for n in REFUSED)


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
        probes = read_with_host(path, kind)[NO_ALIAS].locality["Relation_Specificity"]
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
    for read in (read_with_host, datasets.read_records):
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
    for read in (read_with_host, datasets.read_records):
        try:
            results.append(read(path, **arguments))
        except DataError as error:
            results.append(str(error))
    assert results[0] == results[1]


# --- which reader ---------------------------------------------------------------------------------


def test_without_a_host_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(host_datasets, "find", lambda: None)
    with pytest.raises(HostError, match=r"no EasyEdit.*EASYEDIT_ROOT"):
        read_with_host(write(tmp_path, ZSRE))


def test_the_toolkit_reads_with_the_host_that_is_there(host, monkeypatch):
    monkeypatch.setenv("NSE_PLUGIN_HOST", "embedded" if host == "embedded" else "easyedit")
    wanted = datasets.read_records if host == "embedded" else read_with_host
    assert toolkit.read_records is wanted


def test_a_class_that_is_gone_is_done_without(easyedit, benchmark, path, monkeypatch):
    module, _, name = benchmark.where.partition(":")
    monkeypatch.delattr(f"{module}.{name}")
    read = read_with_host(path, benchmark.kind)
    assert read == datasets.read_records(path, benchmark.kind)


def test_a_class_that_gives_other_fields_is_named(easyedit, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "easyeditor.dataset.zsre.ZsreDataset", lambda path, size=None, **_: [{"case_id": 0}]
    )
    present = [SimpleNamespace(name="ZsRE", present=True)]
    monkeypatch.setattr(host_datasets, "probe", lambda host: present)
    with pytest.raises(HostError, match="ZsreDataset gives no 'prompt' for record 0"):
        read_with_host(write(tmp_path, ZSRE))


# --- scores ---------------------------------------------------------------------------------------


def their_scores(model, tokenizer, record):
    evaluate = seams.part("easyeditor.evaluate.evaluate:compute_edit_quality")
    return plain(evaluate(model, "tiny-model", HPARAMS, tokenizer, record, "cpu"))


def our_scores(model, tokenizer, record):
    return plain(compute_edit_quality(model, "tiny-model", HPARAMS, tokenizer, record, "cpu"))


def plain(value):
    """Without numpy's types."""
    return json.loads(json.dumps(value, default=float))


def taught(family, requests):
    """A tiny model that read the records a few times, so that it answers them right in parts."""
    tokenizer = tiny_tokenizer()
    sizes = {"n_positions" if family == "gpt2" else "max_position_embeddings": 512}
    model = tiny_model(family, **sizes)
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
    items = list(seams.part(benchmark.where)(str(file)))
    requests = datasets.read_records(file, benchmark.kind)
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
REFUSED_BY_THE_SCORER = {
    "a kind without probes": (
        {"locality": {"k": {"prompt": [], "ground_truth": []}}},
        ValueError,
        None,  # left out by our scorer, as by our readers
    ),
    "answers with their aliases, as KnowEdit has them": (
        {"portability": {"k": {**PROBE, "ground_truth": [["painter"], ["doctor", "dr."]]}}},
        TypeError,
        RequestError,  # our readers take the first of each
    ),
    "aliases nested twice, as wiki_recent has them": (
        {"locality": {"k": {**PROBE, "ground_truth": [[["painter"]], [["doctor"]]]}}},
        TypeError,
        RequestError,
    ),
    "one prompt with several aliases": (
        {"locality": {"k": {"prompt": "Anna is a", "ground_truth": ["painter", "artist"]}}},
        TypeError,
        RequestError,
    ),
    "a kind that is None": ({"locality": {"k": None}}, TypeError, TypeError),
}


@pytest.mark.parametrize("what", REFUSED_BY_THE_SCORER)
def test_records_on_which_the_hosts_scorer_breaks(easyedit, what):
    """None of these comes out of a reader of ours."""
    change, their_error, our_error = REFUSED_BY_THE_SCORER[what]
    record = datasets.parse_records(FLAT)[0].to_dict() | change
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(their_error):
        their_scores(model, tokenizer, record)
    if our_error is None:
        assert our_scores(model, tokenizer, record)["locality"] == {}
    else:
        with pytest.raises(our_error):
            our_scores(model, tokenizer, record)


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
    for request in read_with_host(path)[:20]:
        their_scores(model, tokenizer, request.to_dict())
