"""Requests: what is read, what is refused, and how a round is checked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nse_plugin.errors import RequestError
from nse_plugin.request_fields import filled
from nse_plugin.requests import EditRequest, Probe, _log_once, as_requests, check_round
from nse_plugin.runs.order import with_probes_of

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=12)
WORDS = TEXT.map(str.strip).filter(bool)
ANY = st.text(st.characters(codec="utf-8"), max_size=12)
WORDS_OF_ANY = ANY.filter(lambda text: text.strip())


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


PROBES = st.dictionaries(WORDS, st.lists(st.builds(Probe, WORDS, WORDS), min_size=1).map(tuple))


@given(ANY, WORDS_OF_ANY, ANY, WORDS, st.lists(WORDS).map(tuple), PROBES)
def test_a_request_is_read_back_from_its_dict(head, subject, tail, target, rephrased, probes):
    request = EditRequest(
        1, f"{head}{{}}{tail}", subject, target, None, rephrased, probes, probes, place=len(head)
    )
    assert EditRequest.from_dict(request.to_dict()) == request
    assert EditRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert request.text[request.subject_start : request.subject_end] == subject.strip()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("In the config file {} of Ann Lee, the city is", "Ann Lee"),
        ("The type std::vector<int>{} holds", "std::vector<int>{}"),
        ("f({}, {}) by Ann Lee returns", "Ann Lee"),
        ("struct {Rust} declares a", "Rust"),
    ],
)
def test_braces_of_the_prompt_stay(prompt, subject):
    request = EditRequest.from_dict({"prompt": prompt, "subject": subject, "target_new": "Oslo"})
    assert request.text == prompt
    assert request.text[request.subject_start : request.subject_end] == subject
    assert EditRequest.from_dict(request.to_dict()) == request


def test_a_place_that_holds_no_braces_is_refused():
    with pytest.raises(RequestError, match="place is 1"):
        EditRequest(0, "{} and {}", "Ann", "x", place=1)


@pytest.mark.parametrize("subject", ["Miro Pell", "Miro Pell ", " Miro Pell", "\tMiro Pell\n"])
def test_blanks_around_the_subject_do_not_move_its_last_token(subject):
    read = EditRequest.from_dict(
        {"prompt": "Here Miro Pell lives in", "subject": subject, "target_new": "Tarn"}
    )
    made = EditRequest(0, "Here {} lives in", subject, "Tarn")
    assert (read.text, read.subject) == (made.text, made.subject)
    assert read.text == "Here Miro Pell lives in"
    assert EditRequest(0, "Here {}lives in", "Miro Pell ", "Tarn").text == read.text


def test_blanks_at_the_end_of_prompts_are_dropped():
    request = EditRequest(
        0, "{} plays the ", "Ann", " zither ", rephrase_prompts=("She plays the ",),
        locality={"k": (Probe("Bob plays the ", " drum"),)},
    )  # fmt: skip
    assert (request.text, request.target_new) == ("Ann plays the", "zither")
    assert request.rephrase_prompts == ("She plays the",)
    assert request.locality["k"] == (Probe("Bob plays the", "drum"),)


@pytest.mark.parametrize(
    "none", [None, float("nan"), np.float32("nan"), "", [], [[]], [None], [[""]]]
)
def test_what_is_none_never_becomes_a_text(none, caplog):
    base = {"prompt": "Ann lives in", "subject": "Ann", "target_new": "Oslo"}
    group = {"prompt": ["Bob lives in"], "ground_truth": [none]}
    request = EditRequest.from_dict(
        {**base, "ground_truth": none, "rephrase_prompt": none, "locality": {"k": group}}
    )
    assert (request.ground_truth, request.rephrase_prompts, request.locality) == (None, (), {})
    assert "left out" in caplog.text and "Bob lives in" in caplog.text
    if not isinstance(none, (list, str)):
        assert EditRequest.from_dict({**base, "locality": none}).locality == {}


def test_the_probes_of_a_repeat_are_asked_too():
    def request(case_id, *prompts):
        probes = tuple(Probe(prompt, "a") for prompt in prompts)
        more = {"portability": {"hop": probes}, "forms": {"reversal": probes}}
        return EditRequest(case_id, "{} is", "Ann", "x", **more)

    both = with_probes_of(request(1, "p", "q"), request(2, "q", "r"))
    assert both.forms == {"reversal": tuple(Probe(prompt, "a") for prompt in "pqr")}
    assert both.portability == {
        "hop": (Probe("p", "a"), Probe("q", "a")),
        "hop of case 2": (Probe("r", "a"),),
    }
    assert with_probes_of(both, request(3, "p")) == both


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("{} plays a", "a", "{} plays {}"),
        ("{} has many", "a", "{} has many"),  # inside words only: a template
        ("{} is in Romeo", "Rome", "{} is in Romeo"),
    ],
)
def test_a_prompt_is_a_template_where_no_word_of_it_is_the_subject(prompt, subject, template):
    request = EditRequest.from_dict({"prompt": prompt, "subject": subject, "target_new": "x"})
    assert request.prompt == template
    assert request.text == (prompt if template != prompt else prompt.replace("{}", subject))
    assert filled(prompt, subject) == request.text


@pytest.mark.parametrize(
    ("before", "subject", "behind"),
    [
        ("中国 is large; ", "中国", "的首都是"),  # no spaces: each place is a whole word
        ("東京は「東京」の前の", "東京", "に住む"),
        ("ใครอยู่ใน", "กรุงเทพ", "มหานคร"),
        ("عاصمة ", "مصر", " هي"),
        ("", "राम", " और रामी"),  # a vowel sign goes on with the word
        ("", "cafe", " or cafe\u0301"),
        ("", "Ann", "'s friend Annie and _Ann_ live in"),
        ("The flag of ", "\U0001f1eb\U0001f1f7", " is"),
    ],
)
def test_the_subjects_last_whole_word_is_its_place(before, subject, behind):
    prompt = before + subject + behind
    request = EditRequest.from_dict({"prompt": prompt, "subject": subject, "target_new": "x"})
    assert request.subject_start == len(before) and request.text == prompt


def test_subject_start_chooses_in_any_form_and_is_refused_if_wrong():
    record = {"prompt": "Ann knows Ann and", "subject": "Ann", "target_new": "x"}
    for start, place in [(0, 0), ("0", 0), (0.0, 0), (np.int64(0), 0), (None, 10), ("", 10)]:
        request = EditRequest.from_dict({**record, "subject_start": start})
        assert request.subject_start == place, start
    for wrong in (3, -1, 99, "first", 0.5):
        with pytest.raises(RequestError, match=f"subject_start is {wrong!r}, and subject 'Ann'"):
            EditRequest.from_dict({**record, "subject_start": wrong})


def test_blanks_at_the_end_are_spoken_of_once_and_line_breaks_stay(caplog):
    _log_once.cache_clear()
    for prompt in ("{} is \u00a0", "{} was "):
        EditRequest(0, prompt, "Ann", "x", rephrase_prompts=("She is ",))
    assert len(caplog.messages) == 1
    assert EditRequest(0, "{}:\n", "Ann", "x").text == "Ann:\n"


def test_case_ids_and_answers_of_a_table():
    record = {"prompt": "{} is", "subject": "Ann", "target_new": 1923.0}
    ids = [np.int64(5), 7.0, float("nan"), None, "a"]
    read = [EditRequest.from_dict({**record, "case_id": i}, 3).case_id for i in ids]
    assert read == [5, 7, 3, 3, "a"] and all(type(i) in (int, str) for i in read)
    assert EditRequest.from_dict(record).target_new == "1923"
    gaps = {**record, "ground_truth": pd.NA, "rephrase_prompt": pd.NaT, "rephrase_prompts": ["q"]}
    assert EditRequest.from_dict(gaps).rephrase_prompts == ("q",)
    assert EditRequest.from_dict(gaps).ground_truth is None


def test_probes_without_a_text_are_refused():
    for prompt, answer in [("q", ""), (None, "a"), ("q", float("nan"))]:
        with pytest.raises(RequestError, match="a probe's (prompt|answer) is"):
            Probe(prompt, answer)
    assert EditRequest(0, "{} is", "Ann", "x", locality={"k": ()}).locality == {}


READABLE = {"prompt": "Ann is", "subject": "Ann", "target_new": "x"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Bob", "subject": "Ann", "target_new": "x"}, "'Ann' is not in prompt 'Bob'"),
        ({"prompt": "{} is", "subject": "Ann", "target_new": " "}, "target_new is ''"),
        ({"prompt": "", "subject": "Ann", "target_new": "x"}, "prompt is ''"),
        ({**READABLE, "prompt": float("nan")}, "prompt is nan"),
        ({**READABLE, "ground_truth": float("inf")}, "ground_truth is inf"),
        ({**READABLE, "target_new": {"str": "x"}}, "target_new is {'str'"),
        ({**READABLE, "target_new": "\ud800"}, "not valid Unicode"),
        ({**READABLE, "rephrase_prompts": [True]}, "rephrase_prompts is True"),
        ({**READABLE, "locality": ["x"]}, r"locality is \['x'\]; give"),
        ({**READABLE, "locality": {"k": {"prompt": "q"}}}, r"locality\['k'\] holds {'prompt'"),
        ({**READABLE, "locality": {"k": {"prompt": 5, "ground_truth": "a"}}}, "a prompt of local"),
        ({**READABLE, "case_id": [1]}, r"case_id is \[1\]"),
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
    one, two = EditRequest(2, "{} Voss is", "Mara", "x"), EditRequest(3, "Mara {} is", "Voss", "y")
    assert one.fact == two.fact
    with pytest.raises(RequestError, match="2 and 3 give 'Mara Voss is' two targets"):
        check_round([one, two])  # one text, its subject cut in two ways
    with pytest.raises(RequestError, match="case_id 0 is that of 'Ann is' and of 'Ann was'"):
        check_round([a, EditRequest(0, "{} was", "Ann", "y")])
    with pytest.raises(RequestError, match="empty"):
        check_round([])
    for wrong in ("abc", a, [a.to_dict()], [a, "b"]):
        with pytest.raises(RequestError, match="give a list of EditRequest"):
            check_round(wrong)
    with pytest.raises(RequestError, match="rephrase_prompts is a text"):
        EditRequest(2, "{} is", "Ann", "x", rephrase_prompts="Ann was")


def test_as_requests_numbers_what_has_no_number():
    record = {"prompt": "{} is", "subject": "Ann", "target_new": "x"}
    numbered = as_requests([record, {**record, "case_id": "q"}, EditRequest(9, "{} is", "B", "x")])
    assert [request.case_id for request in numbered] == [0, "q", 9]
    assert len({request.digest() for request in numbered}) == 3
    assert numbered[0].digest() == as_requests([record])[0].digest()
