"""Measurements of the model as a whole: perplexity, known facts, free generation, weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nse_plugin.data import earth
from nse_plugin.errors import DataError, HparamsError
from nse_plugin.evaluation import generated
from nse_plugin.evaluation.questions import Question, finite, mean
from nse_plugin.files import require
from nse_plugin.locate.stabilise import top_directions
from nse_plugin.model.answers import score_answers, score_encoded
from nse_plugin.model.chat import ChatTokenizer, words_around
from nse_plugin.model.generation import greedy_endings, greedy_text, sampled_text
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import EncodedPrompt, encode_text
from nse_plugin.model.seeding import seeded
from nse_plugin.model.weights import all_finite
from nse_plugin.request_fields import inside_a_word, subject_at
from nse_plugin.requests import EditRequest

_STOPS = re.compile(r"[.。\n]")
_HELD_OUT_TOKENS = 256
"""Tokens of each text that a perplexity reads, at most."""


def perplexity(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> float | None:
    """exp of the mean NLL of all tokens but the first of each text; None if it overflows.

    Raises:
        DataError: no text has two tokens.
    """
    bound = layout_of(model).at_most(_HELD_OUT_TOKENS)
    rows = [encode_text(tokenizer, text)[:bound] for text in texts]
    pairs = [EncodedPrompt(tuple(ids), -1, len(ids) - 1) for ids in rows if len(ids) > 1]
    if not pairs:
        raise DataError(
            f"none of {len(texts)} held-out texts has two tokens; give longer ones, or none"
        )
    scores = score_encoded(model, pairs)
    total = sum(nll * n for nll, n in zip(scores.nll, scores.n_tokens)) / sum(scores.n_tokens)
    return finite(math.exp(total)) if total < 700 else None


def ability(model: nn.Module, tokenizer: Any, n: int) -> float | None:
    """Share of at most ``n`` facts whose true answer greedy decoding gives.

    The facts are those of ``earth`` that are never edited, the same ones for every run; compare
    with the untouched model's share.
    """
    return share_given(model, tokenizer, *zip(*earth.unedited(n)))


def share_given(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
) -> float | None:
    """Share of the prompts to which greedy decoding gives the whole answer; None of no prompt."""
    return mean(score_answers(model, tokenizer, prompts, answers).exact)


def first_words(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], targets: Sequence[str]
) -> list[str]:
    """Greedy continuations of the prompts, each in one line and a little longer than any target."""
    longest = max(len(encode_text(tokenizer, target, special=False)) for target in targets)
    texts = greedy_text(model, tokenizer, prompts, longest + words_around(tokenizer))
    return [" ".join(text.split()) for text in texts]


def free_generation(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    max_new_tokens: int,
    *,
    judged: bool = False,
) -> dict[str, Any]:
    """Scores of the greedy continuations of the edits' prompts.

    Args:
        judged: also judge the texts, up to their ends, as :mod:`.generated` does.

    Returns:
        ``n``; ``exact``: up to its end (full stop, line break or end token) the text is the
        target; ``contains``: the whole text has the target as whole words; ``natural_stop``: the
        text ended within ``max_new_tokens``; ``words_after``: the number of words between a
        target that the text begins with and its end; with ``judged`` also ``judged`` and
        ``judge``, the judge's name or None.  Shares and means, None of no request.
    """
    prompts = [request.text for request in requests]
    written = greedy_endings(model, tokenizer, prompts, max_new_tokens)
    answers, exact, contains, natural, after = [], [], [], [], []
    for request, (text, ended) in zip(requests, written):
        target = request.target_new.strip()
        said, more = _up_to_its_end(text, target)
        answers.append(said)
        exact.append(float(said == target))
        if more is not None:
            after.append(float(len(more.split())))
        contains.append(float(holds(text, target)))
        natural.append(float(ended or bool(_STOPS.search(text.lstrip()))))
    shares: dict[str, Any] = {
        "n": len(written),
        "exact": mean(exact),
        "contains": mean(contains),
        "natural_stop": mean(natural),
        "words_after": mean(after),
    }
    if not judged:
        return shares
    judge = generated.Judge.of()
    asked = [Question(n, "rewrite", r.text, r.target_new) for n, r in enumerate(requests)]
    scores = generated.scores(asked, answers, judge)
    return {**shares, "judged": mean(scores), "judge": judge.model if judge else None}


def _up_to_its_end(text: str, target: str) -> tuple[str, str | None]:
    """A text up to its first full stop or line break, and what of it follows the target.

    A stop within a target that the text begins with (*St. Louis*) does not count; one at the
    target's end does.  The second part is None of a text that does not begin with the target.
    """
    text = text.strip()
    if not text.startswith(target) or inside_a_word(text, len(target)):
        return _STOPS.split(text, maxsplit=1)[0].strip(), None
    rest = "" if _STOPS.match(target[-1]) else text[len(target) :]
    more = _STOPS.split(rest, maxsplit=1)[0].rstrip()
    return target + more, more


def holds(text: str, answer: str) -> bool:
    """Whether a text contains an answer as whole words, in scripts without spaces as well."""
    return subject_at(text, answer, whole_words=True) >= 0


def fluency(model: nn.Module, tokenizer: Any, requests: Sequence[EditRequest]) -> float | None:
    """Mean n-gram entropy of sampled texts that begin with the edits' prompts."""
    bound = layout_of(model).at_most(generated.FLUENCY_TOKENS)
    texts = sampled_text(model, tokenizer, [request.text for request in requests], bound)
    return mean([generated.ngram_entropy(text) for text in texts])


def relative_change(original: torch.Tensor, current: torch.Tensor) -> float | None:
    """||W - W_original|| / ||W_original||, Frobenius."""
    now, before = current.detach().float(), original.detach().float()
    return finite(float((now - before).norm() / before.norm().clamp(min=1e-30)))


def direction_drift(original: torch.Tensor, current: torch.Tensor, k: int) -> float | None:
    """1 - ||U0^T U||^2 / k, for the k dominant singular vectors U0 and U of both matrices.

    The vectors are those of the shorter side (d_model for a down-projection).  0 if both span the
    same space, 1 if the spaces are orthogonal.
    """
    if original.dim() != 2 or not all_finite(current):
        return None
    wide = (w if w.shape[0] <= w.shape[1] else w.T for w in (original, current.detach()))
    before, now = (top_directions(w, min(k, len(w))).left for w in wide)
    return max(0.0, 1 - float((before.T @ now).square().sum()) / before.shape[1])


def run_harness(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str], limit: int | None
) -> dict[str, Any]:
    """Results of EleutherAI's lm-evaluation-harness by task, unchanged.

    Args:
        tasks: its names of tasks, or paths of YAML files that define a task.

    Raises:
        MissingPackageError: the package is not installed.
        HparamsError: it does not know a task.
    """
    wanted = dict(package="lm-eval", otherwise="or leave harness_tasks out")
    lm_eval = require("lm_eval", f"harness_tasks {list(tasks)}", **wanted)
    models = require("lm_eval.models.huggingface", f"harness_tasks {list(tasks)}", **wanted)
    # its texts are plain: in chat as well, it gets the tokenizer inside
    plain = tokenizer.inside if isinstance(tokenizer, ChatTokenizer) else tokenizer
    wrapped = models.HFLM(pretrained=model, tokenizer=plain)
    try:
        with seeded(0, model=model):  # the harness seeds all generators of the process
            found = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(tasks), limit=limit, log_samples=False
            )
    except KeyError as error:
        raise HparamsError(
            f"harness_tasks is {list(tasks)}, which lm_eval does not know ({error.args[0]}); "
            "`lm-eval ls tasks` lists its tasks"
        ) from error
    return {
        task: {
            name: finite(float(value)) if isinstance(value, (int, float)) else str(value)
            for name, value in scores.items()
        }
        for task, scores in found["results"].items()
    }
