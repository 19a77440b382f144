"""Scores of edit requests: ask the model once, then count.  One definition for every method.

Per request (values from 0 to 1; means over its probes first, then over requests):

* ``efficacy``, ``paraphrase``, ``portability``: greedy decoding gives the whole answer;
* ``..._tokens``: share of answer tokens that are the first choice under teacher forcing, which is
  ZsRE's accuracy (MEND, ROME, MEMIT) and EasyEdit's ``rewrite_acc``;
* ``..._probability``: the new answer is likelier than the true one by mean NLL over its tokens,
  which is CounterFact's ES and PS (ROME section 3.4); ``locality_probability`` is its NS, where the
  probe's own answer has to be likelier than the new one;
* ``locality``: share of tokens, at a locality probe's answer, whose first choice is that of the
  untouched model; ``locality_exact``: all of them; ``locality_of_effective``: ``locality`` of the
  requests with efficacy 1, since an edit that fails leaves other facts unchanged too (WILD, arXiv
  2502.11177);
* ``negation``: the new answer is given to the *negated* prompt too, so lower is better (arXiv
  2510.00625); ``distractor``: it is given after a sentence that names the old answer;
* ``reversal``: asked from the new answer, the model gives the subject (an edit of one direction
  does not imply the other); ``translation``: asked in another language, it gives the new answer.
  Both only if the request has such a form.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import nn

from nse_plugin.evaluation.questions import Question, mean, put_questions
from nse_plugin.evaluation.settings import GROUPS, OPTIONAL_GROUPS, Protocol
from nse_plugin.requests import EditRequest, Probe

_NAMES = {"rewrite": "efficacy", "paraphrase": "paraphrase", "portability": "portability"}

Answered = dict[str, list[dict[str, Any]]]
"""A model's answers to one request's probes, by group; plain values, ready for JSON."""


def ask(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    protocol: Protocol,
) -> list[Answered]:
    """Ask the probes that a protocol selects from the requests, in a few batches.

    Returns:
        Per request and group a list with one entry per probe: ``prompt, exact, accuracy, nll``
        (of the answer), ``nll_other`` (of the true answer; for locality of the new one; or None)
        and, for locality, ``predicted``, the first choices as token ids.

    Raises:
        RequestError: a probe is longer than the model's context.
    """
    questions = [
        question
        for number, request in enumerate(requests)
        for question in _questions(number, request, protocol)
    ]
    names = [request.case_id for request in requests]
    replies = put_questions(model, tokenizer, questions, names)
    groups = (*GROUPS, *(group for group in OPTIONAL_GROUPS if getattr(protocol, group)))
    found: list[Answered] = [{group: [] for group in groups} for _ in requests]
    for question, reply in zip(questions, replies):
        item: dict[str, Any] = {
            "prompt": question.prompt,
            "exact": reply.exact,
            "accuracy": reply.accuracy,
            "nll": reply.nll,
            "nll_other": reply.nll_other,
        }
        if question.group == "locality":
            item["predicted"] = reply.predicted
        found[question.record][question.group].append(item)
    return found


def summarise(
    answered: Sequence[Answered], frozen: Sequence[Answered], edited: Container[str] = ()
) -> dict[str, Any]:
    """Scores: means over the requests that have the probes in question, or None if none has.

    Args:
        frozen: the untouched model's answers, request by request.
        edited: prompts of edits; a locality probe among them is not scored, since its answer has
            to change.
    """
    columns: dict[str, list[float]] = {}
    for now, before in zip(answered, frozen, strict=True):
        for name, value in _request_scores(now, before, edited).items():
            columns.setdefault(name, []).append(value)
    scores = {name: mean(columns.get(name, [])) for name in SCORES}
    return {"n": len(answered), **scores}


SCORES = (
    "efficacy", "efficacy_tokens", "efficacy_probability", "efficacy_nll",
    "paraphrase", "paraphrase_tokens", "paraphrase_probability", "paraphrase_nll",
    "portability", "portability_tokens", "portability_nll",
    "locality", "locality_exact", "locality_probability", "locality_of_effective",
    "negation", "distractor", "reversal", "translation",
)  # fmt: skip
"""Names of the scores of :func:`summarise`."""


def asked_texts(request: EditRequest, protocol: Protocol) -> list[str]:
    """The prompts that :func:`ask` asks for a request."""
    return [question.prompt for question in _questions(0, request, protocol)]


def _questions(number: int, request: EditRequest, protocol: Protocol) -> list[Question]:
    """A request's questions: its prompt, then as many probes as the protocol allows."""
    new, true = request.target_new, request.ground_truth
    other = true if true and true != new else None
    prompts = [("rewrite", request.text)]
    prompts += [("paraphrase", text) for text in request.rephrase_prompts[: protocol.paraphrases]]
    if protocol.negation and "negation" not in request.forms:
        prompts.append(("negation", negated(request)))
    if protocol.distractor:
        prompts.append(("distractor", distracted(request)))
    asked = [Question(number, group, prompt, new, other) for group, prompt in prompts]
    for group in OPTIONAL_GROUPS:
        for probe in request.forms.get(group, ()) if getattr(protocol, group) else ():
            asked.append(Question(number, group, probe.prompt, probe.answer))
    for probe in _first(request.portability, protocol.portability):
        asked.append(Question(number, "portability", probe.prompt, probe.answer))
    for probe in _first(request.locality, protocol.locality):
        against = new if new != probe.answer else None
        asked.append(Question(number, "locality", probe.prompt, probe.answer, against))
    return asked


def negated(request: EditRequest) -> str:
    """The request's prompt as a sentence that denies it, for data without negated prompts."""
    text = request.text
    if request.subject_start > 0:  # a subject keeps its capital
        text = text[0].lower() + text[1:]
    return f"It is not true that {text}"


def distracted(request: EditRequest) -> str:
    """The request's prompt after a sentence that names the old answer, if known."""
    return f"{request.ground_truth or 'This'} is often talked about. {request.text}"


def _first(groups: Mapping[str, tuple[Probe, ...]], bound: int) -> list[Probe]:
    return [probe for probes in groups.values() for probe in probes[:bound]]


def _request_scores(now: Answered, before: Answered, edited: Container[str]) -> dict[str, float]:
    scores: dict[str, float | None] = {}
    for group, name in _NAMES.items():
        items = now[group]
        scores[name] = mean([float(item["exact"]) for item in items])
        scores[f"{name}_tokens"] = _mean_of(items, "accuracy")
        scores[f"{name}_nll"] = _mean_of(items, "nll")
        if group != "portability":
            scores[f"{name}_probability"] = mean(_likelier(items))
    for group in OPTIONAL_GROUPS:
        scores[group] = mean([float(item["exact"]) for item in now.get(group, ())])
    frozen = before["locality"] if now["locality"] else []  # a protocol may skip locality
    pairs = [
        (item, old)
        for item, old in zip(now["locality"], frozen, strict=True)
        if item["prompt"] not in edited
    ]
    shares = [
        sum(a == b for a, b in zip(item["predicted"], old["predicted"])) / len(old["predicted"])
        for item, old in pairs
        if old["predicted"]
    ]
    scores["locality"] = mean(shares)
    scores["locality_of_effective"] = scores["locality"] if scores["efficacy"] == 1 else None
    scores["locality_exact"] = mean([float(share == 1) for share in shares])
    scores["locality_probability"] = mean(_likelier([item for item, _ in pairs]))
    return {name: value for name, value in scores.items() if value is not None}


def _likelier(items: Sequence[Mapping[str, Any]]) -> list[float]:
    return [
        float(item["nll"] is not None and item["nll"] < item["nll_other"])
        for item in items
        if item["nll_other"] is not None
    ]


def _mean_of(items: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return mean([item[key] for item in items if item[key] is not None])
