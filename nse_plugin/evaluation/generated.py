"""Scores of generated text: fluency, and EasyEdit's ``generate-text`` and ``LLM-judge``.

For the last two, the prompt becomes the user's turn of a chat, and the model's turn ends at its
first full stop, line break or end token.  ``generate-text`` keeps these texts.  ``LLM-judge`` also
scores them: by a judge if there is one (:meth:`Judge.of`), otherwise offline, as 1 if text and
answer are equal apart from case, punctuation, articles and spaces.

Greedy decoding here takes the model's first choices; EasyEdit's also applies settings of
``generation_config`` such as a repetition penalty.  The chat begins with a system turn as
EasyEdit's does, except where the template refuses one (Gemma 2), which EasyEdit cannot use.  As in
EasyEdit, a template that writes the start token itself gives two of them, if the tokenizer adds one
as well.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import string
import unicodedata
import urllib.error
import urllib.request
from collections import Counter
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

FLUENCY_TOKENS = 100
"""Tokens of a sampled text, its prompt included, where the model's context allows it."""
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the n-gram entropies, by n
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
    """A language model at an endpoint with OpenAI's chat completions API."""

    url: str = "https://api.deepseek.com"
    model: str = "deepseek-chat"
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, hparams: Any = None) -> Judge | None:
        """The judge that the environment names, else EasyEdit's with the key in the hparams.

        The variables are ``NSE_PLUGIN_JUDGE_URL`` (such as ``http://localhost:8000/v1``),
        ``NSE_PLUGIN_JUDGE_MODEL`` and, if the endpoint requires one, ``NSE_PLUGIN_JUDGE_KEY``.
        Without URL and key there is no judge.

        Raises:
            HparamsError: the URL is not http or https, or no model is given with it.
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
        """1 if the judge finds the given answer right, else 0.

        Raises:
            DataError: the endpoint cannot be reached, refuses, or answers in another format, or
                the judge names no letter or both.
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
        if self.key:  # not forwarded if the endpoint redirects to another host
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                said = json.load(reply)["choices"][0]["message"]["content"]
            if (verdict := _verdict(str(said))) is not None:
                return verdict
            why = f"answered neither A nor B, but {said!r:.80}"
        except urllib.error.HTTPError as error:  # whose text may repeat the key
            why = f"refused with {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = f"gave no answer ({type(error).__name__})"
        except (LookupError, TypeError):
            why = "answered in another form than chat completions"
        raise DataError(
            f"the judge {self.model!r} at {urlsplit(self.url).hostname} {why}; check {_URL} and "
            f"{_KEY}, or leave both out to compare texts offline"
        )


def _verdict(said: str) -> float | None:
    """1 if a judge's reply names A, 0 if it names B, None if it names none or both.

    A reasoning model's thoughts do not count, nor does what stands around the letter ("**A**").
    """
    said = said.rpartition("</think>")[2].strip().strip('".')
    letters = set(re.findall(r"\b[AB]\b", said.upper() if len(said) == 1 else said))
    return float(letters == {"A"}) if len(letters) == 1 else None


def chat_texts(model: nn.Module, tok: Any, prompts: Sequence[str]) -> list[str]:
    """The model's reply to each prompt in a chat, up to its first full stop or line break.

    Raises:
        HparamsError: the tokenizer has no chat template, or it refuses a user's turn.
        RequestError: a prompt is longer than the model's context.
    """
    if not getattr(tok, "chat_template", None):
        raise HparamsError(
            f"evaluation_type {' and '.join(EVALUATIONS)} ask in a chat, and the tokenizer has no "
            "chat template; leave evaluation_type out, or take a model that was trained for chat"
        )
    try:
        texts = rendered(tok, prompts, {"role": "system", "content": _SYSTEM})
    except HparamsError:
        texts = rendered(tok, prompts)
    rows = [list(encode_text(tok, text)) for text in texts]
    limit = layout_of(model).max_positions
    room = [max(1, min(_LONGEST, (limit or 2**31) - len(row))) for row in rows]

    def ended(ids: list[int]) -> bool:
        return any(mark in tok.decode(ids) for mark in _STOPS)

    new = continue_rows(model, rows, room, end_ids=end_ids(model, tok), ended=ended)
    return [_without_stop(tok.decode(ids)) for ids in new]


def rendered(tok: Any, prompts: Sequence[str], *first: dict[str, str]) -> list[str]:
    """A chat per prompt, its user's turn, after these first turns; the reply comes next.

    Raises:
        HparamsError: the template refuses these turns.
    """
    chats = [[*first, {"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return list(tok.apply_chat_template(chats, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises whatever its author chose
        raise HparamsError(
            f"the tokenizer's chat template refuses a prompt as the user's turn ({error}); leave "
            "use_chat_template and evaluation_type out"
        ) from error


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
    """EasyEdit's ``metric_meta`` of a section; scores of different judges are not comparable."""
    key, group = "acc", "exact_match_fallback"
    protocol, scorer = group, "exact_match"
    if evaluation_type != JUDGED:
        key, protocol, scorer, group = "gen_content", "raw_text", "none", "raw_text"
    elif judge is not None:
        protocol, scorer, group = "judge", "llm_judge", f"llm_judge.{judge.model}"
    return {
        "result_key": f"{section}_{key}",
        "protocol": f"free_generation_{protocol}",
        "scorer": scorer,
        "comparable_group": f"lm.free_generation.{group}",
    }


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies, in bits, of a text's word pairs and triples.

    Zhang et al. 2018 (GEM) as ROME's authors use it, with weights 2/3 and 4/3.  Low values mean
    repetition.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    entropies = []
    for n, weight in _WEIGHTS.items():
        counts = Counter(zip(*(words[start:] for start in range(n))))
        total = sum(counts.values())
        bits = -sum(c / total * math.log2(c / total) for c in counts.values())
        entropies.append(weight * bits)
    return sum(entropies) / len(entropies)


def as_easyedit_counts(text: str) -> str:
    """The text as EasyEdit counts it: normalised, one line, without the end marker."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("<|endoftext|>", "")


def _without_stop(text: str) -> str:
    for mark in _STOPS:
        text = text.removesuffix(mark)
    return text
