"""What the untouched model knows is what it writes, greedily and as a whole."""

from __future__ import annotations

import dataclasses

import pytest

from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import DataError
from nse_plugin.evaluation.known import keep_known
from nse_plugin.model.generation import greedy_text
from nse_plugin.requests import EditRequest, Probe
from tests.tiny import atlas_model

WRONG = "a place that nobody names"


@pytest.fixture(scope="module")
def loaded():
    return atlas_model("gpt2")


@pytest.fixture(scope="module")
def requests() -> list[EditRequest]:
    """Ten facts that the model knows; every third true answer and one probe of each are wrong."""
    found = parse_records(atlas.edit_set(10))
    for number in range(0, 10, 3):
        found[number] = dataclasses.replace(found[number], ground_truth=WRONG)
    return [
        dataclasses.replace(
            request,
            locality={**request.locality, "other": (Probe("The sea is", WRONG),)},
        )
        for request in found
    ]


def says(loaded, prompt: str, answer: str) -> bool:
    (text,) = greedy_text(*loaded, [prompt], 16)
    return text.startswith(f" {answer}")


def test_kept_are_those_that_generation_gives(loaded, requests) -> None:
    known = keep_known(*loaded, requests)
    expected = [r for r in requests if says(loaded, r.text, r.ground_truth)]
    assert 0 < len(expected) < len(requests)
    assert [r.case_id for r in known.requests] == [r.case_id for r in expected]
    for kept, given in zip(known.requests, expected):
        right = [p for p in given.locality["neighborhood"] if says(loaded, p.prompt, p.answer)]
        assert list(kept.locality.get("neighborhood", ())) == right
        assert "other" not in kept.locality
        assert dataclasses.replace(kept, locality=given.locality) == given


def test_it_counts_by_prompt_and_says_so(loaded, requests) -> None:
    known = keep_known(*loaded, requests)
    assert sum(known.asked.values()) == 10 and sum(known.kept.values()) == len(known.requests)
    assert known.asked.keys() == {request.prompt for request in requests}
    assert known.shares()[0][1] / known.shares()[0][2] == max(
        kept / asked for _, kept, asked in known.shares()
    )
    assert str(known).startswith(f"the untouched model knows {len(known.requests)} of 10 true")


def test_a_limit_gives_the_first_that_are_known(loaded, requests) -> None:
    whole = keep_known(*loaded, requests).requests
    some = keep_known(*loaded, requests, limit=3)
    assert some.requests == whole[:3]
    assert sum(some.asked.values()) < 10


def test_no_true_answer_and_nothing_known_are_errors(loaded, requests) -> None:
    with pytest.raises(DataError, match="has no true answer"):
        keep_known(*loaded, [dataclasses.replace(requests[1], ground_truth=None)])
    with pytest.raises(DataError, match="none of the 1 true answers"):
        keep_known(*loaded, [requests[0]])
    assert keep_known(*loaded, []).requests == []
