"""Order of a stream: what each order promises, for lists and for iterators."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nse_plugin.errors import RequestError
from nse_plugin.requests import EditRequest, Probe, check_round
from nse_plugin.runs.order import Rounds

facts = st.lists(
    st.tuples(st.sampled_from("ABC"), st.sampled_from(["{} is", "{} has"]), st.sampled_from("xy")),
    max_size=25,
)
orders = st.sampled_from(["given", "shuffled", "grouped"])


def build(triples):
    return [EditRequest(i, p, s, t) for i, (s, p, t) in enumerate(triples)]


def last_answers(requests):
    return {r.fact: r.target_new for r in requests}


@settings(max_examples=150, deadline=None)
@given(facts, orders, st.integers(1, 5), st.booleans())
def test_rounds_hold_what_the_stream_asks_for(triples, order, size, as_iterator):
    requests = build(triples)
    rounds = Rounds(iter(requests) if as_iterator else requests, size, order, seed=1)
    cut = list(rounds)
    made = [r for planned in cut for r in planned.requests]
    assert [planned.number for planned in cut] == list(range(1, len(cut) + 1))
    for planned in cut:
        assert 1 <= len(planned.requests) <= size
        check_round(planned.requests)  # no two targets for one prompt
        if order == "grouped":
            assert len({r.subject for r in planned.requests}) == len(planned.requests)
    # repeats are counted, the rest is made, and no target is written twice in a row
    assert len(made) + rounds.repeats == len(requests)
    assert len({r.case_id for r in made}) == len(made)
    in_effect = {}
    for r in made:
        assert in_effect.get(r.fact) != r.target_new
        in_effect[r.fact] = r.target_new
    if order != "shuffled":  # the last word on a fact is the stream's last word
        assert last_answers(made) == last_answers(requests)
    if order == "given":
        assert [r.case_id for r in made] == sorted(r.case_id for r in made)
    assert [p.requests for p in rounds] == [p.requests for p in cut] or as_iterator


def test_shuffled_depends_on_the_seed_alone():
    requests = [EditRequest(i, "{} is", f"S{i}", "x") for i in range(20)]

    def ids(seed):
        return [r.case_id for p in Rounds(requests, 3, "shuffled", seed) for r in p.requests]

    assert ids(0) == ids(0) != ids(1)
    assert sorted(ids(0)) == list(range(20))


def endless(subject, drawn, bound):
    """A stream that never ends; reading it beyond the bound fails instead of hanging."""
    for i in itertools.count():
        assert i < bound, "more was drawn than needed"
        drawn.append(i)
        yield {"prompt": f"{{}} is {i}", "subject": subject.format(i), "target_new": "x"}


@pytest.mark.parametrize("order", ["given", "grouped", "shuffled"])
def test_an_iterator_is_drawn_no_further_than_needed(order):
    drawn, made = [], []
    rounds = iter(Rounds(endless("S{}", drawn, bound=100), 3, order))
    for number in range(16):
        made += [r.case_id for r in next(rounds).requests]
        windows = number // 8 + 1  # of 8 rounds
        assert len(drawn) == (24 * windows if order == "shuffled" else len(made))
    assert sorted(made[:24]) == list(range(24)) and sorted(made) == list(range(48))
    assert (made == sorted(made)) is (order != "shuffled")


def test_grouped_does_not_wait_for_ever():
    drawn = []
    rounds = iter(Rounds(endless("one subject", drawn, bound=100), 4, "grouped"))
    for number in range(3):
        assert [r.case_id for r in next(rounds).requests] == [number]
        assert len(drawn) == 1 + 8 * 4 + number  # no more than the requests of 8 rounds wait
    stream = itertools.islice(endless("one subject", [], bound=100), 100)
    assert [len(p.requests) for p in Rounds(stream, 4, "grouped")] == [1] * 100


def test_grouped_keeps_two_subjects_of_one_text_apart_and_in_order():
    text = "The mother of Tom is"
    requests = [
        EditRequest(0, "The mother of {} is", "Tom", "Ann"),
        EditRequest(1, "{} is", "The mother of Tom", "Eve"),
        EditRequest(2, "{} lives in", "The mother of Tom", "Oslo"),
    ]
    assert requests[0].text == requests[1].text == text
    cut = [[r.case_id for r in p.requests] for p in Rounds(requests, 3, "grouped")]
    assert cut == [[0], [1], [2]]


def test_repeats_with_one_case_id_keep_all_their_probes():
    probes = [{"places": (Probe(f"question {i}", f"answer {i}"),)} for i in range(3)]
    requests = [
        EditRequest(number and 7, "{} is in", "Oslo", "Peru", locality=its)
        for number, its in enumerate(probes)
    ]
    (kept,) = next(iter(Rounds(requests, 4))).requests
    assert [p.prompt for group in kept.locality.values() for p in group] == [
        "question 0", "question 1", "question 2",
    ]  # fmt: skip


def test_grouped_takes_other_spellings_for_the_same_subject():
    names = ["Ann", "ann", "Ann "]
    requests = [EditRequest(i, f"{{}} is {i}", name, "x") for i, name in enumerate(names)]
    cut = list(Rounds(requests, 3, "grouped"))
    assert [[r.case_id for r in p.requests] for p in cut] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "round_size is 0"), ((2, "shufled"), "did you mean 'shuffled'")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(RequestError, match=message):
        Rounds([], *arguments)
