"""The facts and sentences that are shipped: shape, articles, duplicates, counts."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from benchmarks import earth_counts
from nse_plugin.data import earth
from nse_plugin.data.earth.tables import TABLES, facts_by_relation, follow, read_table

RELATIONS = earth.relations()


def test_there_is_enough_of_it() -> None:
    assert len(earth.facts()) >= 1500
    assert len(RELATIONS) >= 12
    assert {"person", "city", "country", "language"} <= {r.answer_type for r in RELATIONS.values()}


def test_every_table_belongs_to_a_relation_or_to_a_second_step() -> None:
    tables = {path.stem for path in TABLES.glob("*.tsv")}
    assert tables == set(RELATIONS) | set(follow()) | {"other_native_speakers"}
    speakers = {fact.subject for fact in read_table("other_native_speakers")}
    assert not speakers & {fact.subject for fact in read_table("mother_tongue")}
    assert speakers <= {fact.answer for fact in earth.all_facts()}


@pytest.mark.parametrize("name", [path.stem for path in TABLES.glob("*.tsv")])
def test_a_table_has_clean_rows_and_one_answer_per_subject(name: str) -> None:
    facts = read_table(name)
    assert all(count == 1 for count in Counter(fact.subject for fact in facts).values())
    for fact in facts:
        for text in (fact.subject, fact.answer, *fact.also):
            assert text and text == " ".join(text.split()) and "|" not in text and "{}" not in text
        assert fact.answer not in fact.also and len(set(fact.also)) == len(fact.also)
        assert len(fact.answer.split()) <= 5, fact


@pytest.mark.parametrize("name", RELATIONS)
def test_sentences_have_one_gap_and_end_before_the_answer(name: str) -> None:
    relation = RELATIONS[name]
    translation = [relation.translation.prompt] if relation.translation else []
    asking = [relation.prompt, *relation.paraphrases]
    assert len(set(asking)) == 4
    for text in (*asking, relation.negation, relation.reversal, *translation,
                 *(step.prompt for step in relation.steps)):  # fmt: skip
        assert text.count("{}") == 1
        assert text[0].isupper() or text.startswith("{}")
        assert text == " ".join(text.split()) and text[-1] not in ".?!:}"
    assert {"not", "n't"} & set(relation.negation.split())


@pytest.mark.parametrize("name", RELATIONS)
def test_articles_and_capitals_fit_every_subject_and_answer(name: str) -> None:
    relation = RELATIONS[name]
    for fact in facts_by_relation()[name]:
        for text in (relation.prompt, *relation.paraphrases, relation.negation):
            sentence = f"{text.replace('{}', fact.subject)} {fact.answer}."
            check_sentence(sentence)
        check_sentence(f"{relation.reversal.replace('{}', fact.answer)} {fact.subject}.")
        for step in relation.steps:
            check_sentence(f"{step.prompt.replace('{}', fact.subject)} Rome.")


def check_sentence(sentence: str) -> None:
    """Begins with a capital; no doubled article, no "a" before a vowel, no article left out."""
    assert not sentence[0].islower(), sentence
    assert not re.search(r"\b(?:the|a|an) (?:the|a|an)\b", sentence), sentence
    # a one-hour sound ("a unicorn") does not occur; a title is not bound by its article
    assert not re.search(r"\ba [aeiou]", sentence), sentence
    assert not re.search(
        r"(?<!the )(?<!The )\b(?:Netherlands|Philippines|United (?:States|Kingdom|Arab)|"
        r"Czech Republic|Dominican Republic|Bahamas|Gambia|Maldives|Solomon Islands|"
        r"Soviet Union|Central African Republic|Democratic Republic of the Congo)\b",
        sentence,
    ), sentence


def test_an_answer_has_one_name() -> None:
    """No relation gives an answer and, for another subject, the same under another name."""
    for name, facts in facts_by_relation().items():
        by_name: dict[str, set[str]] = {}
        for fact in facts:
            by_name.setdefault(fact.answer.lower(), set()).add(fact.answer)
        assert all(len(spellings) == 1 for spellings in by_name.values()), name


def test_one_city_is_in_one_country_whatever_the_table() -> None:
    """Facts that two tables tell agree."""
    capital_of = {fact.answer: fact.subject for fact in read_table("country_capital")}
    for fact in read_table("city_country"):
        assert capital_of.get(fact.subject, fact.answer) == fact.answer
    state_capital = {fact.answer: fact.subject for fact in read_table("state_capital")}
    for fact in read_table("us_city_state"):
        assert state_capital.get(fact.subject, fact.answer) == fact.answer
    states = {fact.subject for fact in read_table("state_capital")}
    assert {fact.answer for fact in read_table("us_city_state")} <= states
    makers = {fact.answer for fact in read_table("car_maker")}
    assert len(makers & set(follow()["company_country"])) >= 20


def test_every_translated_answer_is_an_answer() -> None:
    for name, relation in RELATIONS.items():
        if relation.translation is not None:
            answers = {fact.answer for fact in facts_by_relation()[name]}
            assert set(relation.translation.answers) <= answers, name


def test_the_table_of_the_documentation_counts_what_is_there(capsys) -> None:
    earth_counts.main()
    shown = capsys.readouterr().out
    assert f"| **all** | | {len(earth.all_facts())} | {len(earth.facts())} |" in shown
    assert shown.count("\n") == 3 + len(RELATIONS)
