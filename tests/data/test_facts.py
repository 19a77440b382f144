"""Facts as people write them down: braces, files of four kinds, mistakes."""

from __future__ import annotations

import json

import pytest

from nse_plugin.data.facts import fact, others_like, parse_facts, read_facts, with_paraphrases
from nse_plugin.data.readers import parse_records, read_records
from nse_plugin.errors import DataError, RequestError
from nse_plugin.requests import EditRequest

TOWER = EditRequest(1, "{} is located in the city of", "The Eiffel Tower", "Rome")
LEE = EditRequest(2, "Today {} lives in", "Ann Lee", "Oslo")
RECORDS = [
    {"prompt": "{The Eiffel Tower} is located in the city of", "target": "Rome"},
    {"prompt": "Today Ann Lee lives in", "subject": "Ann Lee", "target": "Oslo"},
]


def test_the_subject_stands_in_braces_or_beside_the_prompt():
    ways = [
        fact("{The Eiffel Tower} is located in the city of", "Rome"),
        fact("{} is located in the city of", "Rome", "The Eiffel Tower"),
        fact("The Eiffel Tower is located in the city of", "Rome", "The Eiffel Tower"),
        fact("{The Eiffel Tower} is located in the city of", "Rome", "The Eiffel Tower"),
    ]
    assert [parse_facts([way]) for way in ways] == [[TOWER]] * 4


def test_every_fact_has_a_number_of_its_own():
    records = [{**RECORDS[0]}, {**RECORDS[1], "case_id": 1}, {**RECORDS[0], "subject": "X"}]
    records[2]["prompt"] = "{} is in"
    assert [request.case_id for request in parse_facts(records)] == [2, 1, 3]
    with pytest.raises(DataError, match="case_id 1 is that of an earlier record"):
        parse_facts([{**record, "case_id": 1} for record in RECORDS])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.yaml", "- {prompt: '{The Eiffel Tower} is located in the city of', target: Rome}\n"
                   "- {prompt: Today Ann Lee lives in, subject: Ann Lee, target: Oslo}\n"),
        ("f.csv", "prompt,subject,target\n{The Eiffel Tower} is located in the city of,,Rome\n"
                  "Today Ann Lee lives in,Ann Lee,Oslo\n"),
        ("f.json", json.dumps(RECORDS)),
        ("f.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS)),
    ],
)  # fmt: skip
def test_files_of_all_kinds_hold_the_same_facts(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert parse_facts(read_facts(tmp_path / name)) == [TOWER, LEE]


def test_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(RequestError, match="put it in braces"):
        fact("The Eiffel Tower is in", "Rome")
    with pytest.raises(RequestError, match="has 2 texts in braces"):
        fact("{A} and {B} are in", "Rome")
    with pytest.raises(RequestError, match="^subject 'B' is not in prompt '{A} is in'"):
        fact("{A} is in", "Rome", "B")
    with pytest.raises(RequestError, match="^target is ' '; give a text that is not empty"):
        fact("{A} is in", " ")
    (tmp_path / "f.yaml").write_text("- {prompt: [")
    with pytest.raises(DataError, match=r"f\.yaml is not YAML.*correct it"):
        read_facts(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text("- {prompt: '{A} is in', answer: Rome}")
    with pytest.raises(RequestError, match=r"no target; .* as target \(its .* prompt, answer\)"):
        read_facts(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text("- {prompt: '{A} is in', target: ''}")
    with pytest.raises(
        DataError, match="'target_new' is '', wanted a text that is not empty; correct it$"
    ):
        read_facts(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text("- {prompt: '{A} speaks', target: no}")
    with pytest.raises(DataError, match="is False, wanted a text .*; put it in quotes"):
        read_facts(tmp_path / "f.yaml")
    with pytest.raises(RequestError, match="one of the paraphrases is ' '; give a text"):
        fact("{A} is in", "Rome", rephrase_prompts=["A stands in", " "])


def test_fields_that_are_not_read_are_named_once(tmp_path, caplog):
    (tmp_path / "f.json").write_text(json.dumps([{**RECORDS[0], "paraphrse": "x"}]))
    parse_facts(read_facts(tmp_path / "f.json"))
    assert caplog.text.count("paraphrse") == 1


def test_what_is_asked_beside():
    asked = with_paraphrases(TOWER).rephrase_prompts
    assert len(asked) == 2 and all(text.endswith(TOWER.text) for text in asked)
    given = EditRequest(1, "{} is in", "A", "B", rephrase_prompts=("A stands in",))
    assert with_paraphrases(given) == given
    alike = others_like("The Eiffel Tower", {"the parthenon"})
    assert "the Hagia Sophia" in alike and not {"the Parthenon", "the Eiffel Tower"} & set(alike)
    assert alike == others_like("The Eiffel Tower", {"the parthenon"})
    assert others_like("Ann Lee") == others_like("Mars") == []  # no "The color of penicillin is"


def test_a_file_of_facts_is_data_of_a_run_too(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([{**RECORDS[0], "paraphrase": "One sees {} in"}, RECORDS[1]]))
    found = read_records(path)
    assert [request.text for request in found] == [TOWER.text, LEE.text]
    assert [request.target_new for request in found] == ["Rome", "Oslo"]
    with pytest.raises(DataError, match=r"record 0 of the list: the subject of 'A is in' is not"):
        parse_records([{"prompt": "A is in", "target": "Rome"}])


def test_a_missing_field_is_named_where_other_records_have_it():
    flat = [{"prompt": "A is in", "subject": "A", "target_new": "Rome"} for _ in range(3)]
    del flat[1]["target_new"]
    with pytest.raises(
        DataError,
        match=r"record 1 of the list: field 'target_new' is missing \(other .* counterfact_flat\)",
    ):
        parse_records(flat)
    facts = [RECORDS[0], {"prompt": "{A} is in", "answer": "Rome"}]
    with pytest.raises(DataError, match=r"record 1 of the list: field 'target' is missing"):
        parse_records(facts)


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_columns_may_be_separated_as_spreadsheets_do(delimiter, tmp_path):
    rows = [("prompt", "subject", "target"), ("Today Ann Lee lives in", "Ann Lee", "Oslo")]
    (tmp_path / "f.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    (request,) = parse_facts(read_facts(tmp_path / "f.csv"))
    assert request.text == LEE.text and request.target_new == "Oslo"


def test_paraphrases_are_read_and_what_is_not_read_is_named(caplog):
    (request,) = parse_facts([{**RECORDS[0], "paraphrase": "One sees the Eiffel Tower in"}])
    assert request.rephrase_prompts == ("One sees the Eiffel Tower in",)
    (request,) = parse_facts([{**RECORDS[0], "paraphrases": ["One sees it in", "It is in"]}])
    assert request.rephrase_prompts == ("One sees it in", "It is in")
    assert not caplog.text
    wrong = {"pharaphrase": "a", "neighbour": "b", "Target": "c", "colour": "d"}
    parse_facts([{**RECORDS[0], **wrong}], source="f.yaml")
    assert (
        "f.yaml: fields that are not read: Target (1 record; did you mean 'target'?); "
        "colour (1 record); neighbour (1 record; give such texts with --neighbour, or as locality "
        "with their answers); pharaphrase (1 record; did you mean 'paraphrase'?)"
    ) in caplog.text
