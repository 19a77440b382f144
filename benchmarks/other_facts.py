"""The effect of single edits on other facts about their subjects.

    nse models get smollm2-135m
    python benchmarks/other_facts.py smollm2-135m [--edits 40] [--methods NSE NSE:other-facts]

Of the real facts (``earth``) that a model knows, those are taken whose subjects have several.  One
fact of each subject is edited alone and undone again.  Asked in between are its prompt and its
paraphrases, and the other facts, in the words of their prompts and paraphrases; of these, the
questions that the untouched model answers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from nse_plugin.compare.specs import parse_method
from nse_plugin.data import earth
from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.evaluation.known import keep_known
from nse_plugin.evaluation.questions import mean
from nse_plugin.methods.bases import BASES
from nse_plugin.model.answers import score_answers
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

Questions = list[tuple[str, str]]
"""Prompts, with the answers expected of them."""


def main() -> None:
    """Edit, ask, undo; print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as model_name in the YAMLs")
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--skip", type=int, default=0, help="subjects to leave out")
    parser.add_argument("--methods", nargs="+", default=["NSE", "NSE:other-facts"])
    parser.add_argument("--stats-dir", help="folder of the statistics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, _ = load_model(SimpleNamespace(model_name=options.model, device=None))
    facts = known_facts(model, tokenizer)
    subjects = random.Random(0).sample(sorted(facts), len(facts))[options.skip :]
    edits = [random.Random(s).choice(facts[s]) for s in subjects[: options.edits]]
    others = []
    for edit in edits:
        asked = [q for fact in facts[edit.subject] if fact is not edit for q in questions(fact)]
        right = given(model, tokenizer, asked)
        others.append([question for question, yes in zip(asked, right) if yes])
    print(f"{len(edits)} edits of {options.model}, one at a time; the untouched model answers "
          f"{sum(map(len, others))} questions about their subjects\n\n"
          "| method | efficacy | paraphrase | other facts kept | seconds per edit |\n"
          "|---|---:|---:|---:|---:|")  # fmt: skip
    for name in options.methods:
        spec = parse_method(name)
        base = BASES[spec.method]
        hparams: Any = base.hparams.from_dict(values_for(name, options.model))
        if options.stats_dir:
            hparams = replace(hparams, stats_dir=options.stats_dir)
        session = EditSession.of(model, tokenizer)
        scores: dict[str, list[float]] = defaultdict(list)
        seconds = 0.0
        for edit, asked in zip(edits, others):
            start = time.perf_counter()
            base.edit_round(session, [edit.without_probes()], hparams)
            seconds += time.perf_counter() - start
            prompt, *paraphrases = questions(edit, edit.target_new)
            scores["efficacy"] += given(model, tokenizer, [prompt])
            scores["paraphrase"] += given(model, tokenizer, paraphrases)
            scores["kept"] += given(model, tokenizer, asked)
            session.undo_last()
        cells = " | ".join(f"{100 * (mean(column) or 0.0):.1f}" for column in scores.values())
        print(f"| {name} | {cells} | {seconds / len(edits):.1f} |", flush=True)
        EditSession.forget(model)


def known_facts(model: Any, tokenizer: Any) -> dict[str, list[EditRequest]]:
    """Facts that the model knows, by subject; subjects with one fact are left out."""
    several = by_subject(parse_records(earth.facts()))
    candidates = [fact for some in several.values() for fact in some]
    return by_subject(keep_known(model, tokenizer, candidates).requests)


def by_subject(facts: Sequence[EditRequest]) -> dict[str, list[EditRequest]]:
    """The facts of each subject that has several."""
    found: dict[str, list[EditRequest]] = defaultdict(list)
    for fact in facts:
        found[fact.subject].append(fact)
    return {subject: some for subject, some in found.items() if len(some) > 1}


def questions(fact: EditRequest, answer: str | None = None) -> Questions:
    """A fact's prompt and paraphrases; by default for its true answer."""
    expected = str(answer or fact.ground_truth)
    return [(prompt, expected) for prompt in (fact.text, *fact.rephrase_prompts)]


def given(model: Any, tokenizer: Any, asked: Questions) -> list[bool]:
    """Whether greedy decoding gives each answer."""
    if not asked:
        return []
    return list(score_answers(model, tokenizer, *map(list, zip(*asked))).exact)


if __name__ == "__main__":
    main()
