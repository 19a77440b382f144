"""The readers on real records (where they are) and on small files that go wrong in known ways."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from nse_plugin.data.readers import parse_records, read_records
from nse_plugin.errors import DataError
from nse_plugin.requests import EditRequest, Probe

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

NESTED = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "target_new": {"str": "Antarctica", "id": "Q51"},
        "target_true": {"str": "Africa", "id": "Q15"},
        "subject": "Angola",
    },
    "paraphrase_prompts": ["Angola is a part of"],
    "neighborhood_prompts": ["Ghana is in", "Algeria is in"],
    "attribute_prompts": ["Ross Island is in"],
}
ZSRE = {
    "subject": "Epaspidoceras",
    "src": "Which family does Epaspidoceras belong to?",
    "alt": "Noctuidae",
    "answers": ["Aspidoceratidae"],
    "rephrase": "What family are Epaspidoceras?",
    "loc": "nq question: who sings",
    "loc_ans": "Nobody",
    "portability": {"New Question": "What is its common name?", "New Answer": "Owlet moths"},
}
KNOWEDIT = {
    "subject": "Alfhild Tamm",
    "prompt": "The gender of Alfhild Tamm is",
    "target_new": "female",
    "portability": {"Reasoning": [{"prompt": "a", "ground_truth": "b"}], "Empty": []},
    "locality": {
        "Relation_Specificity": [
            {"prompt": "award", "ground_truth": [[], ["Honorary Doctor", "Dr"]]},
            {"prompt": "nothing", "ground_truth": [[""]]},
        ]
    },
}


def write(tmp_path, content, name="data.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def data(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path, json.loads(path.read_text(encoding="utf-8"))


# --- real records -------------------------------------------------------------------------------


def test_real_counterfact():
    path, raw = data("counterfact_200.json")
    requests = read_records(path)
    assert len(requests) == len(raw) == 200
    for request, record in zip(requests, raw):
        rewrite = record["requested_rewrite"]
        assert request.case_id == record["case_id"]
        assert request.text == rewrite["prompt"].format(rewrite["subject"])
        assert request.target_new == rewrite["target_new"]["str"].strip()
        assert list(request.rephrase_prompts) == record["paraphrase_prompts"]
        probes = request.locality["neighborhood"]
        assert [probe.prompt for probe in probes] == record["neighborhood_prompts"]
        assert {probe.answer for probe in probes} == {rewrite["target_true"]["str"].strip()}


def test_real_flat_counterfact():
    path, raw = data("counterfact_easyedit_200.json")
    requests = read_records(path)
    assert len(requests) == 200
    for request, record in zip(requests, raw):
        assert (request.case_id, request.text) == (record["case_id"], record["prompt"])
        assert request.rephrase_prompts == (record["rephrase_prompt"],)
        assert request.locality["neighborhood"] == (
            Probe(record["locality_prompt"], record["locality_ground_truth"].strip()),
        )


def test_real_zsre():
    path, raw = data("zsre_200.json")
    requests = read_records(path)
    assert len(requests) == 200 and read_records(path, "zsre") == requests
    for number, (request, record) in enumerate(zip(requests, raw)):
        assert (request.case_id, request.text) == (number, record["src"])
        assert request.ground_truth == record["answers"][0].strip()
        assert request.locality["neighborhood"][0].prompt.startswith("nq question: ")
        assert request.portability["one_hop"][0].answer == (
            record["portability"]["New Answer"].strip()
        )


@pytest.mark.parametrize("name", ["knowedit_wiki_recent_100.json", "knowedit_zsre_100.json"])
def test_real_knowedit(name, caplog):
    path, raw = data(name)
    with caplog.at_level(logging.WARNING):
        requests = read_records(path)
    assert all("no place for it: cond" in record.message for record in caplog.records)
    assert len(requests) == 100 and read_records(path, "knowedit") == requests
    for request, record in zip(requests, raw):
        for where in ("locality", "portability"):
            probes = getattr(request, where)
            assert set(probes) == {kind for kind, group in record[where].items() if group}
            for kind, group in probes.items():
                assert [p.prompt for p in group] == [p["prompt"] for p in record[where][kind]]
                assert all(probe.answer.strip() for probe in group)


def test_real_mquake():
    path, raw = data("mquake_50.json")
    requests = read_records(path)
    assert read_records(path, "mquake") == requests
    assert len(requests) == sum(len(record["requested_rewrite"]) for record in raw)
    first = requests[:4]
    assert [request.case_id for request in first] == ["7417/0", "7417/1", "7417/2", "7417/3"]
    assert [bool(request.portability) for request in first] == [False, False, False, True]
    assert first[-1].portability["multi_hop"][0].answer == "Arabic"
    assert first[0].rephrase_prompts == ("Who performed Hey Jude?",)


# --- small records ------------------------------------------------------------------------------


def test_knowedit_takes_first_answers_and_says_which_probes_have_none(caplog):
    with caplog.at_level(logging.WARNING):
        (request,) = parse_records([KNOWEDIT])
    assert request.locality == {"Relation_Specificity": (Probe("award", "Honorary Doctor"),)}
    assert set(request.portability) == {"Reasoning"}
    assert "left out 1 probes" in caplog.text and "nothing" in caplog.text


def test_knowedit_text_parts_have_other_names():
    record = {
        "concept": "Bob",
        "text": "This is about Bob.",
        "labels": "He is old.",
        "locality": {"Relation_Specificity": [{"prompt": ["p"], "ground_truth": [["g"]]}]},
    }
    (request,) = parse_records([record])
    assert (request.subject, request.text, request.target_new) == (
        "Bob", "This is about Bob.", "He is old.",
    )  # fmt: skip
    assert request.locality["Relation_Specificity"] == (Probe("p", "g"),)


def test_mquake_gives_a_request_per_rewrite_and_asks_its_questions_once():
    rewrite = {**NESTED["requested_rewrite"], "question": "Where is Angola?"}
    record = {
        "case_id": 9,
        "requested_rewrite": [rewrite, rewrite],
        "questions": ["q1", "q2"],
        "new_answer": "a",
    }
    first, last = parse_records([record])
    assert (first.case_id, last.case_id) == ("9/0", "9/1")
    assert first.rephrase_prompts == ("Where is Angola?",) and first.portability == {}
    assert last.portability == {"multi_hop": (Probe("q1", "a"), Probe("q2", "a"))}


def test_nested_and_flat_counterfact_and_zsre_keep_their_fields():
    (nested,) = parse_records([NESTED])
    assert (nested.case_id, nested.prompt, nested.subject, nested.target_new) == (
        7, "{} is located in", "Angola", "Antarctica",
    )  # fmt: skip
    assert nested.ground_truth == "Africa" and nested.rephrase_prompts == ("Angola is a part of",)
    assert nested.locality["neighborhood"][1] == Probe("Algeria is in", "Africa")
    (zsre,) = parse_records([ZSRE])
    assert (zsre.text, zsre.target_new) == (ZSRE["src"], "Noctuidae")
    assert zsre.portability["one_hop"] == (Probe("What is its common name?", "Owlet moths"),)
    assert zsre.locality["neighborhood"] == (Probe("nq question: who sings", "Nobody"),)


def test_written_requests_are_read_back(tmp_path):
    requests = parse_records([NESTED]) + parse_records([ZSRE])
    path = write(tmp_path, "".join(json.dumps(r.to_dict()) + "\n" for r in requests), "r.jsonl")
    assert [r.to_dict() for r in read_records(path)] == [r.to_dict() for r in requests]


def test_limit_and_kind(tmp_path):
    path = write(tmp_path, [NESTED, NESTED, NESTED])
    assert len(read_records(path, limit=2)) == 2
    with pytest.raises(DataError, match="limit is 0"):
        read_records(path, limit=0)
    with pytest.raises(DataError, match="unknown schema 'counterfacts'; did you mean"):
        read_records(path, "counterfacts")
    with pytest.raises(DataError, match="on_bad_record is 'ignore'"):
        read_records(path, on_bad="ignore")


# --- what goes wrong ----------------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, [NESTED], "counterfact.json")
    with pytest.raises(DataError, match=r"did you mean 'counterfact\.json'"):
        read_records(tmp_path / "counterfacts.json")
    with pytest.raises(DataError, match="there is no file"):
        read_records(tmp_path / "no" / "where.json")


def test_cut_off_file_says_where(tmp_path):
    whole = json.dumps([NESTED, NESTED], indent=1)
    for end in (len(whole) // 2, len(whole) - 1):
        with pytest.raises(DataError, match=r"cut off at line \d+, column \d+"):
            read_records(write(tmp_path, whole[:end]))
    with pytest.raises(DataError, match="is not JSON at line 1, column 2"):
        read_records(write(tmp_path, "{nonsense}"))
    with pytest.raises(DataError, match="line 2, column"):
        read_records(write(tmp_path, json.dumps(NESTED) + '\n{"a": ', "x.jsonl"))
    (tmp_path / "packed.json").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "packed.json")
    (tmp_path / "latin.json").write_bytes('["Århus"]'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_records(tmp_path / "latin.json")


def test_not_a_list_and_unknown_schema(tmp_path):
    with pytest.raises(DataError, match=r"holds an object \(data\) where a list"):
        read_records(write(tmp_path, {"data": [NESTED]}))
    with pytest.raises(DataError, match="empty list"):
        read_records(write(tmp_path, []))
    with pytest.raises(DataError, match=r"input, output.*zsre \(src, subject, alt\).*--schema"):
        read_records(write(tmp_path, [{"input": 1, "output": 2}]))
    with pytest.raises(DataError, match="wanted an object with fields"):
        read_records(write(tmp_path, ["text"]))


BAD = [
    ({**ZSRE, "subject": "epaspidoceras"}, "subject 'epaspidoceras' is not in prompt"),
    ({**ZSRE, "alt": ""}, "field 'alt' is ''"),
    ({k: v for k, v in ZSRE.items() if k != "subject"}, "field 'subject' is missing"),
    ({**ZSRE, "portability": "x"}, "field 'portability' is 'x'"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_record_is_named_or_skipped_and_counted(tmp_path, caplog, bad, message):
    path = write(tmp_path, [ZSRE, bad, ZSRE])
    with pytest.raises(DataError) as error:
        read_records(path)
    assert "record 1 of data.json (read as zsre)" in str(error.value)
    assert message in str(error.value)
    with caplog.at_level(logging.WARNING):
        requests = read_records(path, on_bad="skip")
    assert [request.case_id for request in requests] == [0, 2]
    assert "skipped 1 of 3 records" in caplog.text and message in caplog.text


def test_two_records_of_one_case_id_are_refused_unless_they_are_the_same(caplog):
    twice = [{**ZSRE, "case_id": 7}, {**ZSRE, "case_id": 7}, {**ZSRE, "case_id": "7", "alt": "x"}]
    assert len(parse_records(twice[:2])) == 2
    with pytest.raises(DataError, match="record 2 .*case_id '7' is that of an earlier record"):
        parse_records(twice)
    assert len(parse_records(twice, on_bad="skip")) == 2 and "skipped 1 of 3" in caplog.text


def test_other_schemas_name_their_bad_fields():
    rewrite = NESTED["requested_rewrite"]
    for change, message in [
        ({"target_new": {"str": " "}}, "'target_new'"),
        ({"prompt": "no place"}, "holds '{}' 0 times"),
        ({"target_true": {"id": "Q1"}}, "'target_true' is missing"),
    ]:
        with pytest.raises(DataError, match=message):
            parse_records([{**NESTED, "requested_rewrite": {**rewrite, **change}}])
    with pytest.raises(DataError, match="'neighborhood_prompts' is 'x'"):
        parse_records([{**NESTED, "neighborhood_prompts": "x"}])
    with pytest.raises(DataError, match="'neighborhood_answers' is .*, wanted 2 answers"):
        parse_records([{**NESTED, "neighborhood_answers": ["Africa"]}])
    with pytest.raises(DataError, match="'new_answer' is missing"):
        parse_records([{"requested_rewrite": [rewrite], "questions": []}])
    with pytest.raises(DataError, match=r"locality\['k'\] holds \{'ground_truth': 'x'\}"):
        parse_records([{**KNOWEDIT, "locality": {"k": [{"ground_truth": "x"}]}}])


def test_neighbours_may_have_answers_of_their_own():
    (request,) = parse_records([{**NESTED, "neighborhood_answers": ["Africa", "the Sahara"]}])
    assert request.locality["neighborhood"] == (
        Probe("Ghana is in", "Africa"),
        Probe("Algeria is in", "the Sahara"),
    )


def test_many_skipped_records_are_counted_but_not_all_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert parse_records([ZSRE] + [{**ZSRE, "alt": ""}] * 9, on_bad="skip")
    assert "skipped 9 of 10" in caplog.text and "and 6 more" in caplog.text
    assert isinstance(parse_records([ZSRE])[0], EditRequest)


# --- forms of files -----------------------------------------------------------------------------

FLAT = {"prompt": "Ann Lee lives in", "subject": "Ann Lee", "target_new": "Oslo"}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x7f"])
def test_separators_of_unicode_do_not_end_a_json_line(tmp_path, separator):
    record = {**FLAT, "rephrase_prompt": f"Where{separator}does Ann Lee live?"}
    lines = (json.dumps(record, ensure_ascii=False) + "\n") * 2
    requests = read_records(write(tmp_path, lines, "facts.jsonl"))
    assert [r.rephrase_prompts for r in requests] == [(record["rephrase_prompt"],)] * 2


@pytest.mark.parametrize("name", ["facts.json", "facts.ndjson", "facts.JSONL", "facts"])
def test_json_lines_are_read_whatever_the_file_is_called(tmp_path, name):
    lines = "".join(json.dumps({**FLAT, "case_id": n}) + "\n" for n in range(2))
    assert [r.case_id for r in read_records(write(tmp_path, lines, name))] == [0, 1]


def test_csv_with_named_columns_and_gzip(tmp_path):
    rows = "subject,prompt,target_new,rephrase_prompt\nAnn Lee,Ann Lee lives in,Oslo,\n"
    (request,) = read_records(write(tmp_path, rows, "facts.csv"))
    assert (request.text, request.target_new) == ("Ann Lee lives in", "Oslo")
    assert request.rephrase_prompts == ()
    (tmp_path / "facts.tsv.gz").write_bytes(gzip.compress(rows.replace(",", "\t").encode()))
    assert read_records(tmp_path / "facts.tsv.gz") == [request]
    (tmp_path / "facts.json.gz").write_bytes(gzip.compress(json.dumps([FLAT]).encode()))
    assert read_records(tmp_path / "facts.json.gz")[0].text == request.text
    with pytest.raises(DataError, match=r"line 2: it has other columns than .*subject, prompt"):
        read_records(write(tmp_path, rows.replace("Oslo,", "Oslo,,x"), "odd.csv"))


def test_files_that_hold_no_records_say_so(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_records(write(tmp_path, "\n"))
    with pytest.raises(DataError, match="nested too deeply"):
        read_records(write(tmp_path, "[" * 100_000))


def test_each_record_decides_its_own_schema_and_probes(tmp_path):
    probes = {"k": [{"prompt": "The colour of Tarn is", "ground_truth": [["grey"]]}]}
    records = [FLAT, {**FLAT, "locality": probes, "portability": probes}, ZSRE]
    first, second, third = read_records(write(tmp_path, records))
    assert first.locality == {} and third.text == ZSRE["src"]
    assert second.locality == second.portability == {"k": (Probe("The colour of Tarn is", "grey"),)}


@pytest.mark.parametrize("none", [None, "", " ", float("nan")])
def test_what_is_none_is_not_given(none, caplog):
    flat = {**FLAT, "locality_prompt": none, "locality_ground_truth": none, "rephrase_prompt": none}
    (request,) = parse_records([flat])
    assert request.locality == {} and request.rephrase_prompts == ()
    (request,) = parse_records([{**ZSRE, "loc": none, "loc_ans": none, "portability": none}])
    assert request.locality == request.portability == {}
    assert not caplog.records
    (request,) = parse_records([{**ZSRE, "loc_ans": none}])
    assert request.locality == {} and "left out 1 probes" in caplog.text


# --- fields that are left out, records as they come --------------------------------------------

WIKIBIGEDIT = {
    "tag": "new", "subject": "Crailing Church", "update": "Where is Crailing Church?",
    "rephrase": "In what place is Crailing Church?",
    "personas": "Tell me, where's Crailing Church?", "ans": "Roxburghshire",
    "loc": "Where is Carriden Church?", "loc_ans": "West Lothian",
    "mhop": "In what country is Crailing Church?", "mhop_ans": "Scotland",
}  # fmt: skip


def test_wikibigedit_as_published():
    (request,) = parse_records([WIKIBIGEDIT])
    assert (request.text, request.target_new) == (WIKIBIGEDIT["update"], "Roxburghshire")
    assert request.rephrase_prompts == (WIKIBIGEDIT["rephrase"], WIKIBIGEDIT["personas"])
    assert request.locality == {"neighborhood": (Probe(WIKIBIGEDIT["loc"], "West Lothian"),)}
    assert request.portability == {"multi_hop": (Probe(WIKIBIGEDIT["mhop"], "Scotland"),)}


def test_real_wikibigedit():
    path, raw = data("wikibigedit_1000.json")
    requests = read_records(path)
    assert [request.text for request in requests] == [record["prompt"] for record in raw]
    for request, record in zip(requests, raw):
        assert request.rephrase_prompts == (record["rephrase_prompt"],)
        (probe,) = request.locality["neighborhood"]
        assert probe == Probe(record["locality_prompt"], record["locality_ground_truth"])


@pytest.mark.parametrize(
    "name",
    ["counterfact_200.json", "counterfact_easyedit_200.json", "knowedit_wiki_recent_100.json",
     "knowedit_zsre_100.json", "mquake_50.json", "wikibigedit_1000.json", "zsre_200.json"],
)  # fmt: skip
def test_no_field_of_a_benchmark_is_left_out_unknowingly(name, caplog):
    read_records(data(name)[0])
    assert "not read" not in caplog.text


def test_fields_that_are_not_read_are_named(caplog):
    parse_records([ZSRE, {**ZSRE, "locality_inputs": {}}, {**ZSRE, "locality_inputs": {}, "x": 1}])
    assert "fields that are not read: locality_inputs (2 records); x (1 record)" in caplog.text


def test_empty_answers_of_nested_records_are_not_asked(caplog):
    record = {
        **NESTED, "paraphrase_prompts": ["Angola is a part of ", "", None],
        "portability": [{"prompt": "q", "answer_new": None}, {"prompt": "r", "answer_new": "a"}],
    }  # fmt: skip
    (request,) = parse_records([record])
    assert request.rephrase_prompts == ("Angola is a part of",)
    assert request.portability == {"one_hop": (Probe("r", "a"),)}
    assert "left out 1 probes without an answer" in caplog.text


def test_a_record_may_have_kinds_and_a_question_of_its_own():
    one = {"locality_prompt": "p", "locality_ground_truth": "g", "portability_prompt": float("nan")}
    (request,) = parse_records([{**KNOWEDIT, **one}])
    assert set(request.locality) == {"Relation_Specificity", "neighborhood"}
    assert set(request.portability) == {"Reasoning"}


def test_the_subjects_place_survives_a_file():
    request = EditRequest(3, "{} and Ann and {} live in", "Ann", "Oslo", place=0)
    assert parse_records([json.loads(json.dumps(request.to_dict()))]) == [request]


def test_errors_of_a_field_name_the_case(tmp_path):
    with pytest.raises(DataError, match=r"record 1 of .*: request c-5: field 'alt' is ''"):
        parse_records([ZSRE, {**ZSRE, "case_id": "c-5", "alt": ""}])


def test_one_json_line_and_numbers_of_thousands_of_digits(tmp_path):
    assert len(read_records(write(tmp_path, json.dumps(ZSRE) + "\n"))) == 1
    with pytest.raises(DataError, match="correct the number"):
        read_records(write(tmp_path, f"[{'1' * 5000}]"))
    with pytest.raises(DataError, match=r"is a folder; give the path of a file in it: data.json"):
        read_records(tmp_path)


def test_columns_of_csv_are_named_once_and_have_rows(tmp_path):
    with pytest.raises(DataError, match="two columns 'prompt'"):
        read_records(write(tmp_path, "prompt,prompt,subject,target_new\na,b,c,d\n", "a.csv"))
    with pytest.raises(DataError, match="no rows after its first"):
        read_records(write(tmp_path, "prompt,subject,target_new\n", "a.csv"))
