"""The metrics of one edit, in EasyEdit's schema and by its definitions, many records at a time.

``rewrite_acc``, ``rephrase_acc`` and portability are token accuracies under teacher forcing;
locality keeps the first choices, to be compared before and after (:mod:`.before_after`).

It differs from EasyEdit in these points:

* Positions do not depend on padding.  EasyEdit pads several probes of one record on the left and
  passes no positions, so with learned position embeddings (GPT-2) its scores of such probes
  depend on the longest of them.  With rotary positions both agree.
* Every method is scored by teacher forcing.  EasyEdit scores GRACE by generation, against the
  answer's tokens *without* the space before it, so its methods are not comparable.
* Each of several rephrasings is scored against the same answer; EasyEdit would pair them with the
  answer's characters.
* ``fluency`` splits text with a regular expression, where EasyEdit downloads nltk's punkt.  Both
  separate words and punctuation alike, except contractions ("don't" is don / ' / t here).
  Sampling has its own seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from nse_plugin.errors import HparamsError, RequestError, did_you_mean
from nse_plugin.evaluation import generated
from nse_plugin.evaluation.questions import Question, ScoredAnswer, put_questions
from nse_plugin.model.generation import sampled_text
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import EncodedPrompt, encode_text
from nse_plugin.request_fields import FieldError, filled, is_missing, listed
from nse_plugin.request_fields import questions as probes_of

EVAL_METRICS = ("token_em", "exact match", "ppl")
"""Known metrics; EasyEdit's default name "exact match" means token accuracy, as "token_em" does."""

_NAMES = {"rewrite": "rewrite", "paraphrase": "rephrase"}
"""EasyEdit's words for the groups that have no kinds."""


def compute_edit_quality(
    model: nn.Module,
    model_name: str,
    hparams: Any,
    tok: Any,
    record: Mapping[str, Any],
    device: Any = None,
    eval_metric: str = "token_em",
    test_generation: bool = False,
) -> dict[str, Any]:
    """Measure one record; arguments and result are EasyEdit's.

    Args:
        model_name: not needed here.
        record: ``prompt``, ``target_new`` and, where wanted, ``rephrase_prompt``, ``locality`` and
            ``portability`` as ``{kind: {"prompt": text or texts, "ground_truth": the same}}``, or
            as KnowEdit has them.  Missing values are left out.
        device: not needed here; the model knows where it is.

    Raises:
        RequestError: a field is missing, or the numbers of prompts and answers differ.
        HparamsError: unknown ``eval_metric``, or ``evaluation_type`` needs a chat template.
    """
    return compute_many(
        model, hparams, tok, [record], eval_metric=eval_metric, test_generation=test_generation
    )[0]


def compute_many(
    model: nn.Module,
    hparams: Any,
    tok: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    eval_metric: str = "token_em",
    test_generation: bool = False,
) -> list[dict[str, Any]]:
    """Measure many records in a few batches; see :func:`compute_edit_quality`.

    Returns:
        Per record: ``rewrite_acc [float]`` (or ``rewrite_ppl float``), the same for
        ``rephrase``, ``locality {kind_output: [[token ids]]}``, ``portability {kind_acc:
        [float]}``, ``metric_meta`` and, on request, ``fluency {"ngram_entropy": float}``.  An
        ``evaluation_type`` of :mod:`.generated` gives ``..._gen_content [text]`` instead, and
        ``..._acc`` if they are judged.
    """
    if eval_metric not in EVAL_METRICS:
        raise HparamsError(
            f"unknown eval_metric {eval_metric!r}{did_you_mean(eval_metric, EVAL_METRICS)}; "
            f"there are: {', '.join(EVAL_METRICS)}"
        )
    writes = getattr(hparams, "evaluation_type", None) in generated.EVALUATIONS
    chat = None if writes else _chat(hparams, tok)
    questions = [
        question
        for number, record in enumerate(records)
        for question in _questions(number, record, chat)
    ]
    names = [record.get("case_id", number) for number, record in enumerate(records)]
    results: list[dict[str, Any]] = [{"locality": {}, "portability": {}} for _ in records]
    if writes:
        _fill_in_texts(model, tok, hparams, questions, results)
    else:
        replies = put_questions(model, tok, questions, names, encode=_encode_as_host)
        asked = zip(questions, replies)
        for (number, group, kind), of_metric in groupby(asked, key=lambda pair: _metric(pair[0])):
            scored = [reply for _, reply in of_metric]
            _fill_in(results[number], group, kind, scored, eval_metric)
    if test_generation:
        _add_fluency(model, tok, records, results)
    return results


# --- questions ----------------------------------------------------------------------------------


def _metric(question: Question) -> tuple[int, str, str]:
    """The metric that a question belongs to."""
    return question.record, question.group, question.kind


def _questions(number: int, record: Mapping[str, Any], chat: Any) -> list[Question]:
    for field in ("prompt", "target_new"):
        if field not in record:
            raise RequestError(
                f"record {number}: field {field!r} is missing; it has {', '.join(sorted(record))}"
            )
    target = record["target_new"]
    prompts = [filled(prompt, record.get("subject")) for prompt in listed(record["prompt"])]
    targets = list(target) if isinstance(target, (list, tuple)) else [target] * len(prompts)
    asked = [("rewrite", "", _paired(number, "prompt", prompts, targets))]
    rephrased = [t for t in listed(record.get("rephrase_prompt")) if not is_missing(t)]
    if rephrased:
        same = targets if len(targets) == len(rephrased) else [targets[0]] * len(rephrased)
        asked.append(("paraphrase", "", _paired(number, "rephrase_prompt", rephrased, same)))
    for group in ("locality", "portability"):
        try:
            probes = [probe for probe in probes_of(record.get(group), group) if probe[2]]
        except FieldError as error:
            raise RequestError(f"record {number}: {error}") from None
        for kind, of_kind in groupby(probes, key=lambda probe: probe[0]):
            asked.append((group, kind, [(prompt, str(answer)) for _, prompt, answer in of_kind]))
    questions = []
    for group, kind, pairs in asked:
        in_chat = chat is not None and group != "locality"
        if in_chat:
            texts = generated.rendered(chat, [prompt for prompt, _ in pairs])
            pairs = [(text, answer) for text, (_, answer) in zip(texts, pairs)]
        questions += [
            Question(number, group, prompt, answer, kind=kind, in_chat=in_chat)
            for prompt, answer in pairs
        ]
    return questions


def _paired(
    number: int, where: str, prompts: Sequence[str], targets: Sequence[str]
) -> list[tuple[str, str]]:
    if len(prompts) != len(targets):
        raise RequestError(
            f"record {number}: {where} has {len(prompts)} texts and target_new {len(targets)}; "
            "give one target per prompt"
        )
    for name, texts in ((where, prompts), ("target_new", targets)):
        for text in texts:
            if not isinstance(text, str):
                raise RequestError(f"record {number}: {name} holds {text!r}; give texts")
    return list(zip(prompts, targets))


def _chat(hparams: Any, tok: Any) -> Any:
    """The tokenizer if prompts go into its chat template, as the hparams may ask; else None."""
    if not getattr(hparams, "use_chat_template", False):
        return None
    if not getattr(tok, "chat_template", None):
        raise HparamsError(
            "use_chat_template is true and the tokenizer has no chat template; set it to false, "
            "or take the tokenizer of a model that was trained for chat"
        )
    return tok


def _encode_as_host(tok: Any, question: Question, answer: str) -> EncodedPrompt:
    """Prompt and answer tokenised together; the answer has all tokens beyond the prompt's count.

    This is EasyEdit's count; ``encode_prompt`` differs if a token straddles the two.
    """
    special = not question.in_chat
    ids = encode_text(tok, f"{question.prompt} {answer}", special=special)
    n_prompt = len(encode_text(tok, question.prompt, special=special))
    return EncodedPrompt(tuple(ids), -1, max(len(ids) - n_prompt, 0))


# --- results ------------------------------------------------------------------------------------


def _fill_in(
    result: dict[str, Any], group: str, kind: str, replies: Sequence[ScoredAnswer], eval_metric: str
) -> None:
    name = _NAMES.get(group, group)
    if group == "locality":
        result["locality"][f"{kind}_output"] = [reply.predicted for reply in replies]
    elif group == "portability":
        result["portability"][f"{kind}_acc"] = _accuracies(replies)
    elif eval_metric == "ppl":
        result[f"{name}_ppl"] = _perplexity(replies)
        _add_meta(result, name, "ppl", "teacher_forcing", "perplexity")
    else:
        result[f"{name}_acc"] = _accuracies(replies)
        _add_meta(result, name, "acc", "decoder_only_teacher_forcing", "token_accuracy")


def _fill_in_texts(
    model: nn.Module,
    tok: Any,
    hparams: Any,
    questions: Sequence[Question],
    results: list[dict[str, Any]],
) -> None:
    kind_of = hparams.evaluation_type
    judge = generated.Judge.of(hparams) if kind_of == generated.JUDGED else None
    texts = generated.chat_texts(model, tok, [q.prompt for q in questions])
    answered = zip(questions, texts)
    for (number, group, kind), pairs in groupby(answered, key=lambda pair: _metric(pair[0])):
        asked, said = map(list, zip(*pairs))
        section = results[number] if group in _NAMES else results[number][group]
        name = _NAMES.get(group, kind)
        section[f"{name}_gen_content"] = said
        if kind_of == generated.JUDGED and group != "locality":
            section[f"{name}_acc"] = generated.scores(asked, said, judge)
        if group in _NAMES:
            meta = results[number].setdefault("metric_meta", {})
            meta[name] = generated.description(kind_of, name, judge)


def _add_meta(
    result: dict[str, Any], section: str, suffix: str, protocol: str, scorer: str
) -> None:
    result.setdefault("metric_meta", {})[section] = {
        "result_key": f"{section}_{suffix}",
        "protocol": f"{protocol}_ppl" if suffix == "ppl" else protocol,
        "scorer": scorer,
        "comparable_group": f"lm.{protocol}.{scorer}",
    }


def _accuracies(replies: Sequence[ScoredAnswer]) -> list[float]:
    """As EasyEdit does: answers without a token are left out; a single one is NaN."""
    if len(replies) == 1 and replies[0].accuracy is None:
        return [math.nan]
    return [reply.accuracy for reply in replies if reply.accuracy is not None]


def _perplexity(replies: Sequence[ScoredAnswer]) -> float:
    """Perplexity over all answer tokens; NaN if there is none, or a loss is not finite; infinite if
    it is larger than any number."""
    total = sum(reply.n_tokens for reply in replies)
    losses = [(reply.nll, reply.n_tokens) for reply in replies if reply.n_tokens]
    if not total or any(nll is None for nll, _ in losses):
        return math.nan
    mean = sum(nll * n for nll, n in losses if nll is not None) / total
    return math.exp(mean) if mean < 700 else math.inf


def _add_fluency(
    model: nn.Module,
    tok: Any,
    records: Sequence[Mapping[str, Any]],
    results: list[dict[str, Any]],
) -> None:
    prompts = [
        [filled(prompt, record.get("subject")) for prompt in listed(record["prompt"])]
        for record in records
    ]
    flat = [prompt for group in prompts for prompt in group]
    length = layout_of(model).at_most(generated.FLUENCY_TOKENS)
    texts = iter(sampled_text(model, tok, flat, length))
    for group, result in zip(prompts, results):
        counted = [generated.as_easyedit_counts(next(texts)) for _ in group]
        entropies = [generated.ngram_entropy(text) for text in counted]
        result["fluency"] = {"ngram_entropy": sum(entropies) / len(entropies)}
