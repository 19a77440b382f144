"""The report of an edit, as text and as JSON."""

from __future__ import annotations

from nse_plugin.runs.edit_report import Asked, Cost, Earlier, EditedFact, EditReport

ASKED = (Asked("prompt", "A is", "b", "c", True), Asked("neighbour", "D is", "e", "f", False))


def report(n_facts: int, *, before: bool = False, asked: tuple[Asked, ...] = ASKED) -> EditReport:
    facts = [EditedFact(i, "A", f"{i} is", "c", i > 0, before, asked) for i in range(n_facts)]
    cost = Cost(1.0, 2.0, None, 0, 3)
    return EditReport("my-edits", 1, tuple(facts), Earlier(0, ()), cost)


def lines(*arguments, **options) -> list[str]:
    return report(*arguments, **options).text().splitlines()


def test_every_answer_is_shown_of_a_fact_and_a_line_of_many():
    assert lines(1)[:7] == [
        "0 is -> c",
        "  prompt     A is ...",
        "    before: b",
        "    after:  c",
        "  neighbour  D is ...",
        "    before: e",
        "    after:  f   <- changed",
    ]
    assert lines(5)[:2] == ["NOT in effect  0 is -> c (gives: c)", "in effect      1 is -> c"]
    assert lines(1)[-1].startswith("NOT in effect: 1 of 1. round 1")


def test_the_report_of_many_facts_says_what_else_they_changed():
    missed = Asked("paraphrase", "So A is", "b", "b", False)
    some = lines(5, asked=(*ASKED, missed))
    assert some[5:7] == ["paraphrases: 0 of 5 give the new answer", "neighbours: 5 of 5 changed"]
    assert lines(3)[3 * 7].startswith("cost: ")  # all is shown of each fact
    alone = ASKED[:1]
    assert "neighbours were not asked (more than 10 facts)" in lines(11, asked=alone)
    assert "no neighbours are known for 5 of 5 facts; give some with --neighbour" in lines(
        5, asked=alone
    )
    assert "no neighbours are known for this subject; give some with --neighbour" in lines(
        1, asked=alone
    )


def test_the_report_names_a_repeat_and_whose_change_it_is():
    assert lines(1, before=True)[0] == "0 is -> c (was already in effect before this round)"
    assert lines(5, before=True)[1].startswith("in effect      1 is -> c (was already in effect")
    some = "; all rounds together change 5 matrices by at most 4.8% of their norm"
    assert Cost(1.0, 2.0, 0.048, 5, 3).text().endswith(some)
    large = "change 1 matrix by 120.0% of its norm - a very large change; other answers may suffer"
    assert Cost(1.0, 2.0, 1.2, 1, 3).text().endswith(large)


def test_long_texts_are_shortened_in_the_report_and_not_in_its_json():
    long = f"begin {'word ' * 160}end"
    asked = (*ASKED[:1], Asked("paraphrase", long, long, long, False))
    fact = EditedFact(0, "A", long, "c", True, False, asked)
    one = EditReport("my-edits", 1, (fact,), Earlier(1, (long,)), Cost(1.0, 2.0, None, 0, 3))
    shown = one.text().splitlines()
    assert max(map(len, shown)) < 160
    cut = [line for line in shown if "begin" in line]
    assert len(cut) == 5 and all(" ... " in line and "end" in line for line in cut)
    assert one.to_dict()["facts"][0]["prompt"] == long
