"""The invented world is deterministic, consistent, and says what its records claim."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nse_plugin.data import atlas
from nse_plugin.data.atlas import vocabulary, world
from nse_plugin.errors import DataError


def test_same_seed_same_text() -> None:
    make = world.make_world.__wrapped__
    first, second, other = make(3), make(3), make(4)
    assert world.training_sentences(first) == world.training_sentences(second)
    assert world.training_sentences(first) != world.training_sentences(other)


def test_every_fact_is_said_except_in_one_phrasing() -> None:
    here = world.make_world()
    told = {s.text for s in world.fact_sentences(here)}
    unsaid = {s.text for s in world.fact_sentences(here, held_out=True)}
    assert not told & unsaid
    assert len(unsaid) == len(here.truth)
    assert len(told) == sum(
        len(patterns) - 1 for _, relations in here.subjects() for _, patterns in relations.values()
    )
    assert not unsaid & set(atlas.corpus())


def test_two_step_answers_follow_from_the_facts() -> None:
    here = world.make_world()
    person = here.people[0]
    home = here.truth[person, "home"]
    assert world.second_step(here, "land", home) == here.truth[home, "land"]
    silent = {s.subject for s in world.two_step_sentences(here, silent=True)}
    assert silent == here.silent and silent.isdisjoint(
        s.subject for s in world.two_step_sentences(here)
    )


def test_patterns_have_one_gap_and_no_answer_starts_another_sentence() -> None:
    for relations in (vocabulary.PERSON_RELATIONS, vocabulary.CITY_RELATIONS):
        for _, patterns in relations.values():
            assert all(p.count("{}") == 1 and not p.endswith((" ", "{}")) for p in patterns)


def test_shipped_facts_are_those_of_the_world() -> None:
    here = world.make_world()
    records = atlas.facts()
    assert [r["case_id"] for r in records] == list(range(len(here.truth)))
    unsaid = {s.text for s in world.fact_sentences(here, held_out=True)}
    for record in records:
        asked = record["requested_rewrite"]
        true = asked["target_true"]["str"]
        assert here.truth[asked["subject"], asked["relation_id"]] == true
        assert asked["target_new"]["str"] != true
        assert f"{record['paraphrase_prompts'][0]} {true}." in unsaid
        assert all(asked["subject"] in p for p in record["paraphrase_prompts"])
        for prompt in record["neighborhood_prompts"]:
            other = prompt.replace(asked["prompt"].replace("{}", ""), "").strip()
            assert other != asked["subject"]
            assert here.truth[other, asked["relation_id"]] == true


def test_edit_set_mixes_relations_and_repeats_no_subject_before_all_came() -> None:
    edits = atlas.edit_set(200, seed=1)
    subjects = {atlas.subject_of(r) for r in edits}
    assert len(subjects) == 200
    assert len({r["requested_rewrite"]["relation_id"] for r in edits}) > 8
    assert edits[:20] == atlas.edit_set(20, seed=1) != atlas.edit_set(20, seed=2)
    rest = atlas.other_facts(edits, 100)
    assert len(rest) == 100 and not subjects & {atlas.subject_of(r) for r in rest}
    many = atlas.edit_set(600, seed=1)
    assert len({r["case_id"] for r in many}) == 600


def test_edit_set_refuses_more_than_there_are() -> None:
    with pytest.raises(DataError, match="has 2016 facts, and"):
        atlas.edit_set(10**6)


def test_facts_belong_to_the_caller() -> None:
    atlas.facts()[0]["requested_rewrite"]["subject"] = "nobody"
    assert atlas.facts()[0]["requested_rewrite"]["subject"] != "nobody"


def test_import_is_light() -> None:
    code = (
        "import sys, nse_plugin.data.atlas as a; a.facts(); a.corpus();"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
