"""Requests: what is read, what is refused, and how a round is checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nse_plugin.errors import RequestError
from nse_plugin.requests import EditRequest, Probe, as_requests, check_round

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=12)
WORDS = TEXT.filter(lambda text: text.strip())


def test_from_easyedits_dict():
    record = {
        "prompt": "Ann and Anna met; Ann lives in",
        "subject": "Ann",
        "target_new": " Rome",
        "ground_truth": [["Paris", "Paname"]],
        "rephrase_prompt": "Ann's home is",
        "locality": {"near": {"prompt": ["Bob is", "Eve is"], "ground_truth": ["a", ["b", "c"]]}},
        "portability": {"hop": {"prompt": "She speaks", "ground_truth": ["Italian", "it"]}},
    }
    request = EditRequest.from_dict(record, 7)
    assert request.prompt == "Ann and Anna met; {} lives in"  # the last whole word, not in "Anna"
    assert request.text == record["prompt"]
    assert request.text[: request.subject_end].endswith("Ann")
    assert (request.case_id, request.target_new, request.ground_truth) == (7, "Rome", "Paris")
    assert request.rephrase_prompts == ("Ann's home is",)
    assert request.locality["near"] == (Probe("Bob is", "a"), Probe("Eve is", "b"))
    assert request.portability["hop"] == (Probe("She speaks", "Italian"),)
    assert EditRequest.from_dict(request.to_dict()) == request


@given(WORDS, WORDS, WORDS, WORDS)
def test_dict_round_trip(head, subject, tail, target):
    request = EditRequest(1, f"{head}{{}}{tail}", subject, target.strip())
    again = EditRequest.from_dict(request.to_dict())
    assert again.text == request.text and again.target_new == request.target_new
    assert again.text[: again.subject_end].endswith(subject)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Bob", "subject": "Ann", "target_new": "x"}, "'Ann' is not in prompt 'Bob'"),
        ({"prompt": "{} is", "subject": "Ann", "target_new": " "}, "target_new is ''"),
        ({"prompt": "", "subject": "Ann", "target_new": "x"}, "not in prompt"),
        ({"prompt": "{} is", "subject": "", "target_new": "x"}, "subject is ''"),
        ({"prompt": "{} is", "subject": None, "target_new": "x"}, "subject is None"),
        ({"prompt": "{} {}", "subject": "Ann", "target_new": "x"}, "holds '{}' 2 times"),
        ({"prompt": "{} is", "subject": "Ann"}, "'target_new' is missing"),
        (
            {"prompt": "{} is", "subject": "A", "target_new": "x",
             "locality": {"near": {"prompt": ["a", "b"], "ground_truth": ["a"]}}},
            r"locality\['near'\] has 2 prompts and 1 answers",
        ),
    ],
)  # fmt: skip
def test_bad_requests_name_the_field(record, message):
    with pytest.raises(RequestError, match=f"request 3: .*{message}"):
        EditRequest.from_dict(record, 3)


def test_rounds_are_checked():
    a, b = EditRequest(0, "{} is", "Ann", "x"), EditRequest(1, "{} is", "Ann", "y")
    check_round([a, EditRequest(1, "{} was", "Ann", "y"), a])
    with pytest.raises(RequestError, match="0 and 1 give 'Ann is' two targets, 'x' and 'y'"):
        check_round([a, b])
    with pytest.raises(RequestError, match="empty"):
        check_round([])


def test_as_requests_numbers_what_has_no_number():
    record = {"prompt": "{} is", "subject": "Ann", "target_new": "x"}
    numbered = as_requests([record, {**record, "case_id": "q"}, EditRequest(9, "{} is", "B", "x")])
    assert [request.case_id for request in numbered] == [0, "q", 9]
    assert numbered[0].digest() == numbered[1].digest() != numbered[2].digest()
