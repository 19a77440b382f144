"""EasyEdit's evaluations of generated text: ``generate-text`` and ``LLM-judge``.

The prompt becomes the user's turn of a chat, and the model's turn ends at its first full stop, line
break or end token.  ``generate-text`` keeps these texts.  ``LLM-judge`` also scores them: by a
judge where there is one (:meth:`Judge.of`), and otherwise offline, 1 where text and answer are
equal once case, punctuation, articles and spaces no longer count.

Greedy decoding here takes the model's first choices; EasyEdit's also applies what
``generation_config`` says of greedy decoding, such as a repetition penalty.
"""

from __future__ import annotations

import json
import os
import re
import string
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from nse_plugin.errors import DataError, HparamsError
from nse_plugin.evaluation.questions import Question
from nse_plugin.model.generation import continue_rows, end_ids
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import encode_text

JUDGED = "LLM-judge"
EVALUATIONS = ("generate-text", JUDGED)
_SYSTEM = "You are a helpful assistant."
_LONGEST = 512  # new tokens
_STOPS = (".", "\n")
_URL, _MODEL, _KEY = (f"NSE_PLUGIN_JUDGE_{name}" for name in ("URL", "MODEL", "KEY"))
_ASKED = """Question: {question}
Right answer: {answer}
Given answer: {given}

Is the given answer right? It has to hold what matters of the right answer, must not contradict it,
and must not repeat itself. Reply with one letter: A if it is right, B if it is not."""


@dataclass(frozen=True)
class Judge:
    """A language model behind an endpoint that understands OpenAI's chat completions."""

    url: str = "https://api.deepseek.com"
    model: str = "deepseek-chat"
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, hparams: Any = None) -> Judge | None:
        """The judge that the environment describes, else EasyEdit's for a key in the hparams.

        ``NSE_PLUGIN_JUDGE_URL`` (such as ``http://localhost:8000/v1``), ``NSE_PLUGIN_JUDGE_MODEL``
        and, where the endpoint asks for one, ``NSE_PLUGIN_JUDGE_KEY``.  Without URL and key there
        is no judge.

        Raises:
            HparamsError: the URL is not one of http or https, or no model is named beside it.
        """
        url, model = os.environ.get(_URL), os.environ.get(_MODEL)
        key = os.environ.get(_KEY) or getattr(hparams, "api_key", None)
        if not url:
            return cls(model=model or cls.model, key=key) if key else None
        if urlsplit(url).scheme not in ("http", "https") or not model:
            raise HparamsError(
                f"{_URL} and {_MODEL} name the judge together, such as http://localhost:8000/v1 "
                f"and the name by which its server knows the model; {_MODEL} is {model!r}"
            )
        return cls(url.rstrip("/"), model, key)

    def score(self, question: str, answer: str, given: str) -> float:
        """1 where the judge finds the given answer right, else 0.

        Raises:
            DataError: the endpoint cannot be reached, refuses, or answers something else.
        """
        content = _ASKED.format(question=question, answer=answer, given=given)
        asked = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        if self.key:  # not sent on where the endpoint redirects to another host
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                said = json.load(reply)["choices"][0]["message"]["content"]
            return float(str(said).strip().strip('".').upper() == "A")
        except urllib.error.HTTPError as error:  # its text may repeat the key
            why = f"refused with {error.code}"
        except (OSError, ValueError) as error:
            why = f"gave no answer ({type(error).__name__})"
        except (LookupError, TypeError):
            why = "answered in another form than chat completions"
        raise DataError(
            f"the judge {self.model!r} at {urlsplit(self.url).hostname} {why}; check {_URL} and "
            f"{_KEY}, or leave both out to compare texts offline"
        )


def chat_texts(model: nn.Module, tok: Any, prompts: Sequence[str], token_budget: int) -> list[str]:
    """What the model says to each prompt in a chat, up to its first full stop or line break.

    Raises:
        HparamsError: the tokenizer has no chat template.
        RequestError: a prompt is longer than the model's context.
    """
    if not getattr(tok, "chat_template", None):
        raise HparamsError(
            f"evaluation_type {' and '.join(EVALUATIONS)} ask in a chat, and the tokenizer has no "
            "chat template; leave evaluation_type out, or take a model that was trained for chat"
        )
    turns = ({"role": "system", "content": _SYSTEM},)
    chats = [[*turns, {"role": "user", "content": prompt}] for prompt in prompts]
    texts = tok.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    rows = [list(encode_text(tok, text)) for text in texts]
    limit = layout_of(model).max_positions
    room = [max(1, min(_LONGEST, (limit or 2**31) - len(row))) for row in rows]
    ends = end_ids(model, tok)

    def ended(ids: list[int]) -> bool:
        return ids[-1] in ends or any(mark in tok.decode(ids) for mark in _STOPS)

    new = continue_rows(
        model, rows, room, lambda logits, _: logits.argmax(dim=-1), ended=ended,
        token_budget=token_budget,
    )  # fmt: skip
    return [_without_end(tok.decode(ids), tok) for ids in new]


def scores(questions: Sequence[Question], texts: Sequence[str], judge: Judge | None) -> list[float]:
    """1 for each text that gives its question's answer, else 0."""
    if judge is None:
        return [
            float(normalised(text) == normalised(q.answer)) for q, text in zip(questions, texts)
        ]
    return [judge.score(q.prompt, q.answer, text) for q, text in zip(questions, texts)]


def normalised(text: str) -> str:
    """The text without case, punctuation and articles, its words one space apart."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text).split())


def description(evaluation_type: str, section: str, judge: Judge | None) -> dict[str, str]:
    """EasyEdit's ``metric_meta`` of a section; a group of judged scores is that of one judge."""
    key, protocol, scorer, group = f"{section}_acc", "judge", "llm_judge", ""
    if evaluation_type != JUDGED:
        key, protocol, scorer, group = f"{section}_gen_content", "raw_text", "none", "raw_text"
    elif judge is None:
        protocol, scorer, group = "exact_match_fallback", "exact_match", "exact_match_fallback"
    return {
        "result_key": key,
        "protocol": f"free_generation_{protocol}",
        "scorer": scorer,
        "comparable_group": f"lm.free_generation.{group or f'{scorer}.{judge and judge.model}'}",
    }


def _without_end(text: str, tok: Any) -> str:
    for end in (*_STOPS, tok.eos_token):
        text = text.removesuffix(end or "")
    return text
