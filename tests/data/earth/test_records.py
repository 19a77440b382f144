"""Records of real facts: no leak between what is edited and what is asked, and the same by seed."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from nse_plugin.data import earth
from nse_plugin.data.earth.records import kept_back, make_record, possible_answers
from nse_plugin.data.earth.tables import Row, facts_by_relation
from nse_plugin.data.readers import parse_records
from nse_plugin.data.streams import read_data, settled
from nse_plugin.errors import DataError

RELATION_OF = {relation.prompt: relation for relation in earth.relations().values()}
facts = functools.cache(earth.facts)  # each call draws all of them anew, in half a second
edit_set = functools.cache(earth.edit_set)
TRUTH = {(f.relation, f.subject): f for f in earth.all_facts()}


def parts(record):
    rewrite = record["requested_rewrite"]
    return rewrite["relation_id"], rewrite["subject"], rewrite["target_new"]["str"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_new_answer_is_of_the_same_relation_and_never_true(seed: int) -> None:
    answers = {name: {f.answer for f in facts} for name, facts in facts_by_relation().items()}
    for record in facts(seed):
        name, subject, new = parts(record)
        fact = TRUTH[name, subject]
        assert new in answers[name] and new not in fact.true_answers
        assert new.split()[0] != fact.answer.split()[0]
        assert record["requested_rewrite"]["target_true"]["str"] == fact.answer


def test_a_second_true_answer_is_not_drawn() -> None:
    spain = TRUTH["country_language", "Spain"]
    assert "Catalan" in spain.also and "Catalan" in {
        f.answer for f in facts_by_relation()["country_language"]
    }
    assert "Catalan" not in possible_answers(spain)
    stalin = TRUTH["leader_country", "Joseph Stalin"]
    assert "Russia" not in possible_answers(stalin)


def test_locality_is_about_subjects_that_no_draw_edits_and_is_true() -> None:
    records = edit_set()
    edited = {parts(record)[1] for record in records}
    assert not edited & kept_back()
    for record in records:
        name, subject, _ = parts(record)
        prompt = record["requested_rewrite"]["prompt"]
        prompts, answers = record["neighborhood_prompts"], record["neighborhood_answers"]
        assert 2 <= len(prompts) == len(set(prompts)) == len(answers)
        for question, answer in zip(prompts, answers):
            other = next(
                f for f in facts_by_relation()[name] if prompt.replace("{}", f.subject) == question
            )
            assert other.answer == answer and other.subject not in edited
            assert other.subject != subject


def test_neighbours_with_the_same_answer_come_first() -> None:
    for record in facts()[::20]:
        true = record["requested_rewrite"]["target_true"]["str"]
        same = [answer == true for answer in record["neighborhood_answers"]]
        assert same == sorted(same, reverse=True)


def test_paraphrases_hold_the_subject_and_are_not_the_prompt() -> None:
    for record in facts():
        rewrite = record["requested_rewrite"]
        asked = rewrite["prompt"].replace("{}", rewrite["subject"])
        assert len({asked, *record["paraphrase_prompts"]}) == 4
        assert all(rewrite["subject"] in text for text in record["paraphrase_prompts"])


def test_second_steps_follow_from_the_new_answer() -> None:
    asked = [(record, q) for record in facts() for q in record["portability"]]
    assert len(asked) > 1000
    for record, question in asked:
        name, subject, new = parts(record)
        (step,) = [
            step
            for step in earth.relations()[name].steps
            if step.prompt.replace("{}", subject) == question["prompt"]
        ]
        second = TRUTH.get((step.relation, new))
        if second is not None:
            assert question["answer_new"] == second.answer
        assert question["answer_new"] != question["answer_true"]


def test_second_steps_that_the_same_stream_edits_are_left_out() -> None:
    requests = read_data("earth:300", None, 0)
    whole = parse_records(edit_set(300))
    edited = {request.text for request in requests}
    left_out = 0
    for request, full in zip(requests, whole):
        assert dataclasses.replace(request, portability=full.portability) == full
        for probe in full.portability.get("one_hop", ()):
            steps = RELATION_OF[request.prompt].steps
            (step,) = [s for s in steps if s.prompt.replace("{}", full.subject) == probe.prompt]
            second = earth.relations().get(step.relation)
            is_edited = second is not None and (
                second.prompt.replace("{}", full.target_new) in edited
            )
            assert (probe in request.portability.get("one_hop", ())) is not is_edited
            left_out += is_edited
    assert 0 < left_out < 100
    assert settled("file.json", whole) == whole


def test_the_country_of_a_city_is_known_where_it_is_a_capital() -> None:
    fact = Row("landmark_city", "the Test Tower", "Paris")
    rome = next(
        record for seed in range(200) if parts(record := make_record(0, fact, seed))[2] == "Rome"
    )
    (question,) = rome["portability"]
    assert question["answer_new"] == "Italy"
    assert question["prompt"] == "The country where tourists can see the Test Tower is"
    assert question["answer_true"] == "France"


def test_draws_are_determined_by_seed_and_a_small_one_begins_a_large_one() -> None:
    first, again, other = earth.edit_set(100, 3), earth.edit_set(100, 3), earth.edit_set(100, 4)
    assert first == again and first != other
    assert earth.edit_set(200, 3)[:100] == first
    assert len({parts(record)[0] for record in first}) >= 12


def test_no_subject_comes_twice_before_all_came_once() -> None:
    subjects = [parts(record)[1] for record in edit_set()]
    distinct = len(set(subjects))
    assert len(set(subjects[:distinct])) == distinct
    assert len({parts(record)[:2] for record in edit_set()}) == len(subjects)


def test_other_facts_are_of_other_subjects() -> None:
    edits = edit_set(300)
    others = earth.other_facts(edits, 50)
    assert len(others) == 50 == len({record["case_id"] for record in others})
    assert not {parts(r)[1] for r in edits} & {parts(r)[1] for r in others}


def test_it_reads_as_requests_wherever_the_embedded_world_does() -> None:
    requests = read_data("earth:40", None, 2)
    assert [r.case_id for r in requests] == [r["case_id"] for r in earth.edit_set(40, 2)]
    assert [len(request.rephrase_prompts) for request in requests] == [3] * 40
    for request in requests:
        assert len(request.locality["neighborhood"]) >= 2
    assert len(read_data("earth", 7, 0)) == 7 == len(read_data("earth:20", 7, 0))
    assert len(read_data("earth", None, 0)) == len(facts())
    for wrong in ("earth:0", "earth:many", "earth:"):
        with pytest.raises(DataError, match="'earth' or 'earth:200'"):
            read_data(wrong, None, 0)
    with pytest.raises(DataError, match="earth:100000 asks for more than the"):
        read_data("earth:100000", None, 0)


def test_other_forms_of_the_edited_fact() -> None:
    for record in facts()[::5]:
        name, subject, new = parts(record)
        forms, relation = record["forms"], earth.relations()[name]
        assert subject in forms["negation"]["prompt"] and forms["negation"]["ground_truth"] == new
        assert new in forms["reversal"]["prompt"] and forms["reversal"]["ground_truth"] == subject
        assert ("translation" in forms) is (relation.translation is not None)


def test_unedited_facts_are_true_and_of_subjects_that_no_record_edits() -> None:
    edited = {record["requested_rewrite"]["subject"] for record in facts()}
    sentences = {
        (earth.relations()[fact.relation].prompt.replace("{}", fact.subject), fact.answer)
        for fact in earth.all_facts()
        if fact.subject not in edited
    }
    found = earth.unedited(10_000)
    assert set(found) == sentences and len(found) > 400
    assert earth.unedited(20) == found[:20]
