"""Readers of benchmarks that are not here, on small records of their form written by hand."""

from __future__ import annotations

import copy
import json

import pytest

from nse_plugin.data.readers import parse_records, read_records
from nse_plugin.errors import DataError
from nse_plugin.requests import Probe


def query(prompt, value, relation, subject="Q1", aliases=()):
    answers = [{"value": value, "aliases": list(aliases)}]
    return {
        "prompt": prompt, "answers": answers, "query_type": "regular", "subject_id": subject,
        "relation": relation, "target_ids": ["Q9"], "phrase": None,
    }  # fmt: skip


def asked(*queries, condition="OR"):
    return [{"test_queries": list(queries), "test_condition": condition, "condition_queries": []}]


def ripple(subject="Life is Short", answer="Garn, which is old"):
    """The sentence has an "is" in the subject and in the answer; its questions tell them apart."""
    return {
        "example_type": "popular",
        "edit": {
            "prompt": f"The place of birth of {subject} is {answer}.",
            "subject_id": "Q1",
            "relation": "PLACE_OF_BIRTH",
            "target_id": "Q2",
            "previous_fact": {"prompt": f"The place of birth of {subject} is Quill."},
        },
        "Relation_Specificity": asked(
            query(f"The name of the league which {subject} plays in is", "League One", "LEAGUE"),
            query(f"The gender of {subject} is", "none", "SEX_OR_GENDER"),
            condition="AND",
        ),
        "Logical_Generalization": asked(
            query("The capital city of Quill is", "Tellin", "CAPITAL", "Q3"),
            query("The currency in Quill is", "crown", "CURRENCY", "Q3"),
        ),
        "Subject_Aliasing": asked(query("The place of birth of LiS is", "Garn", "PLACE_OF_BIRTH")),
        "Compositionality_I": asked(query("The river of the place of birth is", "", "RIVER", "Q4")),
        "Compositionality_II": [],
        "Forgetfulness": [],
    }


def test_rippleedits(caplog):
    (request,) = parse_records([ripple()])
    assert (request.prompt, request.subject) == ("The place of birth of {} is", "Life is Short")
    assert (request.target_new, request.ground_truth) == ("Garn, which is old", "Quill")
    assert request.locality["Relation_Specificity"] == (  # both, as both have to hold
        Probe("The name of the league which Life is Short plays in is", "League One"),
        Probe("The gender of Life is Short is", "none"),
    )
    assert request.portability == {
        "Logical_Generalization": (
            Probe("The capital city of Quill is", "Tellin"),
        ),  # one is enough
        "Subject_Aliasing": (Probe("The place of birth of LiS is", "Garn"),),
    }
    assert "left out 1 probes" in caplog.text and "example_type" in caplog.text
    assert "Relation_Specificity.condition_queries" in caplog.text


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("The number of children bell hooks has is 3.", "bell hooks"),
        ("The name of the continent which Old Garn is part of is Ostrell.", "Old Garn"),
        ("The Old Man follows Life is Short.", "The Old Man"),
        ("The date of birth of Ann Lee is 4 May.", "Ann Lee"),
        ("The name of the author of list of old towns is Ann, Ltd..", "list of old towns"),
    ],
)
def test_the_subject_of_rippleedits_is_told_from_its_questions(sentence, subject):
    record = ripple(subject)
    record["edit"] = {"prompt": sentence, "subject_id": "Q1", "relation": "X"}
    record["Forgetfulness"] = asked(query(f"The place of birth of {subject} is", "a", "BIRTH"))
    (request,) = parse_records([record])
    assert request.subject == subject and request.ground_truth is None
    assert sentence == f"{request.text} {request.target_new}."
    record["Relation_Specificity"] = record["Forgetfulness"] = []
    with pytest.raises(DataError, match="other questions of the record are about"):
        parse_records([record])


def unified(path_type="single", paths=(("h_e", "r_e", "t_e", "f", "s"),), prompt="It is in"):
    question = {
        "path_type": path_type, "prompt": prompt, "target": "Yes" if path_type == "double" else "a",
        "paths": [list(path) for path in paths], "one_hops": [],
    }  # fmt: skip
    edit = {"prompt": "Mara Voss lives in", "target": "Quill", "subject": "Mara Voss"}
    near = {"loc_type": "none", "path_type": "single", "prompt": "Anna is a", "target": "painter"}
    return {
        "edit": {**edit, "head_entity": {}},
        "generality": {"0": question},
        "locality": {"0": near},
    }


def test_uniedit_is_read_by_the_direction_of_its_questions(tmp_path, caplog):
    back, chain = ("t_e", "r_e", "h_e", "b", "s"), ("e_0", "r_0", "h_e", "f", "s")
    records = {
        "same": unified(),
        "back": unified(paths=[back], prompt="Who lives in Quill? It is"),
        "far": unified(paths=[chain, back]),
        "both": unified("double", prompt="Are they alike?"),
    }
    path = tmp_path / "art.json"
    path.write_text(json.dumps(records))
    same, reversed_, far, both = read_records(path)
    assert [r.case_id for r in (same, reversed_, far, both)] == list(records)
    assert (same.text, same.target_new) == ("Mara Voss lives in", "Quill")
    assert same.rephrase_prompts == ("It is in",) and same.portability == {}
    assert same.locality == {"none": (Probe("Anna is a", "painter"),)}
    assert reversed_.forms == {"reversal": (Probe("Who lives in Quill? It is", "a"),)}
    assert far.portability == {"multi_hop": (Probe("It is in", "a"),)}
    assert both.portability == {
        "same_entity": (Probe("Are they alike? The answer is (Yes/No):", "Yes"),)
    }
    assert "edit.head_entity, generality.0" not in caplog.text and "edit.head_entity" in caplog.text


def test_qaedit(caplog):
    record = {
        "id": 7, "source": "NQ", "prompt": "where does Mara Voss live?", "target": "Quill *",
        "subject": "Mara Voss", "rephrase": "In which town is Mara Voss?",
        "locality": [{"loc": "who paints", "loc_ans": "Anna"}, {"loc": "which sea", "loc_ans": ""}],
    }  # fmt: skip
    (request,) = parse_records([record])
    assert (request.case_id, request.text, request.target_new) == (7, record["prompt"], "Quill *")
    assert request.rephrase_prompts == (record["rephrase"],)
    assert request.locality == {"neighborhood": (Probe("who paints", "Anna"),)}
    assert "which sea" in caplog.text and "no place for it: source" in caplog.text
    plain = {"prompt": "Mara lives in", "subject": "Mara", "target": "Quill"}
    wrong = [{**plain, "locality": ["Anna is a"]}, {**plain, "locality": None}, plain]
    for other, found in zip(wrong, (r"\['Anna is a'\]", "None", "missing")):
        with pytest.raises(DataError, match=f"field 'locality' is {found}, wanted a list of"):
            parse_records([other], "qaedit")
    kept = parse_records([record, *wrong], "qaedit", on_bad="skip")
    assert [request.case_id for request in kept] == [7]


REWRITE = {
    "prompt": "{} lives in", "subject": "Mara Voss", "target_new": {"str": "Quill"},
    "target_true": {"str": "Garn"}, "question": "Where does Mara Voss live?",
}  # fmt: skip
TEXT = {"fact_new_uns": "Long ago ...", "unsfact_triplets_GPT": [{"prompt": "{} is"}]}


def test_akew_edits_the_fact_and_says_that_the_text_is_left_out(caplog):
    update = {"case_id": 3, "requested_rewrite": {**REWRITE, **TEXT}}
    (request,) = parse_records([update])
    assert (request.text, request.target_new, request.ground_truth) == (
        "Mara Voss lives in", "Quill", "Garn",
    )  # fmt: skip
    assert request.rephrase_prompts == (REWRITE["question"],) and request.locality == {}
    assert "requested_rewrite.fact_new_uns" in caplog.text
    near = {"paraphrase_prompts": ["She is in"], "neighborhood_prompts": ["Anna lives in"]}
    (request,) = parse_records([{**update, **near}])
    assert request.rephrase_prompts == ("She is in",)
    assert request.locality == {"neighborhood": (Probe("Anna lives in", "Garn"),)}


def test_akew_and_the_remastered_form_of_mquake(caplog):
    flat = {**REWRITE, "target_new_str": "Quill", "target_true_str": "Garn"}
    del flat["target_new"], flat["target_true"]
    record = {
        "requested_rewrite": [flat],
        "questions": ["q"],
        "new_answer": "a",
        "split": {"100": []},
    }
    (request,) = parse_records([record])
    assert (request.target_new, request.ground_truth) == ("Quill", "Garn")
    assert "no place for it: split" in caplog.text
    record["requested_rewrite"] = [{**REWRITE, **TEXT}]
    assert parse_records([record])[0].portability == {"multi_hop": (Probe("q", "a"),)}
    assert "requested_rewrite.unsfact_triplets_GPT" in caplog.text


def test_wikibigedit_as_its_pipeline_writes_it():
    record = {
        "tag": "new", "subject": "Mara Voss", "src": "Where does Mara Voss live?", "alt": "Quill",
        "rephrase": "In which town is Mara Voss?", "genv2_mixed": "Oi, where's Mara Voss?",
        "loc": "Where is Anna?", "loc_ans": "Garn", "mhop": "On which sea?", "mhop_ans": "North",
    }  # fmt: skip
    (request,) = parse_records([record])
    assert request.rephrase_prompts == (record["rephrase"], record["genv2_mixed"])
    assert request.portability == {"multi_hop": (Probe("On which sea?", "North"),)}


@pytest.mark.parametrize("record", [ripple(), unified()])
def test_a_nested_field_that_is_missing_is_a_bad_record(record):
    record = copy.deepcopy(record)
    if "generality" in record:
        del record["generality"]["0"]["paths"]
    else:
        del record["Relation_Specificity"][0]["test_queries"]
    with pytest.raises(DataError, match="record 0 .*field 'edit' .*KeyError.*--on-bad-record skip"):
        parse_records([record])
