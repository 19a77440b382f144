"""Texts of a chat and their scores: by hand, offline, and by an endpoint that plays the judge."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

from nse_plugin.errors import DataError, HparamsError, RequestError
from nse_plugin.evaluation import generated
from nse_plugin.evaluation.before_after import finalize_locality
from nse_plugin.evaluation.edit_quality import compute_many
from nse_plugin.evaluation.generated import Judge, chat_texts, normalised
from tests.tiny import fresh_tokenizer, wide_model

TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}model:"
RECORD = {
    "case_id": "c-1",
    "prompt": "Mara lives in",
    "target_new": "the Old Town",
    "rephrase_prompt": "Where is Mara?",
    "locality": {"near": {"prompt": "Anna is a", "ground_truth": "painter"}},
    "portability": {"hop": {"prompt": ["Her river is", "Her sea is"], "ground_truth": ["x", "y"]}},
}
SAID = {
    "Mara lives in": "Old, Town!",
    "Where is Mara?": "the New Town",
    "Anna is a": "doctor",
    "Her river is": "X",
    "Her sea is": "why",
}


@pytest.fixture
def tokenizer():
    found = fresh_tokenizer()
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(autouse=True)
def no_judge(monkeypatch):
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"NSE_PLUGIN_JUDGE_{name}", raising=False)


def hparams(kind, **more):
    return SimpleNamespace(alg_name="NSE", evaluation_type=kind, **more)


def measured(monkeypatch, kind, **more):
    said = lambda _model, _tok, prompts: [SAID[prompt] for prompt in prompts]  # noqa: E731
    monkeypatch.setattr(generated, "chat_texts", said)
    return compute_many(None, hparams(kind, **more), None, [RECORD])[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_are_those_of_one_step_at_a_time(tokenizer, family, monkeypatch):
    model, prompts = wide_model(family), ["Mara lives in", "The river", "Anna is a painter"]
    (long,) = chat_texts(model, tokenizer, prompts[:1])
    mark = long[len(long) // 2]
    monkeypatch.setattr(generated, "_STOPS", (mark, "\n"))
    found = chat_texts(model, tokenizer, prompts)
    for prompt, text in zip(prompts, found):
        chat = f"system: You are a helpful assistant.\nuser: {prompt}\nmodel:"
        start = ids = tokenizer(chat)["input_ids"]
        said = ""
        while len(ids) < 128 and not {mark, "\n"} & set(said):
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            said = tokenizer.decode(ids[len(start) :])
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert text == said.removesuffix(mark).removesuffix("\n").removesuffix("<|endoftext|>")
    assert len(found[0]) <= len(long) // 2
    with pytest.raises(RequestError, match="context is 128"):
        chat_texts(model, tokenizer, ["Mara lives in " * 99])


def test_a_template_without_a_system_turn(tokenizer):
    """As Gemma 2's; one that takes no user's turn either is named."""
    model, prompts = wide_model("llama"), ["Mara lives in", "The river"]
    refuse = "{%% if messages[0].role == '%s' %%}{{ raise_exception('no %s') }}{%% endif %%}"
    plain = "user: {{ messages[-1].content }}\nmodel:"
    tokenizer.chat_template = plain
    found = chat_texts(model, tokenizer, prompts)
    tokenizer.chat_template = refuse % ("system", "system") + plain
    assert chat_texts(model, tokenizer, prompts) == found
    tokenizer.chat_template = refuse % ("system", "system") + refuse % ("user", "user") + plain
    with pytest.raises(HparamsError, match="refuses a prompt as the user's turn .no user"):
        chat_texts(model, tokenizer, prompts)
    in_chat = SimpleNamespace(alg_name="NSE", use_chat_template=True)
    with pytest.raises(HparamsError, match="no user"):
        compute_many(model, in_chat, tokenizer, [RECORD])


def test_texts_are_kept_or_scored_offline(monkeypatch):
    """The same in both, up to case, punctuation, articles and spaces: the score is known."""
    kept = measured(monkeypatch, "generate-text")
    assert kept["rewrite_gen_content"] == ["Old, Town!"] and "rewrite_acc" not in kept
    assert kept["metric_meta"]["rewrite"]["comparable_group"] == "lm.free_generation.raw_text"
    judged = measured(monkeypatch, "LLM-judge")
    assert (judged["rewrite_acc"], judged["rephrase_acc"]) == ([1.0], [0.0])
    assert judged["portability"] == {"hop_gen_content": ["X", "why"], "hop_acc": [1.0, 0.0]}
    assert judged["locality"] == {"near_gen_content": ["doctor"]}
    assert judged["metric_meta"]["rephrase"] == {
        "result_key": "rephrase_acc",
        "protocol": "free_generation_exact_match_fallback",
        "scorer": "exact_match",
        "comparable_group": "lm.free_generation.exact_match_fallback",
    }
    assert normalised("  The  Anna-Lee, an A ") == "annalee"


def test_locality_of_texts_and_of_other_groups(monkeypatch):
    before, after = (measured(monkeypatch, "generate-text") for _ in range(2))
    after["locality"]["near_gen_content"] = ["painter"]
    metric = finalize_locality({"case_id": 3, "pre": before, "post": after})
    assert metric["post"]["locality"]["near_acc"] == [0.0]
    assert metric["post"]["metric_meta"]["locality.near"]["comparable_group"] == (
        "locality.lm.pre_post_free_generation_output_match"
    )
    judged = measured(monkeypatch, "LLM-judge")
    with pytest.raises(RequestError, match=r"case 3: rewrite is lm\S+raw_text before .*fallback"):
        finalize_locality({"case_id": 3, "pre": before, "post": judged})


def in_form(content):
    return {"choices": [{"message": {"content": content}}]}


class Endpoint(BaseHTTPRequestHandler):
    """Finds right what ends in "Town"; answers in other ways where its server says so."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        given = body["messages"][0]["content"].split("Given answer: ")[1].split("\n")[0]
        said = in_form("A" if given.endswith("Town") else "B")
        reply = json.dumps(said if self.server.form is None else self.server.form).encode()
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.form, server.status = [], None, 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NSE_PLUGIN_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv("NSE_PLUGIN_JUDGE_MODEL", "small-judge")
    monkeypatch.setenv("NSE_PLUGIN_JUDGE_KEY", "secret-key")
    yield server
    server.shutdown()
    server.server_close()


def test_a_judge_behind_an_endpoint(monkeypatch, endpoint, caplog):
    caplog.set_level(0)
    judged = measured(monkeypatch, "LLM-judge")
    assert (judged["rewrite_acc"], judged["rephrase_acc"]) == ([0.0], [1.0])
    assert judged["metric_meta"]["rewrite"]["comparable_group"] == (
        "lm.free_generation.llm_judge.small-judge"
    )
    path, key, body = endpoint.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret-key")
    assert (body["model"], body["temperature"]) == ("small-judge", 0)
    for text in ("Mara lives in", "the Old Town", "Old, Town!"):
        assert text in body["messages"][0]["content"]
    assert len(endpoint.seen) == 4  # locality is not judged
    endpoint.form = {"no": "choices"}
    failures = [(200, "another form"), (401, "refused with 401"), (302, "no answer|refused|form")]
    for endpoint.status, why in failures:
        with pytest.raises(DataError, match=f"'small-judge' at 127.0.0.1 .*{why}") as error:
            measured(monkeypatch, "LLM-judge")
        assert "secret-key" not in str(error.value)
    for hidden in (str(judged), caplog.text, repr(Judge.of(hparams("LLM-judge")))):
        assert "secret-key" not in hidden


def test_the_judges_letter_is_found_in_a_longer_reply(endpoint):
    judge = Judge.of()
    right = ["A", "a.", "A) right", "**A**", "<think>B? No.</think>\nA", "The answer is right: A"]
    for said, score in [*((said, 1.0) for said in right), ("b", 0.0), ("**B** (not right)", 0.0)]:
        endpoint.form = in_form(said)
        assert judge.score("q", "x", "y") == score, said
    for said in (None, "", "A or B", "Apart from that, it is right"):
        endpoint.form = in_form(said)
        with pytest.raises(DataError, match="answered neither A nor B"):
            judge.score("q", "x", "y")


def test_a_connection_that_fails_is_reported():
    with pytest.raises(DataError, match=r"gave no answer \(InvalidURL\)"):
        Judge("http://127.0.0.1:9/a path", "m").score("q", "x", "y")


def test_which_judge_there_is(monkeypatch):
    assert Judge.of(hparams("LLM-judge")) is None
    hosts = Judge.of(hparams("LLM-judge", api_key="k"))
    assert (hosts.url, hosts.model, hosts.key) == ("https://api.deepseek.com", "deepseek-chat", "k")
    monkeypatch.setenv("NSE_PLUGIN_JUDGE_URL", "http://127.0.0.1:9")
    with pytest.raises(HparamsError, match="NSE_PLUGIN_JUDGE_MODEL is None"):
        Judge.of(hparams("LLM-judge"))
    monkeypatch.setenv("NSE_PLUGIN_JUDGE_MODEL", "m")
    with pytest.raises(DataError, match="gave no answer"):
        measured(monkeypatch, "LLM-judge")
