"""What a model says in chat after edits in plain text, and after edits in its chat template.

    nse models get smollm2-135m
    python benchmarks/chat.py smollm2-135m [--edits 40] [--method NSE]

Edits are facts of ``earth`` that the model knows in plain text, in rounds of 20.  After the last
round the model is asked in chat, greedily: the prompts and two paraphrases of each, two other
questions about each subject, and the prompts of other subjects.  The weights are restored before
the edits are made in the other format.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data, settled
from nse_plugin.evaluation.known import keep_known
from nse_plugin.evaluation.model_state import holds
from nse_plugin.evaluation.questions import mean
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.registry import hparams_from
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.generation import greedy_text
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

ROUND, TOKENS, FIRST_WORDS = 20, 32, 8
OTHER_QUESTIONS = ("Tell me about {}.", "What is {} known for?")
Asked = list[tuple[EditRequest, str]]
"""Questions in chat, each with the edit that it is about."""


def main() -> None:
    """Edit in both formats, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as model_name in the YAMLs, with a chat template")
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--method", default="NSE", help="of the NSE family: NSE, NSE:stable ...")
    parser.add_argument("--stats-dir", help="folder of the statistics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, _ = load_model(SimpleNamespace(model_name=options.model, device=None))
    hparams = hparams_from(options.model, values_for(options.method, options.model))
    assert isinstance(hparams, NSEHparams)
    if options.stats_dir:
        hparams = replace(hparams, stats_dir=options.stats_dir)
    facts = read_data("earth", None, 0, choose=True)
    known = keep_known(model, tokenizer, facts, limit=options.edits).requests
    requests = settled("earth", known)
    chat = ChatTokenizer(tokenizer)
    asked: dict[str, Asked] = {
        "prompts": [(r, r.text) for r in requests],
        "paraphrases": [(r, text) for r in requests for text in r.rephrase_prompts[:2]],
        "others": [(r, text.format(r.subject)) for r in requests for text in OTHER_QUESTIONS],
        "neighbours": [(r, p[0].prompt) for r in requests for p in r.locality.values()],
    }
    untouched = replies(model, chat, asked)
    print(f"{len(requests)} edits of {options.model} with {options.method}, rounds of {ROUND}\n")
    print("| edited in | new answer to prompts | to paraphrases | replies to other questions that "
          "begin with it | that name the subject | unchanged words for other subjects |\n"
          "|---|---:|---:|---:|---:|---:|")  # fmt: skip
    show("untouched", asked, untouched, untouched)
    for name, format_ in (("plain text", tokenizer), ("chat template", chat)):
        session = EditSession.of(model, format_)
        for start in range(0, len(requests), ROUND):
            some = [request.without_probes() for request in requests[start : start + ROUND]]
            edit_round(session, some, hparams)
        show(name, asked, replies(model, chat, asked), untouched)
        session.undo_all()
        EditSession.forget(model)


def replies(model: Any, chat: Any, asked: dict[str, Asked]) -> dict[str, list[str]]:
    """What the model says to each question in chat."""
    return {
        kind: [text.strip() for text in greedy_text(model, chat, [q for _, q in some], TOKENS)]
        for kind, some in asked.items()
    }


def show(
    name: str,
    asked: dict[str, Asked],
    said: dict[str, list[str]],
    untouched: dict[str, list[str]],
) -> None:
    """Print one row."""
    others = list(zip(asked["others"], said["others"]))
    columns: list[list[float]] = [
        *(
            [holds(text, r.target_new) for (r, _), text in zip(asked[kind], said[kind])]
            for kind in ("prompts", "paraphrases")
        ),
        [text.startswith(r.target_new) for (r, _), text in others],
        [holds(text, r.subject) for (r, _), text in others],
        list(map(same_words, said["neighbours"], untouched["neighbours"])),
    ]
    cells = " | ".join(f"{100 * (mean(column) or 0.0):.1f}" for column in columns)
    print(f"| {name} | {cells} |", flush=True)


def same_words(one: str, other: str) -> float:
    """Share of the first words of two replies that are the same."""
    first = [text.split()[:FIRST_WORDS] for text in (one, other)]
    return mean([float(a == b) for a, b in zip(*first)]) or 0.0


if __name__ == "__main__":
    main()
